"""Texts beside the engine: which thread does what, the same events as without it, bounded lag."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from toy import ByteDetokenizer, ByteTokenizer
from toy_model import ToyModel, toy_engine, toy_text

from kveik.engine import outbox
from kveik.engine.engine import Engine
from kveik.engine.named_records import NamedSpec
from kveik.engine.outbox import MOST_BEHIND, News
from kveik.engine.plan import StepPlan, StepResult
from kveik.engine.request import (
    ChoiceDelta,
    ChoiceFinished,
    Event,
    Request,
    RequestAborted,
    RequestFailed,
    RequestFinished,
    SamplingParams,
)

ENDINGS = (RequestFinished, RequestFailed, RequestAborted)
ENGINE, TEXTS = "kveik-engine", "kveik-texts"


class Gate(ByteTokenizer):
    """Notes the threads that detokenise, and holds them while it is closed."""

    def __init__(self, *, closed: bool = False) -> None:
        self.threads: set[str] = set()
        self.open = threading.Event()
        if not closed:
            self.open.set()

    def detokenizer(self, **_: Any) -> ByteDetokenizer:
        gate = self

        class Gated(ByteDetokenizer):
            def push(self, token_id: int) -> str:
                gate.threads.add(threading.current_thread().name)
                assert gate.open.wait(20)
                return super().push(token_id)

        return Gated()


class Listener:
    """A sink that keeps its events and the threads on which they come."""

    def __init__(self, on: Callable[[Event], object]) -> None:
        self.on = on
        self.events: list[Event] = []
        self.threads: set[str] = set()
        self.done = threading.Event()

    def __call__(self, event: Event) -> None:
        assert not self.done.is_set(), f"{event} after the ending"
        self.events.append(event)
        self.threads.add(threading.current_thread().name)
        self.on(event)
        if isinstance(event, ENDINGS):
            self.done.set()


def ask(
    engine: Engine,
    prompt: Sequence[int],
    on: Callable[[Event], object] = lambda event: None,
    **params: Any,
) -> Listener:
    listener = Listener(on)
    given = {"max_tokens": 12, "temperature": 0.0, **params}
    engine.submit(Request(tuple(prompt), SamplingParams(**given)), listener)
    return listener


def tokens_of(listener: Listener) -> int:
    return sum(isinstance(one, ChoiceDelta) for one in listener.events)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def stopping_at(prompt: Sequence[int], token: int) -> str:
    """A stop string that the text of this prompt completes with its token of this number."""
    text = bytes(toy_text(prompt, token + 1)).decode("latin-1")
    assert text[token] not in text[:token]
    return text[token]


class Latin(Gate):
    """Every byte is a character, so that a text can be stopped at any token."""

    def detokenizer(self, **kwargs: Any) -> ByteDetokenizer:
        gated = super().detokenizer(**kwargs)
        push = gated.push

        def latin(token_id: int) -> str:
            push(token_id)
            return bytes([token_id]).decode("latin-1")

        gated.push = latin  # type: ignore[method-assign]
        return gated


def test_each_thread_does_its_own_work() -> None:
    model, tokenizer = ToyModel(), Gate()
    computing: set[str] = set()
    model.faults.forward = lambda ids: computing.add(threading.current_thread().name)
    engine = toy_engine(model, tokenizer=tokenizer)
    engine.start()
    listeners = [ask(engine, range(k, k + 20)) for k in range(6)]
    assert all(one.done.wait(20) for one in listeners)
    engine.stop()
    assert computing == {ENGINE}
    assert tokenizer.threads == {TEXTS}
    assert set().union(*(one.threads for one in listeners)) == {TEXTS}


def test_an_engine_that_is_stepped_has_no_other_thread() -> None:
    tokenizer = Gate()
    engine = toy_engine(tokenizer=tokenizer)
    listener = ask(engine, range(20))
    while engine.step():
        pass
    here = {threading.current_thread().name}
    assert listener.done.is_set()
    assert (tokenizer.threads, listener.threads) == (here, here)


def batches_of(engine: Engine) -> list[int]:
    """Fills up with the sizes of what is told at a time."""
    sizes: list[int] = []
    tell = engine._outbox._tell

    def counted(batch: list[News]) -> None:
        sizes.append(len(batch))
        tell(batch)

    engine._outbox._tell = counted
    return sizes


def test_steps_are_handed_over_whole() -> None:
    engine = toy_engine(max_num_seqs=16)
    sizes = batches_of(engine)
    listeners = [ask(engine, range(k, k + 5), max_tokens=10) for k in range(16)]
    engine.start()
    assert all(one.done.wait(20) for one in listeners)
    engine.stop()
    assert engine.stats().steps == 10
    assert len(sizes) <= 10
    assert all(size % 16 == 0 for size in sizes)
    assert sum(sizes) == 16 * (1 + 10 + 1)  # prompt, tokens, ending


def test_nobody_is_woken_for_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is told at once that it began and that it ended; tokens wait for the pace."""
    monkeypatch.setattr(outbox, "PACE", 3600.0)
    engine = toy_engine()
    sizes = batches_of(engine)
    first = threading.Event()
    run_on, wake = engine._runner.run, engine._outbox._changed.notify_all
    woken: list[str] = []

    def run(plan: StepPlan) -> StepResult:
        assert plan.step_id == 0 or first.wait(20)
        time.sleep(0.001)  # whoever is awake may speak
        return run_on(plan)

    def notify_all() -> None:
        woken.append(threading.current_thread().name)
        wake()

    engine._outbox._changed.notify_all = notify_all  # type: ignore[method-assign]

    engine._runner.run = run  # type: ignore[method-assign]
    listener = ask(engine, range(20), max_tokens=30, on=lambda event: first.set())
    engine.start()
    assert listener.done.wait(20)
    engine.stop()
    assert sizes == [2, 29 + 1]
    # the beginning, the token after it, the ending; and what a busy machine puts between them
    assert woken.count(ENGINE) <= 3 + 5


