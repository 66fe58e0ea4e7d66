"""The engine around a toy model: events, endings, faults, queue limits, threads."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from toy import ByteDetokenizer, ByteTokenizer
from toy_model import BLOCK_BYTES, ToyModel, toy_engine, toy_text

from kveik.cache.directive import Directive
from kveik.cache.segments import KvGroup
from kveik.config import EngineConfig
from kveik.engine.engine import Engine
from kveik.engine.pool import pool_blocks
from kveik.engine.request import (
    ChoiceDelta,
    ChoiceFinished,
    Event,
    PromptReady,
    Request,
    RequestAborted,
    RequestFailed,
    RequestFinished,
    SamplingParams,
)
from kveik.errors import (
    ConfigError,
    ContextLengthExceeded,
    InvalidRequest,
    ModelLoadError,
    Overloaded,
    PinBudgetExceeded,
    PromptTooLarge,
    Unavailable,
)

ENDINGS = (RequestFinished, RequestFailed, RequestAborted)


class Collected:
    """A sink that keeps its events and insists on one ending."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.done = threading.Event()

    def __call__(self, event: Event) -> None:
        assert not self.done.is_set(), f"{event} after the ending"
        self.events.append(event)
        if isinstance(event, ENDINGS):
            self.done.set()

    @property
    def ending(self) -> Event:
        assert self.done.is_set()
        return self.events[-1]

    def tokens(self, choice: int = 0) -> list[int]:
        deltas = [event for event in self.events if isinstance(event, ChoiceDelta)]
        return [token for one in deltas if one.choice == choice for token in one.token_ids]

    def text(self, choice: int = 0) -> str:
        deltas = [event for event in self.events if isinstance(event, ChoiceDelta)]
        return "".join(one.text for one in deltas if one.choice == choice)

    def finished(self, choice: int = 0) -> ChoiceFinished:
        [found] = [
            event
            for event in self.events
            if isinstance(event, ChoiceFinished) and event.choice == choice
        ]
        return found


def request(prompt: Sequence[int], **params: Any) -> Request:
    given = {"max_tokens": 4, "temperature": 0.0, **params}
    return Request(tuple(prompt), SamplingParams(**given))


def submit(engine: Engine, prompt: Sequence[int], **params: Any) -> Collected:
    sink = Collected()
    sink.handle = engine.submit(request(prompt, **params), sink)  # type: ignore[attr-defined]
    return sink


def drain(engine: Engine) -> None:
    for _ in range(10_000):
        if not engine.step():
            engine.check()
            return
    raise AssertionError("the engine never became idle")


# ---- events


def test_events_come_in_order_and_end_once() -> None:
    engine = toy_engine()
    sink = submit(engine, range(20), max_tokens=3, logprobs=2)
    drain(engine)
    kinds = [type(event).__name__ for event in sink.events]
    assert kinds == ["PromptReady", *["ChoiceDelta"] * 3, "ChoiceFinished", "RequestFinished"]
    assert sink.tokens() == toy_text(range(20), 3)
    assert sink.finished() == ChoiceFinished(0, "length", None)
    delta = sink.events[1]
    assert isinstance(delta, ChoiceDelta)
    assert len(delta.logprobs) == 1
    assert delta.logprobs[0].token_id == delta.token_ids[0]
    assert len(delta.logprobs[0].top) == 2
    usage = sink.ending.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (20, 3, 0)
    assert usage.computed_prompt_tokens == 20


def test_a_prompt_that_was_seen_before_is_reported_as_cached() -> None:
    engine = toy_engine()
    submit(engine, range(40))
    drain(engine)
    sink = submit(engine, [*range(40), 77])
    drain(engine)
    ready, usage = sink.events[0], sink.ending.usage
    assert isinstance(ready, PromptReady)
    assert ready.cached_tokens == usage.cached_tokens == 40
    assert usage.computed_prompt_tokens == 1
    assert ready.miss is not None
    assert ready.miss.position == 40
    assert engine.explain([*range(40), 77, 78]).cached_tokens >= 40
    assert engine.reset_cache()
    assert engine.explain([*range(40), 77, 78]).cached_tokens == 0


