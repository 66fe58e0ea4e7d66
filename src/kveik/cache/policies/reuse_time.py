"""Reuse time by category."""

from __future__ import annotations

import math

from kveik.cache.policy import BlockFacts

_TURNS = 3  # began anew, went on from a little, went on from most of it
_LENGTHS = 8  # octaves of the length of the sequence, from 256 tokens on
_FADES = 0.999  # of what was learned, with every block


class ReuseTime:
    """What is least likely to be used again in the time that it could stay goes first (Wang et al.
    2025, "KVCache cache in the wild: characterizing and optimizing KVCache cache at a large cloud
    provider").

    Every category has a share of blocks that are reused and a mean time until they are: reuse
    times follow an exponential law, as the paper finds. There a category is a kind of request and
    a turn; nobody tells a cache the kind, so here it is the length of the sequence, and the turn is
    how much of it was found. Within a category the order is that of age, tails first."""

    queues = _TURNS * _LENGTHS

    def __init__(self) -> None:
        self._blocks = [1.0] * self.queues  # fading counts, begun with what LRU would believe
        self._reused = [0.5] * self.queues
        self._waited = [150.0] * self.queues  # seconds, of those that were reused
        self._stay = 300.0  # seconds that a block stays, about
        self._last: dict[int, tuple[int, float, int]] = {}  # category, time, hits

    def queue(self, facts: BlockFacts) -> int:
        category, before = self._category(facts), self._last.get(facts.block)
        if before is not None and facts.hits > before[2] and facts.used > before[1]:
            self._reused[before[0]] += 1.0
            self._waited[before[0]] += facts.used - before[1]
        for column in (self._blocks, self._reused, self._waited):
            column[category] *= _FADES
        self._blocks[category] += 1.0
        self._last[facts.block] = category, facts.used, facts.hits
        return category

    def _category(self, facts: BlockFacts) -> int:
        length = min(max(int(math.log2(max(facts.sequence, 1))) - 8, 0), _LENGTHS - 1)
        turn = 0 if 16 * facts.found < facts.sequence else 1 + (2 * facts.found > facts.sequence)
        return turn * _LENGTHS + length

    def key(self, facts: BlockFacts) -> float:
        return facts.used

    def rank(self, queue: int, key: float, now: float) -> float:
        """The probability that it is used within the time that it could stay."""
        mean = max(self._waited[queue] / self._reused[queue], 1e-3)
        reused = min(self._reused[queue] / self._blocks[queue], 1.0)
        soon = 1.0 - math.exp(-self._stay / mean)
        return reused * math.exp((key - now) / mean) * soon

    def gone(self, facts: BlockFacts) -> None:
        self._last.pop(facts.block, None)
        self._stay += 0.01 * (facts.now - facts.used - self._stay)
