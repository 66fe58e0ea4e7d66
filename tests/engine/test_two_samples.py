"""The statistics behind the timing test: known values, a planted difference, and none."""

from __future__ import annotations

import random

import pytest
from two_samples import area, distance, holm, kolmogorov, p_value


@pytest.mark.parametrize(
    ("x", "p"), [(0.1, 1.0), (0.5, 0.9639), (1.2238, 0.1), (1.3581, 0.05), (1.6276, 0.01)]
)
def test_quantiles_of_the_limit(x: float, p: float) -> None:
    assert kolmogorov(x) == pytest.approx(p, abs=1e-4)


def test_the_distance_is_the_largest_gap_of_the_steps() -> None:
    assert distance([1, 2, 3, 4], [1, 2, 3, 4]) == 0
    assert distance([1, 2], [3, 4, 5]) == 1
    assert distance([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5
    assert distance([1, 1, 2], [1, 2, 2]) == pytest.approx(1 / 3)  # ties step together


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    assert area([1, 2], [3, 4]) == 1
    assert area([3, 4], [1, 2]) == 0
    assert area([1, 2, 3], [1, 2, 3]) == 0.5
    assert area([1, 3], [2, 4]) == 0.75


def test_equal_distributions_are_rejected_as_often_as_said() -> None:
    dice = random.Random(5)
    rejected = [
        p_value([dice.gauss(0, 1) for _ in range(250)], [dice.gauss(0, 1) for _ in range(250)])
        for _ in range(400)
    ]
    assert 0.02 <= sum(p < 0.05 for p in rejected) / 400 <= 0.08
    assert sum(p < 0.5 for p in rejected) / 400 == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(("shift", "spread"), [(0.6, 1.0), (0.0, 2.2)])
def test_a_planted_difference_is_seen(shift: float, spread: float) -> None:
    dice = random.Random(7)
    left = [dice.gauss(0, 1) for _ in range(250)]
    right = [dice.gauss(shift, spread) for _ in range(250)]
    assert p_value(left, right) < 0.001


def test_holm_multiplies_the_least_by_the_number_of_tests_and_keeps_the_order() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.9})
    assert adjusted == pytest.approx({"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.9})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
