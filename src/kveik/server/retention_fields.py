"""What a request says about the cache, native or in the words of another API, as one Directive.

    "kveik": {...}, prompt_cache_*, cache_control, cache_salt, cache_prompt -> Retention

docs/CACHE_FIELDS.md has one line per field. Two fields that say the same thing differently are
refused: which of them would win is nobody's guess. Salts are hashed here, at the edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, PlainValidator, WithJsonSchema

from kveik.cache.directive import (
    PLAIN,
    Clock,
    Directive,
    Priority,
    Relevance,
    Ttl,
    TtlMode,
    TtlSpan,
    Write,
)
from kveik.cache.window import StreamWindow
from kveik.config import LIMITS, check_limit
from kveik.engine.forgetting import Forget, forget_words
from kveik.engine.modules.joins import Join
from kveik.engine.words import salt_digest, stream_window
from kveik.server.fields import (
    DOCUMENT_SCHEMA,
    IDENTIFIER_SCHEMA,
    Body,
    Duration,
    Identifier,
    Tags,
    refuse,
)

_WRITE: dict[bool | str, Write] = {True: "all", "low": "low", False: "none"}
_RETENTION_SECONDS = {"in_memory": 3600.0, "in-memory": 3600.0, "24h": 86400.0}

Salt: TypeAlias = Annotated[
    str,
    Field(min_length=int(LIMITS["salt_length"].low), max_length=int(LIMITS["salt_length"].high)),
]


def _writes(value: object) -> Write:
    if isinstance(value, bool) or value == "low":
        return _WRITE[value]
    raise ValueError('expected true, false or "low"')


Writes: TypeAlias = Annotated[
    Write, PlainValidator(_writes), WithJsonSchema({"enum": [True, False, "low"]})
]


def _window(value: object) -> StreamWindow | Literal[False]:
    return value if value is False else stream_window(value)


Window: TypeAlias = Annotated[
    StreamWindow | Literal[False],
    PlainValidator(_window),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {
                        name: {
                            "type": "integer",
                            "minimum": int(LIMITS[limit].low),
                            "maximum": int(LIMITS[limit].high),
                        }
                        for name, limit in (
                            ("sinks", "stream_sinks"),
                            ("window", "stream_window"),
                            ("evict", "stream_window"),
                        )
                    },
                    "required": ["window"],
                    "additionalProperties": False,
                },
                {"type": "string", "pattern": "^[0-9]+\\+[0-9]+(/[0-9]+)?$"},
                {"const": False},
            ]
        }
    ),
]


def _forget_schema(name: str, of_field: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: of_field},
        "required": [name],
        "additionalProperties": False,
    }


Forgets: TypeAlias = Annotated[
    Forget,
    PlainValidator(forget_words),
    WithJsonSchema(
        {
            "anyOf": [
                _forget_schema(
                    "turns",
                    {
                        "type": "array",
                        "items": {"type": "integer", "minimum": 1},
                        "minItems": 1,
                        "maxItems": int(LIMITS["forget_count"].high),
                    },
                ),
                _forget_schema("turns", {"type": "string", "pattern": "^[1-9]-[1-9][0-9]{1,3}$"}),
                _forget_schema("tag", IDENTIFIER_SCHEMA),
                _forget_schema("document", DOCUMENT_SCHEMA),
            ]
        }
    ),
]


class Native(Body):
    """The object "kveik" of a request; every field may be left out. join: how prompt modules are
    joined; markup: the prompt is `<prompt schema=...>`."""

    session: Identifier | None = None
    continues: bool | None = Field(None, alias="continue")
    context: Identifier | None = None
    relevance: Relevance | None = None
    tags: Tags | None = None
    ttl: Duration | None = None
    ttl_mode: TtlMode | None = None
    clock: Clock | None = None
    priority: Priority | None = None
    write: Writes | None = None
    explain: bool | None = None
    stream_window: Window | None = None
    join: Join | None = None
    markup: bool | None = None
    forget: Forgets | None = None


class CacheOptions(Body):
    """OpenAI's prompt_cache_options. ttl is the shortest time for which a prefix is kept."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Duration | None = None


