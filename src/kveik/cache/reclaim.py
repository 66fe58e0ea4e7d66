"""Taking blocks out of the tree: eviction, redundant tails, what is forgotten.

Only idle blocks are freed; a block that somebody still reads is detached from its node and left to
its readers. A child always goes before its parent. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kveik.cache.ghosts import Ghosts
from kveik.cache.lease import Ages
from kveik.cache.policy import IdleQueues
from kveik.cache.pool import BlockPool
from kveik.cache.prefix import PrefixTree


class Reclaimer:
    """Frees idle blocks of all groups. reach: see Lookup; evicted: blocks evicted so far. victim:
    whose block goes for the need of an account (see Shares); must_erase, erase: is the block of a
    node to be overwritten, and who is told; doom: the same once its readers are gone; lose,
    finish: what the sweep does about a node that is evicted, and when nothing else can be (see
    Sweeper)."""

    def __init__(
        self,
        pools: tuple[BlockPool, ...],
        idle: tuple[IdleQueues, ...],
        tree: PrefixTree,
        ghosts: Ghosts,
        reach: tuple[int, ...],
    ) -> None:
        self.pools = pools
        self.idle = idle
        self.tree = tree
        self.ghosts = ghosts
        self.reach = reach
        self.evicted = 0
        self.ages = Ages()
        self.victim: Callable[[int, int], int] = lambda group, account: 0
        self.passed_over = False  # does anybody read nodes without those before them?
        self.careful = False  # was anything ever deleted, or given a deadline?
        self.must_erase: Callable[[int], bool] = lambda node: False
        self.erase: Callable[[int, int], None] = lambda group, block: None
        self.doom: Callable[[Iterable[tuple[int, int]]], None] = lambda references: None
        self.lose: Callable[[int], None] = lambda node: None
        self.finish: Callable[[], bool] = lambda: False
        self._range = range(len(pools))
        self._full = tuple(g for g, back in enumerate(reach) if not back)

    def make_room(self, group: int, count: int, now: float = 0.0, account: int = 0) -> None:
        """Evict idle blocks until `count` are free, for the need of this account. The caller knows
        that there are enough; pinned ones go when nothing else is left.

        Of a chain that goes tail before head only the last to go is remembered: whoever asks for
        it again misses there first."""
        free = self.pools[group].free
        boundary: tuple[int, int] | None = None  # (pinned parent, node) of what went last
        idle, victim = self.idle[group], self.victim
        first, evict = idle.first, self._evict
        while len(free) < count:
            block = first(now, victim(group, account))
            if block < 0:
                # What could go may wait for children that are deleted, or pinned no more, but not
                # swept.
                self._remember(boundary)
                boundary = None
                if self.finish() or self._uncover(group):
                    continue
                block = self._any(group, now)
            boundary = evict(group, block, boundary)
        self._remember(boundary)

    def trim(self, group: int, count: int, now: float, account: int) -> None:
        """Evict so many idle blocks of this account, or as many as wait in its queues."""
        boundary: tuple[int, int] | None = None
        idle = self.idle[group]
        wanted = idle.evictable_of[account] - count
        while idle.evictable_of[account] > wanted:
            block = idle.first(now, account)
            if block < 0:
                break
            boundary = self._evict(group, block, boundary)
        self._remember(boundary)

    def _uncover(self, group: int) -> bool:
        """What could go waits for children that only streams read, which have let it go: such a
        leaf is left to its readers. False: there is none."""
        if not self.passed_over:
            return False
        idle, owner, tree = self.idle[group], self.pools[group].owner, self.tree
        for block in (*idle.parked, *idle.each_pinned()):
            node = owner[block]
            while tree.children[node]:
                node = tree.first_child(node)
            held = tree.payload[group][node]
            if held >= 0 and self.pools[group].refs[held]:
                self._leave_to_readers(node)
                return True
        return False

    def _leave_to_readers(self, node: int) -> None:
        """Take a leaf out of the tree whose blocks are read."""
        tree = self.tree
        for g in self._range:
            block = tree.payload[g][node]
            if block < 0:
                continue
            if not self.pools[g].refs[block]:
                self.free(g, node, block)
                continue
            self.detach(g, node, block)
            if self.careful and self.must_erase(node):
                self.doom(((g, block),))
        if tree.pins[node]:
            self.lose(node)
        self.prune(node)

    def _any(self, group: int, now: float) -> int:
        """A block of any account, or a pinned one: what was asked for waits for its children."""
        idle = self.idle[group]
        for account in range(len(idle.evictable_of)):
            block = idle.first(now, account)
            if block >= 0:
                return block
        owner, children = self.pools[group].owner, self.tree.children
        return next(block for block in idle.each_pinned() if not children[owner[block]])

    def _evict(
        self, group: int, block: int, boundary: tuple[int, int] | None
    ) -> tuple[int, int] | None:
        """An idle block goes: with its node, or, in a window group, alone.

        A block goes before its parent; where a policy names the parent first, that one is parked
        until its last child is gone."""
        idle, tree = self.idle[group], self.tree
        node = self.pools[group].owner[block]
        if idle.inflates:
            idle.inflate(block)
        if self.reach[group]:
            idle.tell(block)
            self.free(group, node, block)
            self.evicted += 1
            self.prune(node)
            return boundary
        if tree.children[node]:
            idle.park(block)
            return boundary
        if idle.tells:
            self._tell(node)
        pins, parent = tree.pins, tree.parent[node]
        if boundary is not None and boundary[0] == node:
            pins[node] -= 1
        else:
            self._remember(boundary)
        pins[parent] += 1
        self.evicted += self.remove_leaf(node)
        return parent, node

    def _tell(self, node: int) -> None:
        """The policy of every group hears that its block of this node goes."""
        for g in self._range:
            block = self.tree.payload[g][node]
            if block >= 0:
                self.idle[g].tell(block)

    def _remember(self, boundary: tuple[int, int] | None) -> None:
        """Write a ghost for what was evicted below a parent that stays."""
        if boundary is None:
            return
        parent, node = boundary
        self.ages.add(max(self.tree.now - self.tree.created[node], 0.0))
        if self.ghosts.capacity:
            digest = self.tree.digest_below(self.tree.digest(parent), self.tree.chunk(node))
            self.ghosts.remember(self.tree.space[parent], digest, "evicted")
        self.tree.pins[parent] -= 1
        self.prune(parent)

    def leave_ghost(self, parent: int, evicted: int | None) -> None:
        """The caller put a pin on `parent` before it evicted this child, or did not after all."""
        if evicted is not None:
            self._remember((parent, evicted))
        else:
            self.tree.pins[parent] -= 1
            self.prune(parent)

    def remove_leaf(self, node: int) -> int:
        """Remove an idle leaf with its blocks in all groups; returns the number of blocks."""
        count = 0
        tree = self.tree
        for g in self._range:
            block = tree.payload[g][node]
            if block >= 0:
                self.free(g, node, block)
                count += 1
        if tree.pins[node]:
            self.lose(node)
        if tree.pins[node]:
            self.prune(node)
            return count
        parent = tree.parent[node]
        tree.drop(node)
        self.prune(parent)
        return count

    def free(self, group: int, node: int, block: int) -> None:
        """Take the idle block of this node out of the tree, to be overwritten where that was asked
        for."""
        self.idle[group].remove(block)
        self.tree.payload[group][node] = -1
        pool = self.pools[group]
        pool.owner[block] = -1
        pool.give(block)
        if self.careful and self.must_erase(node):
            self.erase(group, block)

    def detach(self, group: int, node: int, block: int) -> None:
        """Leave the block of this node to its readers."""
        self.tree.payload[group][node] = -1
        self.pools[group].owner[block] = -1

    def prune(self, node: int) -> None:
        """Remove the node, and then its ancestors, while nothing needs them."""
        tree = self.tree
        children, pins, parent = tree.children, tree.pins, tree.parent
        while node >= 0 and not children[node]:
            if pins[node] or not tree.is_empty(node):
                self._unpark(node)
                return
            above = parent[node]
            tree.drop(node)
            node = above

    def _unpark(self, node: int) -> None:
        for g in self._full:
            idle = self.idle[g]
            if idle.parked:
                idle.unpark(self.tree.payload[g][node])

    def drop_if_idle(self, node: int) -> None:
        """A partial tail that a longer block extends is redundant; it goes once nobody reads it."""
        for g in self._range:
            block = self.tree.payload[g][node]
            if block >= 0 and self.pools[g].refs[block]:
                return
        if not self.tree.pins[node]:
            self.remove_leaf(node)
