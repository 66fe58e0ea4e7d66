"""Segmented LRU."""

from __future__ import annotations

from kveik.cache.policies.members import Members
from kveik.cache.policy import BlockFacts

PROBATION, PROTECTED = 0, 1


class SegmentedLru:
    """What was used once goes before what was used again (Karedla, Love and Wherry 1994).

    A block that is reused is protected. When more than `share` of the pool is, the protected block
    that was not used for longest is on probation once more, behind all others there."""

    queues = 2
    share = 0.8

    def __init__(self) -> None:
        self._members = Members(2)
        self._most = 0.0

    def queue(self, facts: BlockFacts) -> int:
        self._most = self.share * facts.capacity
        self._members.put(facts, PROBATION if self._members.is_new(facts) else PROTECTED)
        return self._members.of(facts)

    def key(self, facts: BlockFacts) -> float:
        return float(facts.last_used)

    def rank(self, queue: int, key: float, now: float) -> float:
        return float((queue == PROBATION) == self._is_over())

    def _is_over(self) -> bool:
        """Is more protected than may be?"""
        return self._members.sizes[PROTECTED] > self._most

    def again(self, facts: BlockFacts) -> int:
        if self._members.of(facts) == PROBATION or not self._is_over():
            return -1
        self._members.put(facts, PROBATION)
        return PROBATION

    def gone(self, facts: BlockFacts) -> None:
        self._members.take(facts)