class CacheFields(Body):
    """The cache fields that every generation request may carry."""

    kveik: Native | None = None
    cached_content: Identifier | None = None
    prompt_cache_key: Identifier | None = None
    prompt_cache_options: CacheOptions | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    cache_salt: Salt | None = None
    cache_prompt: bool | None = None
    stream_window: Window | None = None

    def check(self) -> None:
        retention(self)


@dataclass(frozen=True, slots=True)
class Mark:
    """A breakpoint on a part of a message. seconds None: it says nothing about how long."""

    field: Literal["cache_control", "prompt_cache_breakpoint"]
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Retention:
    """directive: without what depends on tokens (documents, write_until). salt: a digest, or "".

    reuse False: computed cold. continues: the finished turns of the session come first.
    write_to_mark: what comes behind the last prompt_cache_breakpoint is not stored. stream: the
    window of an endless stream; False: none; None: as the server was configured. idle: fields that
    say nothing to a stream that goes on. join: how modules are joined, None: the usual way; markup:
    prompts are markup of a schema."""

    directive: Directive = PLAIN
    salt: str = ""
    reuse: bool = True
    continues: bool = False
    explain: bool = False
    cached_content: str | None = None
    write_to_mark: bool = False
    join: Join | None = None
    markup: bool = False
    shortest: float = math.inf  # lifetime of a breakpoint at which something is deleted
    stream: StreamWindow | Literal[False] | None = None
    idle: tuple[str, ...] = ()
    forget: Forget | None = None  # of the session's finished turns

    @property
    def keep(self) -> float:
        """For how many seconds the tokens of its text may be remembered: of several lifetimes, for
        the shortest."""
        return min(self.directive.text_seconds, self.shortest)


def retention(fields: CacheFields, marks: Sequence[Mark] = ()) -> Retention:
    """Raises InvalidRequest where fields contradict each other or lack what they need."""
    native = fields.kveik or Native.model_construct()
    _check_native(native)
    if native.continues and fields.cached_content is not None:
        refuse("cached_content", "the session begins with what it began with; send one of them")
    if native.forget is not None and fields.cached_content is not None:
        refuse("kveik.forget", "a session that begins with cached_content cannot; leave one out")
    explicit = fields.prompt_cache_options is not None and (
        fields.prompt_cache_options.mode == "explicit"
    )
    to_mark = explicit and any(mark.field == "prompt_cache_breakpoint" for mark in marks)
    if native.forget is not None and to_mark:
        refuse(
            "kveik.forget",
            "what is left is stored as a whole, also behind the last prompt_cache_breakpoint; "
            "leave the breakpoints to choose by out",
        )
    directive = Directive(
        session=native.session,
        context=native.context,
        relevance=native.relevance,
        tags=_tags(native, fields.prompt_cache_key),
        ttl=_ttl(native, fields, marks),
        priority=native.priority or "normal",
        write=_write(native, fields, explicit and not to_mark),
    )
    return Retention(
        directive=directive,
        salt="" if fields.cache_salt is None else salt_digest(fields.cache_salt),
        reuse=fields.cache_prompt is not False,
        continues=bool(native.continues),
        explain=bool(native.explain),
        cached_content=fields.cached_content,
        write_to_mark=to_mark,
        join=native.join,
        markup=bool(native.markup),
        shortest=min(_lifetimes(marks), default=math.inf),
        stream=_stream(native, fields),
        idle=_idle(native, fields, marks),
        forget=native.forget,
    )


def _stream(native: Native, fields: CacheFields) -> StreamWindow | Literal[False] | None:
    both = (native.stream_window, fields.stream_window)
    if None not in both and both[0] != both[1]:
        refuse("stream_window", "contradicts kveik.stream_window; send one of them")
    return both[0] if both[0] is not None else both[1]


