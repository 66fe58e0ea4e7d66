"""Invalidation among work in flight, deadlines, jumps of time: nothing deleted is found again."""

from __future__ import annotations

import os
import random

import pytest
from verbs import Life

from kveik.cache.segments import KvGroup

FULL = KvGroup((0,), bytes_per_block=1)
GEOMETRIES = (
    ((FULL,), 18),
    ((FULL,), 200),
    ((FULL, KvGroup((1,), "window", 6, bytes_per_block=1)), 40),
)


def life(seed: int, operations: int) -> Life:
    dice = random.Random(seed)
    groups, blocks = GEOMETRIES[seed % len(GEOMETRIES)]
    keeper = Life(dice, groups, blocks)
    for _ in range(operations):
        keeper.act()
    keeper.drain()
    return keeper


def test_a_few_hundred_interleavings() -> None:
    lives = [life(seed, 100) for seed in range(60)]
    for counted, least in (("deaths", 100), ("hits", 100), ("receipts", 10), ("evictions", 5)):
        assert sum(getattr(keeper, counted) for keeper in lives) > least, counted


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.skipif(not os.environ.get("KVEIK_SOAK"), reason="set KVEIK_SOAK=1")
@pytest.mark.parametrize("start", range(1000, 11_000, 1000))
def test_ten_thousand_interleavings(start: int) -> None:
    for seed in range(start, start + 1000):
        life(seed, 100)
