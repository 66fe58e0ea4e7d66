"""From the hidden states of a prompt to its embedding. Standard library."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence


def unit_vector(sums: Sequence[int]) -> array[float]:
    """The direction of a sum of hidden states, which is that of their mean: float32 [H], length 1.

    sums: H integers in any one unit (`Ops.sum_rows`). Zeros stay zeros."""
    length = math.hypot(*sums) or 1.0
    return array("f", [one / length for one in sums])


def mean_vector(sums: Sequence[int], count: int) -> array[float]:
    """The mean of `count` hidden states: float32 [H]. sums: as `Ops.sum_rows` has them."""
    return array("f", [one / (count << 30) for one in sums])
