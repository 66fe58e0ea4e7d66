"""From counts of reuse to hit densities: hits for each block of room and each block that passes.

Pure functions. Counts are few where they matter, so each is read beside what is known already:

    of an octave   beside the average of all octaves, which alone makes LRU of it: an equal chance
                   in every octave is half the density in the next
    of a kind      beside that of all kinds
    of both        beside octave times kind

How many blocks of experience the older knowledge weighs, `Doubt` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

Counts = Sequence[Sequence[float]]
"""By kind and octave of age."""

_DOUBTS_MORE = 4.0
_LIKELIEST = 0.9  # that a kind makes of an octave
_CERTAIN = 0.999


class Doubt(NamedTuple):
    """Blocks for which the knowledge from elsewhere counts."""

    octave: float = 10.0
    kind: float = 10.0
    both: float = 100.0

    @classmethod
    def level(cls, level: int) -> Self:
        """Four times as much with every level."""
        plain, more = cls(), _DOUBTS_MORE**level
        return cls(*(weight * more for weight in plain))


def hit_densities(came: Counts, reached: Counts, doubt: Doubt) -> list[list[float]]:
    """Of every kind the density at the beginning of every octave, see ReuseTimes, and 0 behind
    the last."""
    return [[*_best(chances), 0.0, 0.0] for chances in _chances(came, reached, doubt)]


def _chances(came: Counts, reached: Counts, doubt: Doubt) -> list[list[float]]:
    """The chance that a block that lives to see an octave comes back within it."""
    waiting = [_waiting(back, there) for back, there in zip(came, reached, strict=True)]
    back_in = [sum(column) for column in zip(*came, strict=True)]
    waited_in = [sum(column) for column in zip(*waiting, strict=True)]
    average = (sum(back_in) + 1.0) / (sum(waited_in) + 2.0)
    octaves = [
        (back + doubt.octave * average) / (waited + doubt.octave)
        for back, waited in zip(back_in, waited_in, strict=True)
    ]
    rows: list[list[float]] = []
    for back_of, waited_of in zip(came, waiting, strict=True):
        expected = sum(map(float.__mul__, waited_of, octaves))
        factor = (sum(back_of) + doubt.kind) / (expected + doubt.kind)
        rows.append(
            [
                min(
                    (back + doubt.both * min(chance * factor, _LIKELIEST)) / (waited + doubt.both),
                    _CERTAIN,
                )
                for back, waited, chance in zip(back_of, waited_of, octaves, strict=True)
            ]
        )
    return rows


def _waiting(came: Sequence[float], reached: Sequence[float]) -> list[float]:
    """Blocks that reached an octave without having come back before."""
    gone, waiting = 0.0, []
    for back, there in zip(came, reached, strict=True):
        waiting.append(max(there - gone, back))
        gone += back
    return waiting


def _best(chances: Sequence[float]) -> list[float]:
    """The greatest ratio of hits to time, from the beginning of each octave to the end of any later
    one (the index of Gittins): stretches that do better are joined to the one before them."""
    stretches: list[tuple[float, float, float]] = []  # hits, time, share that is left at the end
    best: list[float] = []
    for octave in range(len(chances) - 1, -1, -1):
        chance = chances[octave]
        width = float(1 << octave) if octave else 2.0
        hits, time, left = chance, width * (1.0 - chance / 2), 1.0 - chance
        while stretches and stretches[-1][0] * time >= hits * stretches[-1][1]:
            more_hits, more_time, more_left = stretches.pop()
            hits, time, left = hits + left * more_hits, time + left * more_time, left * more_left
        stretches.append((hits, time, left))
        best.append(hits / time)
    best.reverse()
    return best
