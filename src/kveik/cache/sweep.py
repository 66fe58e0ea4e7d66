"""Freeing what is dead, a bounded number of nodes at a time; and what must be overwritten.

A dead subtree is first *buried*: hung under a grave of its own in O(1), out of reach of every walk.
Then its nodes are freed leaf by leaf. A block that somebody still reads is detached and left to its
readers. A job keeps its place in the tree between two calls by a pin on one node. The newest job
goes first, so that what an invalidation frees at once is what it was asked for.

Blocks freed here are handed out as erasures; so is what is evicted while dead nodes may be left in
the tree, and what carries a deadline to be deleted. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from kveik.cache.claims import LabelSet
from kveik.cache.deadlines import NEVER
from kveik.cache.ghosts import Ghosts
from kveik.cache.prefix import PrefixTree
from kveik.cache.reclaim import Reclaimer
from kveik.cache.retention import Retention
from kveik.cache.rules import Rule
from kveik.cache.segments import Erase, KvGroup

_FREEING = 2  # nodes looked at, that freeing one counts for
_PIECE = 256  # nodes at a time when room is needed
_CLIMB = 256  # nodes looked at to find the top of what is dead


class Freed(NamedTuple):
    """What was freed since start, and what is known to be left."""

    nodes: int
    blocks: int
    tokens: int
    size: int  # bytes


class Job(Protocol):
    """Work of many nodes. advance: look at about `budget` nodes, or free half as many; returns how
    much of it was spent.

    done: nothing is left to do. deadly: while it is not done, dead nodes may be in the tree."""

    done: bool
    deadly: bool

    def advance(self, sweeper: Sweeper, budget: int) -> int: ...

    def pinned(self) -> list[int]:
        """The nodes on which it holds a pin, each as often as it does."""

    def lose(self, node: int, tree: PrefixTree) -> None:
        """Take back its pins on a node that goes."""


class Sweeper:
    """detach: called with a node that is to be freed although leases publish behind it. doomed:
    (group, block) that are overwritten when their readers let them go. on_deleted is told of every
    node that goes for another reason than room."""

    def __init__(
        self,
        retention: Retention,
        reclaim: Reclaimer,
        ghosts: Ghosts,
        groups: tuple[KvGroup, ...],
        detach: Callable[[int], None],
    ) -> None:
        self.retention, self.reclaim, self.ghosts = retention, reclaim, ghosts
        self.tree = retention.tree
        self.detach = detach
        self.on_deleted: Callable[[int], None] = _ignore
        self.jobs: list[Job] = []
        self.nodes = self.blocks = self.tokens = self.size = 0
        self.erased = 0
        self.deleted: dict[str, int] = {}  # blocks by reason
        self._groups = groups
        self._erasures: dict[tuple[int, int], None] = {}
        self.doomed: set[tuple[int, int]] = set()
        reclaim.must_erase = self._must_erase
        reclaim.erase, reclaim.doom = self.erase, self.doom
        reclaim.lose, reclaim.finish = self.lose, self.finish

    # --- work

    def add(self, job: Job) -> None:
        self.jobs.append(job)
        self.reclaim.careful = True
        self.retention.sweeping |= job.deadly

    def advance(self, budget: int, older: frozenset[Job] | None = None) -> int:
        """Do a bounded amount of work; returns what is left of the budget. older: only on jobs
        that are none of these."""
        while self.tree.orphans and older is None:
            for identity in self.tree.on_base(self.tree.orphans.pop()):
                self.bury(self.tree.roots[identity], "invalidated")
                budget -= 1
        while self.jobs and budget > 0 and (older is None or self.jobs[-1] not in older):
            job = self.jobs[-1]
            budget -= max(job.advance(self, budget), 1)
            if job.done and job in self.jobs:
                self.jobs.remove(job)
        self.retention.sweeping = any(job.deadly for job in self.jobs)
        return budget

    def freed(self) -> Freed:
        return Freed(self.nodes, self.blocks, self.tokens, self.size)

    def bury(self, node: int, reason: str) -> None:
        """Put a dead node and what hangs below it out of reach; it is freed in time."""
        tree = self.tree
        parent = tree.parent[node]
        if parent >= 0:
            self._remember(node, parent, reason)
        grave = tree.bury(node)
        if parent >= 0:
            self.reclaim.prune(parent)
        self.add(Burial(grave, reason, tree))

    def _remember(self, node: int, parent: int, reason: str) -> None:
        """A ghost for the top of what goes; none where that would take long."""
        if self.ghosts.capacity and self.tree.undigested(parent, _CLIMB) < _CLIMB:
            digest = self.tree.digest_below(self.tree.digest(parent), self.tree.chunk(node))
            self.ghosts.remember(self.tree.space[parent], digest, reason)

    def bury_top(self, node: int, reason: str) -> int:
        """Bury the highest dead node above this one; returns how many were looked at."""
        steps = 0
        parent = self.tree.parent[node]
        while parent >= 0 and steps < _CLIMB and self.retention.why_dead(parent):
            node, parent = parent, self.tree.parent[parent]
            steps += 1
        if parent in self.tree.graves:
            return steps  # it is on its way already
        self.bury(node, reason)
        return steps

    def living(self, node: int) -> int:
        """The node, or -1 for a dead one, which is put out of the way of a new one."""
        if node >= 0 and self.retention.troubled():
            reason = self.retention.why_gone(node)
            if reason:
                self.bury(node, reason)
                return -1
        return node

    def is_extended(self, parent: int, chunk: bytes) -> bool:
        """Does a longer living block under `parent` begin with `chunk`?"""
        while (longer := self.tree.extension(parent, chunk)) >= 0:
            if self.living(longer) >= 0:
                return True
        return False

    def drop_if_extended(self, tail: int) -> None:
        """A partial tail goes when a longer block extends it."""
        if self.is_extended(self.tree.parent[tail], self.tree.chunk(tail)):
            self.drop_redundant(tail)

    def drop_redundant(self, tail: int) -> None:
        """A tail that a longer block extends goes, unless a named cache or a pin holds it."""
        if all(label.kind not in ("name", "pin") for label in self.retention.set_of(tail).labels):
            self.on_deleted(tail)
            self.reclaim.drop_if_idle(tail)

    def free_leaf(self, node: int, reason: str) -> None:
        """Free a node without children, with its blocks."""
        tree, reclaim = self.tree, self.reclaim
        if tree.pins[node]:
            self.unpin(node)
        before = self.blocks
        for g, group in enumerate(self._groups):
            block = tree.payload[g][node]
            if block < 0:
                continue
            if reclaim.pools[g].refs[block]:
                reclaim.detach(g, node, block)
                self.doomed.add((g, block))
            else:
                reclaim.free(g, node, block)  # to be overwritten: the sweep is under way
            self.blocks += 1
            self.size += group.bytes_per_block
        self.deleted[reason] = self.deleted.get(reason, 0) + self.blocks - before
        self.nodes += 1
        self.tokens += tree.length[node]
        self.on_deleted(node)
        tree.remove(node)
        tree.wipe(node)

    def unpin(self, node: int) -> None:
        """A node with pins goes: leases publish behind it no more, jobs go on elsewhere."""
        self.detach(node)
        self.lose(node)

    def lose(self, node: int) -> None:
        """No job keeps its place at this node any more."""
        for job in self.jobs:
            job.lose(node, self.tree)

    def finish(self) -> bool:
        """Do a piece of what is left, because room is needed that it will make. False: nothing
        was."""
        waiting = bool(self.jobs)
        self.advance(_PIECE)
        return waiting

    # --- erasure

    def _must_erase(self, node: int) -> bool:
        retention = self.retention
        if retention.troubled() or self.tree.orphans:
            return True
        return retention.deadlines.delete_at(node) < NEVER

    def doom(self, references: Iterable[tuple[int, int]]) -> None:
        """Overwrite these blocks when nobody holds them any more, unless they are cached."""
        self.doomed.update(references)

    def let_go(self, group: int, block: int) -> None:
        """The last reader of a block outside the tree is gone."""
        if self.doomed and (group, block) in self.doomed:
            self.doomed.discard((group, block))
            self.erase(group, block)

    def erase(self, group: int, block: int) -> None:
        if (group, block) not in self._erasures:
            self._erasures[group, block] = None
            self.erased += 1

    def take_erasures(self) -> tuple[Erase, ...]:
        taken = tuple(Erase(group, block) for group, block in self._erasures)
        self._erasures.clear()
        return taken

    @property
    def erasing(self) -> bool:
        """Are there blocks to be overwritten?"""
        return bool(self._erasures)


def _ignore(node: int) -> None:
    """Nobody wants to know."""


class Burial:
    """Frees everything below a grave, children before parents."""

    deadly = True

    def __init__(self, grave: int, reason: str, tree: PrefixTree) -> None:
        self.done = False
        self._grave = self._place = grave  # a pin on each
        self._reason = reason
        tree.pins[grave] += 2

    def advance(self, sweeper: Sweeper, budget: int) -> int:
        tree = sweeper.tree
        first_child, parents = tree.first_child, tree.parent
        node, spent = self._place, 0
        tree.pins[node] -= 1
        self._place = -1  # no pin of it is lost with a node that is freed here
        while spent < budget:
            spent += 1
            child, parent = first_child(node), parents[node]
            if child >= 0:
                node = child
            elif node == self._grave:
                self.done = True
                tree.pins[node] -= 1
                if tree.pins[node]:
                    sweeper.unpin(node)
                tree.remove(node)
                return spent
            elif parent < 0:  # this part was buried again, and is another's
                node = self._grave
            else:
                sweeper.free_leaf(node, self._reason)
                spent += _FREEING - 1
                node = parent
        self._place = node
        tree.pins[node] += 1
        return spent

    def pinned(self) -> list[int]:
        return [] if self.done else [self._grave, self._place]

    def lose(self, node: int, tree: PrefixTree) -> None:
        if node == self._place != self._grave:
            tree.pins[node] -= 1
            self._place = self._grave
            tree.pins[self._grave] += 1


class Drain:
    """Buries what the dead among these label sets left in the tree; takes `sets` over."""

    deadly = True

    def __init__(self, sets: set[LabelSet]) -> None:
        self.done = False
        self._sets = sets
        self._current: LabelSet | None = None

    def advance(self, sweeper: Sweeper, budget: int) -> int:
        claims = sweeper.retention.claims
        spent = 0
        while spent < budget:
            of = self._current
            if of is None:
                if not self._sets:
                    self.done = True
                    break
                of = self._current = self._sets.pop()
            spent += 1
            there = claims.sets[of.number] is of and of.count
            reason = claims.why_dead(of.number) if there else ""
            if not reason:
                self._current = None
                continue
            before = len(sweeper.jobs)
            spent += sweeper.bury_top(of.first, reason) // 8
            if len(sweeper.jobs) == before:
                # Its burial is under way elsewhere on the list.
                sweeper.jobs.remove(self)
                sweeper.jobs.insert(0, self)
            break  # what was buried goes first
        return spent

    def pinned(self) -> list[int]:
        return []

    def lose(self, node: int, tree: PrefixTree) -> None:
        """It keeps no place."""


class Arrange:
    """The class and the pin of the blocks of these sets, after what they follow from changed."""

    deadly = False

    def __init__(self, sets: Iterable[LabelSet]) -> None:
        self.done = False
        self._left = [(of, of.count) for of in sets if of.count]

    def advance(self, sweeper: Sweeper, budget: int) -> int:
        retention = sweeper.retention
        claims, spent = retention.claims, 0
        while self._left and spent < budget:
            spent += 1
            of, count = self._left.pop()
            if claims.sets[of.number] is not of or not of.count or not count:
                continue
            retention.arrange(of.first)
            claims.rotate(of)
            self._left.append((of, count - 1))
        self.done = not self._left
        return spent

    def pinned(self) -> list[int]:
        return []

    def lose(self, node: int, tree: PrefixTree) -> None:
        """It keeps no place."""


class Carrying:
    """Carries out a rule: looks at every node below these, and buries what matches.

    starts: where the prefix of the rule ends but for its last block; rest: the packed tokens of
    that block with which a child of a start must begin."""

    deadly = True

    def __init__(self, rule: Rule, starts: list[int], rest: bytes, sweeper: Sweeper) -> None:
        self.done = False
        self._rule, self._starts, self._rest = rule, starts, rest
        self._place = -1
        for node in starts:
            sweeper.tree.pins[node] += 1

    def pinned(self) -> list[int]:
        return self._starts + ([self._place] if self._place >= 0 else [])

    def lose(self, node: int, tree: PrefixTree) -> None:
        if self._place == node:
            tree.pins[node] -= 1
            self._place = -1  # begins again at its start
        if node in self._starts:
            tree.pins[node] -= 1
            if node == self._starts[-1] and self._place >= 0:
                tree.pins[self._place] -= 1
                self._place = -1
            self._starts.remove(node)

    def advance(self, sweeper: Sweeper, budget: int) -> int:
        tree, spent = sweeper.tree, 0
        while self._starts and spent < budget:
            start, node = self._starts[-1], self._place
            if node >= 0:
                tree.pins[node] -= 1
                self._place = -1
            else:
                node = tree.first_child(start)
            while node >= 0 and spent < budget:
                spent += 1
                node = self._visit(sweeper, node, start)
            if node >= 0:
                self._place = node
                tree.pins[node] += 1
                return spent
            self._starts.pop()
            tree.pins[start] -= 1
            sweeper.reclaim.prune(start)
            spent += 1
        if not self._starts:
            self.done = True
            sweeper.retention.rules.remove(self._rule)
        return spent

    def _visit(self, sweeper: Sweeper, node: int, start: int) -> int:
        """Look at one node; the next one in the order of the walk, or -1."""
        tree = sweeper.tree
        if tree.parent[node] == start and not tree.chunk(node).startswith(self._rest):
            following = self._behind(sweeper, node, start)
        elif self._rule.concerns(node):
            following = self._behind(sweeper, node, start)
            sweeper.bury(node, "invalidated")
            return following
        else:
            child = tree.first_child(node)
            following = child if child >= 0 else self._behind(sweeper, node, start)
        sweeper.reclaim.prune(node)  # it may have been kept by our pin alone
        return following

    def _behind(self, sweeper: Sweeper, node: int, start: int) -> int:
        """The next node that does not hang below this one."""
        tree = sweeper.tree
        while node != start:
            sibling = tree.next_sibling(node)
            if sibling >= 0:
                return sibling
            node = tree.parent[node]
            if node < 0:  # buried meanwhile with what is above it: begin again
                return tree.first_child(start)
        return -1