def _idle(native: Native, fields: CacheFields, marks: Sequence[Mark]) -> tuple[str, ...]:
    """What of the request could only say something about blocks that are stored or found."""
    given = {
        "kveik.priority": native.priority,
        "kveik.write": native.write,
        "cache_prompt": fields.cache_prompt,
        "prompt_cache_options": fields.prompt_cache_options,
        "cache_control": marks or None,
    }
    return tuple(name for name, value in given.items() if value is not None)


def _lifetimes(marks: Sequence[Mark]) -> list[float]:
    """Of the breakpoints at which something is deleted."""
    return [mark.seconds for mark in marks if mark.field == "cache_control" and mark.seconds]


def breakpoint_spans(marks: Sequence[Mark], ends: Sequence[int]) -> tuple[TtlSpan, ...]:
    """How long the tokens up to each cache_control live: what lies before several, for the longest.
    ends: the token position behind each mark."""
    timed = [
        (mark.seconds, end)
        for mark, end in zip(marks, ends, strict=True)
        if mark.field == "cache_control" and mark.seconds is not None
    ]
    spans: list[TtlSpan] = []
    start = 0
    for number, (_, end) in enumerate(timed):
        longest = max(seconds for seconds, _ in timed[number:])
        if end > start:
            spans.append(TtlSpan(start, end, Ttl(longest, "last_use", "delete")))
            start = end
    return tuple(spans)


def _check_native(native: Native) -> None:
    if native.session is None:
        for name, value in (
            ("context", native.context),
            ("relevance", native.relevance),
            ("continue", native.continues or None),
            ("forget", native.forget),
        ):
            if value is not None:
                refuse(f"kveik.{name}", "needs kveik.session: it is about what a session computed")
    if native.ttl is None:
        for name, value in (("ttl_mode", native.ttl_mode), ("clock", native.clock)):
            if value is not None:
                refuse(f"kveik.{name}", "needs kveik.ttl")


def _tags(native: Native, key: str | None) -> tuple[str, ...]:
    tags = tuple(dict.fromkeys((*(native.tags or ()), *(() if key is None else (key,)))))
    check_limit("tag_count", len(tags), param="kveik.tags")
    return tags


def _write(native: Native, fields: CacheFields, unmarked: bool) -> Write:
    """unmarked: only marked prefixes are to be stored, and none is marked."""
    for name, is_off in (
        ("cache_prompt", fields.cache_prompt is False),
        ("prompt_cache_options.mode", unmarked),
    ):
        if is_off and native.write not in (None, "none"):
            refuse("kveik.write", f"contradicts {name}, which stores nothing; send one of them")
        if is_off:
            return "none"
    return native.write or "all"


def _ttl(native: Native, fields: CacheFields, marks: Sequence[Mark]) -> Ttl | None:
    """The time to live. Of several cache_control the longest: `breakpoint_spans` says which tokens
    have which, and this that nothing else may say it."""
    found: dict[str, Ttl] = {}
    if native.ttl is not None:
        found["kveik.ttl"] = Ttl(
            native.ttl, native.clock or "last_use", native.ttl_mode or "delete"
        )
    if fields.prompt_cache_retention is not None:  # how long at most
        seconds = _RETENTION_SECONDS[fields.prompt_cache_retention]
        found["prompt_cache_retention"] = Ttl(seconds, "last_use", "delete")
    if (seconds_kept := _kept(fields.prompt_cache_options, marks)) is not None:  # at least
        found["prompt_cache_options.ttl"] = Ttl(seconds_kept, "last_use", "demote")
    if lifetimes := _lifetimes(marks):
        found["cache_control"] = Ttl(max(lifetimes), "last_use", "delete")
    if len(found) > 1:
        one, other = list(found)[:2]
        refuse(one, f"contradicts {other}: both say how long the prompt is kept; send one of them")
    return next(iter(found.values()), None)


def _kept(options: CacheOptions | None, marks: Sequence[Mark]) -> float | None:
    whole = options.ttl if options is not None else None
    parts = [mark.seconds for mark in marks if mark.field == "prompt_cache_breakpoint"]
    return max((value for value in (whole, *parts) if value is not None), default=None)
