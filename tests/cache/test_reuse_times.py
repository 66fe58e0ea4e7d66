"""What hit-density learns from: facts, the sample, counts by age, and densities."""

from __future__ import annotations

from itertools import pairwise

import pytest
from books import Books
from hypothesis import given, settings
from hypothesis import strategies as st

from kveik.cache.policies.densities import Doubt, hit_densities
from kveik.cache.policies.reuse_times import ReuseTimes, Sample
from kveik.cache.policy import BlockFacts

# --- facts


def facts_of(books: Books, block: int) -> BlockFacts:
    facts = books.idle[0].facts
    facts.block = block
    return facts


def test_fact_leaf_is_said_of_what_nothing_goes_on_behind() -> None:
    books = Books(blocks=8, size=4)
    books.end(books.run(list(range(8))))
    assert [facts_of(books, block).leaf for block in (0, 1)] == [False, True]
    books.end(books.run(list(range(12))))
    assert not facts_of(books, 1).leaf
    books.reclaim.make_room(0, 7)
    assert facts_of(books, 0).leaf


def test_fact_mark_is_the_same_when_it_is_computed_again_and_says_what_lies_before() -> None:
    books = Books(blocks=8, size=4)
    books.end(books.run([1, 2, 3, 4, 5, 6, 7, 8]))
    marks = [facts_of(books, block).mark for block in (0, 1)]
    books.end(books.run([9, 9, 9, 9, 5, 6, 7, 8]))
    books.end(books.run([1, 2, 3, 4], namespace="other"))
    every = [facts_of(books, block).mark for block in range(5)]
    assert len(set(every)) == 5
    books.reclaim.make_room(0, 8)
    books.end(books.run([1, 2, 3, 4, 5, 6, 7, 8]))
    again = [block for block in range(8) if books.pools[0].owner[block] >= 0]
    assert sorted(facts_of(books, block).mark for block in again) == sorted(marks)


def continuing(books: Books, tokens: list[int]) -> list[bool]:
    """Of the blocks of this prompt."""
    lease = books.run(tokens)
    blocks = [block for segment in lease.tables[0] for block in segment.blocks]
    books.end(lease)
    return [facts_of(books, block).continues for block in blocks]


def test_fact_continues_is_said_of_a_further_turn_and_of_no_fork() -> None:
    books = Books(blocks=20, size=4)
    start = [1, 2, 3, 4]
    assert continuing(books, [*start, *range(10, 18)]) == [False] * 3
    turn = [*start, *range(10, 18), *range(20, 28)]
    assert continuing(books, turn) == [False] * 3 + [True] * 2
    assert continuing(books, [*turn, *range(30, 38)]) == [False] * 3 + [True] * 4
    assert continuing(books, [*start, *range(40, 48)]) == [False, True, True]  # the second one
    assert continuing(books, [*start, *range(50, 58)]) == [False] * 3


def test_fact_continues_is_forgotten_when_the_block_is_filled_with_something_else() -> None:
    books = Books(blocks=4, size=4)
    continuing(books, [1, 2, 3, 4])
    assert continuing(books, list(range(1, 13))) == [False, True, True]
    books.reclaim.make_room(0, 4)
    assert continuing(books, list(range(50, 66))) == [False] * 4


# --- the sample


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 8), st.lists(st.lists(st.integers(0, 15), unique=True, min_size=1), max_size=30)
)
def test_what_is_recent_in_a_full_sample_is_what_lru_would_have_kept(
    blocks: int, requests: list[list[int]]
) -> None:
    """Every second block is in a sample of so small a pool; here all that are shown to it are."""
    sample = Sample(2 * blocks)
    assert sample.one_in == 2
    kept: list[int] = []
    last: dict[int, int] = {}
    clock = 0
    for used, request in enumerate(requests):
        for mark in request:
            clock += 1
            before, recent = sample.use(mark, 0, clock, used)
            assert recent == (mark in kept)
            assert (None if before is None else before.clock) == last.get(mark)
            last[mark] = clock
        kept = [*(one for one in kept if one not in request), *request][-blocks:]
    assert len(sample) == len(last)


def test_a_sample_is_bounded_and_forgets_what_left_its_window() -> None:
    sample = Sample(1_000_000)
    assert sample.window // sample.one_in <= 1 << 14
    assert sample.takes(sample.one_in * 5)
    assert not sample.takes(sample.one_in * 5 + 1)
    sample = Sample(4)
    for clock in range(100):
        sample.use(clock, 0, clock, clock)
    sample.use(1000, 0, sample.window + 50, 1000)
    assert len(sample) == 1 + 50
    assert sample.use(60, 0, 2 * sample.window + 61, 2000) == (None, False)


