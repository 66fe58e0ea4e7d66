"""Least hit density: who goes is learned from what comes back."""

from __future__ import annotations

from math import log2

from kveik.cache.policies.densities import Doubt, hit_densities
from kveik.cache.policies.reuse_times import ReuseTimes, Sample
from kveik.cache.policy import BlockFacts

_DEPTHS = 3
_SHALLOW = 1 / 8  # of the average depth; four times that parts the other two
_SETTLED = 2  # pools that were computed before anything is decided by what was learned
_ROUNDS = 4  # times that trust is examined while as much as the pool is computed
_REVIEWS = 16  # times that densities are worked out anew while as much as the pool is let go
_MAX_LEVEL = 5


class HitDensity:
    """The block goes that will bring the fewest hits for the room and time that it would take.

    After Beckmann, Chen and Cidon 2018 ("LHD: improving cache hit rate by maximizing hit density"),
    with the best moment to stop waiting (Gittins 1979) in the place of their average. Blocks are of
    seven kinds: what nothing goes on behind; and of the others, those of one depth (a start, a
    middle, a rest, compared with the average) that were reused or computed in a further turn, or
    neither. Of every kind it is learned how often a block comes back at which age, from a sample
    that remembers evicted blocks, too. Ages are counted in blocks let go, in octaves: there is no
    second, no token and no block size in it, and what it learned fades while sixteen pools pass.

    The same sample tells what LRU would have hit. Where that is more, the policy doubts what it
    learned, four times as much each time, and with enough doubt it is LRU."""

    queues = 1 + 2 * _DEPTHS
    steady = True

    def __init__(self) -> None:
        self._clock = 0  # blocks let go, the same one again and again included
        self._computed = 0  # those of them that were new
        self._depth = self._weight = 0.0  # sums over what is new, fading
        self._density: list[list[float]] = []  # by kind and octave; empty: goes by age alone
        self._capacity = 0

    def _begin(self, capacity: int) -> None:
        """The size of the pool is known."""
        self._capacity = capacity
        self._sample = Sample(capacity)
        self._times = ReuseTimes(self.queues, self._sample.window, max(capacity // 16, 1))
        self._fades = 1.0 - 1.0 / max(capacity, 2)
        self._level = 0  # of doubt
        self._own_hits = self._lru_hits = 0  # of the sample, since the last examination
        self._every = max(256, capacity // _REVIEWS)
        self._next_review = self._every
        self._next_examination = _SETTLED * capacity

    def queue(self, facts: BlockFacts) -> int:
        if not self._capacity:
            self._begin(facts.capacity)
        self._clock += 1
        new = not facts.hits
        if new:
            self._computed += 1
            self._depth = self._depth * self._fades + facts.depth
            self._weight = self._weight * self._fades + 1.0
        kind = self._kind(facts)
        if self._sample.takes(mark := facts.mark):
            self._learn(mark, kind, facts.last_used, new)
        if self._computed >= self._next_examination:
            self._examine()
        if self._clock >= self._next_review:
            self._review()
        return kind

    def _kind(self, facts: BlockFacts) -> int:
        if facts.leaf:
            return 0
        relative = facts.depth * self._weight
        depth = 2
        if relative < self._depth * _SHALLOW:
            depth = 0
        elif relative < self._depth * _SHALLOW * 4:
            depth = 1
        return 1 + depth + (_DEPTHS if facts.hits or facts.continues else 0)

    def _learn(self, mark: int, kind: int, used: int, new: bool) -> None:
        """This block of the sample was let go."""
        before, recent = self._sample.use(mark, kind, self._clock, used)
        if before is not None:
            if before.used == used:  # it only changed its place
                return
            self._times.came_back(before.kind, self._clock - before.clock)
            self._own_hits += not new
            self._lru_hits += recent
        self._times.left(kind, self._clock)

    def _examine(self) -> None:
        """Is it better than LRU? A difference of two may be chance."""
        if self._computed < self._next_examination + self._capacity:
            better = self._own_hits - self._lru_hits
            self._level += 2 if better < -2 else -1
            self._level = min(max(self._level, 0), _MAX_LEVEL)
        self._own_hits = self._lru_hits = 0
        self._next_examination = self._computed + max(self._capacity // _ROUNDS, 1)

    def _review(self) -> None:
        """Work the densities out anew."""
        self._next_review = self._clock + self._every
        self._times.advance(self._clock)
        if self._computed >= _SETTLED * self._capacity:
            self._density = hit_densities(
                self._times.came, self._times.reached, Doubt.level(self._level)
            )

    def key(self, facts: BlockFacts) -> float:
        return float(self._clock)

    def rank(self, queue: int, key: float, now: float) -> float:
        """The density at its age, between those in the middle of two octaves."""
        if not self._density:
            return key
        density = self._density[queue]
        place = log2(self._clock - key + 1.0) - 0.5
        if place <= 0.0:
            return density[0]
        octave = int(place)
        here = density[octave]
        return here + (place - octave) * (density[octave + 1] - here)
