"""Tells the curve what happens to blocks: which are looked up, used, deleted.

The curve knows a block by the mark of its path (PrefixTree.mark); those of blocks that are not
there are worked out here. A lease carries the marks of its path, so that what it used counts as
used until it ends. Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence

from kveik.cache.curve import CurveMeter
from kveik.cache.lease import Lease
from kveik.cache.lookup import Found
from kveik.cache.prefix import WORD, Identity, PrefixTree, mark_below
from kveik.cache.segments import EXACT


class CurveFeed:
    """See the module. enabled: is anything found again?"""

    def __init__(self, meter: CurveMeter, tree: PrefixTree, enabled: bool) -> None:
        self.meter, self.tree, self.enabled = meter, tree, enabled
        self._size = tree.block_size
        self._width = tree.block_size * WORD

    def opened(self, lease: Lease, found: Found, data: bytes, cap: int, *, counted: bool) -> None:
        """A prompt was looked up for this lease, up to `cap` tokens of it. What is not there yet is
        used too: whoever comes next waits for it. counted False: nothing was to be found."""
        if not self.enabled or not counted:
            return
        tree, meter = self.tree, self.meter
        there = [tree.mark[node] for node in found.walked]
        lease.marks = meter.follow(there[: found.blocks])
        marks = there + self._absent(lease.identity, found, data, cap // self._size)
        tail = None
        if found.source >= 0:
            tail = tree.mark[found.source], found.extra
            meter.touched(tail[:1])  # it was copied; its whole successor will take its place
        if lease.lineage == EXACT:
            length, cached = len(data) // WORD, found.blocks * self._size + found.extra
            meter.looked_up(marks, tail, length, cached)
        meter.touched(marks, known=lease.node < 0)

    def _absent(self, identity: Identity, found: Found, data: bytes, blocks: int) -> list[int]:
        """Marks of the whole blocks of the prompt that the tree does not have."""
        tree, width = self.tree, self._width
        number = len(found.walked)
        if number >= blocks:
            return []
        node = found.behind(number)
        mark = tree.mark[node] if node >= 0 else hash(identity)
        marks: list[int] = []
        for start in range(number * width, blocks * width, width):
            mark = mark_below(mark, data[start : start + width])
            marks.append(mark)
        return marks

    def published(self, lease: Lease, nodes: Sequence[int]) -> None:
        """The lease goes on behind its path with these nodes."""
        if self.enabled:
            lease.marks += self.meter.follow(self.tree.mark[node] for node in nodes)

    def read(self, lease: Lease, nodes: Sequence[int]) -> None:
        """The lease reads this path and nothing was looked up for it."""
        if self.enabled:
            lease.marks = self.meter.follow(self.tree.mark[node] for node in nodes)

    def released(self, lease: Lease) -> None:
        """What the lease used was used until now."""
        self.meter.touched(lease.marks)
        lease.marks = []

    def deleted(self, node: int) -> None:
        """A node goes, and not to make room."""
        self.meter.forget(self.tree.mark[node])