def test_a_use_after_more_than_a_window_is_as_if_it_were_the_first() -> None:
    sample = Sample(100)
    sample.use(1, 0, 0, 0)
    sample.use(2, 0, 1, 1)
    assert sample.use(1, 0, sample.window + 1, 2) == (None, False)
    assert sample.use(2, 0, sample.window + 1, 3) == ((0, 1, 1), True)


# --- counts by age


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 1)), min_size=1, max_size=60))
def test_what_reached_an_age_is_counted_once_and_not_early(gaps: list[tuple[int, int]]) -> None:
    """With a step of one every cohort is one moment: the newest one is still open."""
    times, clock, born = ReuseTimes(2, 1 << 12, 1), 0, []
    for gap, kind in gaps:
        clock += gap
        times.left(kind, clock)
        born.append((clock, kind))
        times.advance(clock)
    for kind in (0, 1):
        for octave in range(10):
            begins = (1 << octave) if octave else 0
            naive = sum(k == kind and clock - at >= begins for at, k in born[:-1])
            assert times.reached[kind][octave] == naive


def test_reuse_is_counted_in_octaves_of_age_and_fades() -> None:
    times = ReuseTimes(2, 1 << 12, 16)
    for age in (0, 1, 2, 3, 4, 1000, 10**9):
        times.came_back(1, age)
    assert times.came[1] == [2, 2, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert sum(times.came[0]) == 0
    times.advance(1 << 10)
    assert sum(times.came[1]) == 3.5
    times.advance((1 << 10) + 1)
    assert sum(times.came[1]) == 3.5


# --- densities

counts = st.lists(st.floats(0, 50), min_size=6, max_size=6)
SURE = Doubt(1e-9, 1e-9, 1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(counts, counts), min_size=1, max_size=4))
def test_with_endless_doubt_densities_are_those_of_lru(
    rows: list[tuple[list[float], list[float]]],
) -> None:
    """The older goes first, whatever its kind."""
    came, reached = [came for came, _ in rows], [reached for _, reached in rows]
    found = hit_densities(came, reached, Doubt(1e15, 1e15, 1e15))
    for density in found:
        assert density == pytest.approx(found[0], rel=1e-6)
        middle = density[1:6]  # the first octave is as wide as the second
        assert all(one > next_one for one, next_one in pairwise(middle))


@settings(max_examples=60, deadline=None)
@given(counts, st.floats(0, 100))
def test_without_doubt_the_density_is_the_best_ratio_of_hits_to_time(
    came: list[float], lost: float
) -> None:
    came = [back + 0.01 for back in came]  # nothing is known of what never was
    there, reached = sum(came) + lost + 1.0, []
    for back in came:  # the number that waits in each octave is what is left
        reached.append(sum(came) + lost + 1.0)
        there -= back
    found = hit_densities([came], [reached], SURE)[0]
    waiting = [reached[0] - sum(came[:octave]) for octave in range(6)]
    chances = [min(back / left, 0.999) for back, left in zip(came, waiting, strict=True)]
    for octave in range(6):
        best, hits, time, left = 0.0, 0.0, 0.0, 1.0
        for later in range(octave, 6):
            width = float(1 << later) if later else 2.0
            hits += left * chances[later]
            time += left * width * (1 - chances[later] / 2)
            left *= 1 - chances[later]
            best = max(best, hits / time)
        assert found[octave] == pytest.approx(best, rel=1e-5)
    assert found[6:] == [0.0, 0.0]


def test_a_kind_that_comes_back_more_often_is_denser_and_doubt_takes_that_away() -> None:
    came, reached = [[1.0] * 6, [8.0] * 6], [[100.0] * 6] * 2
    plain = hit_densities(came, reached, Doubt())
    doubted = hit_densities(came, reached, Doubt.level(5))
    assert plain[1][3] > 2 * plain[0][3]
    assert doubted[1][3] == pytest.approx(doubted[0][3], rel=0.05)


def test_where_nothing_is_known_of_a_kind_it_is_what_it_was_elsewhere() -> None:
    came = [[1.0, 1.0, 1.0, 1.0, 1.0, 0.0], [40.0, 20.0, 10.0, 5.0, 2.0, 0.0]]
    reached = [[100.0] * 5 + [0.0]] * 2
    density = hit_densities(came, reached, Doubt())
    assert density[1][5] > 2 * density[0][5]


def test_what_comes_back_late_is_worth_more_when_it_has_waited() -> None:
    """Nothing in the first octaves, half of it in the fifth."""
    came, reached = [[0.0, 0.0, 0.0, 0.0, 0.0, 500.0]], [[1000.0] * 6]
    density = hit_densities(came, reached, SURE)[0]
    assert density[0] < density[3] < density[5]
