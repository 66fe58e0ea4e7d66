"""Deletion seen from the engine: erased first of all, within a deadline, on an idle engine too."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from toy import Bench, ByteTokenizer, expected_text
from toy_model import ToyModel, toy_engine, toy_ops

from kveik.cache.directive import Directive, Selector, Ttl
from kveik.cache.segments import CopyPrefix, Erase
from kveik.config import EngineConfig
from kveik.engine import engine_thread
from kveik.engine.engine import Engine
from kveik.engine.parts import EngineParts
from kveik.engine.request import Request, SamplingParams


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
    released: list[bool | None] = []
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
        assert bench.scheduler.preemptions == released.count(None) > 0
        assert released.count(True) == 2
    else:
        assert released == [ending == "finished"]


def test_write_none_stores_nothing() -> None:
    bench = Bench()
    work = bench.add(0, prompt(40), directive=Directive(write="none"))
    bench.drain()
    assert work.usage().stored_tokens == 0
    assert bench.cache.lookup(prompt(41)).cached_tokens == 0


# ---- an idle engine


class Watched:
    """An engine on its own thread whose erasures are seen; it wakes for deadlines only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        monkeypatch.setattr(engine_thread, "CHECK_INTERVAL", 3600.0)
        self.erased = threading.Event()
        model = ToyModel()
        ops = toy_ops(model.faults)

        def erase(arena: dict[int, int], blocks: Sequence[int]) -> None:
            ops.erase_blocks(arena, blocks)
            self.arena = arena
            self.erased.set()

        parts = EngineParts(
            model=model,
            ops=replace(ops, erase_blocks=erase),
            tokenizer=ByteTokenizer(),  # type: ignore[arg-type]
            config=EngineConfig(**options),
            end_ids=(256,),
            pool_blocks=(16,),
        )
        self.engine = Engine(parts, clock=time.monotonic)
        self.engine.start()

    def ask(self, tokens: Sequence[int], **fields: Any) -> None:
        done = threading.Event()
        request = Request(tuple(tokens), SamplingParams(max_tokens=0), **fields)
        self.engine.submit(
            request, lambda event: type(event).__name__ == "RequestFinished" and done.set()
        )
        assert done.wait(20)

    def readable(self) -> set[int]:
        """Token ids whose K/V can still be read in the arena."""
        return {token for slot, token in self.arena.items() if slot >= 0}


def test_an_idle_engine_deletes_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    watched.ask(prompt(40, 100), directive=Directive(ttl=Ttl(0.3, "first_use", "delete")))
    watched.ask(prompt(40))
    assert watched.erased.wait(20)
    watched.engine.stop()
    assert watched.readable() == set(prompt(40))
    assert watched.engine.explain(prompt(41, 100)).cached_tokens == 0
    watched.engine.check()


def test_an_invalidation_wakes_an_idle_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    watched.ask(prompt(40, 100), directive=Directive(tags=("news",)))
    watched.ask(prompt(40))
    watched.engine.invalidate(Selector(tag="news"))
    assert watched.erased.wait(20)
    watched.engine.stop()
    assert watched.readable() == set(prompt(40))
    watched.engine.check()


def test_what_happens_while_it_falls_asleep_is_not_slept_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The verb comes between the look at the deadlines and the sleep."""
    watched = Watched(monkeypatch)
    watched.ask(prompt(40, 100), directive=Directive(tags=("news",)))
    engine, look = watched.engine, watched.engine._thread._idle_seconds

    def interrupted() -> float:
        seconds = look()
        engine.invalidate(Selector(tag="news"))
        return seconds

    monkeypatch.setattr(engine._thread, "_idle_seconds", interrupted)
    watched.ask(prompt(40))
    assert watched.erased.wait(20)
    engine.stop()


def test_an_engine_with_more_to_free_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = toy_engine()
    left = [True, False]
    monkeypatch.setattr(engine._cache, "tick", lambda now, budget=128: left.pop(0))
    assert [engine.step(), engine.step()] == [True, False]


def test_an_ended_session_wakes_an_idle_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    watched.ask(prompt(40, 100), directive=Directive(session="s"))
    watched.ask(prompt(40))
    assert watched.engine.end_session("", "s") is not None
    assert watched.erased.wait(20)
    watched.engine.stop()
    assert watched.readable() == set(prompt(40))
    assert watched.engine.end_session("", "s") is None


def test_an_idle_session_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, session_idle=1)
    watched.ask(prompt(40, 100), directive=Directive(session="s"))
    assert watched.erased.wait(20)
    watched.engine.stop()
    assert watched.readable() == set()
    assert watched.engine.sessions() == []


def test_an_engine_that_nobody_steps_serves_nothing_expired() -> None:
    now = [0.0]
    engine = toy_engine(clock=lambda: now[0])

    def ask(tokens: Sequence[int], **fields: Any) -> Any:
        events: list[Any] = []
        engine.submit(Request(tuple(tokens), SamplingParams(max_tokens=0), **fields), events.append)
        while engine.step():
            pass
        return events[-1].usage

    ask(prompt(40), directive=Directive(ttl=Ttl(10.0, "first_use", "delete")))
    now[0] = 9.0
    assert ask([*prompt(40), 99]).cached_tokens == 40
    now[0] = 10.5
    assert engine.explain(prompt(41)).cached_tokens == 0
    assert ask([*prompt(40), 98]).cached_tokens == 0


def test_erased_blocks_serve_others() -> None:
    """Deadlines, invalidations and sessions over a small pool: the text is never touched."""
    bench = Bench(blocks=12, budget=64)
    now = 0.0
    for number in range(60):
        now += 0.7
        ttl = Ttl(1.5, "first_use" if number % 2 else "last_use", "delete")
        directive = Directive(
            session=f"s{number % 5}", tags=(f"t{number % 3}",), ttl=ttl if number % 4 else None
        )
        tokens = prompt(20 + number % 37, 7 * (number % 6))
        bench.add(number, tokens, directive=directive, max_tokens=3)
        bench.drain()
        assert bench.texts[number, 0] == expected_text(tokens, 3)
        if number % 7 == 0:
            bench.cache.invalidate(Selector(tag="t1"), now)
        if number % 11 == 0:
            bench.cache.end_session("", "s2", now)
        bench.cache.check()
