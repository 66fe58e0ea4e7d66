"""Least recently used."""

from __future__ import annotations

from kveik.cache.policy import BlockFacts


class LeastRecentlyUsed:
    """The block that was not used for longest goes first."""

    queues = 1

    def queue(self, facts: BlockFacts) -> int:
        return 0

    def key(self, facts: BlockFacts) -> float:
        return float(facts.last_used)

    def rank(self, queue: int, key: float, now: float) -> float:
        return key
