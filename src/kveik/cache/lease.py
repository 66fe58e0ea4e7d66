"""What the manager answers: leases, matches, misses, counters. Plain records, no behaviour.

The engine reads them; only the manager writes a lease. Standard library only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from kveik.cache.claims import Label
from kveik.cache.directive import PLAIN, Directive
from kveik.cache.prefix import Identity
from kveik.cache.segments import BlockTable, Move
from kveik.cache.sessions import Session
from kveik.cache.window import StreamWindow


@dataclass(frozen=True, slots=True)
class Miss:
    """Why a lookup served no more: first token position not served, and the reason.

    reason: new | diverged | evicted | invalidated | expired | too_short | no_store |
    engine_changed. "too_short": all that could be reused was (the n-1 cap, or less than nothing
    to share); "diverged": a sibling continues differently at `position`; "engine_changed" is not
    met as long as no block outlives its engine."""

    position: int
    reason: str


@dataclass(frozen=True, slots=True)
class Match:
    """What a lookup found (a lookup changes nothing but recency)."""

    cached_tokens: int
    miss: Miss | None


class Lease:
    """One sequence's hold on blocks. Opaque to the scheduler but for these attributes.

    tables: one BlockTable per group (immutable tuples; replaced, never mutated in place)
    cached_tokens: prompt tokens served by the cache when the lease was opened
    there: prompt tokens that were cached then; the last one is there and computed all the same
    miss: why not more
    capacity: tokens for which slots exist now
    lineage: EXACT, or the recipe whose blocks these are (cached_tokens are then approximate)
    committed: tokens computed and accepted so far
    stored: tokens from position 0 that it left in the cache when it was released, or found there
    pinned: what it left is pinned, as its directive asked for

    The rest belongs to the manager: `blocks[g]` are the blocks from number `starts[g]` on (those
    before it left the window), `sealed` of the sequence's blocks are full, `tail` holds the
    packed tokens behind them, `node` is the tree node behind which the next block is published
    (-1: nowhere) and `limit` the number of blocks that may be published. `leading` is the key of
    the block that others wait for, `prompt` the packed prompt of a leader. `opened` is the number
    of steps launched when its moves were handed out. `unstored` is the digest of the first block
    that a lease without store does not publish. `selectors` are prefixes that were invalidated
    while it was open. `labels` are those of every block that it writes, `claimed` the nodes that
    got its session's claim, `session` the conversation in whose turn it works, `opened_at` when;
    `erase`: blocks that it does not publish are overwritten when it lets them go. `stream`: what
    it keeps of an endless sequence, `evicted` the tokens that it has dropped when the next one is
    computed; `sinks[g]`: its first blocks, once those behind them are gone;
    `rests_in`: the session in which it waits for its next turn. `marks`: by which the curve knows
    the blocks of its path (curve_feed.py).
    """

    tables: tuple[BlockTable, ...] = ()
    cached_tokens = 0
    there = 0
    miss: Miss | None = None
    capacity = 0
    committed = 0
    stored = 0
    pinned = False
    sealed = 0
    tail = b""
    node = -1
    limit = 0
    leading = b""
    prompt = b""
    opened = -1
    unstored = b""
    labels: frozenset[Label] = frozenset()
    session: Session | None = None
    opened_at = 0.0
    erase = False
    rests_in: Session | None = None
    evicted = 0

    def __init__(
        self,
        identity: Identity,
        groups: int,
        directive: Directive = PLAIN,
        stream: StreamWindow | None = None,
    ) -> None:
        self.identity, self.directive, self.stream = identity, directive, stream
        self.blocks: list[list[int]] = [[] for _ in range(groups)]
        self.sinks: list[list[int]] = [[] for _ in range(groups)]
        self.starts = [0] * groups
        self.selectors: list[bytes] = []
        self.claimed: set[int] = set()
        self.marks: list[int] = []

    @property
    def lineage(self) -> bytes:
        return self.identity.lineage

    def held(self, group: int) -> int:
        """Blocks that it holds of a group."""
        return len(self.sinks[group]) + len(self.blocks[group])

    def every_block(self, group: int) -> list[int]:
        """The same by number, ascending."""
        return self.sinks[group] + self.blocks[group]


@dataclass(frozen=True, slots=True)
class Opened:
    """The lease is open with room for `wanted` tokens; run `moves` before its first step."""

    lease: Lease
    moves: tuple[Move, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Another lease is computing the same next block: look up again when it commits or ends."""

    leader: Lease


@dataclass(frozen=True, slots=True)
class NoRoom:
    """Not enough free or evictable blocks now; nothing was changed."""


OpenResult: TypeAlias = Opened | Wait | NoRoom


MISS_REASONS = (
    "new",
    "diverged",
    "evicted",
    "invalidated",
    "expired",
    "too_short",
    "no_store",
    "engine_changed",
)
EVICTION_REASONS = ("capacity", "expired", "invalidated")
"""capacity: to make room; the others: deleted."""

AGE_BUCKETS = (1, 10, 60, 300, 1800, 7200, 28800, 86400)
"""Upper bounds of the buckets of a histogram of seconds; one more is for what is above."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values fell into each of AGE_BUCKETS and above; and their sum."""

    counts: tuple[int, ...] = (0,) * (len(AGE_BUCKETS) + 1)
    total: float = 0.0


class Ages:
    """A histogram that is being filled."""

    def __init__(self) -> None:
        self._counts = [0] * (len(AGE_BUCKETS) + 1)
        self._total = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(AGE_BUCKETS, seconds)] += 1
        self._total += seconds

    def record(self) -> Histogram:
        return Histogram(tuple(self._counts), self._total)


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counts since start (tokens unless said otherwise) and the state of the pool now (blocks)."""

    queried_tokens: int
    hit_tokens: int
    approximate_hit_tokens: int
    evicted_blocks: int
    committed_blocks: int
    copied_blocks: int
    total_blocks: tuple[int, ...]  # per group
    free_blocks: tuple[int, ...]
    leased_blocks: tuple[int, ...]  # referenced by at least one lease
    idle_blocks: tuple[int, ...]  # in the tree only: cached and evictable
    fenced_blocks: tuple[int, ...]  # freed, waiting for a step to be acknowledged
    leaked_blocks: int
    logical_blocks: tuple[int, ...] = ()  # as if every tree behind public blocks had its own
    pinned_blocks: tuple[int, ...] = ()  # per group, cached or read; an upper bound in windows
    demoted_blocks: tuple[int, ...] = ()  # idle, first to be evicted
    low_blocks: tuple[int, ...] = ()  # idle, of low priority
    evictions: Mapping[str, int] = field(default_factory=dict)  # EVICTION_REASONS, blocks
    misses: Mapping[str, int] = field(default_factory=dict)  # MISS_REASONS, lookups that opened
    erased_blocks: int = 0
    sessions: int = 0
    pin_budget: int = 0  # blocks that pins and streams between two requests may hold
    pin_room: int = 0  # how many of them are left
    block_ages: Histogram = Histogram()  # of what was evicted, one value for each run of blocks
    reuse_gaps: Histogram = Histogram()  # since the last use, one value for each hit
