"""What policies with a memory note: which list a block is in, and what was evicted from it."""

from __future__ import annotations

from collections import OrderedDict

from kveik.cache.policy import BlockFacts


class Members:
    """Blocks of a pool by list, those that are being read included; `sizes[list]` of them."""

    def __init__(self, lists: int) -> None:
        self.sizes = [0] * lists
        self._list: dict[int, int] = {}

    def is_new(self, facts: BlockFacts) -> bool:
        """Has the block been computed since it was last put into a list, or never been in one?"""
        return not facts.hits or facts.block not in self._list

    def of(self, facts: BlockFacts) -> int:
        return self._list[facts.block]

    def put(self, facts: BlockFacts, into: int) -> None:
        """Into this list, out of any other."""
        self.take(facts)
        self._list[facts.block] = into
        self.sizes[into] += 1

    def take(self, facts: BlockFacts) -> int:
        """Out of its list, which it returns; -1: it is in none."""
        left = self._list.pop(facts.block, -1)
        if left >= 0:
            self.sizes[left] -= 1
        return left


class Ghosts:
    """Contents that were evicted, the latest last, without their keys and values."""

    def __init__(self) -> None:
        self._contents: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._contents)

    def add(self, content: bytes) -> None:
        self._contents[content] = None
        self._contents.move_to_end(content)

    def trim(self, most: int) -> None:
        """Forget the oldest until so many are left."""
        while len(self._contents) > max(most, 0):
            self._contents.popitem(last=False)

    def recall(self, content: bytes) -> bool:
        """Is it there? It is forgotten then, for it is cached again."""
        return self._contents.pop(content, self) is None
