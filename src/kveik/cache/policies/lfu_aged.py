"""Frequency with ageing."""

from __future__ import annotations

from kveik.cache.policy import MAX_QUEUES, BlockFacts


class AgedFrequency:
    """What was used least often goes first, and what was used often once grows old: LFU with
    dynamic ageing (Arlitt et al. 2000, "Evaluating content management techniques for web proxy
    caches").

    The key is inflation + uses. A queue for every number of uses, the last one for all above: keys
    within a queue grow with the inflation."""

    queues = MAX_QUEUES

    def queue(self, facts: BlockFacts) -> int:
        return min(facts.hits, MAX_QUEUES - 1)

    def key(self, facts: BlockFacts) -> float:
        return facts.inflation + 1.0 + self.queue(facts)

    def rank(self, queue: int, key: float, now: float) -> float:
        return key
