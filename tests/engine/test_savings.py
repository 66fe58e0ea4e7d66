"""What the cache saved: pairs add up, operations follow the model, seconds follow measurements."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_model import toy_engine

from kveik.engine.request import Request, RequestFinished, SamplingParams
from kveik.engine.savings import ModelFacts, SavingsMeter, visible_pairs

FACTS = ModelFacts(parameters=1000, attention_width=64, layers=((2, None), (1, 4)))


@given(prompt=st.integers(1, 3000), share=st.floats(0, 1))
def test_the_three_kinds_of_pairs_are_all_pairs(prompt: int, share: float) -> None:
    saved = SavingsMeter(FACTS).savings(prompt, int(prompt * share))
    assert saved.old_old + saved.new_old + saved.new_new == prompt * (prompt + 1) // 2
    assert min(saved.old_old, saved.new_old, saved.new_new) >= 0


@given(tokens=st.integers(0, 60), window=st.none() | st.integers(1, 70))
def test_pairs_are_those_one_counts(tokens: int, window: int | None) -> None:
    counted = sum(
        window is None or query - key < window
        for query in range(tokens)
        for key in range(query + 1)
    )
    assert visible_pairs(tokens, window) == counted


def test_operations_of_a_prefix() -> None:
    pairs = 2 * 55 + (1 + 2 + 3 + 7 * 4)  # two full layers, one that sees four tokens
    assert SavingsMeter(FACTS).savings(20, 10).flops == 2 * 1000 * 10 + 4 * 64 * pairs


def measured(
    seed: int, *, steps: int = 300, noise: float = 0.1, outliers: float = 0.05, chunk: int = 512
) -> SavingsMeter:
    """A meter that saw steps of a machine with known rates."""
    draw, meter = random.Random(seed), SavingsMeter(FACTS)
    for _ in range(steps):
        first, count = draw.randrange(0, 8192), draw.randrange(16, chunk)
        pairs = visible_pairs(first + count) - visible_pairs(first)
        seconds = 0.002 + 1e-4 * count + 2e-8 * pairs
        seconds *= 1 + noise * draw.random()
        if draw.random() < outliers:
            seconds *= draw.uniform(3, 50)
        meter.observe([(first, count)], draw.randrange(0, 4), seconds)
    return meter


@pytest.mark.parametrize("seed", range(5))
def test_seconds_are_those_of_the_machine_although_some_steps_were_disturbed(seed: int) -> None:
    meter = measured(seed)
    for cached in (500, 2000, 8000):
        true = 1e-4 * cached + 2e-8 * visible_pairs(cached)
        assert meter.savings(cached + 10, cached).seconds == pytest.approx(true, rel=0.2)


def test_nothing_is_claimed_before_anything_was_measured() -> None:
    meter = SavingsMeter(FACTS)
    assert meter.savings(100, 50).seconds == 0
    meter.observe([(0, 1)], 0, 1.0)  # a decode step
    meter.observe([(0, 16)], 16, 1.0)  # mostly decoding
    meter.observe([(0, 16)], 0, 0.0)  # a clock that stands still
    assert meter.savings(100, 50).seconds == 0
    assert meter.savings(100, 50).flops > 0


def test_one_step_gives_a_rate() -> None:
    meter = SavingsMeter(FACTS)
    meter.observe([(0, 100)], 0, 0.5)
    assert meter.savings(1000, 200).seconds == pytest.approx(1.0)


def test_the_first_step_counts_until_there_is_another() -> None:
    """It pays for the first use of memory."""
    meter = SavingsMeter(FACTS)
    meter.observe([(0, 100)], 0, 2.0)
    meter.observe([(0, 100)], 0, 0.5)
    assert meter.savings(1000, 200).seconds == pytest.approx(1.0)
    meter.observe([(0, 100)], 0, 0.25)  # and no later one is dropped
    assert 0.5 < meter.savings(1000, 200).seconds < 1.0


def test_no_rate_is_negative() -> None:
    """Late positions that happen to be quicker: the position is then taken to cost nothing."""
    meter = SavingsMeter(FACTS)
    for first in range(0, 4096, 64):
        meter.observe([(first, 64)], 0, 0.01 - 1e-6 * first)
    assert min(meter.rates()) >= 0
    assert meter.savings(10_000, 8_000).seconds > 0


def test_old_measurements_are_forgotten() -> None:
    meter = measured(1)
    for _ in range(1500):
        meter.observe([(0, 100)], 0, 1.0)
    assert meter.savings(1000, 100).seconds == pytest.approx(1.0, rel=0.2)


def test_the_engine_tells_what_a_hit_saved() -> None:
    ticks = iter(range(10**9))
    engine = toy_engine(clock=lambda: next(ticks) / 100)
    finished = []
    for _ in range(2):
        events: list[object] = []
        prompt = tuple(range(100))
        engine.submit(Request(prompt, SamplingParams(max_tokens=2)), events.append)
        while engine.step():
            pass
        assert isinstance(events[-1], RequestFinished)
        finished.append(events[-1].usage)
    cold, warm = (usage.savings for usage in finished)
    assert cold is not None
    assert warm is not None
    assert (cold.seconds, cold.flops, cold.old_old) == (0, 0, 0)
    assert warm.old_old == visible_pairs(finished[1].cached_tokens) > 0
    assert warm.seconds > 0
    assert engine.stats().seconds_saved == pytest.approx(warm.seconds)
