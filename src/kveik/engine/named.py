"""Named caches: prompts that are computed once, kept under a name, and put before requests.

    create  tokenise, check, compute (an ordinary request that generates nothing), claim the path
    expand  the whole prompt of a request that names a cache; the door tokenises it as a whole, so
            that its ids are those of the plain request
    evicted the K/V went, the name stays and knows its tokens: the next use computes them again
    gone    expired, invalidated or deleted; that a name expired is remembered for a while

The books of blocks are the manager's; here is what a name stands for. A name belongs to one
namespace; public ones are made by the operator and found by everybody behind their own. What names
remember is bounded per namespace (config.LIMITS). Any thread; everything but tokenising happens
under the lock that is handed in (the engine's), and nothing waits for a computation.
"""

from __future__ import annotations

import math
import secrets
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from enum import Enum
from hashlib import blake2b
from typing import Any, Literal, Protocol, TypeAlias

from kveik.cache.directive import Directive, DocumentSpan, Priority, Receipt, Selector, Ttl
from kveik.cache.lease import Match
from kveik.config import LIMITS
from kveik.engine.chat_prefix import chat_prefix
from kveik.engine.documents import document_parts, encode_with_documents
from kveik.engine.history import Message, text_bytes
from kveik.engine.request import (
    Event,
    EventSink,
    Request,
    RequestAborted,
    RequestFailed,
    RequestFinished,
    SamplingParams,
)
from kveik.engine.tokenizer import Tokenizer
from kveik.errors import Conflict, InvalidRequest, KveikError, NotFound, Unavailable

Status: TypeAlias = Literal["computing", "ready", "evicted", "failed"]
Kind: TypeAlias = Literal["messages", "prompt", "tokens"]

_WARM = SamplingParams(max_tokens=0, temperature=0.0)


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
    """What is told of a name. created, last_use: seconds of the wall clock, for display;
    seconds: how long computing it took, waiting included; time_left None: no deadline."""

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
class _Entry:
    """One name. ids: what its path is; size: tokens, or as many as its text could be; computed: at
    least once, so that the manager knows it."""

    namespace: str
    spec: NamedSpec
    ids: array[int]
    created: float
    size: int
    started: float = 0.0
    computed: bool = False
    last_use: float | None = None
    hits: int = 0
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


class _Gone:
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


