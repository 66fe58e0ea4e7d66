"""The blocks that leases hold: taken, reused, counted, and let go past the fence.

A reference that a launched step may still use passes to the fence when its lease lets it go; the
block is free, or idle in the tree, once its last holder is gone. Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence

from kveik.cache.counters import Counters
from kveik.cache.lease import Lease
from kveik.cache.lookup import Found, Lookup
from kveik.cache.policy import IdleQueues
from kveik.cache.pool import BlockPool, StepFence
from kveik.cache.prefix import WORD
from kveik.cache.reclaim import Reclaimer
from kveik.cache.segments import BlockTable, CopyPrefix, Move, Segment
from kveik.cache.shares import Shares
from kveik.cache.streams import StreamBooks
from kveik.cache.sweep import Sweeper


class Holdings:
    """tick: counts what happens, as the order of last uses that policies see."""

    def __init__(
        self,
        pools: tuple[BlockPool, ...],
        idle: tuple[IdleQueues, ...],
        search: Lookup,
        shares: Shares,
        reclaim: Reclaimer,
        sweeper: Sweeper,
        counters: Counters,
        streams: StreamBooks,
    ) -> None:
        self.pools, self.idle, self.tree = pools, idle, search.tree
        self.streams = streams
        self.search, self.shares = search, shares
        self.reclaim, self.sweeper, self.counters = reclaim, sweeper, counters
        self.fence = StepFence()
        self.tick = 0
        self._launches = 0
        self._size = search.block_size
        self._range = range(len(pools))
        self._windowed = tuple(g for g, reach in enumerate(search.reach) if reach)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._size)

    # --- is there room?

    def fits(
        self, found: Found, wanted: int, spare: int, namespace: str, last_resort: bool
    ) -> bool:
        """Are there blocks for `wanted` tokens and `spare`, beside what the match will hold?"""
        cached = found.blocks * self._size + found.extra
        need = self.blocks_for(max(wanted, cached + 1)) - found.blocks + spare
        for g in self._range:
            pool, payload, idle = self.pools[g], self.tree.payload[g], self.idle[g]
            held = found.walked[self.search.first_needed(g, cached) : found.blocks]
            if found.source >= 0:
                held = [*held, found.source]
            kept = 0  # blocks that could be evicted if this lease did not hold them
            for node in held:
                block = payload[node]
                kept += not pool.refs[block] and not idle.is_pinned(block)
            room = self.shares.evictable(g, self.shares.account(namespace)) - kept
            if last_resort:
                room = idle.count - len(held)
            if need > len(pool.free) + room - self.streams.promised(g):
                return False
        return True

    def has_room(self, lease: Lease, blocks: int) -> bool:
        """Are there so many blocks, in every group, for this lease to grow by? What is promised to
        streams is theirs."""
        account = self.shares.account(lease.identity.namespace)
        return all(
            blocks + self.streams.promised(g, lease)
            <= len(self.pools[g].free) + self.shares.evictable(g, account)
            for g in self._range
        )

    # --- take

    def touch(self, path: Sequence[int]) -> None:
        """Count these nodes as used now, the first of them as used least."""
        self.tick += 1
        for g in self._range:
            payload, refs, idle = self.tree.payload[g], self.pools[g].refs, self.idle[g]
            for node in path:
                block = payload[node]
                if block >= 0 and not refs[block]:
                    idle.remove(block)
                    idle.last_used[block] = self.tick
                    idle.append(block)

    def hold(self, lease: Lease, found: Found, wanted: int) -> tuple[Move, ...]:
        """Take the match and the blocks behind it. The caller knows that they fit."""
        cached = found.blocks * self._size + found.extra
        lease.cached_tokens = lease.committed = cached
        lease.sealed = found.blocks
        sources: list[tuple[int, int]] = []
        for g in self._range:
            payload = self.tree.payload[g]
            start = lease.starts[g] = self.search.first_needed(g, cached)
            lease.blocks[g] = [payload[node] for node in found.walked[start : found.blocks]]
            self.reuse(g, lease.blocks[g])
            if found.source >= 0:
                sources.append((g, payload[found.source]))
                self.reuse(g, [payload[found.source]])
        if found.source >= 0:
            lease.tail = self.tree.chunk(found.source)[: found.extra * WORD]
        lease.capacity = found.blocks * self._size
        self.grow(lease, max(wanted, cached + 1))
        return self._copies(lease, sources, found.extra)

    def share(self, lease: Lease, child: Lease) -> tuple[Move, ...]:
        """The child holds the full blocks of the lease, too, and a copy of its partial tail. The
        caller knows that there is a block for that."""
        partial = lease.committed - lease.sealed * self._size
        sources: list[tuple[int, int]] = []
        for g in self._range:
            shared = lease.sealed - lease.starts[g]
            child.blocks[g] = lease.blocks[g][:shared]
            self.reuse(g, child.blocks[g])
            if partial:
                sources.append((g, lease.blocks[g][shared]))
                self.pools[g].refs[lease.blocks[g][shared]] += 1
        child.capacity = lease.sealed * self._size
        self.grow(child, lease.committed)
        return self._copies(child, sources, partial)

    def _copies(self, lease: Lease, sources: list[tuple[int, int]], count: int) -> tuple[Move, ...]:
        """Moves from (group, block) to the lease's first unsealed block; the fence keeps the
        sources, which already carry a reference for it."""
        if not sources:
            return ()
        self.fence.hold_for_next(sources)
        lease.opened = self._launches
        self.counters.copied += len(sources)
        return tuple(
            CopyPrefix(g, source, lease.blocks[g][lease.sealed - lease.starts[g]], count)
            for g, source in sources
        )

    def reuse(self, group: int, blocks: Sequence[int]) -> None:
        """One more holder for each of these blocks."""
        refs, idle = self.pools[group].refs, self.idle[group]
        for block in blocks:
            if not refs[block]:
                idle.remove(block)
            refs[block] += 1
            idle.hits[block] += 1

    def grow(self, lease: Lease, wanted: int) -> None:
        """Add blocks until `wanted` tokens fit. The caller knows that there are enough."""
        need = self.blocks_for(wanted) - lease.capacity // self._size
        account = self.shares.account(lease.identity.namespace)
        for g in self._range:
            pool = self.pools[g]
            taken = pool.take(min(need, len(pool.free)))
            evicting = need - len(taken)
            self.reclaim.make_room(g, evicting, self.tree.now, account)
            taken += reversed(pool.take(evicting))  # in the order in which they were evicted
            lease.blocks[g] += taken
            self.idle[g].renew(taken)
        lease.capacity += need * self._size
        self.name_blocks(lease)

    # --- tables

    def name_blocks(self, lease: Lease) -> None:
        """Make the lease's tables anew after its blocks changed."""
        size, committed = self._size, lease.committed
        if gone := lease.evicted:
            lease.tables = tuple(self._parted(lease, g, gone) for g in self._range)
            return
        lease.tables = tuple(
            (Segment(tuple(blocks), start * size, 0, committed - start * size, 0),)
            for blocks, start in zip(lease.blocks, lease.starts, strict=True)
        )

    def _parted(self, lease: Lease, g: int, gone: int) -> BlockTable:
        """The table of a stream that dropped tokens: the sinks, seen behind the gap, and the
        recent part, cut where the window begins."""
        assert lease.stream is not None
        first = lease.every_block(g)[: self.blocks_for(lease.stream.sinks)]
        blocks, home = tuple(lease.blocks[g]), lease.starts[g] * self._size
        return _parts(lease.stream.sinks, gone, lease.committed, tuple(first), blocks, home)

    def count_tokens(self, lease: Lease) -> None:
        """The tables when only the number of tokens changed."""
        committed = lease.committed
        if gone := lease.evicted:
            assert lease.stream is not None
            sinks = lease.stream.sinks
            if sinks and len(lease.tables[0]) == 1:  # these are the first that it drops
                self.name_blocks(lease)
                return
            lease.tables = tuple(
                _parts(sinks, gone, committed, table[0].blocks, table[-1].blocks, table[-1].home)
                for table in lease.tables
            )
            return
        lease.tables = tuple(
            (Segment(table[0].blocks, table[0].home, 0, committed - table[0].home, 0),)
            for table in lease.tables
        )

    # --- let go

    def leave_windows(self, lease: Lease) -> bool:
        """Let go of blocks that no later token of the lease sees; were there any?"""
        left = False
        for g in self._windowed if lease.stream is None else self._range:
            start = self._first_needed(lease, g)
            gone = start - lease.starts[g]
            if gone > 0:
                blocks = lease.blocks[g]
                leaving = blocks[:gone]
                del blocks[:gone]
                leaving = self._keep_sinks(lease, g, leaving)
                lease.starts[g] = start
                self.let_go(lease, [(g, block) for block in leaving])
                left = True
        return left

    def _first_needed(self, lease: Lease, g: int) -> int:
        """Number of the first block behind the sinks that a later token of the lease sees. The
        window of a stream lies inside that of every group."""
        if lease.stream is None:
            return self.search.first_needed(g, lease.committed)
        return (lease.stream.sinks + lease.evicted) // self._size if lease.evicted else 0

    def _keep_sinks(self, lease: Lease, g: int, leaving: list[int]) -> list[int]:
        """What of the first blocks holds sinks stays; returns the rest."""
        if lease.stream is None:
            return leaving
        kept = max(self.blocks_for(lease.stream.sinks) - lease.starts[g], 0)
        lease.sinks[g] += leaving[:kept]
        return leaving[kept:]

    def let_go_all(self, lease: Lease) -> None:
        """Tails before heads."""
        for g in self._range:
            sequence, found = self.idle[g].sequence, self.idle[g].found
            blocks, committed, cached = lease.every_block(g), lease.committed, lease.cached_tokens
            for block in blocks:
                sequence[block], found[block] = committed, cached
            self.let_go(lease, [(g, block) for block in reversed(blocks)])
            lease.blocks[g], lease.sinks[g] = [], []

    def let_go(self, lease: Lease, references: list[tuple[int, int]]) -> None:
        """Give up references; those that a launched step may still use pass to the fence."""
        if not references:
            return
        if lease.erase:
            owners = [pool.owner for pool in self.pools]
            self.sweeper.doom(pair for pair in references if owners[pair[0]][pair[1]] < 0)
        if not self.were_moved(lease):
            self.fence.hold_for_next(references)
        elif self.fence.running:
            self.fence.hold(references)
        else:
            self._drop(references)

    def _drop(self, references: list[tuple[int, int]]) -> None:
        tree = self.tree
        for g, block in references:
            pool = self.pools[g]
            pool.refs[block] -= 1
            if pool.refs[block]:
                continue
            node = pool.owner[block]
            if node < 0:
                pool.give(block)
                self.sweeper.let_go(g, block)
                continue
            self.idle[g].last_used[block] = self.tick
            tree.used[node] = tree.now
            self.idle[g].append(block)
            if tree.length[node] < self._size:
                self.sweeper.drop_if_extended(node)

    # --- steps

    def were_moved(self, lease: Lease) -> bool:
        """Were the moves that fill its first block launched (or needs it none)?"""
        return lease.opened != self._launches

    def launched(self, step_id: int) -> None:
        self.fence.launched(step_id)
        self._launches += 1

    def acknowledge(self, step_id: int) -> None:
        self.tick += 1
        self._drop(self.fence.acknowledge(step_id))


def _parts(
    sinks: int,
    gone: int,
    committed: int,
    first: tuple[int, ...],
    blocks: tuple[int, ...],
    home: int,
) -> BlockTable:
    """Sinks in the blocks `first`, and what is kept of the blocks from `home` on."""
    skip = sinks + gone - home
    recent = Segment(blocks, home, skip, committed - home - skip, 0)
    return (Segment(first, 0, 0, sinks, gone), recent) if sinks else (recent,)