def test_who_waits_for_a_stop_string_does_not_wait_for_the_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbox, "PACE", 3600.0)
    engine = toy_engine()
    told = threading.Semaphore(0)
    run_on = engine._runner.run

    def run(plan: StepPlan) -> StepResult:
        assert plan.step_id == 0 or told.acquire(timeout=20)  # the token before was told
        return run_on(plan)

    engine._runner.run = run  # type: ignore[method-assign]
    listener = ask(
        engine,
        range(20),
        stop=("never said",),
        on=lambda event: isinstance(event, ChoiceDelta) and told.release(),
    )
    engine.start()
    assert listener.done.wait(20)
    engine.stop()
    assert isinstance(listener.events[-1], RequestFinished)


def test_tokens_are_told_while_more_are_computed() -> None:
    """At the pace, without anything urgent."""
    engine = toy_engine()
    told = threading.Semaphore(0)
    run_on = engine._runner.run

    def run(plan: StepPlan) -> StepResult:
        assert plan.step_id == 0 or told.acquire(timeout=5)  # the token before was told
        return run_on(plan)

    engine._runner.run = run  # type: ignore[method-assign]
    listener = ask(
        engine, range(20), on=lambda event: isinstance(event, ChoiceDelta) and told.release()
    )
    engine.start()
    assert listener.done.wait(20)
    engine.stop()
    assert isinstance(listener.events[-1], RequestFinished)


def test_who_is_too_far_behind_is_woken_before_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "PACE", 3600.0)
    engine = toy_engine()
    listener = ask(engine, range(20), max_tokens=3 * MOST_BEHIND)
    engine.start()
    assert listener.done.wait(20)
    engine.stop()
    assert tokens_of(listener) == 3 * MOST_BEHIND


@pytest.mark.parametrize("lag", [0, 3, 20])
def test_the_events_are_those_of_an_engine_that_is_stepped(lag: int) -> None:
    """However far the texts are behind the steps, stop strings among them."""
    prompts = [range(k, k + 20) for k in (0, 40, 80, 120)]
    params: list[dict[str, Any]] = [
        {"max_tokens": 30, "stop": (stopping_at(prompts[0], 5),)},
        {"max_tokens": 30},
        {"max_tokens": 8, "stop": (stopping_at(prompts[2], 7),)},  # with its last token
        {"max_tokens": 30, "n": 2, "stop": (stopping_at(prompts[3], 9),)},
    ]
    stepped = toy_engine(tokenizer=Latin())
    wanted = [ask(stepped, p, **given) for p, given in zip(prompts, params, strict=True)]
    while stepped.step():
        pass
    assert stepped.stats().generation_tokens == 6 + 30 + 8 + tokens_of(wanted[3])
    tokenizer = Latin(closed=lag > 0)
    engine = toy_engine(tokenizer=tokenizer)
    found = [ask(engine, p, **given) for p, given in zip(prompts, params, strict=True)]
    engine.start()
    until(lambda: engine.stats().steps >= lag)
    tokenizer.open.set()
    assert all(one.done.wait(20) for one in found)
    engine.stop()
    for one, other in zip(found, wanted, strict=True):
        assert one.events == other.events
    assert found[0].events[-2] == ChoiceFinished(0, "stop", params[0]["stop"][0])
    assert found[0].events[-1].usage.completion_tokens == 6  # type: ignore[union-attr]
    assert engine.stats().requests_finished == stepped.stats().requests_finished
    assert engine.stats().cache.leased_blocks == (0,)
    engine.check()


