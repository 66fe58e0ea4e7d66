"""What is dear to compute again stays: GreedyDual-Size with frequency."""

from __future__ import annotations

import math

from kveik.cache.policy import MAX_QUEUES, BlockFacts


class CostAware:
    """Cheap to compute again and seldom used goes first: GreedyDual-Size with frequency.

    The key is inflation + uses * recompute cost / size (Cherkasova 1998); all blocks have one
    size. Values are rounded down to half octaves, one queue each: within a queue keys grow with
    the inflation, so that the head has the smallest."""

    queues = MAX_QUEUES

    def queue(self, facts: BlockFacts) -> int:
        value = (1 + facts.hits) * facts.recompute_cost
        return min(int(2 * math.log2(value)), MAX_QUEUES - 1)

    def key(self, facts: BlockFacts) -> float:
        return facts.inflation + float(2 ** (self.queue(facts) / 2))

    def rank(self, queue: int, key: float, now: float) -> float:
        return key
