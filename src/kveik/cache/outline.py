"""The prefix tree to be looked at: one row for every stretch in which nothing branches.

A row is a run of nodes that continue each other alone and that the same claims hold; below it hang
the runs that go on differently. One look is bounded in nodes, so that no step waits for it, and
changes nothing. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import nlargest
from itertools import islice

from kveik.cache.by_hand import BY_HAND
from kveik.cache.deadlines import NEVER
from kveik.cache.directive import Priority
from kveik.cache.names import Names
from kveik.cache.prefix import Identity
from kveik.cache.retention import Retention
from kveik.cache.segments import EXACT, KvGroup

_RUN = 512  # nodes of one row
_CHILDREN = 4000  # looked at, to find those used last
_BELOW = 4000  # nodes counted below all rows of one look


@dataclass(frozen=True, slots=True)
class OutlineRow:
    """One run, from node `first` to node `last`. start: tokens before it; tokens: packed, of the
    run; below: blocks of the first group under it (at least so many where `more_below`).

    approximate: blocks of a recipe; salted: only who sends the salt finds it; after_public: it goes
    on behind a public text of `start` tokens. The other fields are those of `BlockView`, hits and
    idle of the block used most and last, time_left the shortest."""

    first: int
    last: int
    start: int
    tokens: bytes
    blocks: int
    bytes: int
    hits: int
    age: float
    idle: float
    time_left: float | None
    priority: Priority
    demoted: bool
    pinned: bool
    by_hand: bool
    readers: int
    claims: tuple[str, ...]
    children: int
    below: int
    more_below: bool
    approximate: bool
    salted: bool
    after_public: bool


class Outline:
    """One look at the trees of one namespace."""

    def __init__(self, retention: Retention, names: Names, groups: tuple[KvGroup, ...]) -> None:
        self._retention, self._names, self._groups = retention, names, groups
        self._tree = retention.tree
        self._left = _BELOW

    def tops(self, namespace: str, most: int) -> tuple[list[OutlineRow], int]:
        """Rows at the start of prompts, the one used last first; and how many there are."""
        roots = [self._tree.roots[one] for one in self._tree.identities_of(namespace)]
        children = (child for root in roots for child in self._tree.each_child(root))
        count = sum(self._tree.children[root] for root in roots)
        return self._rows(children, most), count

    def below(self, node: int, most: int) -> tuple[list[OutlineRow], int]:
        """The same of what continues a node."""
        return self._rows(self._tree.each_child(node), most), self._tree.children[node]

    def _rows(self, children: Iterator[int], most: int) -> list[OutlineRow]:
        used = self._tree.used
        seen = (node for node in islice(children, _CHILDREN) if not self._is_dead(node))
        return [self._row(node) for node in nlargest(most, seen, key=used.__getitem__)]

    def _is_dead(self, node: int) -> bool:
        return self._retention.troubled() and bool(self._retention.why_gone(node))

    def _run(self, first: int) -> list[int]:
        tree, run = self._tree, [first]
        of = self._retention.set_of(first)
        while len(run) < _RUN and tree.children[run[-1]] == 1:
            child = tree.first_child(run[-1])
            if self._retention.set_of(child) is not of or self._is_dead(child):
                break
            run.append(child)
        return run

    def _row(self, first: int) -> OutlineRow:
        retention, tree = self._retention, self._tree
        run = self._run(first)
        last, now = run[-1], retention.clock.now
        of = retention.set_of(first)
        identity = tree.identities.get(tree.root_of(first), Identity(""))
        held = [block for node in run if (block := tree.payload[0][node]) >= 0]
        deadline = min(map(retention.deadlines.delete_at, run)) - now
        left = min(deadline, self._names.time_left(of.live_labels()))
        below, more = self._count_below(last)
        labels = of.live_labels()
        return OutlineRow(
            first=first,
            last=last,
            start=tree.depth[first] - tree.length[first],
            tokens=b"".join(map(tree.chunk, run)),
            blocks=len(held),
            bytes=self._bytes(run),
            hits=max((retention.idle[0].hits[block] for block in held), default=0),
            age=now - tree.created[first],
            idle=0.0
            if any(map(retention.is_read, run))
            else now - max(map(tree.used.__getitem__, run)),
            time_left=None if left == NEVER else max(left, 0.0),
            priority=retention.priority(first),
            demoted=retention.is_demoted(first),
            pinned=of.pinned,
            by_hand=any(one.kind == "pin" and one.key.startswith(BY_HAND) for one in labels),
            readers=max((retention.pools[0].refs[block] for block in held), default=0),
            claims=tuple(sorted(label.text for label in labels)) or ("plain",),
            children=tree.children[last],
            below=below,
            more_below=more,
            approximate=identity.lineage != EXACT,
            salted=bool(identity.salt),
            after_public=bool(identity.base) and tree.parent[tree.parent[first]] < 0,
        )

    def _bytes(self, run: list[int]) -> int:
        return sum(
            group.bytes_per_block * sum(payload[node] >= 0 for node in run)
            for group, payload in zip(self._groups, self._tree.payload, strict=True)
        )

    def _count_below(self, node: int) -> tuple[int, bool]:
        """Blocks of the first group below a node, as far as this look may still count."""
        tree, count = self._tree, 0
        waiting = [node] if tree.children[node] else []
        while waiting and self._left > 0:
            for child in islice(tree.each_child(waiting.pop()), self._left):
                self._left -= 1
                count += tree.payload[0][child] >= 0
                if tree.children[child]:
                    waiting.append(child)
        return count, bool(waiting) or (self._left <= 0 and tree.children[node] > 0)
