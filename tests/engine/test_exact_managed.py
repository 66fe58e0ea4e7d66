"""Exactness where the cache is managed: named, warmed, expired, invalidated, erased and filled
again, a request has the bits of the same request computed cold and alone. Tiny random weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grid
import pytest
from grid import BLOCK, Run, prompt, request, run

from kveik.cache.directive import Directive, Selector, Ttl
from kveik.config import EngineConfig
from kveik.engine.engine import Engine
from kveik.engine.named_records import NamedSpec
from kveik.engine.parts import EngineParts

CHECKPOINTS: dict[str, dict[str, Any]] = {
    "one group": {},
    "two groups": {
        "model_type": "qwen3",
        "use_sliding_window": True,
        "sliding_window": 40,
        "max_window_layers": 1,
    },
}
PROMPT = prompt(75)
OTHERS = [prompt(60, seed) for seed in range(1, 5)]


class Timed:
    """An engine whose clock the test moves."""

    def __init__(self, parts: EngineParts, blocks: int = 256, **config: Any) -> None:
        self.now = 0.0
        parts = replace(
            parts,
            config=EngineConfig(block_size=BLOCK, **config),
            pool_blocks=(blocks,) * len(parts.model.groups),
        )
        self.engine = Engine(parts, clock=lambda: self.now)

    def ask(self, tokens: Sequence[int] = PROMPT, **directive: Any) -> Run:
        [done] = run(self.engine, [directed(tokens, **directive)])
        return done

    def later(self, seconds: float) -> None:
        self.now += seconds
        while self.engine.step():
            pass
        self.engine.check()


def directed(tokens: Sequence[int], background: bool = False, **directive: Any) -> Any:
    plain = request(tokens, max_tokens=12)
    return replace(plain, directive=Directive(**directive), background=background)


def cached(done: Run) -> int:
    assert done.usage is not None
    return done.usage.cached_tokens


@pytest.fixture(scope="module", params=[*CHECKPOINTS])
def parts(request: pytest.FixtureRequest, tiny_folder: Callable[..., Path]) -> EngineParts:
    return grid.parts_of(str(tiny_folder(**CHECKPOINTS[request.param])))


@pytest.fixture(scope="module")
def cold(parts: EngineParts) -> Run:
    return Timed(parts).ask()


def test_behind_a_named_cache(parts: EngineParts, cold: Run) -> None:
    for length in (16, 33, 74):
        timed = Timed(parts)
        timed.engine.named.create(NamedSpec("", "head", tokens=tuple(PROMPT[:length])))
        timed.later(0.0)
        whole = timed.engine.named.expand("", "head", prompt=PROMPT[length:]).prompt
        assert list(whole) == PROMPT
        warm = timed.ask([token for token in whole if isinstance(token, int)])
        assert warm.chosen == cold.chosen
        assert cached(warm) == length


def test_after_a_name_was_evicted_and_computed_again(parts: EngineParts, cold: Run) -> None:
    timed = Timed(parts, blocks=8)
    timed.engine.named.create(NamedSpec("", "head", tokens=tuple(PROMPT[:40])))
    timed.later(0.0)
    for other in OTHERS:
        timed.ask(other)
    found = timed.engine.named.expand("", "head", prompt=PROMPT[40:])
    assert found.cache.status == "evicted"
    warm = timed.ask()
    assert warm.chosen == cold.chosen
    assert cached(warm) >= 32


def test_after_warming_in_the_background_beside_live_requests(
    parts: EngineParts, cold: Run
) -> None:
    timed = Timed(parts, blocks=12, max_num_batched_tokens=32)
    requests = [directed(PROMPT, background=True), *map(directed, OTHERS), directed(PROMPT)]
    runs = run(timed.engine, requests, apart=2)
    assert runs[0].chosen == runs[-1].chosen == cold.chosen


@pytest.mark.parametrize("clock", ["first_use", "last_use"])
@pytest.mark.parametrize("mode", ["delete", "demote"])
def test_around_a_deadline(parts: EngineParts, cold: Run, clock: Any, mode: Any) -> None:
    timed = Timed(parts)
    timed.ask(ttl=Ttl(10.0, clock, mode))
    timed.later(9.0)
    before = timed.ask()
    assert before.chosen == cold.chosen
    assert cached(before) == 74
    timed.later(30.0)
    behind = timed.ask()
    assert behind.chosen == cold.chosen
    assert cached(behind) == (0 if mode == "delete" else 74)


def test_in_blocks_that_were_erased(parts: EngineParts, cold: Run) -> None:
    """A pool that everything shares: what expired, ended or was invalidated is filled again."""
    timed = Timed(parts, blocks=10)
    for number, other in enumerate(OTHERS):
        timed.ask(other, ttl=Ttl(5.0, "first_use"), session=f"s{number}", tags=(f"t{number}",))
        if number == 1:
            timed.engine.invalidate(Selector(tag="t1"))
        if number == 2:
            timed.engine.end_session("", "s2")
        timed.later(2.0)
        assert timed.ask().chosen == cold.chosen


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_while_it_is_invalidated(parts: EngineParts, cold: Run, steps: int) -> None:
    """A request in flight finishes on what it holds; nothing of it is found afterwards."""
    timed = Timed(parts, max_num_batched_tokens=16)
    timed.ask(PROMPT[:40], tags=("a",))
    one = directed(PROMPT, tags=("a",))
    flight = Run(one, [[]])
    timed.engine.submit(one, flight)
    for _ in range(steps):
        timed.engine.step()
    timed.engine.invalidate(Selector(tag="a"))
    timed.later(0.0)
    assert flight.chosen == cold.chosen
    again = timed.ask()
    assert cached(again) == 0
    assert again.chosen == cold.chosen


@pytest.mark.parametrize(
    "directive",
    [
        {"session": "s", "context": "a", "relevance": "delete"},
        {"priority": "low"},
        {"priority": "high", "tags": ("a", "b")},
        {"write": "low"},
        {"write": "none"},
        {"ttl": Ttl(1.0, "last_use", "demote")},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_whatever_is_asked_of_the_cache(
    parts: EngineParts, cold: Run, directive: dict[str, Any]
) -> None:
    timed = Timed(parts, blocks=14)
    for _ in range(2):
        assert timed.ask(**directive).chosen == cold.chosen
        timed.ask(OTHERS[0], **directive)
