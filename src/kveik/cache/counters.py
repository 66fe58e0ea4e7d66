"""What is counted since start, and the state of the pool now: the answer of `stats()`.

Reads the other books and changes nothing of theirs. Standard library only.
"""

from __future__ import annotations

from collections.abc import Collection

from kveik.cache.lease import EVICTION_REASONS, MISS_REASONS, Ages, CacheStats, Lease
from kveik.cache.names import Names
from kveik.cache.policy import DEMOTED, LOW, IdleQueues
from kveik.cache.pool import BlockPool, StepFence
from kveik.cache.reclaim import Reclaimer
from kveik.cache.segments import EXACT
from kveik.cache.sessions import SessionTable
from kveik.cache.sweep import Sweeper


class Counters:
    """See CacheStats for what each number means."""

    def __init__(self) -> None:
        self.queried = self.hits = self.approximate = 0
        self.committed = self.copied = 0
        self.misses = dict.fromkeys(MISS_REASONS, 0)
        self.reuse_gaps = Ages()

    def opened(self, lease: Lease, length: int) -> None:
        """A prompt of so many tokens was looked up for this lease."""
        self.queried += length
        if lease.miss is not None:
            self.misses[lease.miss.reason] += 1
        if lease.lineage == EXACT:
            self.hits += lease.cached_tokens
        else:
            self.approximate += lease.cached_tokens


def cache_stats(
    counters: Counters,
    pools: tuple[BlockPool, ...],
    idle: tuple[IdleQueues, ...],
    fence: StepFence,
    leases: Collection[Lease],
    reclaim: Reclaimer,
    sweeper: Sweeper,
    names: Names,
    table: SessionTable,
) -> CacheStats:
    """Everything, in time proportional to what leases and the fence hold."""
    total = tuple(pool.num_blocks for pool in pools)
    free = tuple(len(pool.free) for pool in pools)
    fenced = tuple(len(blocks) for blocks in _fenced_only(fence, pools))
    waiting = tuple(queue.count for queue in idle)
    leased = tuple(
        len({block for lease in leases for block in lease.every_block(g)})
        for g in range(len(pools))
    )
    shared = reclaim.tree.shared_blocks()
    deleted = {reason: sweeper.deleted.get(reason, 0) for reason in EVICTION_REASONS}
    return CacheStats(
        queried_tokens=counters.queried,
        hit_tokens=counters.hits,
        approximate_hit_tokens=counters.approximate,
        evicted_blocks=reclaim.evicted,
        committed_blocks=counters.committed,
        copied_blocks=counters.copied,
        total_blocks=total,
        free_blocks=free,
        leased_blocks=leased,
        idle_blocks=waiting,
        fenced_blocks=fenced,
        leaked_blocks=sum(total) - sum(free) - sum(waiting) - sum(fenced) - sum(leased),
        logical_blocks=tuple(
            blocks - left + shared for blocks, left in zip(total, free, strict=True)
        ),
        pinned_blocks=(names.pinned(),) * len(pools),
        demoted_blocks=tuple(queue.waiting(DEMOTED) for queue in idle),
        low_blocks=tuple(queue.waiting(LOW) for queue in idle),
        evictions=deleted | {"capacity": reclaim.evicted},
        misses=dict(counters.misses),
        erased_blocks=sweeper.erased,
        sessions=len(table),
        pin_budget=names.budget,
        pin_room=max(names.room_for_pins(), 0),
        block_ages=reclaim.ages.record(),
        reuse_gaps=counters.reuse_gaps.record(),
    )


def _fenced_only(fence: StepFence, pools: tuple[BlockPool, ...]) -> list[set[int]]:
    """Per group, blocks that nobody but the fence holds."""
    counts: list[dict[int, int]] = [{} for _ in pools]
    for g, block in fence.held():
        counts[g][block] = counts[g].get(block, 0) + 1
    return [
        {block for block, count in held.items() if count == pool.refs[block]}
        for held, pool in zip(counts, pools, strict=True)
    ]