def test_a_request_that_asks_is_told_where_it_left_the_cache() -> None:
    engine = toy_engine()
    submit(engine, range(40))
    drain(engine)
    for asked in (False, True):
        sink = Collected()
        ids = (*range(20), 200, 201)
        engine.submit(Request(ids, SamplingParams(max_tokens=1), explain=asked), sink)
        drain(engine)
        found = sink.events[0].divergence
        assert (found is not None) == asked
        if found is not None:
            assert (found.position, found.wanted[0], found.cached[0]) == (20, 200, 20)
        engine.reset_cache()
        submit(engine, range(40))
        drain(engine)


@pytest.mark.parametrize("budget", [16, 64])
def test_prompt_log_probabilities_cover_every_prompt_token(budget: int) -> None:
    engine = toy_engine(max_num_batched_tokens=budget)
    submit(engine, range(40))
    drain(engine)
    sink = submit(engine, range(40), prompt_logprobs=1, n=2, max_tokens=2)
    drain(engine)
    ready = sink.events[0]
    assert isinstance(ready, PromptReady)
    assert ready.prompt_logprobs is not None
    assert ready.prompt_logprobs[0] is None
    assert [row.token_id for row in ready.prompt_logprobs[1:] if row] == list(range(1, 40))
    assert ready.cached_tokens == 0
    assert all(len(row.top) == 1 for row in ready.prompt_logprobs[1:] if row)


def test_several_choices_end_separately_and_the_request_once() -> None:
    engine = toy_engine()
    sink = submit(engine, range(30), n=3, max_tokens=5, temperature=1.0, seed=4)
    alone = []
    for choice in range(3):
        one = Collected()
        params = SamplingParams(max_tokens=5, seed=4)
        engine.submit(Request(tuple(range(30)), params, first_choice=choice), one)
        alone.append(one)
    drain(engine)
    assert [sink.tokens(choice) for choice in range(3)] == [one.tokens() for one in alone]
    assert len({tuple(sink.tokens(choice)) for choice in range(3)}) == 3
    assert sink.ending.usage.completion_tokens == 15
    assert sink.ending.usage.prompt_tokens == 30
    assert engine.stats().requests_finished == {"length": 4}


def test_seeds() -> None:
    """Same seed, same text; none given: drawn from the engine's seed and the arrival number."""
    texts = []
    for seed in (0, 0, 1):
        engine = toy_engine(seed=seed)
        sinks = [submit(engine, range(20), temperature=1.0) for _ in range(2)]
        sinks += [submit(engine, range(20), temperature=1.0, seed=9) for _ in range(2)]
        drain(engine)
        texts.append([sink.tokens() for sink in sinks])
    first, again, other = texts
    assert first == again
    assert first[0] != first[1]
    assert first[2] == first[3] == other[2]
    assert first[:2] != other[:2]


# ---- text


