"""hit-density beside LRU, through the real cache: what it wins, and that it does not lose."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import pytest
from books import Books
from hypothesis import given, settings
from hypothesis import strategies as st
from traffic import request

from kveik.cache.policies.hit_density import HitDensity
from kveik.cache.policy import HIGH
from kveik.lab.replay import replay
from kveik.lab.trace import Trace

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import policy_traces

SIZE = 4


def some(name: str, requests: int) -> Trace:
    """The first requests of a kind of traffic."""
    prompts = islice(policy_traces.TRAFFIC[name](), requests)
    made = tuple(request(tuple(blocks), seconds, SIZE) for seconds, blocks in prompts)
    return Trace(name, SIZE, made)


def points(trace: Trace, blocks: int) -> float:
    """Hit rate above that of LRU, in points."""
    ours, lru = (replay(trace, policy, blocks) for policy in ("hit-density", "lru"))
    return 100 * (ours.block_hit_rate - lru.block_hit_rate)


@pytest.mark.parametrize(
    ("traffic", "requests", "blocks", "least"),
    [
        ("second_turn_is_last", 1000, 1000, 2.0),
        ("rag", 1000, 500, 4.0),
        ("loop", 900, 3000, 10.0),
        ("system_prompts", 600, 500, 2.0),
    ],
)
def test_it_beats_lru_where_there_is_something_to_learn(
    traffic: str, requests: int, blocks: int, least: float
) -> None:
    assert points(some(traffic, requests), blocks) > least


@pytest.mark.parametrize("traffic", policy_traces.TRAFFIC)
def test_it_is_never_much_worse_than_lru(traffic: str) -> None:
    """Scans, loops, floods, shifts, what only recency explains, and what misleads."""
    trace = some(traffic, 600)
    for blocks in (260, 1000):
        assert points(trace, blocks) > -0.3, blocks


def test_it_is_lru_until_two_pools_were_computed() -> None:
    trace = some("chat", 120)
    computed = len({block for one in trace.requests for block in one.blocks})
    pool = computed // 2 + 1
    ours, lru = (replay(trace, policy, pool) for policy in ("hit-density", "lru"))
    assert ours.hits == lru.hits
    assert lru.played.evicted > 0


class Unsteady(HitDensity):
    """Asked for every rank every time."""

    steady = False


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.integers(60, 400))
def test_ranks_that_are_remembered_are_those_that_hold(seed: int, blocks: int) -> None:
    prompts = islice(policy_traces.floods(seed), 150)
    made = tuple(request(tuple(one[:50]), seconds, SIZE) for seconds, one in prompts)
    trace = Trace("floods", SIZE, made)
    assert replay(trace, HitDensity, blocks).hits == replay(trace, Unsteady, blocks).hits


def test_a_block_that_changes_its_class_has_not_come_back() -> None:
    books = Books(8, SIZE, policy="hit-density")
    idle = books.idle[0]
    policy = idle._policy
    assert isinstance(policy, HitDensity)
    for first in range(0, 200, 8):
        books.end(books.run(list(range(first, first + 8))))
    assert sum(map(sum, policy._times.came)) == 0
    for block in range(8):
        idle.set_class(block, HIGH)
    assert sum(map(sum, policy._times.came)) == 0
    for first in range(168, 200, 8):  # all that is cached, so what of it is in the sample
        books.end(books.run(list(range(first, first + 8))))
    assert sum(map(sum, policy._times.came)) > 0


def test_doubt_grows_while_lru_does_better_and_ends_when_it_does_not() -> None:
    policy = HitDensity()
    policy._begin(100)
    levels = []
    for own, lru in (
        (0, 9),
        (0, 9),
        (0, 9),
        (0, 9),
        (5, 5),
        (0, 2),
        (9, 0),
        (9, 0),
        (9, 0),
        (9, 0),
    ):
        policy._computed = policy._next_examination
        policy._own_hits, policy._lru_hits = own, lru
        policy._examine()
        levels.append(policy._level)
    assert levels == [2, 4, 5, 5, 4, 3, 2, 1, 0, 0]


@pytest.mark.parametrize("traffic", policy_traces.TRAFFIC)
def test_every_kind_of_traffic_names_one_prefix_by_one_number(traffic: str) -> None:
    before: dict[int, int] = {}
    seconds = 0.0
    for now, blocks in islice(policy_traces.TRAFFIC[traffic](), 400):
        assert now >= seconds
        seconds = now
        for parent, block in zip([-1, *blocks], blocks, strict=False):
            assert before.setdefault(block, parent) == parent
