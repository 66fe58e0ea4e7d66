"""The only door of the cache room: lookup, reserve, commit, fork, release, invalidate, explain.

The manager keeps books; it moves nothing. It is given token ids and returns block ids and moves.
It never sees a tensor, a socket, a file or a clock that it was not handed. Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from kveik.cache.segments import BlockTable, KvGroup, Move


@dataclass(frozen=True, slots=True)
class Miss:
    """Why a lookup served no more: first token position not served, and the reason.

    reason: new | diverged | evicted | invalidated | expired | too_short | no_store |
    engine_changed. "too_short": all that could be reused was (the n-1 cap, or less than nothing
    to share); "diverged": a sibling continues differently at `position`."""

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
    miss: why not more
    capacity: tokens for which slots exist now
    """

    tables: tuple[BlockTable, ...]
    cached_tokens: int
    miss: Miss | None
    capacity: int


@dataclass(frozen=True, slots=True)
class Opened:
    """The lease is open with room for `wanted` tokens; run `moves` before its first step."""

    lease: Lease
    moves: tuple[Move, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Another lease is computing the same next block: look up again when it commits or ends."""


@dataclass(frozen=True, slots=True)
class NoRoom:
    """Not enough free or evictable blocks now; nothing was changed."""


OpenResult: TypeAlias = Opened | Wait | NoRoom


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


class CacheManager:
    """See the class of each returned record. All methods are for one thread (the engine's)."""

    def __init__(
        self,
        groups: Sequence[KvGroup],
        num_blocks: Sequence[int],  # per group
        block_size: int,
        *,
        policy: str = "lru",
        enable_prefix_caching: bool = True,
        ghosts: int = 4096,
    ) -> None: ...

    def lookup(self, tokens: Sequence[int], *, namespace: str = "", adapter: int = 0) -> Match:
        """Longest exact match, token-granular, capped at len(tokens) - 1."""
        raise NotImplementedError

    def open(
        self,
        tokens: Sequence[int],
        wanted: int,
        *,
        namespace: str = "",
        adapter: int = 0,
        store: bool = True,
        reuse: bool = True,
        lineage: bytes = b"",
        now: float = 0.0,
    ) -> OpenResult:
        """Look up `tokens`, hold what matches, reserve slots so that `wanted` tokens fit.

        store False: nothing it computes is published (and it never leads). reuse False: the match
        is capped at 0 (prompt_logprobs, score) but full blocks are still committed.
        wanted >= cached tokens + 1. A partial match inside a sealed block becomes a CopyPrefix
        into a private block."""
        raise NotImplementedError

    def extend(self, lease: Lease, wanted: int) -> bool:
        """Grow the lease so that `wanted` tokens fit; evicts idle blocks. False: nothing changed."""
        raise NotImplementedError

    def commit(self, lease: Lease, tokens: Sequence[int], now: float = 0.0) -> None:
        """Tokens computed and accepted so far (all of them, from position 0, or the sequence the
        caller keeps appending to: only the part after the last commit is read). Publishes blocks
        that became full, frees blocks that left a window; after it `lease.tables` is the only
        table."""
        raise NotImplementedError

    def fork(self, lease: Lease) -> tuple[Lease, tuple[Move, ...]] | None:
        """A second lease on the same tokens: full blocks shared, the partial tail copied
        (CopyPrefix). None when no block is free for the tail."""
        raise NotImplementedError

    def release(self, lease: Lease, *, keep: bool = True, now: float = 0.0) -> None:
        """End the lease. keep: what was committed stays cached and the partial tail is sealed, so
        that a later prompt reuses it token-granularly. Tails are freed before heads."""
        raise NotImplementedError

    def launched(self, step_id: int) -> None:
        """A StepPlan that names live blocks was handed to the runner: blocks freed from now on
        become reusable only after this step is acknowledged."""
        raise NotImplementedError

    def acknowledge(self, step_id: int) -> None:
        """The StepResult came back: its moves are done, its fence falls."""
        raise NotImplementedError

    def blocks_for(self, tokens: int) -> int:
        """Blocks (of the first full group) that `tokens` need."""
        raise NotImplementedError

    def capacity_tokens(self) -> int:
        """The longest sequence that fits when nothing else is held."""
        raise NotImplementedError

    def invalidate(self, *, namespace: str, tokens: Sequence[int] = ()) -> int:
        """Remove the subtree below the prefix `tokens` (empty: the whole namespace); returns
        blocks removed. In-flight readers finish; what they compute from it is not published."""
        raise NotImplementedError

    def reset(self, namespace: str | None = None) -> bool:
        """Forget everything cached. False (and nothing changed) while blocks are leased."""
        raise NotImplementedError

    def explain(self, tokens: Sequence[int], *, namespace: str = "", adapter: int = 0) -> Match:
        """Like lookup, without touching recency or counters."""
        raise NotImplementedError

    def stats(self) -> CacheStats:
        raise NotImplementedError

    def check(self) -> None:
        """Raise AssertionError unless every block is in exactly one place and counts add up."""
        raise NotImplementedError