class FixedTokenizer(ByteTokenizer):
    """Shows the k-th token of every choice as the k-th piece of a fixed text."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces

    def detokenizer(self, **_: Any) -> ByteDetokenizer:
        pieces = iter(self.pieces)

        class Fixed(ByteDetokenizer):
            def push(self, token_id: int) -> str:
                return self._decoder.decode(next(pieces))

        return Fixed()


def test_a_stop_string_cut_across_tokens_is_never_sent() -> None:
    pieces = [b"one ", b"two", b"\n#", b"# ", b"#", b"## three"]
    engine = toy_engine(tokenizer=FixedTokenizer(pieces))
    sink = submit(engine, range(5), max_tokens=20, stop=("##",))
    drain(engine)
    assert sink.text() == "one two\n"
    assert len(sink.tokens()) == 4
    assert sink.finished() == ChoiceFinished(0, "stop", "##")
    assert engine.stats().steps == 4
    held = [event.text for event in sink.events if isinstance(event, ChoiceDelta)]
    assert held == ["one ", "two", "\n", ""]


def test_a_stop_string_can_be_included() -> None:
    engine = toy_engine(tokenizer=FixedTokenizer([b"ab", b"cd", b"ef"]))
    sink = submit(engine, range(5), max_tokens=3, stop=("bc",), include_stop_str_in_output=True)
    drain(engine)
    assert sink.text() == "abc"


def test_held_text_is_sent_when_the_length_ends_the_choice() -> None:
    engine = toy_engine(tokenizer=FixedTokenizer([b"a", b"<e", b"n", b"\xe2"]))
    sink = submit(engine, range(5), max_tokens=4, stop=("<end>",))
    drain(engine)
    assert sink.text() == "a<en\ufffd"
    assert sink.finished() == ChoiceFinished(0, "length", None)


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_token_is_text_only_where_stops_are_included(include: bool) -> None:
    engine = toy_engine()
    ids = toy_text(range(20), 4)
    sink = submit(
        engine,
        range(20),
        max_tokens=9,
        stop_token_ids=(ids[2],),
        include_stop_str_in_output=include,
    )
    drain(engine)
    assert sink.tokens() == ids[:3]
    shown = ids[:3] if include else ids[:2]
    assert sink.text() == bytes(shown).decode(errors="replace")
    assert sink.finished() == ChoiceFinished(0, "stop", ids[2])


def test_the_end_of_text_has_no_stop_reason_and_can_be_ignored() -> None:
    engine = toy_engine()
    forced_end = {"logit_bias": {256: 100.0}, "max_tokens": 3}
    ended = submit(engine, range(9), **forced_end)
    ignored = submit(engine, range(9), ignore_eos=True, **forced_end)
    drain(engine)
    assert ended.tokens() == [256]
    assert ended.text() == ""
    assert ended.finished() == ChoiceFinished(0, "stop", None)
    assert ignored.tokens() == [256] * 3


# ---- refusals


@pytest.mark.parametrize(
    ("prompt", "params", "error", "param"),
    [
        ([], {}, InvalidRequest, "prompt"),
        ([5, 257], {}, InvalidRequest, "prompt_token_ids"),
        ([-1], {}, InvalidRequest, "prompt_token_ids"),
        ([1], {"stop_token_ids": (300,)}, InvalidRequest, "stop_token_ids"),
        ([1], {"logit_bias": {900: 1.0}}, InvalidRequest, "logit_bias"),
        ([1] * 250, {"max_tokens": 7}, ContextLengthExceeded, "prompt"),
        ([1] * 120, {"max_tokens": 10}, PromptTooLarge, "prompt"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_allocated(
    prompt: list[int], params: dict[str, Any], error: type[InvalidRequest], param: str
) -> None:
    engine = toy_engine(blocks=8)
    with pytest.raises(error) as caught:
        engine.submit(request(prompt, **params), Collected())
    assert caught.value.param == param
    assert caught.value.status == 400
    assert not engine.step()
    assert engine.stats().cache.free_blocks == (8,)


def test_the_queue_is_bounded_by_count() -> None:
    engine = toy_engine(max_queued_requests=3)
    for _ in range(3):
        submit(engine, range(5))
    with pytest.raises(Overloaded) as caught:
        submit(engine, range(5))
    assert caught.value.status == 429
    assert 1 <= caught.value.retry_after <= 60
    assert engine.stats().waiting == 3
    engine.step()
    submit(engine, range(5))
    drain(engine)
    assert engine.stats().waiting == engine.stats().waiting_tokens == 0


def test_the_queue_is_bounded_by_tokens() -> None:
    engine = toy_engine(max_queued_tokens=100)
    submit(engine, range(120))  # an empty queue takes what the pool can hold
    with pytest.raises(Overloaded):
        submit(engine, range(5))
    engine.step()
    submit(engine, range(60))
    submit(engine, range(40))
    with pytest.raises(Overloaded):
        submit(engine, [1])
    assert engine.stats().waiting_tokens == 100
    drain(engine)


@pytest.mark.parametrize("seats", [1, 2])  # the budget is gone when it opens, or when it ends
def test_a_pin_is_refused_at_once_and_one_that_finds_no_budget_later_says_so(seats: int) -> None:
    engine = toy_engine(blocks=16, pin_share=0.5, max_num_seqs=seats)
    prompts = [tuple(range(start, start + 70)) for start in (0, 100)]  # five blocks of eight

    def ask(prompt: tuple[int, ...]) -> Collected:
        sink = Collected()
        directive = Directive(pin=True, session="s")
        engine.submit(Request(prompt, SamplingParams(max_tokens=4), directive=directive), sink)
        return sink

    sinks = [ask(prompt) for prompt in prompts]
    with pytest.raises(PinBudgetExceeded):
        ask(tuple(range(200)))
    drain(engine)
    endings = [sink.ending for sink in sinks]
    assert [isinstance(end, RequestFinished) and end.usage.pinned for end in endings] == [
        True,
        False,
    ]
    with pytest.raises(PinBudgetExceeded):
        ask(tuple(range(180, 250)))
    plain = Collected()
    engine.submit(Request((1, 2), SamplingParams(max_tokens=1)), plain)
    drain(engine)
    assert isinstance(plain.ending, RequestFinished)
    assert plain.ending.usage.pinned is None


@pytest.mark.parametrize("limit", [{"max_queued_requests": 2}, {"max_queued_tokens": 10}])
def test_background_work_takes_no_place_in_the_queue_of_live_requests(
    limit: dict[str, int],
) -> None:
    engine = toy_engine(max_num_seqs=1, **limit)

    def fill(background: bool, room: int) -> None:
        for _ in range(room + 1):
            engine.submit(
                Request(tuple(range(5)), SamplingParams(max_tokens=4), background=background),
                Collected(),
            )

    for background in (True, False):
        with pytest.raises(Overloaded, match="2 requests with 10 prompt tokens"):
            fill(background, 2)
    assert engine.stats().waiting == 4
    engine.step()  # from the inbox to the scheduler; one live request runs
    for background, room in ((True, 0), (False, 1)):
        with pytest.raises(Overloaded, match="2 requests with 10 prompt tokens"):
            fill(background, room)
    drain(engine)
    assert (engine.stats().waiting, engine.stats().waiting_tokens) == (0, 0)


# ---- aborts


@pytest.mark.parametrize("steps", range(6))
def test_abort_at_each_stage_keeps_the_computed_prefix(steps: int) -> None:
    engine = toy_engine(max_num_batched_tokens=32)
    other = submit(engine, range(100, 120), max_tokens=9)
    sink = submit(engine, range(70), max_tokens=9)
    for _ in range(steps):
        engine.step()
    engine.abort(sink.handle)  # type: ignore[attr-defined]
    engine.abort(sink.handle)  # type: ignore[attr-defined]
    engine.abort(12345)
    engine.step()
    assert isinstance(sink.ending, RequestAborted)
    drain(engine)
    assert other.tokens() == toy_text(range(100, 120), 9)
    assert engine.stats().cache.leased_blocks == (0,)
    assert engine.stats().requests_finished == {"abort": 1, "length": 1}
    done = sink.ending.usage.computed_prompt_tokens
    assert engine.explain(range(71)).cached_tokens >= done - done % 16


# ---- faults (promise 21)

PROMPTS = [list(range(start, start + 37)) for start in (0, 50, 100, 150)]


def _neighbours_unharmed(model: ToyModel, tokenizer: Any, spoil: Callable[[Engine], Any]) -> Any:
    """Run the four prompts beside a request that something is wrong with; returns its sink."""
    engine = toy_engine(model, tokenizer=tokenizer, max_num_batched_tokens=64)
    sinks = [submit(engine, prompt, max_tokens=8) for prompt in PROMPTS[:2]]
    spoiled = spoil(engine)
    sinks += [submit(engine, prompt, max_tokens=8) for prompt in PROMPTS[2:]]
    drain(engine)
    for prompt, sink in zip(PROMPTS, sinks, strict=True):
        assert sink.tokens() == toy_text(prompt, 8)
        assert isinstance(sink.ending, RequestFinished)
    assert engine.stats().cache.leased_blocks == (0,)
    assert engine.stats().requests_finished == {"length": 4, "error": 1}
    after = submit(engine, PROMPTS[0], max_tokens=8)
    drain(engine)
    assert after.tokens() == toy_text(PROMPTS[0], 8)
    return spoiled


def _planted(condition: bool) -> None:
    if condition:
        raise ValueError("planted")


@pytest.mark.parametrize("marked", [210, 228, 255])
def test_a_fault_in_the_forward_pass_ends_one_request(marked: int) -> None:
    """At the first and at a late prompt token, and at the first generated one (255)."""
    model = ToyModel()
    model.faults.forward = lambda ids: _planted(marked in ids)

    def spoil(engine: Engine) -> Collected:
        return submit(engine, range(210, 230), max_tokens=8, logit_bias={255: 100.0})

    sink = _neighbours_unharmed(model, None, spoil)
    assert isinstance(sink.ending, RequestFailed)
    assert sink.ending.error.status == 500
    assert "planted" not in sink.ending.error.message
    assert len(sink.tokens()) == (marked == 255)


@pytest.mark.parametrize("token", [0, 1, 4])
def test_a_fault_in_the_sampler_ends_one_request(token: int) -> None:
    model = ToyModel()
    model.faults.sample = lambda rows: _planted(
        any(row.top_k == 13 and len(row.output_ids) == token for row in rows)
    )

    def spoil(engine: Engine) -> Collected:
        return submit(engine, range(210, 240), max_tokens=8, top_k=13, presence_penalty=1.0)

    sink = _neighbours_unharmed(model, None, spoil)
    assert isinstance(sink.ending, RequestFailed)
    assert len(sink.tokens()) == token


def test_a_fault_in_the_detokeniser_ends_one_request() -> None:
    class Faulty(ByteTokenizer):
        made = 0

        def detokenizer(self, **_: Any) -> ByteDetokenizer:
            self.made += 1
            if self.made != 3:
                return ByteDetokenizer()

            class Raises(ByteDetokenizer):
                pushed = 0

                def push(self, token_id: int) -> str:
                    self.pushed += 1
                    _planted(self.pushed == 3)
                    return super().push(token_id)

            return Raises()

    def spoil(engine: Engine) -> Collected:
        return submit(engine, range(210, 240), max_tokens=8)

    sink = _neighbours_unharmed(ToyModel(), Faulty(), spoil)
    assert isinstance(sink.ending, RequestFailed)
    assert len(sink.tokens()) == 2


def test_a_sink_that_raises_when_told_of_the_abort_harms_nobody() -> None:
    engine = toy_engine()
    handle = engine.submit(
        request(range(20), max_tokens=50), lambda event: _planted(isinstance(event, RequestAborted))
    )
    other = submit(engine, range(30), max_tokens=5)
    engine.step()
    engine.abort(handle)
    drain(engine)
    assert other.tokens() == toy_text(range(30), 5)
    assert engine.stats().requests_finished == {"error": 1, "length": 1}


def test_a_fault_while_tokens_are_taken_ends_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(engine: Engine) -> Collected:
        commit = engine._cache.commit

        def raises(lease: Any, tokens: Sequence[int], now: float = 0.0) -> None:
            _planted(tokens[0] == 210 and len(tokens) > 30)
            commit(lease, tokens, now)

        monkeypatch.setattr(engine._cache, "commit", raises)
        return submit(engine, range(210, 240), max_tokens=8)

    sink = _neighbours_unharmed(ToyModel(), None, spoil)
    assert isinstance(sink.ending, RequestFailed)
    assert len(sink.tokens()) == 1


@pytest.mark.parametrize("kind", [PromptReady, ChoiceDelta, ChoiceFinished, RequestFinished])
def test_a_sink_that_raises_ends_only_its_own_request(kind: type) -> None:
    seen: list[Event] = []

    def sink(event: Event) -> None:
        seen.append(event)
        _planted(isinstance(event, kind))

    def spoil(engine: Engine) -> None:
        engine.submit(request(range(210, 240), max_tokens=8), sink)

    _neighbours_unharmed(ToyModel(), None, spoil)
    endings = [event for event in seen if isinstance(event, ENDINGS)]
    assert len(endings) == 1


def test_nothing_is_computed_for_a_request_that_failed() -> None:
    engine = toy_engine()
    engine.submit(request(range(20), max_tokens=200), lambda event: _planted(True))
    drain(engine)
    assert engine.stats().steps == 1


def test_a_fault_outside_every_request_ends_all_and_refuses_new_ones() -> None:
    model = ToyModel()
    engine = toy_engine(model)
    submit(engine, range(30))
    drain(engine)
    model.faults.moves = lambda: _planted(True)
    sinks = [submit(engine, [*range(20), 200 + k]) for k in range(3)]
    drain(engine)
    assert all(isinstance(sink.ending, RequestFailed) for sink in sinks)
    with pytest.raises(Unavailable):
        submit(engine, range(5))
    engine.stop()


# ---- threads


def test_the_background_thread_serves_many_threads() -> None:
    engine = toy_engine(clock=lambda: 0.0, max_num_seqs=8)
    engine.start()
    engine.start()
    results: dict[int, Collected] = {}

    def client(number: int) -> None:
        for turn in range(5):
            key = number * 5 + turn
            results[key] = submit(engine, range(key, key + 20), max_tokens=5)
            if turn == 2:
                engine.abort(results[key].handle)  # type: ignore[attr-defined]
            else:
                assert results[key].done.wait(20)
            engine.stats()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.stop(drain_seconds=20)
    for key, sink in results.items():
        if isinstance(sink.ending, RequestFinished):
            assert sink.tokens() == toy_text(range(key, key + 20), 5)
        else:
            assert isinstance(sink.ending, RequestAborted)
    assert sum(engine.stats().requests_finished.values()) == 30
    engine.check()


def test_stop_drains_then_aborts() -> None:
    engine = toy_engine()
    engine.start()
    sinks = [submit(engine, range(20), max_tokens=10) for _ in range(3)]
    engine.stop(drain_seconds=20)
    assert all(isinstance(sink.ending, RequestFinished) for sink in sinks)
    with pytest.raises(Unavailable) as caught:
        submit(engine, range(5))
    assert caught.value.status == 503


def test_stop_without_patience_aborts_what_runs() -> None:
    engine = toy_engine()
    sinks = [submit(engine, range(20), max_tokens=100) for _ in range(3)]
    engine.step()
    engine.stop()
    assert all(isinstance(sink.ending, RequestAborted) for sink in sinks)
    engine.check()


def test_books_that_do_not_add_up_are_reported_and_serving_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The idle self-check runs once its interval has passed on the engine's own clock."""
    ticks = itertools.count(0, 20)
    engine = toy_engine(clock=lambda: float(next(ticks)))
    checked = threading.Event()

    def check() -> None:
        checked.set()
        raise AssertionError("planted")

    monkeypatch.setattr(engine._cache, "check", check)
    engine.start()
    assert submit(engine, range(20)).done.wait(20)
    assert checked.wait(20)
    again = submit(engine, range(20))
    assert again.done.wait(20)
    engine.stop()
    assert again.tokens() == toy_text(range(20), 4)
    assert "do not add up" in caplog.text


