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
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from kveik.cache.directive import Directive, Receipt, Selector, Ttl
from kveik.config import LIMITS
from kveik.engine.chat_prefix import chat_prefix
from kveik.engine.documents import document_parts, encode_with_documents
from kveik.engine.history import text_bytes
from kveik.engine.named_records import (
    KEEP,
    Books,
    Entry,
    Expanded,
    Gone,
    Keep,
    NamedCache,
    NamedSpec,
    Status,
    Workshop,
    joined,
)
from kveik.engine.past import Message
from kveik.engine.request import (
    Event,
    Request,
    RequestAborted,
    RequestFailed,
    RequestFinished,
    SamplingParams,
)
from kveik.engine.tokenizer import Tokenizer
from kveik.errors import Conflict, KveikError, NotFound, Unavailable

_WARM = SamplingParams(max_tokens=0, temperature=0.0)


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
        self._entries: dict[str, dict[str, Entry]] = {}
        self._gone = Gone()
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
                entry = Entry(namespace, spec, ids, self._shop.wall(), size)
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

    def specs(self, namespace: str) -> dict[str, NamedSpec]:
        """What the names of a namespace were made of."""
        with self._lock:
            self._expire()
            return {name: one.spec for name, one in self._entries.get(namespace, {}).items()}

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

    def _all(self) -> Iterator[Entry]:
        for entries in self._entries.values():
            yield from entries.values()

    def _find(self, namespace: str, name: str, *, own: bool = False) -> Entry:
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

    def _left(self, entry: Entry) -> float | None:
        """Seconds that are left of its time, as the manager counts them; None: it was up."""
        if not entry.computed:
            return math.inf
        return self._books.name_left(entry.namespace, entry.spec.name, self._shop.clock())

    def _outlived(self, entry: Entry) -> bool:
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

    def _expect(self, entry: Entry) -> None:
        """Look again when the time of this name may be up."""
        left, ttl = self._left(entry), entry.spec.ttl
        if left is not None and ttl is not None and ttl.mode == "delete":
            self._due = min(self._due, self._shop.clock() + left)

    def _drop(self, entry: Entry, reason: str | None = None) -> Receipt:
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

    def _check_room(self, entry: Entry) -> None:
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

    def _compute(self, entry: Entry, *, background: bool) -> None:
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

    def _hear(self, entry: Entry, event: Event) -> None:
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

    def _claim(self, entry: Entry) -> None:
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

    def _rest(self, entry: Entry) -> Ttl | None:
        """Its time to live, or what is left of it: to be computed again is no second first use."""
        ttl = entry.spec.ttl
        if ttl is None or ttl.clock == "last_use" or not entry.computed:
            return ttl
        return replace(ttl, seconds=self._left(entry) or 0.0)

    def _settle(self, entry: Entry, error: KveikError | None) -> None:
        """It is computed no longer; whoever waits hears how it went."""
        entry.handle, entry.error = None, error
        listeners, entry.listeners = entry.listeners, []
        if listeners:
            view = self._view(entry)
            for listener in listeners:
                listener(view)

    def _status(self, entry: Entry) -> Status:
        if entry.handle is not None:
            return "computing"
        if entry.error is not None:
            return "failed"
        now = self._shop.clock()
        found = self._books.explain((*entry.ids, 0), namespace=entry.namespace, now=now)
        return "ready" if found.cached_tokens >= len(entry.ids) else "evicted"

    def _view_if_there(self, entry: Entry) -> NamedCache | None:
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
        operator: bool = False,
    ) -> NamedCache:
        """Change what is given. A new time to live begins now. operator: a public one, too. Raises
        NotFound, PinBudgetExceeded (and nothing was changed)."""
        with self._lock:
            entry, now = self._find(namespace, name, own=not operator), self._shop.clock()
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

    def delete(self, namespace: str, name: str, *, operator: bool = False) -> Receipt:
        """End the name's claim. operator: a public one's, too. Raises NotFound."""
        with self._lock:
            return self._drop(self._find(namespace, name, own=not operator))

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
            expanded = joined(entry.spec, self._view(entry), messages, prompt)
            if expanded.cache.status == "evicted":
                self._compute(entry, background=False)
            return expanded

    def _view(self, entry: Entry) -> NamedCache:
        spec, left, shop = entry.spec, self._left(entry), self._shop
        hits, idle = self._books.name_hits(entry.namespace, spec.name, shop.clock())
        blocks = -(-len(entry.ids) // shop.block_size)
        return NamedCache(
            namespace=entry.namespace,
            name=spec.name,
            status=self._status(entry),
            kind=spec.kind,
            tokens=len(entry.ids),
            bytes=blocks * shop.block_bytes,
            seconds=entry.seconds,
            created=entry.created,
            last_use=None if idle is None else shop.wall() - idle,
            hits=hits,
            time_left=None if left == math.inf else left,
            tags=spec.tags,
            priority=spec.priority,
            pinned=spec.pin,
            public=entry.namespace == shop.public,
            error=entry.error,
        )


def _gone_error(name: str) -> KveikError:
    return NotFound(f"the cache {name!r} was deleted", param="name", code="cache_not_found")
