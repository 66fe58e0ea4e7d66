"""Streams in a pool that is too small for all: who gives way, and that no stream ever does."""

from __future__ import annotations

import pytest
from toy import BLOCK, Bench, expected_text
from toy_model import toy_engine

from kveik.cache.directive import Directive
from kveik.cache.window import StreamWindow
from kveik.engine.request import (
    Event,
    Request,
    RequestFailed,
    RequestFinished,
    SamplingParams,
)
from kveik.engine.sequence import WorkFailed
from kveik.errors import StreamBudgetExceeded

WINDOW = StreamWindow(sinks=2, window=30)  # needs five blocks


def ids_of(bench: Bench, handle: int) -> set[int]:
    """Sequence ids under which a request was computed: another one after every preemption."""
    return {
        sequence.sequence_id
        for plan, handles in zip(bench.plans, bench.served, strict=True)
        for sequence, served in zip(plan.sequences, handles, strict=True)
        if served == handle
    }


def prompt(length: int, start: int = 0) -> list[int]:
    return list(range(start, start + length))


def test_an_older_request_without_room_gives_up_itself_and_not_a_stream() -> None:
    bench = Bench(blocks=12, budget=200)
    bench.add(0, prompt(60), max_tokens=80)
    bench.step()
    bench.add(1, prompt(40, 500), max_tokens=150, stream=WINDOW)
    bench.drain()
    assert bench.scheduler.preemptions >= 1
    assert len(ids_of(bench, 1)) == 1
    assert len(ids_of(bench, 0)) > 1
    assert bench.texts[0, 0] == expected_text(prompt(60), 80)
    assert len(bench.texts[1, 0]) == 150


def test_who_reads_what_a_stream_let_go_gives_way_before_the_step_is_planned() -> None:
    """The older request holds the prompt that both share. The window of the stream moves on, needs
    blocks of its own, and finds the rest of the pool in the hands of the other."""
    shared = prompt(34)
    bench = Bench(blocks=8, budget=200)
    bench.add(0, shared, max_tokens=90)
    bench.step()
    bench.add(1, [*shared, 7], max_tokens=120, stream=WINDOW)
    for _ in range(300):
        plan = bench.step()
        if plan is None:
            break
        ids = [sequence.sequence_id for sequence in plan.sequences]
        live = {one.sequence_id for one in bench.scheduler._roster.running}
        assert set(ids) <= live | {one for one in ids if bench.finished}
    bench.drain()
    assert bench.works[1].cached_tokens == WINDOW.size - 1
    assert bench.scheduler.preemptions >= 1
    assert len(ids_of(bench, 1)) == 1
    assert bench.texts[0, 0] == expected_text(shared, 90)
    assert len(bench.texts[1, 0]) == 120
    assert not bench.failures


def test_a_stream_is_admitted_when_its_window_fits_and_not_before() -> None:
    bench = Bench(blocks=9, budget=200)
    bench.add(0, prompt(5, 100), max_tokens=60, stream=WINDOW)
    bench.add(1, prompt(5, 200), max_tokens=60, stream=WINDOW)
    bench.drain()
    first = [number for number, handles in enumerate(bench.served) if 0 in handles]
    second = [number for number, handles in enumerate(bench.served) if 1 in handles]
    assert max(first) < min(second)
    assert bench.scheduler.preemptions == 0


def test_a_long_prompt_takes_chunks_that_find_room() -> None:
    """The budget allows 200 tokens at once; the pool has room for few beside the window."""
    bench = Bench(blocks=7, budget=200)
    bench.add(0, prompt(1000), max_tokens=3, stream=WINDOW)
    bench.drain()
    spans = [bench.rows(plan)[0] for plan in bench.plans]
    assert sum(count for _, count in spans) == 1000 + 2
    assert max(count for _, count in spans) >= 2 * BLOCK
    assert all(first == sum(span[1] for span in spans[:k]) for k, (first, _) in enumerate(spans))


def test_streams_without_end_leave_room_for_others() -> None:
    bench = Bench(blocks=20, budget=64)
    bench.add(0, prompt(5, 100), max_tokens=None, stream=WINDOW)
    for handle in range(1, 6):
        bench.add(handle, prompt(40, 1000 * handle), max_tokens=30)
    for _ in range(400):
        bench.step()
    assert all(bench.finished[handle, 0] == "length" for handle in range(1, 6))
    assert len(bench.texts[0, 0]) >= 399
    bench.scheduler.abort(0)
    bench.drain()


def test_a_window_that_has_no_room_beside_what_was_pinned_meanwhile_is_told_so() -> None:
    """Accepted while nothing was pinned; pins do not give way to a stream, which ends with what a
    new one would be refused with, and not as a fault of the engine."""
    bench = Bench(blocks=6, max_num_seqs=1)  # the window needs five
    bench.add(0, prompt(BLOCK), max_tokens=2, directive=Directive(pin=True))
    bench.add(1, prompt(9, 200), max_tokens=20, stream=WINDOW)
    failures: list[WorkFailed] = []
    take = bench.scheduler.take_failures
    bench.scheduler.take_failures = lambda: failures.extend(take()) or []  # type: ignore[method-assign, func-returns-value]
    bench.drain()
    assert bench.works[0].pinned
    [failure] = failures
    assert (failure.handle, failure.kind) == (1, StreamBudgetExceeded)
    assert "neither pinned nor reserved" in failure.message
    with pytest.raises(StreamBudgetExceeded):
        bench.add(2, prompt(9, 200), max_tokens=20, stream=WINDOW)
    bench.add(3, prompt(9, 300), max_tokens=2)
    bench.drain()
    assert (3, 0) in bench.finished


def test_room_that_is_reserved_for_others_meanwhile_ends_one_request_and_not_the_engine() -> None:
    engine = toy_engine(blocks=8)
    told: list[list[Event]] = [[], []]
    for number, window in enumerate((WINDOW, None)):
        request = Request((1, 2, 3), SamplingParams(max_tokens=2), stream=window)
        engine.submit(request, told[number].append)
    block = sum(engine.info.block_bytes)
    engine.set_shares({"other": (5 * block, None)})
    while engine.step():
        pass
    [failed] = told[0]
    assert isinstance(failed, RequestFailed)
    assert failed.error.code == "pool_too_small"
    assert isinstance(told[1][-1], RequestFinished)
    engine.check()
