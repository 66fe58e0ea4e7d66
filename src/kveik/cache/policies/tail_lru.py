"""Tail-optimised LRU."""

from __future__ import annotations

from kveik.cache.policy import BlockFacts

SPARE, NEEDED = 0, 1


class TailOptimizedLru:
    """What can be computed again without making the next turn late goes first (Zhang et al. 2025,
    "Tail-optimized caching for LLM inference").

    A conversation of L tokens whose next turn brings `next_prompt` more answers in time when at
    most `threshold` tokens are computed for it. So the tokens behind L + next_prompt - threshold
    need not be there; among those, and then among all others, the block that was not used for
    longest goes first. It costs hits, and saves the latency of the longest conversations."""

    queues = 2
    threshold = 1024  # tokens that are computed in time
    next_prompt = 256  # tokens, about

    def queue(self, facts: BlockFacts) -> int:
        needed = facts.sequence + self.next_prompt - self.threshold
        return NEEDED if facts.depth <= needed else SPARE

    def key(self, facts: BlockFacts) -> float:
        return float(facts.last_used)

    def rank(self, queue: int, key: float, now: float) -> float:
        return float(queue)
