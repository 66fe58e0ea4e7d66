"""Do two samples come from one distribution? Kolmogorov-Smirnov, and Holm's correction.

The p-value is the asymptotic one with Stephens' correction for finite samples, good from about ten
values on; with ties it is too large rather than too small.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from math import exp, sqrt


def distance(left: Sequence[float], right: Sequence[float]) -> float:
    """The largest difference between the two empirical distribution functions."""
    one, other = sorted(left), sorted(right)
    return max(
        abs(bisect_right(one, x) / len(one) - bisect_right(other, x) / len(other))
        for x in (*one, *other)
    )


def area(left: Sequence[float], right: Sequence[float]) -> float:
    """Probability that a value of `left` is below one of `right` (ties count half); 0.5: by chance.

    It is the area under the curve of a guesser who knows only where the threshold should be."""
    other = sorted(right)
    below = sum(len(other) - (bisect_left(other, x) + bisect_right(other, x)) / 2 for x in left)
    return below / (len(left) * len(right))


def kolmogorov(x: float) -> float:
    """Probability that Kolmogorov's limit exceeds x."""
    if x < 0.2:
        return 1.0  # to 12 digits
    terms = ((-1) ** (k - 1) * exp(-2.0 * (k * x) ** 2) for k in range(1, 101))
    return min(max(2.0 * sum(terms), 0.0), 1.0)


def p_value(left: Sequence[float], right: Sequence[float]) -> float:
    """Of the hypothesis that both were drawn from one distribution."""
    size = sqrt(len(left) * len(right) / (len(left) + len(right)))
    return kolmogorov((size + 0.12 + 0.11 / size) * distance(left, right))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Each p-value adjusted for having looked at all of them: below alpha is rejected at alpha."""
    adjusted: dict[str, float] = {}
    least = 0.0
    for tried, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        least = max(least, min(1.0, p_values[name] * (len(p_values) - tried)))
        adjusted[name] = least
    return adjusted
