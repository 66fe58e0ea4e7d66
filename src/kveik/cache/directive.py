"""What callers say about the cache: directives on a request, selectors, receipts. Plain records.

A directive travels with a request down to the manager; a selector names what is cached already.
Times are seconds of the clock that is handed in (monotonic, so that jumps of the wall clock do no
harm). Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal, TypeAlias

Clock: TypeAlias = Literal["first_use", "last_use"]
TtlMode: TypeAlias = Literal["delete", "demote"]
Priority: TypeAlias = Literal["high", "normal", "low"]
Write: TypeAlias = Literal["all", "low", "none"]
Relevance: TypeAlias = Literal["off", "demote", "delete"]

PUBLIC = "(public)"
"""The namespace of the operator's public blocks: no identifier, so that no tenant is called so."""


@dataclass(frozen=True, slots=True)
class Ttl:
    """Time to live, counted from the first use (when it was computed) or from the last.

    delete: at the deadline the block is free, its bytes are overwritten and nothing readable
    remembers it. demote: it is the first to be evicted, and usable until then."""

    seconds: float
    clock: Clock = "last_use"
    mode: TtlMode = "delete"


@dataclass(frozen=True, slots=True)
class DocumentSpan:
    """Tokens `start .. end` of the prompt come from this version of a document."""

    document: str
    version: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TtlSpan:
    """Blocks whose first token lies in `start .. end` of the prompt get this time to live."""

    start: int
    end: int
    ttl: Ttl


@dataclass(frozen=True, slots=True)
class Directive:
    """What a request asks of the cache. The default is plain use.

    session: the conversation that this belongs to; context: what it is about, announced by the
    caller; relevance: what becomes of what the session computed under another context. tags,
    ttl and priority hold for the blocks that this request writes. write "none": reads only;
    "low": what it writes goes before everything of normal priority. name: the named cache that this
    request computes. pin: its blocks are not evicted, as far as the budget of pins lasts
    (Usage.pinned tells). write_until: what is behind so many tokens is not stored. spans: other
    times to live for parts of the prompt, instead of `ttl`."""

    session: str | None = None
    context: str | None = None
    relevance: Relevance | None = None  # None: as configured
    tags: tuple[str, ...] = ()
    ttl: Ttl | None = None
    priority: Priority = "normal"
    write: Write = "all"
    documents: tuple[DocumentSpan, ...] = ()
    name: str | None = None
    pin: bool = False
    write_until: int | None = None  # None: everything may be
    spans: tuple[TtlSpan, ...] = ()

    def ttl_at(self, position: int) -> Ttl | None:
        """The time to live of a block whose first token is at `position`."""
        for span in self.spans:
            if span.start <= position < span.end:
                return span.ttl
        return self.ttl

    @property
    def deletes(self) -> bool:
        """Is there a deadline at which something is deleted?"""
        every = (self.ttl, *(span.ttl for span in self.spans))
        return any(ttl is not None and ttl.mode == "delete" for ttl in every)

    @property
    def text_seconds(self) -> float:
        """How long the tokens of its text may be remembered beside the blocks."""
        if self.write == "none":
            return 0.0
        return self.ttl.seconds if self.ttl is not None and self.ttl.mode == "delete" else inf


PLAIN = Directive()


@dataclass(frozen=True, slots=True)
class Selector:
    """Names cached blocks of one namespace: all fields that are given must hold.

    prefix: token ids; empty: no condition. older_than: seconds since a block was computed.
    document without a version: every version; not_version: every version but this one.
    adapter None: any."""

    namespace: str = ""
    name: str | None = None
    tag: str | None = None
    document: str | None = None
    version: str | None = None
    not_version: str | None = None
    session: str | None = None
    context: str | None = None
    prefix: tuple[int, ...] = ()
    older_than: float | None = None
    adapter: int | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an invalidation did, per physical blocks that nobody will find again.

    blocks, tokens, bytes: freed by now or as soon as the requests that read them end. deferred:
    blocks that are out of reach already and are freed in the next steps (a lower bound: what
    hangs below them is counted when it goes). bytes_by_tier: so far only memory."""

    blocks: int = 0
    tokens: int = 0
    bytes_by_tier: tuple[tuple[str, int], ...] = (("memory", 0),)
    deferred: int = 0


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where a prompt leaves what is cached in the caller's own namespace.

    position: of the first token that was not served; cached: token ids that the nearest cached
    continuation has from there on; wanted: those of the prompt (each at most 512). cached is empty
    when nothing near is there (new, expired, invalidated, evicted)."""

    position: int
    reason: str
    cached: tuple[int, ...] = ()
    wanted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class BlockView:
    """What a listing tells of one cached block (of the own namespace, or to an operator).

    Ages are seconds before the `now` of the listing; time_left None: no deadline. path: tokens from
    the start of the prompt up to the end of the block."""

    namespace: str
    tokens: int
    depth: int  # tokens up to its end
    hits: int
    age: float
    idle: float
    time_left: float | None
    priority: Priority
    demoted: bool
    pinned: bool
    readers: int
    claims: tuple[str, ...]  # such as "session:s1", "tag:news", "document:d@2", "name:faq"
    path: tuple[int, ...] = ()
