"""Time: a clock that survives jumps, and until when every node may be kept.

A node has up to four numbers: the moment at which it is deleted whatever happens, and how long
after its last use; the same two for being demoted. They lie in flat arrays, made when the first
deadline is set. Nodes wait in buckets of a quarter of a second; a deadline that moved on is noticed
when its bucket comes up. Standard library only.
"""

from __future__ import annotations

from array import array
from heapq import heappop, heappush
from math import ceil

from kveik.cache.directive import Ttl

_PER_SECOND = 4  # buckets
_JUMP = 3600.0  # seconds back that are a jump and not another thread's older reading
NEVER = float("inf")
_FAR = 1e15
_WAITS_NOT = -1
_LOOKED_AT = 1000


class Clock:
    """Seconds that never run backwards, of readings that may.

    A reading of 0.0 means that none was given. After a jump back time goes on at its own pace."""

    def __init__(self) -> None:
        self.now = 0.0
        self._offset = 0.0
        self._last: float | None = None

    def read(self, reading: float) -> float:
        if reading == 0.0:
            return self.now
        if self._last is None or reading < self._last - _JUMP:
            self._offset = self.now - reading if self._last is not None else 0.0
            self._last = reading
        self._last = max(self._last, reading)
        self.now = max(self.now, reading + self._offset)
        return self.now

    def as_read(self, moment: float) -> float:
        """A moment of this clock as its readings count."""
        return moment - self._offset


class Deadlines:
    """See the module. `used` is the tree's column of last uses."""

    def __init__(self, used: array[float]) -> None:
        self._used = used
        self._delete_at = array("d")
        self._delete_after = array("d")
        self._demote_at = array("d")
        self._demote_after = array("d")
        self._key = array("q")  # of the bucket in which the node waits
        self._buckets: dict[int, array[int]] = {}
        self._heap: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._heap)

    def _fit(self, nodes: int) -> None:
        more = nodes - len(self._key)
        if more > 0:
            never = array("d", [NEVER]) * more
            for column in (
                self._delete_at,
                self._delete_after,
                self._demote_at,
                self._demote_after,
            ):
                column.extend(never)
            self._key.extend(array("q", [_WAITS_NOT]) * more)

    def give(self, node: int, ttl: Ttl, now: float) -> None:
        """Another time to live for the node: of two the earlier deadline holds."""
        self._fit(len(self._used))
        delete = ttl.mode == "delete"
        if ttl.clock == "first_use":
            column, value = (self._delete_at if delete else self._demote_at), now + ttl.seconds
        else:
            column, value = (self._delete_after if delete else self._demote_after), ttl.seconds
        column[node] = min(column[node], value)
        self.wait(node)

    def take_back(self, node: int) -> None:
        """The node has no deadline any more."""
        if node < len(self._key):
            self._delete_at[node] = self._delete_after[node] = NEVER
            self._demote_at[node] = self._demote_after[node] = NEVER
            self._key[node] = _WAITS_NOT

    def delete_at(self, node: int) -> float:
        if node >= len(self._key):
            return NEVER
        return min(self._delete_at[node], self._used[node] + self._delete_after[node])

    def ends_at(self, node: int) -> float:
        """When it is deleted however it is used."""
        return self._delete_at[node] if node < len(self._key) else NEVER

    def demote_at(self, node: int) -> float:
        if node >= len(self._key):
            return NEVER
        return min(self._demote_at[node], self._used[node] + self._demote_after[node])

    def demotes_by_use(self, node: int) -> bool:
        return node < len(self._key) and self._demote_after[node] < NEVER

    def wait(self, node: int, *, demoted: bool = False) -> None:
        """In the bucket of its next deadline, unless it waits in an earlier one. demoted: that
        has happened already."""
        due = self.delete_at(node)
        if not demoted:
            due = min(due, self.demote_at(node))
        if due == NEVER:
            return
        key = ceil(min(due, _FAR) * _PER_SECOND)
        if self._key[node] != _WAITS_NOT and self._key[node] <= key:
            return
        self._key[node] = key
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = array("i")
            heappush(self._heap, key)
        bucket.append(node)

    def take_due(self, now: float) -> int:
        """A node whose bucket has come up. It waits no longer; look at its deadlines. -1: there is
        none, or (see `is_due`) none among the next thousand, which do not wait any more."""
        for _ in range(_LOOKED_AT):
            if not self.is_due(now):
                break
            key = self._heap[0]
            bucket = self._buckets[key]
            if not bucket:
                del self._buckets[key]
                heappop(self._heap)
                continue
            node = bucket.pop()
            if self._key[node] == key:
                self._key[node] = _WAITS_NOT
                return node
        return -1

    def is_due(self, now: float) -> bool:
        """Has a bucket come up?"""
        return bool(self._heap) and self._heap[0] <= now * _PER_SECOND

    def possible(self, now: float) -> bool:
        """May a deadline have passed?"""
        return bool(self._heap) and (self._heap[0] - 1) <= now * _PER_SECOND

    def next(self) -> float | None:
        """When the next bucket comes up."""
        return self._heap[0] / _PER_SECOND if self._heap else None
