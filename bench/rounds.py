"""Sides of a comparison that take turns, so that a noisy machine is unfair to none of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping

Side = Callable[[], object]


def seconds(side: Side) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def interleaved(
    sides: Mapping[str, Side], rounds: int, shortest: float = 0.02
) -> dict[str, list[float]]:
    """Seconds of one call of every side, one figure a round; calls alternate: a, b, a, b.

    A side is called as often a round as fills `shortest` seconds, all sides equally often; a
    round's figure is the median of these calls. Each is called once before, for pages and buffers,
    and every round begins with another one."""
    names = list(sides)
    quickest = min(seconds(side) for side in sides.values())
    calls = max(1, math.ceil(shortest / quickest))
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        order = names[first:] + names[:first]
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(calls):
            for name in order:
                times[name].append(seconds(sides[name]))
        for name in names:
            found[name].append(statistics.median(times[name]))
    return found
