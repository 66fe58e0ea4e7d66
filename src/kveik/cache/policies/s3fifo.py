"""S3-FIFO."""

from __future__ import annotations

from kveik.cache.policies.members import Ghosts, Members
from kveik.cache.policy import BlockFacts

SMALL, MAIN = 0, 1


class S3Fifo:
    """Three first-in-first-out queues are enough (Yang et al. 2023, "FIFO queues are all you need
    for cache eviction"): what is new passes a small queue, a tenth of the pool, so that what is
    used once is gone soon; what was used meanwhile, or comes back after that, lives in the main
    one, where every use is another round (three at most). The third one remembers contents only.

    A block joins the end of its queue when it is let go by a reader, because readers keep it out of
    the queues."""

    queues = 2
    share = 0.1
    most_rounds = 3

    def __init__(self) -> None:
        self._members = Members(2)
        self._ghosts = Ghosts()
        self._rounds: dict[int, int] = {}
        self._hits: dict[int, int] = {}
        self._small = 0.0

    def queue(self, facts: BlockFacts) -> int:
        self._small = self.share * facts.capacity
        block = facts.block
        if self._members.is_new(facts):
            self._members.put(facts, MAIN if self._ghosts.recall(facts.content) else SMALL)
            self._rounds[block] = self._hits[block] = 0
        more = facts.hits - self._hits[block]
        self._hits[block] = facts.hits
        self._rounds[block] = min(self._rounds[block] + more, self.most_rounds)
        return self._members.of(facts)

    def key(self, facts: BlockFacts) -> float:
        return float(facts.last_used)

    def rank(self, queue: int, key: float, now: float) -> float:
        small_is_full = self._members.sizes[SMALL] > self._small
        return float((queue == MAIN) == small_is_full)

    def again(self, facts: BlockFacts) -> int:
        if not self._rounds[facts.block]:
            return -1
        if self._members.of(facts) == SMALL:
            self._members.put(facts, MAIN)
            self._rounds[facts.block] = 0
        else:
            self._rounds[facts.block] -= 1
        return MAIN

    def gone(self, facts: BlockFacts) -> None:
        if self._members.take(facts) == SMALL:
            self._ghosts.add(facts.content)
            self._ghosts.trim(facts.capacity - int(self._small))
