"""The records of named caches: what is asked for, what is told, and one entry of the table.

Plain data, but for what follows from it at once. `named.py` has the verbs.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from typing import Literal, Protocol, TypeAlias

from kveik.cache.directive import DocumentSpan, Priority, Receipt, Selector, Ttl
from kveik.cache.lease import Match
from kveik.config import LIMITS
from kveik.engine.past import Message
from kveik.engine.request import EventSink, Request
from kveik.errors import Conflict, InvalidRequest, KveikError

Status: TypeAlias = Literal["computing", "ready", "evicted", "failed"]
Kind: TypeAlias = Literal["messages", "prompt", "tokens"]


class Keep(Enum):
    """What `update` is given for a field that stays as it is."""

    KEEP = "keep"


KEEP = Keep.KEEP


@dataclass(frozen=True, slots=True)
class NamedSpec:
    """What to keep under a name: exactly one of messages, prompt and tokens.

    background: computed when nobody else needs the engine. documents: spans of the tokens that come
    from a version of a document; those that content parts name are found."""

    namespace: str
    name: str
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    tokens: tuple[int, ...] = ()
    ttl: Ttl | None = None
    tags: tuple[str, ...] = ()
    priority: Priority = "normal"
    pin: bool = False
    public: bool = False
    background: bool = False
    documents: tuple[DocumentSpan, ...] = ()

    @property
    def kind(self) -> Kind:
        """Raises InvalidRequest unless one kind of content is given."""
        given: list[Kind] = []
        given += ["messages"] if self.messages else []
        given += ["prompt"] if self.prompt else []
        given += ["tokens"] if self.tokens else []
        if len(given) != 1:
            raise InvalidRequest(
                f"messages, prompt, tokens: a named cache is made of one of them, got "
                f"{' and '.join(given) or 'none'}",
                param="messages",
            )
        return given[0]


@dataclass(frozen=True, slots=True)
class NamedCache:
    """What is told of a name. created, last_use: seconds of the wall clock, for display.
    hits: requests that found it in the cache, whether they named it or only began alike; last_use:
    of the last of them. seconds: how long computing it took, waiting included; time_left None: no
    deadline."""

    namespace: str
    name: str
    status: Status
    kind: Kind
    tokens: int
    bytes: int
    seconds: float | None
    created: float
    last_use: float | None
    hits: int
    time_left: float | None
    tags: tuple[str, ...]
    priority: Priority
    pinned: bool
    public: bool
    error: KveikError | None = None


@dataclass(frozen=True, slots=True)
class Expanded:
    """A request's content with the cached content before it: messages, or a prompt (text or ids).
    cache: as it was found; "evicted" means that it is computed again now."""

    cache: NamedCache
    messages: tuple[Message, ...] = ()
    prompt: str | tuple[int, ...] = ()


class Books(Protocol):
    """What named caches ask of the manager."""

    def explain(self, tokens: Sequence[int], *, namespace: str = "", now: float = 0.0) -> Match: ...

    def check_pin(self, tokens: int) -> None: ...

    def name(
        self,
        namespace: str,
        name: str,
        tokens: Sequence[int],
        *,
        ttl: Ttl | None,
        pin: bool,
        now: float,
    ) -> int: ...

    def unname(self, namespace: str, name: str, now: float) -> Receipt: ...

    def name_hits(self, namespace: str, name: str, now: float) -> tuple[int, float | None]: ...

    def name_left(self, namespace: str, name: str, now: float) -> float | None: ...

    def set_ttl(self, namespace: str, name: str, ttl: Ttl | None, now: float) -> None: ...

    def set_pin(self, namespace: str, name: str, pinned: bool, now: float) -> None: ...

    def set_tags(self, namespace: str, name: str, tags: tuple[str, ...], now: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Workshop:
    """What named caches are computed with: the engine's doors, clocks and sizes."""

    submit: Callable[[Request, EventSink], int]
    abort: Callable[[int], None]
    clock: Callable[[], float]  # monotonic
    wall: Callable[[], float]
    block_size: int
    block_bytes: int  # of one block in all groups
    public: str  # the namespace of the operator's public blocks
    forget_texts: Callable[[str | None], None]  # tokenised texts of a namespace; None: of all


@dataclass(slots=True, eq=False)
class Entry:
    """One name. ids: what its path is; size: tokens, or as many as its text could be; computed: at
    least once, so that the manager knows it."""

    namespace: str
    spec: NamedSpec
    ids: array[int]
    created: float
    size: int
    started: float = 0.0
    computed: bool = False
    seconds: float | None = None
    error: KveikError | None = None
    handle: int | None = None  # of the request that computes it
    listeners: list[Callable[[NamedCache], None]] = field(default_factory=list)

    def matches(self, selector: Selector, now: float) -> bool:
        spec = self.spec
        return (
            selector.namespace == self.namespace
            and selector.session is None
            and selector.context is None
            and not selector.adapter
            and selector.name in (None, spec.name)
            and (selector.tag is None or selector.tag in spec.tags)
            and self.ids[: len(selector.prefix)] == array("I", selector.prefix)
            and (selector.older_than is None or now - self.started >= selector.older_than)
            and (selector.document is None or any(_of(one, selector) for one in spec.documents))
        )


def _of(span: DocumentSpan, selector: Selector) -> bool:
    return (
        span.document == selector.document
        and selector.version in (None, span.version)
        and selector.not_version != span.version
    )


class Gone:
    """Names that are no more, as keyed digests with the reason, bounded per namespace."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._reasons: dict[str, dict[bytes, str]] = {}

    def add(self, namespace: str, name: str, reason: str) -> None:
        reasons = self._reasons.setdefault(namespace, {})
        reasons.pop(self._digest(name), None)
        reasons[self._digest(name)] = reason
        if len(reasons) > LIMITS["gone_names"].high:
            del reasons[next(iter(reasons))]

    def discard(self, namespace: str, name: str) -> None:
        self._reasons.get(namespace, {}).pop(self._digest(name), None)

    def reason(self, namespace: str, name: str) -> str | None:
        return self._reasons.get(namespace, {}).get(self._digest(name))

    def _digest(self, name: str) -> bytes:
        return blake2b(name.encode(), key=self._key, digest_size=16).digest()


def joined(
    spec: NamedSpec,
    cache: NamedCache,
    messages: Sequence[Message] | None,
    prompt: str | Sequence[int] | None,
) -> Expanded:
    """The cached content with the request's behind it."""
    if cache.status == "failed":
        assert cache.error is not None
        raise Conflict(
            f"cached_content: computing {spec.name!r} failed ({cache.error.message}); create it "
            "again",
            param="cached_content",
        )
    if spec.kind == "messages" and messages is not None:
        return Expanded(cache, messages=(*spec.messages, *messages))
    if spec.prompt is not None and isinstance(prompt, str):
        return Expanded(cache, prompt=spec.prompt + prompt)
    if spec.kind == "tokens" and prompt is not None and not isinstance(prompt, str):
        return Expanded(cache, prompt=(*spec.tokens, *prompt))
    wanted = {
        "messages": "messages and goes before messages",
        "prompt": "a text and goes before a prompt that is text",
        "tokens": "token ids and goes before a prompt of token ids",
    }
    raise InvalidRequest(
        f"cached_content: {spec.name!r} was made of {wanted[spec.kind]} only; make another cache "
        "for this kind of request",
        param="cached_content",
    )
