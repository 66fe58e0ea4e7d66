"""What a Python caller says to the cache: options of a call, selectors.

The words and their meanings are those of the object "kveik" of an HTTP request. Records here are
checked when they are made; the engine does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, TypeVar, get_args

from kveik.cache.directive import (
    Clock,
    Directive,
    DocumentSpan,
    Priority,
    Relevance,
    Selector,
    Ttl,
    TtlMode,
    Write,
)
from kveik.cache.window import StreamWindow
from kveik.engine.forgetting import Forget, forget_words
from kveik.engine.modules.joins import JOINS, Join
from kveik.engine.words import (
    document_id,
    duration,
    identifier,
    salt_digest,
    stream_window,
    tag_list,
)
from kveik.errors import InvalidRequest

Checked = TypeVar("Checked")

_NAMED = ("tag", "version", "not_version", "session", "context", "name")
_WRITE: Mapping[bool | str, Write] = {True: "all", "low": "low", False: "none"}


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """What becomes of the keys and values that a call computes; the default is plain use.

    session: the conversation this belongs to (`llm.session()` is the comfortable form).
    context: what it is about now; relevance: what becomes of what the session computed under
    another context ("off", "demote", "delete"; None: as the engine was configured).
    tags: select what to invalidate later. ttl: seconds, or "5m", "1h", "1d"; ttl_mode: at the
    deadline "delete" it or only "demote" it; clock: counted from "first_use" or "last_use".
    priority: who is evicted first. write: False reads the cache and leaves nothing in it; "low"
    leaves what goes before everything else. explain: the output says why not more was cached.
    cached_content: a named cache that stands before the prompt. cache_salt: shares with nobody
    who does not send the same. namespace: whose cache; two namespaces see nothing of each other.
    stream_window: the call is an endless stream that keeps so much, as "4+1020" or {"sinks": 4,
    "window": 1020, "evict": 1}; False: it is none, whatever the engine was configured with; with a
    session the stream stays open, and a call that `resumes` brings only what comes next in it.
    join: of a prompt with modules, what of them is computed again in it ("independent", "link",
    "link2", "exact"; None: "link").
    continues: the finished turns of the session come before the messages, as the engine keeps them.
    forget: what of them goes and stays away: {"turns": [2, 3]}, {"turns": "2-5"}, {"tag": "draft"}
    or {"document": "handbook@2"}; what follows is reused, which is approximate, and no privacy.
    Raises InvalidRequest naming the field."""

    session: str | None = None
    context: str | None = None
    relevance: Relevance | None = None
    tags: Sequence[str] = ()
    ttl: float | str | None = None
    ttl_mode: TtlMode | None = None
    clock: Clock | None = None
    priority: Priority = "normal"
    write: bool | Literal["low"] = True
    explain: bool = False
    cached_content: str | None = None
    cache_salt: str | None = field(default=None, repr=False)
    namespace: str = ""
    stream_window: StreamWindow | str | Mapping[str, int] | Literal[False] | None = None
    resumes: bool = False
    join: Join | None = None
    continues: bool = False
    forget: Forget | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("session", "context", "cached_content"):
            if getattr(self, name) is not None:
                checked(name, identifier, getattr(self, name))
        object.__setattr__(self, "tags", checked("tags", tag_list, self.tags))
        if self.ttl is not None:
            object.__setattr__(self, "ttl", checked("ttl", duration, self.ttl))
        if self.stream_window not in (None, False):
            window = checked("stream_window", stream_window, self.stream_window)
            object.__setattr__(self, "stream_window", window)
        if self.forget is not None:
            object.__setattr__(self, "forget", checked("forget", forget_words, self.forget))
        _one_of("relevance", self.relevance, (None, *get_args(Relevance)))
        _one_of("ttl_mode", self.ttl_mode, (None, *get_args(TtlMode)))
        _one_of("clock", self.clock, (None, *get_args(Clock)))
        _one_of("priority", self.priority, get_args(Priority))
        _one_of("write", self.write, tuple(_WRITE))
        _one_of("join", self.join, (None, *JOINS))
        for name, needs in (
            ("context", "session"),
            ("relevance", "session"),
            ("forget", "session"),
            ("ttl_mode", "ttl"),
            ("clock", "ttl"),
        ):
            if getattr(self, name) is not None and getattr(self, needs) is None:
                refuse(name, f"needs {needs}")
        self._check_going_on()
        if not isinstance(self.namespace, str):
            refuse("namespace", "expected a string")

    def _check_going_on(self) -> None:
        if self.continues and self.session is None:
            refuse("continues", "needs session: the one that goes on")
        if self.cached_content is not None:
            for name, value in (("continues", self.continues), ("forget", self.forget)):
                if value:
                    refuse(name, "the session begins with what it began with; no cached_content")
        if self.resumes:
            check_resumes(
                self.session,
                cached_content=self.cached_content,
                priority=None if self.priority == "normal" else self.priority,
                write=None if self.write is True else self.write,
                continues=self.continues or None,
                forget=self.forget,
            )

    @property
    def window(self) -> StreamWindow | Literal[False] | None:
        """`stream_window`, checked."""
        window = self.stream_window
        return window if isinstance(window, StreamWindow) or window is False else None

    @property
    def forgets(self) -> Forget | None:
        """`forget`, checked."""
        return self.forget if isinstance(self.forget, Forget) else None

    def directive(self, documents: Sequence[DocumentSpan] = ()) -> Directive:
        """What the engine is told."""
        return Directive(
            session=self.session,
            context=self.context,
            relevance=self.relevance,
            tags=tuple(self.tags),
            ttl=self.time_to_live(),
            priority=self.priority,
            write=_WRITE[self.write],
            documents=tuple(documents),
        )

    def time_to_live(self) -> Ttl | None:
        if self.ttl is None:
            return None
        return Ttl(float(self.ttl), self.clock or "last_use", self.ttl_mode or "delete")

    def text_seconds(self) -> float:
        """How long the tokens of a text may outlive the request: not at all where nothing is to be
        left, and no longer than everything that must be gone at a deadline."""
        return self.directive().text_seconds

    def salt(self) -> str:
        """The digest of cache_salt; "" for none."""
        return (
            "" if self.cache_salt is None else checked("cache_salt", salt_digest, self.cache_salt)
        )


def check_resumes(session: str | None, **without_effect: object) -> None:
    """Raise InvalidRequest for what says nothing about the next turn of an open stream."""
    if session is None:
        refuse("resumes", "needs session: the one whose stream goes on")
    for name, value in without_effect.items():
        if value is not None:
            refuse(name, "has no effect in a stream that goes on; leave it out")


def selector(
    *,
    tag: str | None = None,
    document: str | None = None,
    version: str | None = None,
    not_version: str | None = None,
    session: str | None = None,
    context: str | None = None,
    name: str | None = None,
    prefix: tuple[int, ...] = (),
    older_than: float | str | None = None,
    namespace: str = "",
) -> Selector:
    """A checked selector; "handbook@3" as document means that version."""
    if document is not None and "@" in document:
        if version is not None:
            refuse("version", f"document names one already ({document})")
        document, _, version = document.partition("@")
    named = (tag, version, not_version, session, context, name)
    for label, value in zip(_NAMED, named, strict=True):
        if value is not None:
            checked(label, identifier, value)
    if document is not None:
        checked("document", document_id, document)
    elif version is not None or not_version is not None:
        refuse("version", "needs document")
    if all(value is None for value in (*named, document, older_than)) and not prefix:
        refuse(
            "selector",
            "selects nothing: name a tag, document, session, context, name, prefix or older_than "
            "(llm.cache.reset() forgets everything)",
        )
    return Selector(
        namespace=namespace,
        name=name,
        tag=tag,
        document=document,
        version=version,
        not_version=not_version,
        session=session,
        context=context,
        prefix=prefix,
        older_than=None if older_than is None else checked("older_than", duration, older_than),
    )


def checked(name: str, check: Callable[[object], Checked], value: object) -> Checked:
    """`check(value)`; InvalidRequest naming the field where it refuses."""
    try:
        return check(value)
    except ValueError as error:
        refuse(name, str(error))


def refuse(name: str, why: str) -> NoReturn:
    raise InvalidRequest(f"{name}: {why}", param=name)


def _one_of(name: str, value: object, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        known = ", ".join(str(one) for one in choices if one is not None)
        refuse(name, f"expected one of {known}")


PLAIN_USE = CacheOptions()
