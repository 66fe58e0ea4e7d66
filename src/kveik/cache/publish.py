"""What leases put into the tree: full blocks as they are committed, partial tails at the end; and
who computes a block that others wait for.

When two leases compute the same block, the first to commit publishes it; the second gives its own
copy back and takes the published one (equal bits, by idea C). Standard library only.
"""

from __future__ import annotations

from kveik.cache.curve_feed import CurveFeed
from kveik.cache.ghosts import Ghosts
from kveik.cache.holdings import Holdings
from kveik.cache.lease import Lease
from kveik.cache.lookup import Found
from kveik.cache.pool import SEALED
from kveik.cache.prefix import WORD
from kveik.cache.restrict import Restrictor

_EVERYTHING = 1 << 60  # limit of a lease that may publish all its blocks


class Publisher:
    """See the module."""

    def __init__(
        self, holdings: Holdings, restrictor: Restrictor, ghosts: Ghosts, feed: CurveFeed
    ) -> None:
        self.holdings, self.restrictor, self.ghosts = holdings, restrictor, ghosts
        self.feed = feed
        self.counters, self.tree, self.pools = holdings.counters, holdings.tree, holdings.pools
        self.sweeper, self.retention = holdings.sweeper, holdings.sweeper.retention
        self._range = range(len(self.pools))
        self._size = self.tree.block_size
        self._width = self._size * WORD

    # --- beginning

    def begin(self, lease: Lease, found: Found, data: bytes) -> None:
        """From now on full blocks of the lease are published behind the end of the match."""
        root = self.tree.root(lease.identity, data[: found.public * self._width])
        lease.node = found.walked[found.blocks - 1] if found.blocks > found.public else root
        lease.limit = _EVERYTHING
        if lease.stream is not None:  # what it writes behind its first eviction has another past
            lease.limit = lease.stream.size // self._size
        self.tree.pins[lease.node] += 1
        lease.sealed = found.blocks
        lease.prompt = data
        self._lead(lease)

    def note_unstored(self, lease: Lease, found: Found, data: bytes) -> None:
        """Remember what this lease will compute and not publish, to be able to say so later."""
        chunk = data[found.blocks * self._width : (found.blocks + 1) * self._width]
        if len(chunk) == self._width and self.ghosts.capacity:
            tree, node = self.tree, found.behind(found.blocks)
            above = tree.digest(node) if node >= 0 else tree.absent_root_digest(lease.identity)
            lease.unstored = tree.digest_below(above, chunk)

    def _lead(self, lease: Lease) -> None:
        """Whoever needs the next block of this lease's prompt waits for it (invariant 7)."""
        start = lease.sealed * self._width
        chunk = lease.prompt[start : start + self._width]
        if len(chunk) < self._width or self.most(lease) <= lease.sealed:
            lease.prompt = b""
            return
        key = lease.node.to_bytes(4, "big") + chunk
        if key not in self.restrictor.leaders:
            self.restrictor.leaders[key] = lease
            lease.leading = key

    def leave_tree(self, lease: Lease) -> None:
        """A stream drops its first token: what it put into the tree stays there, and it publishes
        nothing more. It goes on holding what it sees of that, without what lies between."""
        self.restrictor.stop_leading(lease)
        self.holdings.reclaim.passed_over = True
        lease.stored = min(lease.sealed, self.most(lease)) * self._size
        node = lease.node
        self.tree.pins[node] -= 1
        lease.node, lease.limit, lease.prompt = -1, 0, b""
        self.holdings.reclaim.prune(node)

    # --- full blocks

    def most(self, lease: Lease) -> int:
        """Blocks that the lease may publish as a whole: what nobody forbade, and its directive."""
        until = lease.directive.write_until
        return lease.limit if until is None else min(lease.limit, until // self._size)

    def seal(self, lease: Lease, full: int) -> bool:
        """Blocks up to number `full` became full: publish them. True when a block was swapped."""
        width, tail = self._width, lease.tail
        publish = max(min(full, self.most(lease)) - lease.sealed, 0)
        swapped: list[tuple[int, int]] = []
        node = first = lease.node
        nodes: list[int] = []
        for offset in range(publish):
            chunk = tail[offset * width : (offset + 1) * width]
            node = self._publish(lease, node, lease.sealed + offset, chunk, swapped)
            nodes.append(node)
        if nodes:
            self.feed.published(lease, nodes)
            self.tree.pins[node] += 1
            self.tree.pins[first] -= 1
            lease.node = node
        for g in self._range:
            state, start = self.pools[g].state, lease.starts[g]
            for block in lease.blocks[g][lease.sealed - start : full - start]:
                state[block] = SEALED
        lease.tail = tail[(full - lease.sealed) * width :]
        lease.sealed = full
        self.restrictor.stop_leading(lease)
        if lease.prompt:
            self._lead(lease)
        self.holdings.let_go(lease, swapped)
        return bool(swapped)

    def _publish(
        self, lease: Lease, parent: int, number: int, chunk: bytes, swapped: list[tuple[int, int]]
    ) -> int:
        """Put block `number` of the lease into the tree, or take the one that is there."""
        tree = self.tree
        node = tree.index.get(parent.to_bytes(4, "big") + chunk, -1)
        if node >= 0:
            node = self.sweeper.living(node)
        new = node < 0
        if new:
            redundant = tree.shorter_tail(parent, chunk)
            node = tree.insert(parent, chunk)
            if redundant >= 0:
                self.sweeper.drop_redundant(redundant)
        for g in self._range:
            index = number - lease.starts[g]
            own, published = lease.blocks[g][index], tree.payload[g][node]
            if published < 0:
                tree.payload[g][node] = own
                self.pools[g].owner[own] = node
                self.pools[g].state[own] = SEALED
                self.counters.committed += 1
                if self.sweeper.doomed:
                    self.sweeper.doomed.discard((g, own))
            else:
                self.holdings.reuse(g, (published,))
                lease.blocks[g][index] = published
                swapped.append((g, own))
        if self.retention.active:
            start = number * self._size
            keep = self.retention.written if new else self.retention.shared
            keep(lease, node, start, start + len(chunk) // WORD)
        return node

    # --- the tail

    def seal_tail(self, lease: Lease) -> int:
        """Publish the partial last block where that may be; its node, or -1."""
        if not lease.tail or not self._may_seal_tail(lease):
            return -1
        lease.stored = lease.committed
        if self.sweeper.is_extended(lease.node, lease.tail):
            return -1  # a longer block that begins with it is there
        swapped: list[tuple[int, int]] = []
        node = self._publish(lease, lease.node, lease.sealed, lease.tail, swapped)
        self.feed.published(lease, [node])
        self.holdings.let_go(lease, swapped)
        return node

    def _may_seal_tail(self, lease: Lease) -> bool:
        until = lease.directive.write_until
        if until is not None and lease.committed > until:
            return False
        return lease.sealed < lease.limit and self.holdings.were_moved(lease)