class NamedCaches:
    """See the module."""

    def __init__(
        self,
        books: Books,
        tokenizer: Tokenizer,
        lock: AbstractContextManager[Any],
        workshop: Workshop,
    ) -> None:
        self._books = books
        self._tokenizer = tokenizer
        self._lock = lock
        self._shop = workshop
        self._entries: dict[str, dict[str, _Entry]] = {}
        self._gone = _Gone()
        self._due = math.inf  # nothing ends before

    # ---- verbs

    def create(
        self, spec: NamedSpec, done: Callable[[NamedCache], None] | None = None
    ) -> NamedCache:
        """Compute `spec` under its name; returns at once. done: called once when it is ready or
        failed, on the engine's thread.

        The same name with the same content renews it (its time to live begins again). Raises
        Conflict for other content or too many names, InvalidRequest for content that cannot be
        kept, PinBudgetExceeded, and what Engine.submit raises."""
        ids = array("I", self._tokens(spec))
        spec = self._labelled(spec)
        size = max(len(ids), text_bytes((spec.messages, spec.prompt or "")) // 4)
        namespace = self._shop.public if spec.public else spec.namespace
        with self._lock:
            self._expire()
            entry = self._entries.get(namespace, {}).get(spec.name)
            if entry is None:
                entry = _Entry(namespace, spec, ids, self._shop.wall(), size)
                self._check_room(entry)
            elif (entry.ids, entry.spec.kind) != (ids, spec.kind):
                raise Conflict(
                    f"name: {spec.name!r} holds other content; delete it first or take another "
                    "name",
                    param="name",
                )
            if spec.pin and not (entry.spec.pin and entry.computed):
                self._books.check_pin(len(ids))
            before = entry.spec, entry.computed
            entry.spec, entry.computed = spec, False
            try:
                self._compute(entry, background=spec.background)
            except KveikError:
                entry.spec, entry.computed = before
                raise
            self._entries.setdefault(namespace, {})[spec.name] = entry
            self._gone.discard(namespace, spec.name)
            if done is not None:
                entry.listeners.append(done)
            return self._view(entry)

    def get(self, namespace: str, name: str) -> NamedCache:
        """Raises NotFound: code cache_expired, or cache_not_found."""
        with self._lock:
            return self._view(self._find(namespace, name))

    def list(self, namespace: str | None = None) -> list[NamedCache]:
        """The names of a namespace and the public ones; None: all."""
        with self._lock:
            self._expire()
            seen = (namespace, self._shop.public)
            entries = [one for one in self._all() if namespace is None or one.namespace in seen]
        return [view for entry in entries if (view := self._view_if_there(entry)) is not None]

    def invalidate(self, selector: Selector) -> None:
        """Forget every name that comes under the selector."""
        with self._lock:
            now = self._shop.clock()
            for entry in [one for one in self._all() if one.matches(selector, now)]:
                self._drop(entry, "invalidated")

    def tick(self) -> None:
        """Forget what has expired."""
        with self._lock:
            self._expire()

    def next_deadline(self) -> float | None:
        """When `tick` has something to do at the latest."""
        return None if self._due == math.inf else self._due

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._entries.values()))

    # ---- under the lock

    def _all(self) -> Iterator[_Entry]:
        for entries in self._entries.values():
            yield from entries.values()

    def _find(self, namespace: str, name: str, *, own: bool = False) -> _Entry:
        self._expire()
        places = (namespace,) if own else (namespace, self._shop.public)
        for place in places:
            entry = self._entries.get(place, {}).get(name)
            if entry is not None and not self._outlived(entry):
                return entry
        if any(self._gone.reason(place, name) == "expired" for place in places):
            raise NotFound(
                f"the cache {name!r} has expired; create it again",
                param="name",
                code="cache_expired",
            )
        raise NotFound(
            f"there is no cache {name!r} here; GET /v1/caches lists what there is",
            param="name",
            code="cache_not_found",
        )

    def _left(self, entry: _Entry) -> float | None:
        """Seconds that are left of its time, as the manager counts them; None: it was up."""
        if not entry.computed:
            return math.inf
        return self._books.name_left(entry.namespace, entry.spec.name, self._shop.clock())

    def _outlived(self, entry: _Entry) -> bool:
        """Drop a name whose time was up. One that is only demoted lasts as long as its blocks."""
        left = self._left(entry)
        if left is None or (left == 0.0 and self._status(entry) == "evicted"):
            self._drop(entry, "expired")
            return True
        return False

    def _expire(self) -> None:
        """Uses put the ends off, so that `_due` is a lower bound."""
        if self._shop.clock() < self._due:
            return
        self._due = math.inf
        for entry in list(self._all()):
            if self._left(entry) is None:
                self._drop(entry, "expired")
            else:
                self._expect(entry)

    def _expect(self, entry: _Entry) -> None:
        """Look again when the time of this name may be up."""
        left, ttl = self._left(entry), entry.spec.ttl
        if left is not None and ttl is not None and ttl.mode == "delete":
            self._due = min(self._due, self._shop.clock() + left)

    def _drop(self, entry: _Entry, reason: str | None = None) -> Receipt:
        name = entry.spec.name
        entries = self._entries[entry.namespace]
        del entries[name]
        if not entries:
            del self._entries[entry.namespace]
        if reason is not None:
            self._gone.add(entry.namespace, name, reason)
        if entry.handle is not None:
            self._shop.abort(entry.handle)
        self._settle(entry, _gone_error(name))
        public = entry.namespace == self._shop.public  # then anybody may have written it
        self._shop.forget_texts(None if public else entry.namespace)
        if self._left(entry) is None:  # the manager ended it, and deletes what it held
            return Receipt()
        return self._books.unname(entry.namespace, name, self._shop.clock())

    def _check_room(self, entry: _Entry) -> None:
        others = self._entries.get(entry.namespace, {}).values()
        most, tokens = int(LIMITS["named_caches"].high), int(LIMITS["named_tokens"].high)
        if len(others) >= most or entry.size + sum(one.size for one in others) > tokens:
            raise Conflict(
                f"name: there is no room for another cache: at most {most} names with {tokens} "
                "tokens together; delete one first",
                param="name",
            )

    def _tokens(self, spec: NamedSpec) -> Sequence[int]:
        if spec.kind == "messages":
            return chat_prefix(self._tokenizer, spec.messages)
        return spec.tokens or self._tokenizer.encode(spec.prompt or "")

    def _labelled(self, spec: NamedSpec) -> NamedSpec:
        """The spec with the documents that its messages name."""
        if spec.documents or not document_parts(spec.messages):
            return spec
        return replace(spec, documents=encode_with_documents(self._tokenizer, spec.messages)[1])

    def _compute(self, entry: _Entry, *, background: bool) -> None:
        if entry.handle is not None:
            return
        spec = entry.spec
        directive = Directive(
            tags=spec.tags,
            ttl=self._rest(entry),
            priority=spec.priority,
            documents=spec.documents,
            name=spec.name,
        )
        request = Request(
            tuple(entry.ids), _WARM, entry.namespace, directive=directive, background=background
        )
        entry.handle = self._shop.submit(request, lambda event: self._hear(entry, event))
        entry.started, entry.error = self._shop.clock(), None

    def _hear(self, entry: _Entry, event: Event) -> None:
        """The sink of the request that computes a name. On the engine's thread."""
        with self._lock:
            if entry.handle is None:  # dropped meanwhile
                return
            if isinstance(event, RequestFinished):
                self._claim(entry)
            elif isinstance(event, RequestFailed):
                self._settle(entry, event.error)
            elif isinstance(event, RequestAborted):
                self._settle(entry, Unavailable("computing the cache was ended; create it again"))

    def _claim(self, entry: _Entry) -> None:
        """The path is computed: from now on the name holds it."""
        spec, now, ttl = entry.spec, self._shop.clock(), self._rest(entry)
        try:
            self._books.name(entry.namespace, spec.name, entry.ids, ttl=ttl, pin=spec.pin, now=now)
        except KveikError as error:
            self._settle(entry, error)
            return
        entry.computed, entry.seconds = True, now - entry.started
        self._expect(entry)
        self._settle(entry, None)

    def _rest(self, entry: _Entry) -> Ttl | None:
        """Its time to live, or what is left of it: to be computed again is no second first use."""
        ttl = entry.spec.ttl
        if ttl is None or ttl.clock == "last_use" or not entry.computed:
            return ttl
        return replace(ttl, seconds=self._left(entry) or 0.0)

    def _settle(self, entry: _Entry, error: KveikError | None) -> None:
        """It is computed no longer; whoever waits hears how it went."""
        entry.handle, entry.error = None, error
        listeners, entry.listeners = entry.listeners, []
        if listeners:
            view = self._view(entry)
            for listener in listeners:
                listener(view)

    def _use(self, entry: _Entry, status: Status) -> None:
        entry.hits += 1
        entry.last_use = self._shop.wall()
        if status == "evicted":
            self._compute(entry, background=False)

    def _status(self, entry: _Entry) -> Status:
        if entry.handle is not None:
            return "computing"
        if entry.error is not None:
            return "failed"
        now = self._shop.clock()
        found = self._books.explain((*entry.ids, 0), namespace=entry.namespace, now=now)
        return "ready" if found.cached_tokens >= len(entry.ids) else "evicted"

    def _view_if_there(self, entry: _Entry) -> NamedCache | None:
        """One name at a time, so that no step waits for a long list."""
        with self._lock:
            there = self._entries.get(entry.namespace, {}).get(entry.spec.name) is entry
            return self._view(entry) if there else None

    def update(
        self,
        namespace: str,
        name: str,
        *,
        ttl: Ttl | Keep | None = KEEP,
        pin: bool | Keep = KEEP,
        tags: tuple[str, ...] | Keep = KEEP,
    ) -> NamedCache:
        """Change what is given. A new time to live begins now. Raises NotFound, PinBudgetExceeded
        (and nothing was changed)."""
        with self._lock:
            entry, now = self._find(namespace, name, own=True), self._shop.clock()
            if not isinstance(pin, Keep):
                if entry.computed:
                    self._books.set_pin(entry.namespace, name, pin, now)
                entry.spec = replace(entry.spec, pin=pin)
            if not isinstance(ttl, Keep):
                if entry.computed:
                    self._books.set_ttl(entry.namespace, name, ttl, now)
                entry.spec = replace(entry.spec, ttl=ttl)
                self._expect(entry)
            if not isinstance(tags, Keep):
                if entry.computed:
                    self._books.set_tags(entry.namespace, name, tags, now)
                entry.spec = replace(entry.spec, tags=tags)
            return self._view(entry)

    def delete(self, namespace: str, name: str) -> Receipt:
        """End the name's claim. Raises NotFound."""
        with self._lock:
            return self._drop(self._find(namespace, name, own=True))

    def expand(
        self,
        namespace: str,
        name: str,
        *,
        messages: Sequence[Message] | None = None,
        prompt: str | Sequence[int] | None = None,
    ) -> Expanded:
        """The content of a request that names this cache. Raises NotFound, Conflict (it failed),
        InvalidRequest where the request is of another kind."""
        with self._lock:
            entry = self._find(namespace, name)
            expanded = _joined(entry.spec, self._view(entry), messages, prompt)
            self._use(entry, expanded.cache.status)
            return expanded

    def _view(self, entry: _Entry) -> NamedCache:
        spec, left = entry.spec, self._left(entry)
        blocks = -(-len(entry.ids) // self._shop.block_size)
        return NamedCache(
            namespace=entry.namespace,
            name=spec.name,
            status=self._status(entry),
            kind=spec.kind,
            tokens=len(entry.ids),
            bytes=blocks * self._shop.block_bytes,
            seconds=entry.seconds,
            created=entry.created,
            last_use=entry.last_use,
            hits=entry.hits,
            time_left=None if left == math.inf else left,
            tags=spec.tags,
            priority=spec.priority,
            pinned=spec.pin,
            public=entry.namespace == self._shop.public,
            error=entry.error,
        )


def _gone_error(name: str) -> KveikError:
    return NotFound(f"the cache {name!r} was deleted", param="name", code="cache_not_found")


def _joined(
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
    wanted = {"messages": "messages", "prompt": "a prompt that is text", "tokens": "token ids"}
    raise InvalidRequest(
        f"cached_content: {spec.name!r} was made of {spec.kind} and goes before "
        f"{wanted[spec.kind]} only",
        param="cached_content",
    )
