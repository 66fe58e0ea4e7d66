"""Can a tenant tell by a clock that somebody else has a prompt cached? On the real engine.

250 prompts that only another tenant has cached and 250 that nobody has, in random order, each
after equal work of that other tenant: the times that a caller can measure must come from one
distribution. The control is the same within one tenant, where the cache is meant to be felt.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from two_samples import area, holm, p_value

from kveik import LLM
from kveik.engine.engine import Engine
from kveik.engine.request import Request, SamplingParams

EACH = 250
LENGTH = 160
QUANTITIES = ("accepted", "first token", "finished")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with LLM(seed=0, max_model_len=512, kv_memory="64MiB") as llm:
        yield llm.engine


def timed(engine: Engine, namespace: str, prompt: tuple[int, ...]) -> dict[str, float]:
    """Seconds from the call until each thing that the caller sees."""
    seen: dict[str, float] = {}
    names = {"ChoiceDelta": "first token", "RequestFinished": "finished"}

    def sink(event: Any) -> None:
        kind = type(event).__name__
        seen.setdefault(names.get(kind, kind), time.perf_counter() - start)

    params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    start = time.perf_counter()
    engine.submit(Request(prompt, params, namespace), sink)
    seen["accepted"] = time.perf_counter() - start
    while engine.step():
        pass
    return {name: seen[name] for name in QUANTITIES}


Times = dict[str, tuple[list[float], list[float]]]  # by quantity: hits, misses


def measured(engine: Engine, owner: str, asker: str, seed: int) -> Times:
    """What `owner` has just computed against what nobody has, asked by `asker`."""
    dice = random.Random(seed)
    vocabulary = engine.info.vocab_size

    def prompt() -> tuple[int, ...]:
        return tuple(dice.randrange(8, vocabulary) for _ in range(LENGTH))

    order = [True, False] * EACH
    dice.shuffle(order)
    times: Times = {name: ([], []) for name in QUANTITIES}
    for _ in range(10):
        timed(engine, owner, prompt())
    for hit in order:
        known = prompt()
        timed(engine, owner, known)
        for name, seconds in timed(engine, asker, known if hit else prompt()).items():
            times[name][not hit].append(seconds)
    assert all(len(side) == EACH for sides in times.values() for side in sides)
    return times


def judged(times: Times) -> tuple[dict[str, float], dict[str, float]]:
    """Holm's p-values and areas, by quantity."""
    p_values = holm({name: p_value(*sides) for name, sides in times.items()})
    areas = {name: area(*sides) for name, sides in times.items()}
    print("p", p_values, "area", areas)
    return p_values, areas


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.skipif(not os.environ.get("KVEIK_SOAK"), reason="set KVEIK_SOAK=1")
@pytest.mark.parametrize("seed", range(5))
def test_no_clock_tells_what_another_tenant_has_cached(engine: Engine, seed: int) -> None:
    p_values, areas = judged(measured(engine, "owner", "stranger", seed))
    assert min(p_values.values()) > 0.01
    assert all(0.45 <= each <= 0.55 for each in areas.values())


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.skipif(not os.environ.get("KVEIK_SOAK"), reason="set KVEIK_SOAK=1")
def test_within_a_tenant_the_clock_tells(engine: Engine) -> None:
    p_values, areas = judged(measured(engine, "owner", "owner", 7))
    for name in ("first token", "finished"):
        assert p_values[name] < 1e-8
        assert areas[name] > 0.9
