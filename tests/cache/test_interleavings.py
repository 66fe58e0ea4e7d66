"""Invalidation among work in flight, deadlines, jumps of time: nothing deleted is found again."""

from __future__ import annotations

import os
import random

import pytest
from keeper import Keeper

from kveik.cache.segments import KvGroup

FULL = KvGroup((0,))
GEOMETRIES = (
    ((FULL,), 24),
    ((FULL,), 200),
    ((FULL, KvGroup((1,), "window", 6)), 40),
)


def life(seed: int, operations: int) -> Keeper:
    dice = random.Random(seed)
    groups, blocks = GEOMETRIES[seed % len(GEOMETRIES)]
    keeper = Keeper(dice, groups, blocks)
    for _ in range(operations):
        keeper.act()
    keeper.drain()
    return keeper


def test_a_few_hundred_interleavings() -> None:
    lives = [life(seed, 60) for seed in range(60)]
    assert sum(keeper.deaths for keeper in lives) > 100


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.skipif(not os.environ.get("KVEIK_SOAK"), reason="set KVEIK_SOAK=1")
@pytest.mark.parametrize("start", range(1000, 11_000, 1000))
def test_ten_thousand_interleavings(start: int) -> None:
    for seed in range(start, start + 1000):
        life(seed, 60)
