"""Endless streams, computed: beside ordinary requests, in chunks of any size, cold and warm, each
equal to its lone run bit for bit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grid
import pytest
from grid import engine, prompt, request, run

from kveik.cache.directive import Directive, Selector
from kveik.cache.window import StreamWindow
from kveik.engine.parts import EngineParts
from kveik.engine.request import ChoiceDelta, Event, Request, RequestFinished
from kveik.errors import (
    Conflict,
    InvalidRequest,
    PromptTooLarge,
    StreamBudgetExceeded,
    UnsupportedFeature,
)
from kveik.kernels.extension import native_extension

WINDOW = StreamWindow(sinks=4, window=32)
BATCHED = StreamWindow(sinks=3, window=37, evict=16)
SLIDING = {
    "model_type": "qwen3",
    "use_sliding_window": True,
    "sliding_window": 40,
    "max_window_layers": 1,
}
SUBJECTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "reference": ({}, {"kernels": "reference"}),
    "reference, two groups": (SLIDING, {"kernels": "reference"}),
    "native": ({}, {}),
    "native, two groups": (SLIDING, {}),
    "portable": ({}, {"kernels": "portable"}),
}


@pytest.fixture(scope="module", params=SUBJECTS)
def parts(request: pytest.FixtureRequest, tiny_folder: Callable[..., Path]) -> EngineParts:
    checkpoint, config = SUBJECTS[request.param]
    if config.get("kernels") != "reference" and native_extension().module is None:
        pytest.skip("this machine does not have these kernels")
    return grid.parts_of(str(tiny_folder(**checkpoint)), **config)


@pytest.fixture(scope="module")
def plain(tiny_folder: Callable[..., Path]) -> EngineParts:
    return grid.parts_of(str(tiny_folder()), kernels="reference")


def stream(ids: list[int], window: StreamWindow = WINDOW, **params: Any) -> Request:
    return replace(request(ids, **params), stream=window)


def turn(ids: list[int], *, resumes: bool = False, session: str = "s", **params: Any) -> Request:
    """A request of a session whose stream stays open."""
    window = None if resumes else WINDOW
    directive = Directive(session=session)
    return replace(request(ids, **params), stream=window, directive=directive, resumes=resumes)


@pytest.mark.parametrize("window", [WINDOW, BATCHED], ids=["one by one", "in batches"])
def test_a_prompt_in_chunks_of_any_size_gives_the_same_bits(
    parts: EngineParts, window: StreamWindow
) -> None:
    """Chunks of 1, 16, 64 and 512 tokens, 600 in all, and the answer behind them."""
    subject = stream(prompt(600), window, prompt_logprobs=2)
    chunks = {512: {}, 64: {}, 16: {}, 1: {"block_size": 1}}
    outcomes = []
    for chunk, config in chunks.items():
        one = engine(parts, 1024, max_num_batched_tokens=chunk, **config)
        [outcome] = run(one, [subject])
        assert outcome.usage is not None
        assert outcome.usage.evicted_tokens == window.evicted(600 + 8 - 2)
        outcomes.append((outcome.prompt, outcome.chosen))
    assert all(outcome == outcomes[0] for outcome in outcomes[1:])


def test_streams_and_ordinary_requests_in_one_batch_equal_their_lone_runs(
    parts: EngineParts,
) -> None:
    """16 and 16, of which half share a beginning."""
    shared = prompt(24, seed=5)
    requests = []
    for number in range(16):
        begin = shared if number % 2 else []
        window = BATCHED if number % 3 == 0 else WINDOW
        ids = [*begin, *prompt(10 + 9 * number, seed=100 + number)]
        requests.append(stream(ids, window, seed=number, max_tokens=40 + number))
        ids = [*begin, *prompt(5 + 4 * number, seed=200 + number)]
        requests.append(request(ids, seed=number, max_tokens=20))
    together = run(engine(parts, 400, max_num_batched_tokens=96), requests, apart=1)
    reused = 0
    for one, outcome in zip(requests, together, strict=True):
        [alone] = run(engine(parts, 400), [one])
        assert outcome.chosen == alone.chosen
        assert outcome.usage is not None
        reused += outcome.usage.cached_tokens
    assert reused >= 10 * 16


def test_a_stream_that_fits_its_window_is_an_ordinary_request(parts: EngineParts) -> None:
    [ordinary] = run(engine(parts), [request(prompt(20))])
    [kept] = run(engine(parts), [stream(prompt(20))])
    assert kept.chosen == ordinary.chosen
    assert kept.usage is not None
    assert kept.usage.evicted_tokens == 0


def test_what_was_forgotten_makes_a_difference(parts: EngineParts) -> None:
    """The window is not the whole context, and sinks are part of it."""
    ids = prompt(60)
    texts = [
        run(engine(parts), [one])[0].chosen
        for one in (
            request(ids),
            stream(ids),
            stream(ids, StreamWindow(0, 36)),
            stream(ids, StreamWindow(4, 32, 8)),
            stream([7, *ids[1:]]),
            stream([*ids[:10], 7, *ids[11:]]),
        )
    ]
    _whole, kept, sinkless, batched, other_sink, forgotten = texts
    assert kept not in (_whole, sinkless, batched, other_sink)
    assert forgotten != kept  # later states had read it: a stream does not unlearn


def test_a_warm_stream_equals_a_cold_one(parts: EngineParts) -> None:
    ids = prompt(80)
    [cold] = run(engine(parts), [stream(ids)])
    warm = engine(parts)
    run(warm, [request(ids)])
    [again] = run(warm, [stream(ids)])
    assert again.usage is not None
    assert again.usage.cached_tokens == WINDOW.size - 1
    assert again.chosen == cold.chosen


def test_what_a_stream_leaves_is_an_exact_prefix(parts: EngineParts) -> None:
    ids = prompt(80)
    [cold] = run(engine(parts), [request(ids)])
    warm = engine(parts)
    run(warm, [stream(ids)])
    [after] = run(warm, [request(ids)])
    assert after.usage is not None
    assert after.usage.cached_tokens == WINDOW.size // grid.BLOCK * grid.BLOCK
    assert after.chosen == cold.chosen


def test_a_stream_in_a_small_pool_pushes_others_out_and_is_never_recomputed(
    parts: EngineParts,
) -> None:
    """Two streams and ordinary requests in a pool that is too small for all of them."""
    requests = [
        stream(prompt(90, seed=1), max_tokens=60),
        request(prompt(70, seed=2), max_tokens=40),
        stream(prompt(90, seed=3), max_tokens=60),
        request(prompt(50, seed=4), max_tokens=60),
    ]
    small = engine(parts, 16, max_num_batched_tokens=32)
    outcomes = run(small, requests, apart=2)
    for one, outcome in zip(requests, outcomes, strict=True):
        [alone] = run(engine(parts), [one])
        assert outcome.chosen == alone.chosen
        if one.stream is not None:
            assert outcome.usage is not None
            assert outcome.usage.computed_prompt_tokens == 90


def test_a_stream_goes_past_the_context_of_the_model(plain: EngineParts) -> None:
    ids = prompt(300)
    short = engine(replace(plain, max_model_len=128))
    [outcome] = run(short, [stream(ids, max_tokens=200)])
    assert len(outcome.chosen[0]) == 200
    with pytest.raises(InvalidRequest, match="context"):
        short.submit(request(ids), lambda event: None)


def test_without_a_limit_it_goes_on_until_it_stops(plain: EngineParts) -> None:
    endless = engine(plain)
    seen: list[Any] = []
    window = StreamWindow(2, 14)
    handle = endless.submit(stream(prompt(9), window, max_tokens=None, logprobs=None), seen.append)
    for _ in range(700):
        endless.step()
    endless.check()
    held = endless.stats().cache.leased_blocks[0]
    assert held * grid.BLOCK <= window.size + 3 * grid.BLOCK
    endless.abort(handle)
    endless.step()
    assert len(seen) > 700
    assert endless.stats().cache.leased_blocks == (0,)


def test_ids_of_what_was_forgotten_are_not_kept(plain: EngineParts) -> None:
    endless = engine(plain)
    endless.submit(stream(prompt(9), max_tokens=None), lambda event: None)
    for _ in range(500):
        endless.step()
    [sequence] = endless._scheduler._roster.running
    assert len(sequence.tokens) <= 3 * WINDOW.size
    assert len(sequence.computed) < len(sequence.tokens)
    assert sequence.length >= 500


@pytest.mark.parametrize("penalty", ["repetition_penalty", "frequency_penalty"])
def test_penalties_know_what_the_window_holds(plain: EngineParts, penalty: str) -> None:
    """Two histories that differ in forgotten tokens only are penalised alike."""
    endless = engine(plain)
    plans = []
    inner = endless._runner.run
    endless._runner.run = lambda plan: plans.append(plan) or inner(plan)  # type: ignore[assignment, func-returns-value]
    run(endless, [stream(prompt(50), max_tokens=60, **{penalty: 1.5})])
    for plan in plans:
        for sequence in plan.sequences:
            for sample in sequence.samples:
                first = WINDOW.first_recent(sample.position - 1)
                known = len(sample.prompt_ids) + len(sample.output_ids)
                if penalty == "repetition_penalty":
                    assert known == sample.position - first
                    assert sample.prompt_ids == tuple(prompt(50)[first:])
                else:
                    assert known == sample.position - max(first, 50)


# --- sessions


def test_a_session_goes_on_in_its_window(parts: EngineParts) -> None:
    """Two requests and one that says the same at once: equal bits, whatever came between."""
    first, second = prompt(50, seed=1), prompt(30, seed=2)
    held = engine(parts)
    [one] = run(held, [turn(first)])
    said = [token.token_id for token in one.chosen[0]]
    run(held, [request(prompt(90, seed=9))])
    [two] = run(held, [turn(second, resumes=True, seed=4)])
    whole = stream([*first, *said, *second], seed=4)
    [alone] = run(engine(parts), [whole])
    assert two.chosen == alone.chosen
    assert two.usage is not None
    assert two.usage.prompt_tokens == 30
    assert two.usage.computed_prompt_tokens == 30
    assert (two.usage.cached_tokens, two.usage.stored_tokens) == (0, 0)
    assert two.usage.evicted_tokens == WINDOW.evicted(50 + 8 + 30 + 8 - 2)


def test_nothing_is_computed_behind_the_stop_string_of_an_open_stream(plain: EngineParts) -> None:
    """Also where texts have a thread of their own and are told slowly: what is in the window is
    what was said."""
    [free] = run(engine(plain), [turn(prompt(9), max_tokens=90)])
    said = [token.token_id for token in free.chosen[0]]
    text = plain.tokenizer.decode(said)
    stop = text[len(text) // 2 :][:6]
    assert stop
    held, told, ended = engine(plain), [], threading.Event()

    def sink(event: Event) -> None:
        if isinstance(event, ChoiceDelta):
            time.sleep(0.003)
            told.extend(event.token_ids)
        elif isinstance(event, RequestFinished):
            ended.set()

    held.start()
    try:
        held.submit(turn(prompt(9), max_tokens=90, stop=(stop,), logprobs=None), sink)
        assert ended.wait(60)
        assert told == said[: len(told)]
        assert len(told) < 90
        while not held.has_stream("", "s"):
            time.sleep(0.003)
    finally:
        held.stop()
    resting = held._scheduler.streams._streams["", "s"]
    assert resting.start + len(resting.tokens) == 9 + len(told)


def test_a_short_session_has_forgotten_nothing_and_goes_on(plain: EngineParts) -> None:
    held = engine(plain)
    [one] = run(held, [turn(prompt(5), max_tokens=3)])
    said = [token.token_id for token in one.chosen[0]]
    [two] = run(held, [turn(prompt(6, seed=2), resumes=True)])
    [alone] = run(engine(plain), [request([*prompt(5), *said, *prompt(6, seed=2)])])
    assert two.chosen == alone.chosen


def test_the_end_of_a_text_is_not_said_twice(plain: EngineParts) -> None:
    """The model sampled the end of its text, and the template begins the next turn with it."""
    end = plain.end_ids[0]
    held = engine(plain)
    free = {"logit_bias": {end: 100.0}, "ignore_eos": False, "logprobs": None}
    run(held, [turn(prompt(20), **free)])
    [two] = run(held, [turn([end, *prompt(6, seed=2)], resumes=True)])
    [alone] = run(engine(plain), [request([*prompt(20), end, *prompt(6, seed=2)])])
    assert two.chosen == alone.chosen


def test_a_session_without_an_open_stream_is_a_conflict(plain: EngineParts) -> None:
    held = engine(plain)
    with pytest.raises(Conflict, match=r"kveik\.continue: the session 's' has no open stream"):
        held.submit(turn(prompt(5), resumes=True), lambda event: None)
    run(held, [turn(prompt(50))])
    held.submit(turn(prompt(5), resumes=True), lambda event: None)
    with pytest.raises(Conflict):  # it answers
        held.submit(turn(prompt(5), resumes=True), lambda event: None)
    while held.step():
        pass
    held.end_session("", "s")
    held.step()
    assert held.stats().cache.leased_blocks == (0,)
    with pytest.raises(Conflict):
        held.submit(turn(prompt(5), resumes=True), lambda event: None)


def test_a_cut_answer_ends_the_stream(plain: EngineParts) -> None:
    held = engine(plain)
    run(held, [turn(prompt(50))])
    handle = held.submit(turn(prompt(5), resumes=True, max_tokens=500), lambda event: None)
    for _ in range(5):
        held.step()
    held.abort(handle)
    held.step()
    with pytest.raises(Conflict):
        held.submit(turn(prompt(5), resumes=True), lambda event: None)


def test_a_request_that_is_cut_in_the_queue_leaves_the_stream_open(plain: EngineParts) -> None:
    held = engine(plain)
    run(held, [turn(prompt(50))])
    handle = held.submit(turn(prompt(5), resumes=True), lambda event: None)
    held.abort(handle)
    held.step()
    assert run(held, [turn(prompt(5), resumes=True)])[0].usage is not None
    with pytest.raises(InvalidRequest):  # refused before it goes on: the stream is open still
        held.submit(turn([9999], resumes=True), lambda event: None)
    with pytest.raises(InvalidRequest, match="prompt_logprobs"):
        held.submit(turn(prompt(5), resumes=True, prompt_logprobs=1), lambda event: None)
    with pytest.raises(InvalidRequest, match="keeps 4\\+32, 1 at a time"):
        held.submit(replace(turn(prompt(5), resumes=True), stream=BATCHED), lambda event: None)
    assert run(held, [turn(prompt(5), resumes=True)])[0].usage is not None


def test_an_open_stream_holds_its_window_under_the_budget_of_pins(plain: EngineParts) -> None:
    held = engine(plain, 40, pin_share=0.2)  # eight blocks; one window needs five
    run(held, [turn(prompt(50))])
    with pytest.raises(StreamBudgetExceeded) as told:
        held.submit(turn(prompt(50), session="t"), lambda event: None)
    assert told.value.status == 429
    held.end_session("", "s")
    held.step()
    run(held, [turn(prompt(50), session="t")])


def test_streams_in_the_queue_count_against_that_budget(plain: EngineParts) -> None:
    held = engine(plain, 40, pin_share=0.2, max_num_seqs=1)
    held.submit(request(prompt(50), max_tokens=20), lambda event: None)
    held.step()
    held.submit(turn(prompt(50)), lambda event: None)
    held.step()  # it waits for a seat
    with pytest.raises(StreamBudgetExceeded):
        held.submit(turn(prompt(50), session="t"), lambda event: None)
    while held.step():
        pass


def test_an_idle_stream_gives_way_to_what_could_never_run(plain: EngineParts) -> None:
    held = engine(plain, 20, pin_share=0.5)
    run(held, [turn(prompt(50))])
    [large] = run(held, [request(prompt(300))])
    assert large.usage is not None
    with pytest.raises(Conflict):
        held.submit(turn(prompt(5), resumes=True), lambda event: None)


@pytest.mark.parametrize("how", ["invalidate", "reset", "idle"])
def test_what_ends_a_session_ends_its_stream(plain: EngineParts, how: str) -> None:
    now = [0.0]
    held = engine(plain, session_idle=100.0, clock=lambda: now[0])
    run(held, [turn(prompt(50))])
    if how == "invalidate":
        held.invalidate(Selector(prefix=tuple(prompt(3))))
    elif how == "reset":
        assert held.reset_cache()
    else:
        now[0] = 1000.0
    while held.step():
        pass
    held.check()
    assert held.stats().cache.leased_blocks == (0,)
    with pytest.raises(Conflict):
        held.submit(turn(prompt(5), resumes=True), lambda event: None)


# --- refusals


@pytest.mark.parametrize(
    ("params", "field"),
    [({"n": 2}, "n"), ({"use_cache": False}, "use_cache"), ({"max_tokens": 0}, "max_tokens")],
)
def test_what_one_window_cannot_serve_is_refused_by_name(
    plain: EngineParts, params: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest, match="stream") as told:
        engine(plain).submit(stream(prompt(5), **params), lambda event: None)
    assert told.value.param == field


def test_a_window_that_is_too_large_is_refused_by_name(
    plain: EngineParts, tiny_folder: Callable[..., Path]
) -> None:
    def refused(parts: EngineParts, window: StreamWindow, blocks: int = 64) -> InvalidRequest:
        with pytest.raises(InvalidRequest) as told:
            engine(parts, blocks).submit(stream(prompt(5), window), lambda event: None)
        assert told.value.param == "stream_window"
        return told.value

    assert isinstance(refused(plain, WINDOW, blocks=4), PromptTooLarge)
    assert "context" in str(refused(plain, StreamWindow(4, 1 << 20), blocks=64))
    sliding = grid.parts_of(str(tiny_folder(**SLIDING)), kernels="reference")
    assert "see 40 at most" in str(refused(sliding, StreamWindow(4, 37)))


def test_a_model_whose_positions_are_fixed_refuses_streams(plain: EngineParts) -> None:
    class Learned:
        can_shift = False

        def __getattr__(self, name: str) -> Any:
            return getattr(plain.model, name)

    with pytest.raises(UnsupportedFeature, match="rotary") as told:
        engine(replace(plain, model=Learned())).submit(stream(prompt(5)), lambda event: None)  # type: ignore[arg-type]
    assert (told.value.param, told.value.status) == ("stream_window", 400)


def test_sixteen_streams_share_the_blocks_of_their_prompt(parts: EngineParts) -> None:
    """One copy with sixteen references while the prompt is in the window, the sinks' for good; and
    no stream holds more than its window and three partly used blocks."""
    begin = prompt(36, seed=5)
    held = engine(parts, 200)
    window = StreamWindow(4, 36)
    run(held, [request(begin)])
    requests = [stream([*begin, 7 + n], window, max_tokens=60) for n in range(16)]
    for one in requests:
        held.submit(one, lambda event: None)
    held.step()
    pool, sequences = held._cache.pools[0], held._scheduler._roster.running
    first, second = sequences[0].lease.blocks[0][:2]  # type: ignore[union-attr]
    assert pool.refs[first] == pool.refs[second] == 16
    for _ in range(55):
        held.step()
        for sequence in sequences:
            assert sequence.lease is not None
            assert sequence.lease.held(0) * grid.BLOCK <= window.size + 3 * (grid.BLOCK - 1)
    assert len(sequences) == 16
    assert pool.refs[first] == 16
    assert pool.refs[second] == 0
    while held.step():
        pass
    held.check()
