"""Forgetting through Python: sessions, options of a call, refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kveik import LLM, CacheOptions, ContextLengthExceeded, InvalidRequest, SamplingParams
from kveik.config import EngineConfig
from kveik.engine.engine import Engine
from kveik.errors import Conflict, UnsupportedFeature
from kveik.session import Session

PARAMS = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=3)
SYSTEM = "You sell televisions and know all of them."


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def llm(tiny_folder: Callable[..., Path], clock: Clock) -> Iterator[LLM]:
    folder = tiny_folder(max_position_embeddings=2048)
    config = EngineConfig(model=str(folder), kv_memory=8 * 2**20)
    with LLM.from_engine(Engine.load(config, clock=clock)) as llm:
        yield llm
        llm.engine.check()


def question(number: int) -> str:
    return f"Question {number}: how wide is television number {number * 37}, and how deep is it?"


def talked(session: Session, turns: int) -> None:
    for number in range(1, turns + 1):
        session.chat(question(number), PARAMS)


def questions(session: Session) -> list[str]:
    return [one["content"] for one in session.messages if one["role"] == "user"]


def test_a_session_forgets_and_goes_on(llm: LLM) -> None:
    with llm.session(system=SYSTEM) as session:
        talked(session, 4)
        output = session.chat(question(5), PARAMS, forget={"turns": [2]})
        assert questions(session) == [question(number) for number in (1, 3, 4, 5)]
        assert session.messages[0]["content"] == SYSTEM
        usage = output.usage
        assert usage is not None
        assert usage.forgotten_tokens is not None
        assert usage.forgotten_tokens > 40
        assert output.num_approximate_cached_tokens > 100
        assert output.num_cached_tokens < usage.prompt_tokens // 2
        # the frame around the new question, its words, what ends the answer before
        assert usage.computed_prompt_tokens < 100
        after = session.chat(question(6), PARAMS).usage
        assert after is not None
        assert after.computed_prompt_tokens < 100
        assert after.approximate_cached_tokens > usage.approximate_cached_tokens
        assert after.forgotten_tokens == usage.forgotten_tokens
        again = session.chat(question(7), PARAMS, forget={"turns": "3-5"}).usage
        assert again is not None
        assert again.forgotten_tokens is not None
        assert again.forgotten_tokens > usage.forgotten_tokens
        assert questions(session) == [question(number) for number in (1, 6, 7)]


def test_the_prompt_is_that_of_the_shorter_conversation(llm: LLM) -> None:
    with llm.session(system=SYSTEM) as session:
        talked(session, 3)
        output = session.chat(question(4), PARAMS, forget={"turns": [1]})
        shorter = llm.chat(session.messages[:-1], PARAMS)[0]
    assert output.prompt_token_ids == shorter.prompt_token_ids
    assert shorter.num_approximate_cached_tokens == 0
    assert output.outputs[0].logprobs != shorter.outputs[0].logprobs


def test_what_is_forgotten_at_the_end_leaves_an_exact_prefix(llm: LLM) -> None:
    with llm.session(system=SYSTEM) as session:
        talked(session, 3)
        output = session.chat(question(4), PARAMS, forget={"turns": [3]})
        assert output.num_approximate_cached_tokens == 0
        assert output.num_cached_tokens > 100
        alone = llm.chat(session.messages[:-1], PARAMS)[0]
    assert output.outputs[0].logprobs == alone.outputs[0].logprobs


def test_first_use_and_reuse_are_the_same_bits(llm: LLM) -> None:
    """And so is what is computed again because it was evicted."""

    def serve(evict: bool) -> list[Any]:
        found = []
        with llm.session(system=SYSTEM) as session:
            talked(session, 3)
            for number, forget in ((4, [2]), (5, None), (6, [3, 4])):
                if evict:
                    # keys and values only: the session stays
                    with llm.engine._state:
                        assert llm.engine._cache.reset()
                wanted = None if forget is None else {"turns": forget}
                output = session.chat(question(number), PARAMS, forget=wanted)
                found.append(output.outputs[0].logprobs)
        return found

    assert serve(False) == serve(False) == serve(True)


def test_a_conversation_that_fills_the_context_goes_on(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder(max_position_embeddings=2048)
    config = EngineConfig(model=str(folder), kv_memory=8 * 2**20, max_model_len=512)
    with LLM.from_engine(Engine.load(config)) as llm, llm.session(system=SYSTEM) as session:
        talked(session, 4)
        asked = 5
        while len(llm.get_tokenizer().encode_chat(session.messages)) < 400:
            session.chat(question(asked), PARAMS)
            asked += 1
        with pytest.raises(ContextLengthExceeded):
            session.chat(question(asked) * 2, PARAMS)
        for number in range(asked, asked + 8):
            oldest = number - asked + 1
            output = session.chat(question(number), PARAMS, forget={"turns": [oldest]})
            assert len(output.prompt_token_ids) < 512
            assert output.num_approximate_cached_tokens > 200
        llm.engine.check()


def test_streaming(llm: LLM) -> None:
    with llm.session(system=SYSTEM) as session:
        talked(session, 3)
        deltas = list(session.stream(question(4), PARAMS, forget={"turns": [2]}))
        assert deltas[-1].usage is not None
        assert deltas[-1].usage.approximate_cached_tokens > 0
        assert questions(session) == [question(number) for number in (1, 3, 4)]


def test_a_turn_that_is_not_read_to_its_end_forgets_nothing(llm: LLM) -> None:
    with llm.session(system=SYSTEM) as session:
        talked(session, 3)
        deltas = session.stream(question(4), PARAMS, forget={"turns": [2]})
        next(deltas)
        deltas.close()  # type: ignore[attr-defined]
        assert questions(session) == [question(number) for number in (1, 2, 3)]
        session.chat(question(4), PARAMS)
        assert questions(session) == [question(number) for number in (1, 2, 3, 4)]


def test_a_session_that_idled_out_goes_on_with_what_is_left(llm: LLM, clock: Clock) -> None:
    with llm.session(system=SYSTEM) as session:
        talked(session, 3)
        session.chat(question(4), PARAMS, forget={"turns": [2]})
        clock.now += 1801
        output = session.chat(question(5), PARAMS)
        assert output.num_approximate_cached_tokens == 0
        assert questions(session) == [question(number) for number in (1, 3, 4, 5)]
        session.chat(question(6), PARAMS, forget={"turns": [1]})
        assert questions(session) == [question(number) for number in (3, 4, 5, 6)]


def test_by_tag_and_by_document_with_options_of_calls(llm: LLM) -> None:
    def say(content: Any, **options: Any) -> Any:
        cache = CacheOptions(session="s", **options)
        return llm.chat([{"role": "user", "content": content}], PARAMS, cache=cache)[0]

    def left() -> list[Any]:
        past = llm.engine.history.past("", "s")
        return [one["content"] for one in past.messages if one["role"] == "user"]

    book = {"type": "text", "text": question(8) * 3, "document": "book@1"}
    ask = {"type": "text", "text": question(9)}
    say(question(1))
    say(question(2), continues=True, tags=["draft"])
    say([book, ask], continues=True)
    output = say(question(4), continues=True, forget={"tag": "draft"})
    assert output.num_approximate_cached_tokens > 100
    assert left() == [question(1), [book, ask], question(4)]
    output = say(question(5), continues=True, forget={"document": "book@1"}, explain=True)
    assert left() == [question(1), [ask], question(4), question(5)]
    told = output.explanation
    assert told is not None
    assert told.approximate_tokens == output.num_approximate_cached_tokens > 0
    assert told.forgotten_tokens == output.usage.forgotten_tokens
    assert told.cause == "forgotten"


def test_forgetting_is_no_privacy_and_an_invalidation_is(llm: LLM) -> None:
    """Invariant 17: what follows still carries it, and goes with it."""
    with llm.session(system=SYSTEM) as session:
        session.chat(question(1), PARAMS)
        book = {"type": "text", "text": question(8) * 3, "document": "book@1"}
        session.chat({"role": "user", "content": [book]}, PARAMS)
        session.chat(question(3), PARAMS)
        session.chat(question(4), PARAMS, forget={"document": "book"})
        llm.invalidate(document="book")
        output = session.chat(question(5), PARAMS)
        assert output.num_approximate_cached_tokens == 0
        assert book not in session.messages


def test_the_end_of_a_session_frees_what_was_left_and_what_was_forgotten(llm: LLM) -> None:
    def blocks() -> int:
        stats = llm.cache.stats()
        return sum(stats.total_blocks) - sum(stats.free_blocks)

    assert blocks() == 0
    with llm.session(system=SYSTEM) as session:
        talked(session, 3)
        session.chat(question(4), PARAMS, forget={"turns": [2]})
        session.chat(question(5), PARAMS, forget={"turns": [4]})
        assert blocks() > 20
    assert blocks() == 0
    assert llm.engine.history.sizes() == (0, 0)


def test_what_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match=r"^forget: needs session"):
        CacheOptions(forget={"turns": [1]})
    with pytest.raises(InvalidRequest, match=r"^continues: needs session"):
        CacheOptions(continues=True)
    with pytest.raises(InvalidRequest, match=r"^forget: turns: expected"):
        CacheOptions(session="s", forget={"turns": []})
    with pytest.raises(InvalidRequest, match=r"^forget: .*cached_content"):
        CacheOptions(session="s", cached_content="c", forget={"turns": [1]})
    with pytest.raises(InvalidRequest, match=r"^forget: has no effect in a stream"):
        CacheOptions(session="s", resumes=True, forget={"turns": [1]})
    with pytest.raises(Conflict):
        llm.chat([{"role": "user", "content": "x"}], cache=CacheOptions("nobody", continues=True))
    with llm.session(system=SYSTEM) as session:
        talked(session, 2)
        with pytest.raises(InvalidRequest, match=r"^forget.turns: there is no turn 3"):
            session.chat(question(3), PARAMS, forget={"turns": [3]})
        session.chat(question(3), PARAMS, forget={"turns": [1]})
        with pytest.raises(InvalidRequest, match=r"^forget.turns: turn 1 was forgotten before"):
            session.chat(question(4), PARAMS, forget={"turns": [1]})
        assert questions(session) == [question(2), question(3)]
    with llm.session(cache=CacheOptions(stream_window="4+60")) as endless:
        endless.chat("Hello.", PARAMS)
        with pytest.raises(InvalidRequest, match=r"^forget: a stream forgets"):
            endless.chat("Again.", PARAMS, forget={"turns": [1]})


def test_a_window_for_whoever_asks_for_none_is_not_for_what_is_left(
    tiny_folder: Callable[..., Path],
) -> None:
    folder = tiny_folder(max_position_embeddings=2048)
    config = EngineConfig(model=str(folder), kv_memory=8 * 2**20, stream_window="4+1000")
    messages = []
    for number in range(1, 4):
        messages.append({"role": "user", "content": question(number)})
        messages.append({"role": "assistant", "content": question(number + 50)})
    messages.append({"role": "user", "content": question(4)})
    with LLM.from_engine(Engine.load(config)) as llm:
        options = CacheOptions(session="s", forget={"turns": [2]})
        usage = llm.chat(messages, PARAMS, cache=options)[0].usage
        assert usage is not None
        assert usage.forgotten_tokens is not None
        assert usage.evicted_tokens is None
        llm.engine.check()


def test_a_model_that_cannot_see_keys_elsewhere_refuses(
    tiny_folder: Callable[..., Path],
) -> None:
    dynamic = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    folder = tiny_folder(max_position_embeddings=1024, **dynamic)
    engine = Engine.load(EngineConfig(model=str(folder), kv_memory=4 * 2**20))
    with LLM.from_engine(engine) as llm, llm.session() as session:
        talked(session, 3)
        with pytest.raises(UnsupportedFeature, match=r"^forget: this model cannot see keys"):
            session.chat(question(4), PARAMS, forget={"turns": [2]})
        assert len(session.messages) == 6
        session.chat(question(4), PARAMS)
