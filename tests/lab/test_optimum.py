"""The optimum against every choice that there is."""

from __future__ import annotations

from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st
from traffic import trace_of

from kveik.lab.optimum import optimum
from kveik.lab.trace import Trace, TraceRequest

Path = tuple[int, ...]

# Prompts of a tree: the children of a block are its number times three, plus one to three.
PATHS: list[Path] = [(a, *rest) for a in (1, 2) for rest in ((), (3 * a + 1,), (3 * a + 2,))]
PATHS += [(1, 4, 13), (1, 4, 14), (2, 7, 22)]


def best(prompts: list[Path], blocks: int) -> int:
    """Tries every set that could be kept after every prompt."""

    @cache
    def most(number: int, kept: frozenset[int]) -> int:
        if number == len(prompts):
            return 0
        found = 0
        for block in prompts[number]:
            if block not in kept:
                break
            found += 1
        every = sorted(kept | set(prompts[number]))
        choices = {
            frozenset(block for bit, block in enumerate(every) if chosen >> bit & 1)
            for chosen in range(2 ** len(every))
        }
        fitting = (choice for choice in choices if len(choice) <= blocks)
        return found + max(most(number + 1, choice) for choice in fitting)

    return most(0, frozenset())


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(PATHS), max_size=7), st.integers(1, 3))
def test_no_choice_hits_more_and_the_optimum_hits_that(prompts: list[Path], blocks: int) -> None:
    if prompts:
        assert optimum(trace_of(*prompts), blocks).hit_blocks == best(prompts, blocks)


def test_what_never_comes_back_is_not_kept() -> None:
    trace = trace_of((1,), (2,), (3,), (1,))
    assert optimum(trace, 1).hits == (0, 0, 0, 1)
    assert optimum(trace, 1).played.evicted == 0


def test_answers_are_kept_where_a_prompt_goes_on_from_them() -> None:
    """Of the first prompt one and a half blocks, whose end the answer fills."""
    first = TraceRequest(0.0, 24, 9, (1, 2), (3,))
    second = TraceRequest(1.0, 48, 1, (1, 3, 4), (4,))
    assert optimum(Trace("made", 16, (first, second)), 4).hits == (0, 2)
