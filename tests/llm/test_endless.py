"""Endless streams through Python: windows in every spelling, sessions, `stream_forever`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kveik import LLM, CacheOptions, InvalidRequest, SamplingParams, StreamWindow
from kveik.cache.window import StreamWindow as Window
from kveik.config import EngineConfig
from kveik.engine.engine import Engine
from kveik.errors import ConfigError, Conflict

PARAMS = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
WINDOW = "4+60"
LONG = " ".join(f"line {number} of a long log." for number in range(80))


@pytest.fixture
def llm(tiny_folder: Callable[..., Path]) -> Iterator[LLM]:
    config = EngineConfig(model=str(tiny_folder()), kv_memory=2 * 2**20, max_model_len=128)
    with LLM.from_engine(Engine.load(config)) as llm:
        yield llm
        llm.engine.check()


@pytest.mark.parametrize(
    "window",
    ["4+60", " 4 + 60 / 1 ", {"sinks": 4, "window": 60, "evict": 1}, {"window": 60}, Window(4, 60)],
)
def test_a_window_can_be_spelled_in_several_ways(window: object) -> None:
    assert CacheOptions(stream_window=window).window == StreamWindow(4, 60)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "window",
    ["4", "4-60", "-1+60", "4+0", "4+60/61", {"sinks": 4}, {"window": True}, {"size": 3}, 64, ""],
)
def test_a_window_that_is_none_is_refused_by_name(window: object) -> None:
    with pytest.raises(InvalidRequest, match=r"^stream_window: ") as told:
        CacheOptions(stream_window=window)  # type: ignore[arg-type]
    assert told.value.param == "stream_window"


def test_a_prompt_longer_than_the_context(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="context"):
        llm.generate(LONG, PARAMS)
    [output] = llm.generate(LONG, PARAMS, cache=CacheOptions(stream_window=WINDOW))
    tokens = len(output.prompt_token_ids)
    assert tokens > 128
    assert output.usage is not None
    assert output.usage.evicted_tokens == Window(4, 60).evicted(tokens + 8 - 2)
    assert len(output.outputs[0].token_ids) == 8


def test_an_ordinary_request_says_nothing_of_eviction(llm: LLM) -> None:
    [output] = llm.generate("short", PARAMS)
    assert output.usage is not None
    assert output.usage.evicted_tokens is None


def test_stream_forever_ends_when_the_caller_does(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=3, ignore_eos=True)
    count = 0
    for delta in llm.stream_forever("Once upon a time", params):
        count += len(delta.token_ids)
        if count >= 400:
            break
    assert count >= 400
    held = llm.engine.stats().cache
    assert held.leased_blocks == (0,)


def test_stream_forever_uses_the_window_that_is_asked_for(llm: LLM) -> None:
    def first(**options: object) -> list[int]:
        ids: list[int] = []
        for delta in llm.stream_forever(LONG, PARAMS, **options):  # type: ignore[arg-type]
            ids += delta.token_ids
            if len(ids) >= 12:
                return ids
        raise AssertionError("it ended")

    small = first(stream_window="2+14")
    assert small == first(cache=CacheOptions(stream_window="2+14"))
    assert small != first()
    assert first() == first(stream_window="4+124")  # all of the context


def test_stream_forever_stops_at_the_end_of_a_text(llm: LLM) -> None:
    [end] = llm.get_tokenizer().eos_token_ids
    params = SamplingParams(logit_bias={end: 100.0})
    deltas = list(llm.stream_forever("Once upon a time", params))
    assert deltas[-1].finish_reason == "stop"


def test_explain_speaks_of_the_window(llm: LLM) -> None:
    options = CacheOptions(stream_window=WINDOW, explain=True)
    llm.generate(LONG, PARAMS, cache=CacheOptions(stream_window=WINDOW))
    found = llm.explain(LONG, cache=CacheOptions(stream_window=WINDOW))
    tokens = found.prompt_tokens
    assert found.evicted_tokens == Window(4, 60).evicted(tokens - 1)
    assert found.position == 63
    assert found.cause == "complete"
    assert found.as_json()["evicted_tokens"] == found.evicted_tokens
    [output] = llm.generate(LONG, PARAMS, cache=options)
    assert output.explanation is not None
    assert output.explanation.evicted_tokens == found.evicted_tokens
    assert "evicted_tokens" not in llm.explain("short").as_json()


# --- conversations


def test_a_session_with_a_window_sends_what_is_new_and_never_fills(llm: LLM) -> None:
    with llm.session(system="You keep a log.", cache=CacheOptions(stream_window=WINDOW)) as talk:
        prompts = []
        for number in range(30):
            output = talk.chat(f"Line {number}: the harbour is quiet tonight.", PARAMS)
            prompts.append(len(output.prompt_token_ids))
        assert output.usage is not None
        assert output.usage.evicted_tokens is not None
        assert output.usage.evicted_tokens > 500
        assert len(set(prompts[10:])) == 1  # the system message is not sent again
        assert prompts[0] > prompts[1]
        assert talk.messages == [{"role": "system", "content": "You keep a log."}]
    llm.engine.step()
    assert llm.engine.stats().cache.leased_blocks == (0,)


def test_turns_of_a_stream_are_what_the_template_would_render(llm: LLM) -> None:
    """A conversation in a window that it does not fill equals the same without a window."""
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    [end] = llm.get_tokenizer().eos_token_ids
    ended = SamplingParams(logit_bias={end: 100.0})
    for first in (params, ended):
        answers = []
        for window in ("4+124", False):
            options = CacheOptions(stream_window=window, session=f"s{window}")
            with llm.session(cache=options) as talk:
                talk.chat("Hi", first)
                answers.append(talk.chat("And then?", params).outputs[0].token_ids)
        if first is ended:  # an empty answer: the texts are equal token for token
            assert answers[0] == answers[1]


def test_an_answer_that_is_cut_takes_the_stream_along(llm: LLM) -> None:
    with llm.session(cache=CacheOptions(stream_window=WINDOW)) as talk:
        talk.chat("Hi", PARAMS)
        assert llm.engine.has_stream("", talk.id)
        for _ in talk.stream("Tell me more", PARAMS):
            break
        assert not llm.engine.has_stream("", talk.id)
        output = talk.chat("Hi again", PARAMS)
        assert output.usage is not None
        assert output.usage.evicted_tokens == 0


def test_resuming_what_is_not_there_is_a_conflict(llm: LLM) -> None:
    options = CacheOptions(session="none", resumes=True)
    with pytest.raises(Conflict, match="no open stream"):
        llm.generate("more", PARAMS, cache=options)
    with pytest.raises(InvalidRequest, match="resumes: needs session"):
        CacheOptions(resumes=True)
    with pytest.raises(InvalidRequest, match="priority: has no effect"):
        CacheOptions(session="s", resumes=True, priority="low")


def test_a_stop_string_ends_the_text_and_the_window_alike(llm: LLM) -> None:
    """Nothing is computed behind it, also on an engine with threads of its own."""
    free = SamplingParams(temperature=1.0, seed=1, max_tokens=60, ignore_eos=True)
    [whole] = llm.generate("Once", free)
    ids = whole.outputs[0].token_ids
    stop = whole.outputs[0].text[20:24]
    stopping = SamplingParams(temperature=1.0, seed=1, max_tokens=60, ignore_eos=True, stop=(stop,))
    [output] = llm.generate("Once", stopping, cache=CacheOptions(session="s", stream_window=WINDOW))
    assert output.outputs[0].finish_reason == "stop"
    said = len(output.outputs[0].token_ids)
    assert said < len(ids)
    resting = llm.engine._scheduler.streams._streams["", "s"]
    prompt = len(whole.prompt_token_ids)
    assert resting.tokens[prompt - resting.start :] == ids[:said]


# --- as a default


def test_a_default_window_makes_every_request_a_stream(tiny_folder: Callable[..., Path]) -> None:
    folder = str(tiny_folder())
    with LLM(folder, stream_window="4+60", kv_memory=2 * 2**20, max_model_len=128) as llm:
        [output] = llm.generate(LONG, PARAMS)
        assert output.usage is not None
        assert output.usage.evicted_tokens
        [several] = llm.generate("short", SamplingParams(n=2, max_tokens=2))
        assert several.usage is not None
        assert several.usage.evicted_tokens is None  # no stream can give two answers
        with pytest.raises(InvalidRequest, match="context"):
            llm.generate(LONG, PARAMS, cache=CacheOptions(stream_window=False))
        with llm.session() as talk:
            talk.chat("Hi", PARAMS)
            assert llm.engine.has_stream("", talk.id)


@pytest.mark.parametrize("window", ["4", "4+125"])
def test_a_default_that_cannot_be_is_refused_at_the_start(
    tiny_folder: Callable[..., Path], window: str
) -> None:
    with pytest.raises(ConfigError, match="stream_window"):
        LLM(str(tiny_folder()), stream_window=window, max_model_len=128, kv_memory=2 * 2**20)