def test_texts_may_be_behind_by_a_bounded_number_of_steps() -> None:
    tokenizer = Gate(closed=True)
    engine = toy_engine(tokenizer=tokenizer)
    listener = ask(engine, range(20), max_tokens=3 * MOST_BEHIND)
    engine.start()
    until(lambda: engine._outbox._behind == MOST_BEHIND)
    time.sleep(0.1)
    assert engine.stats().steps <= 2 * MOST_BEHIND + 1  # being told, sent, waiting to be sent
    ask(engine, (1, 2, 3))  # submitting never waits
    tokenizer.open.set()
    assert listener.done.wait(20)
    engine.stop()
    assert tokens_of(listener) == 3 * MOST_BEHIND
    assert engine.stats().generation_tokens >= 3 * MOST_BEHIND


def started_beside(others: list[threading.Thread]) -> set[str]:
    """Names of the threads that have started since: servers of other tests go on."""
    return {thread.name for thread in threading.enumerate() if thread not in others}


def test_stopping_tells_everyone_first() -> None:
    others = threading.enumerate()
    tokenizer = Gate(closed=True)
    engine = toy_engine(tokenizer=tokenizer)
    listeners = [ask(engine, range(k, k + 20), max_tokens=200) for k in range(4)]
    engine.start()
    until(lambda: engine.stats().steps >= 5)
    assert TEXTS in started_beside(others)
    stopping = threading.Thread(target=engine.stop)
    stopping.start()
    until(lambda: not engine._inbox.accepting)
    tokenizer.open.set()
    stopping.join(20)
    assert not stopping.is_alive()
    assert all(isinstance(one.events[-1], RequestAborted) for one in listeners)
    assert engine.stats().requests_finished == {"abort": 4}
    assert TEXTS not in started_beside(others)
    engine.check()


def test_a_fault_in_a_text_ends_its_request_and_frees_its_blocks() -> None:
    tokenizer = Gate(closed=True)
    engine = toy_engine(tokenizer=tokenizer)
    heard: list[Event] = []

    def raises(event: Event) -> None:
        heard.append(event)
        if isinstance(event, ChoiceDelta):
            raise ValueError("planted")

    engine.start()
    engine.submit(Request(tuple(range(20)), SamplingParams(max_tokens=200)), raises)
    other = ask(engine, range(50, 70), max_tokens=30)
    until(lambda: engine.stats().steps >= 3)
    tokenizer.open.set()
    assert other.done.wait(20)
    until(lambda: engine.stats().cache.leased_blocks == (0,))
    engine.stop()
    assert engine.stats().requests_finished == {"error": 1, "length": 1}
    assert engine.stats().steps < 200
    assert [type(event) for event in heard[1:]] == [ChoiceDelta, RequestFailed]  # and no more


def test_a_fault_of_the_engine_is_told_behind_what_was_computed() -> None:
    model, tokenizer = ToyModel(), Gate(closed=True)
    engine = toy_engine(model, tokenizer=tokenizer)

    def breaks() -> None:
        raise ValueError("planted")

    engine.start()
    listener = ask(engine, range(20), max_tokens=100)
    until(lambda: engine.stats().steps >= 3)
    model.faults.moves = breaks
    forked = ask(engine, range(100, 110), max_tokens=5, n=2)  # the fork of its tail is a move
    until(lambda: engine._inbox.failure is not None)
    tokenizer.open.set()
    assert listener.done.wait(20)
    assert forked.done.wait(20)
    engine.stop()
    assert isinstance(listener.events[-1], RequestFailed)
    assert tokens_of(listener) >= 3
    assert engine.stats().requests_finished == {"error": 2}


def test_what_has_no_text_is_told_on_the_engine_thread() -> None:
    """A name is claimed before the next step could evict what it names."""
    engine = toy_engine()
    heard: list[str] = []
    hear = engine.named._hear

    def noted(*arguments: Any) -> None:
        heard.append(threading.current_thread().name)
        hear(*arguments)

    engine.named._hear = noted  # type: ignore[method-assign]
    engine.start()
    done = threading.Event()
    engine.named.create(NamedSpec("", "n", tokens=tuple(range(40))), lambda cache: done.set())
    assert done.wait(20)
    engine.stop()
    assert set(heard) == {ENGINE}