# ---- pool and sizes


def test_the_pool_follows_the_budget_and_its_bounds() -> None:
    groups = (KvGroup((0,), bytes_per_block=600), KvGroup((1,), "window", 8, 2, 400))
    config = EngineConfig(kv_memory=20_500, max_num_seqs=2)
    assert pool_blocks(groups, config, 1024, free_bytes=10**9) == (20, 20)
    config = EngineConfig(kv_memory=10**9, max_num_seqs=2)
    assert pool_blocks(groups, config, 1024, free_bytes=10**9) == (128, 128)
    config = EngineConfig(max_num_seqs=64)
    assert pool_blocks(groups, config, 1024, free_bytes=4_000_000) == (1000, 1000)
    assert pool_blocks(groups, config, 1024, free_bytes=4_000) == (64, 64)
    with pytest.raises(ConfigError, match="64000 bytes"):
        pool_blocks(groups, EngineConfig(kv_memory=1000), 1024, free_bytes=10**9)


def test_info_reports_what_was_found() -> None:
    info = toy_engine(blocks=10).info
    assert (info.pool_blocks, info.pool_tokens, info.pool_bytes) == ((10,), 160, 10 * BLOCK_BYTES)
    assert info.kv_bytes_per_token == BLOCK_BYTES // 16
    assert (info.max_model_len, info.vocab_size) == (256, 257)


