"""Why blocks are gone: keyed digests with a reason, bounded, and fair between namespaces.

A namespace remembers its last `capacity` of them, and all together four times as many: what goes
then is the oldest of the namespace that holds most. A flood of one therefore never takes a reason
that another remembers within an equal share. Standard library only.
"""

from __future__ import annotations

from collections import OrderedDict

_SHARES = 4  # namespaces that may remember all that they are allowed to

Space = int
"""A namespace, as PrefixTree.space_of calls it."""


class Ghosts:
    """Every call is O(1), however many namespaces there are."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._most = _SHARES * capacity
        self._count = 0
        self._reasons: dict[Space, OrderedDict[bytes, str]] = {}
        self._sized: dict[int, OrderedDict[Space, None]] = {}  # namespaces by how many they hold
        self._largest = 0

    def __len__(self) -> int:
        return self._count

    def remember(self, space: Space, digest: bytes, reason: str) -> None:
        if not self.capacity:
            return
        reasons = self._reasons.setdefault(space, OrderedDict())
        if digest not in reasons:
            self._resize(space, len(reasons), 1)
        reasons[digest] = reason
        reasons.move_to_end(digest)
        if len(reasons) > self.capacity:
            self._forget_oldest(space)
        elif self._count > self._most:
            self._forget_oldest(next(iter(self._sized[self._largest])))

    def reason(self, space: Space, digest: bytes) -> str | None:
        reasons = self._reasons.get(space)
        return None if reasons is None else reasons.get(digest)

    def _forget_oldest(self, space: Space) -> None:
        reasons = self._reasons[space]
        self._resize(space, len(reasons), -1)
        reasons.popitem(last=False)

    def _resize(self, space: Space, size: int, change: int) -> None:
        """The namespace is about to hold one more or one less than `size`."""
        if size:
            alike = self._sized[size]
            del alike[space]
            if not alike:
                del self._sized[size]
        if size + change:
            self._sized.setdefault(size + change, OrderedDict())[space] = None
        self._count += change
        if size + change > self._largest or self._largest not in self._sized:
            self._largest = size + change
