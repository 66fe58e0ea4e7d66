"""First in, first out."""

from __future__ import annotations

from kveik.cache.policies.members import Members
from kveik.cache.policy import MAX_QUEUES, BlockFacts

_GENERATIONS = 16  # in which the blocks of a full pool were computed


class FirstInFirstOut:
    """What was computed first goes first, however often it was used since (Belady 1966 has it as
    the plainest of all).

    Within a queue blocks stand in the order of their last use, so every sixteenth of the pool that
    is computed begins another queue: the order of age is exact between them."""

    queues = MAX_QUEUES

    def __init__(self) -> None:
        self._members = Members(1)
        self._born: dict[int, int] = {}
        self._births = 0

    def queue(self, facts: BlockFacts) -> int:
        if self._members.is_new(facts):
            self._members.put(facts, 0)
            self._births += 1
            self._born[facts.block] = self._births
        span = max(facts.capacity // _GENERATIONS, 1)
        return self._born[facts.block] // span % MAX_QUEUES

    def key(self, facts: BlockFacts) -> float:
        return float(self._born[facts.block])

    def rank(self, queue: int, key: float, now: float) -> float:
        return key