@pytest.mark.parametrize("config", [{"max_num_batched_tokens": 8}, {"max_num_seqs": 0}])
def test_settings_that_could_serve_nothing_are_refused(config: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(config))):
        toy_engine(**config)


def test_another_block_size_keeps_the_text() -> None:
    for size in (4, 64):
        engine = toy_engine(block_size=size, max_num_batched_tokens=64)
        for _ in range(2):
            sink = submit(engine, range(90), max_tokens=12)
            drain(engine)
            assert sink.tokens() == toy_text(range(90), 12)
        assert sink.ending.usage.cached_tokens == 89
        assert engine.info.block_size == size


def test_load_reads_a_folder(tiny_folder: Callable[..., Path]) -> None:
    stages: list[str] = []
    config = EngineConfig(
        model=str(tiny_folder()), kv_memory=2**20, served_model_name="tiny", kv_dtype="float32"
    )
    engine = Engine.load(config, progress=lambda stage, share: stages.append(stage))
    info = engine.info
    assert (info.model_id, info.architecture, info.vocab_size) == ("tiny", "llama", 320)
    assert info.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4  # K and V, layers, KV heads, size, float32
    assert info.pool_blocks == (2**20 // (16 * 512),)
    assert info.pool_bytes == 2**20
    assert "allocating the KV pool" in stages
    ids = engine.tokenizer.encode("the yeast of the house")
    sink = submit(engine, ids, max_tokens=5, ignore_eos=True)
    drain(engine)
    assert len(sink.tokens()) == 5
    assert sink.text() == engine.tokenizer.decode(sink.tokens())


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(ModelLoadError, match="nowhere"):
        Engine.load(EngineConfig(model="/nowhere/at/all"))


def test_preemption_and_sliding_windows_keep_the_text() -> None:
    window = KvGroup((0,), "window", 24, bytes_per_block=BLOCK_BYTES)
    for model, preempted in ((ToyModel(), True), (ToyModel(groups=(window,)), False)):
        engine = toy_engine(model, blocks=7)
        sinks = [submit(engine, range(start, start + 34), max_tokens=35) for start in (0, 60)]
        drain(engine)
        for start, sink in zip((0, 60), sinks, strict=True):
            wanted = toy_text(range(start, start + 34), 35, group=model.groups[0])
            assert sink.tokens() == wanted
        assert (engine.stats().preemptions > 0) == preempted
