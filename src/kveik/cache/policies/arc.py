"""Adaptive replacement."""

from __future__ import annotations

from kveik.cache.policies.members import Ghosts, Members
from kveik.cache.policy import BlockFacts

ONCE, OFTEN = 0, 1


class AdaptiveReplacement:
    """What was used once and what was used more often share the pool, and what is missed says how
    (Megiddo and Modha 2003, "ARC: a self-tuning, low overhead replacement cache").

    Each of the two lists has a ghost list. Whoever comes back from that of `ONCE` makes its wanted
    size greater, from that of `OFTEN` smaller."""

    queues = 2

    def __init__(self) -> None:
        self._members = Members(2)
        self._ghosts = (Ghosts(), Ghosts())
        self._wanted = 0.0  # blocks in ONCE

    def queue(self, facts: BlockFacts) -> int:
        into = OFTEN
        if self._members.is_new(facts) and not self._came_back(facts):
            into = ONCE
        self._members.put(facts, into)
        return into

    def _came_back(self, facts: BlockFacts) -> bool:
        """Was it evicted not long ago? The sizes learn from it."""
        once, often = self._ghosts
        content, sizes = facts.content, (len(once), len(often))
        if once.recall(content):
            more = max(1.0, sizes[OFTEN] / sizes[ONCE])
            self._wanted = min(self._wanted + more, float(facts.capacity))
        elif often.recall(content):
            self._wanted = max(self._wanted - max(1.0, sizes[ONCE] / sizes[OFTEN]), 0.0)
        else:
            return False
        return True

    def key(self, facts: BlockFacts) -> float:
        return float(facts.last_used)

    def rank(self, queue: int, key: float, now: float) -> float:
        once_goes = self._members.sizes[ONCE] > self._wanted
        return float((queue == OFTEN) == once_goes)

    def gone(self, facts: BlockFacts) -> None:
        left = self._members.take(facts)
        if left < 0:
            return
        once, often = self._ghosts
        self._ghosts[left].add(facts.content)
        once.trim(facts.capacity - self._members.sizes[ONCE])
        often.trim(2 * facts.capacity - sum(self._members.sizes) - len(once))
