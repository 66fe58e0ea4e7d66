"""Deletion seen from the engine: erased first of all, within a deadline, on an idle engine too."""

from __future__ import annotations

from typing import Any

import pytest
from toy import Bench

from kveik.cache.directive import Directive
from kveik.cache.segments import CopyPrefix, Erase


def prompt(length: int, start: int = 0) -> list[int]:
    return list(range(start, start + length))


# ---- the scheduler


def test_what_was_deleted_is_overwritten_before_any_other_move() -> None:
    """A block may be erased and filled again in one step."""
    bench = Bench()
    bench.add(0, prompt(40), max_tokens=1)
    bench.drain()
    bench.cache.take_erasures = lambda: (Erase(0, 60), Erase(0, 61))  # type: ignore[method-assign]
    bench.add(1, [*prompt(36), 999], max_tokens=1)
    plan = bench.plan()
    assert plan is not None
    assert [type(move) for move in plan.moves] == [Erase, Erase, CopyPrefix]


def test_a_step_may_consist_of_erasures_alone() -> None:
    bench = Bench()
    pending = [(Erase(0, 7),), ()]
    bench.cache.take_erasures = lambda: pending.pop(0)  # type: ignore[method-assign]
    plan = bench.step()
    assert plan is not None
    assert (plan.moves, plan.sequences) == ((Erase(0, 7),), ())
    assert bench.step() is None


def test_every_plan_ticks_and_tells_whether_there_is_more() -> None:
    bench = Bench()
    left = [True, True, False]
    seen: list[float] = []

    def tick(now: float, budget: int = 128) -> bool:
        seen.append(now)
        return left.pop(0)

    bench.cache.tick = tick  # type: ignore[method-assign]
    told = []
    for now in (1.0, 2.0, 3.0):
        assert bench.scheduler.plan_step(now) is None
        told.append(bench.scheduler.sweeping)
    assert (seen, told) == ([1.0, 2.0, 3.0], [True, True, False])


def test_directive_salt_and_time_reach_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    opened: list[dict[str, Any]] = []
    wrapped = bench.cache.open

    def spy(*args: Any, **given: Any) -> Any:
        opened.append(given)
        return wrapped(*args, **given)

    monkeypatch.setattr(bench.cache, "open", spy)
    directive = Directive(session="s", tags=("a",))
    bench.add(0, prompt(10), "tenant", directive=directive, salt="x", max_tokens=1)
    bench.scheduler.plan_step(42.0)
    assert len(opened) == 1
    wanted = {"directive": directive, "salt": "x", "namespace": "tenant", "now": 42.0}
    assert {name: opened[0][name] for name in wanted} == wanted


@pytest.mark.parametrize("ending", ["finished", "aborted", "failed", "preempted"])
def test_only_what_finished_belongs_to_its_session(
    ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(blocks=8, budget=512)
    released: list[bool] = []
    wrapped = bench.cache.release

    def spy(*args: Any, **given: Any) -> None:
        released.append(given["finished"])
        wrapped(*args, **given)

    monkeypatch.setattr(bench.cache, "release", spy)
    bench.add(0, prompt(40), max_tokens=30)
    bench.step()
    if ending == "aborted":
        bench.scheduler.abort(0)
    if ending == "failed":
        bench.runner.faulty = lambda plan: True
    if ending == "preempted":
        bench.add(1, prompt(40, 500), max_tokens=30)
    bench.drain()
    if ending == "preempted":
        assert bench.scheduler.preemptions == released.count(False) > 0
        assert released.count(True) == 2
    else:
        assert released == [ending == "finished"]


def test_write_none_stores_nothing() -> None:
    bench = Bench()
    work = bench.add(0, prompt(40), directive=Directive(write="none"))
    bench.drain()
    assert work.usage().stored_tokens == 0
    assert bench.cache.lookup(prompt(41)).cached_tokens == 0
