"""The real `openai` client drives a real server: shapes, parameters, streams, errors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import openai
import pytest
from server_harness import MODEL, RunningServer, running

from kveik.config import ServerConfig
from kveik.engine.engine import Engine

USER = [{"role": "user", "content": "Once upon a time"}]


def chat(client: openai.OpenAI, **options: Any) -> Any:
    options = {"messages": USER, "max_tokens": 8, "seed": 7, **options}
    return client.chat.completions.create(model=MODEL, **options)


def complete(client: openai.OpenAI, **options: Any) -> Any:
    options = {"prompt": "Once upon", "max_tokens": 8, "seed": 7, **options}
    return client.completions.create(model=MODEL, **options)


def streamed_chat(client: openai.OpenAI, **options: Any) -> list[Any]:
    return list(chat(client, stream=True, **options))


def joined(chunks: list[Any], index: int = 0) -> str:
    """The text of one choice of a chat or text stream."""
    texts = []
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.index == index:
                delta = getattr(choice, "delta", None)
                texts.append((delta.content or "") if delta is not None else choice.text)
    return "".join(texts)


# ---- whole answers


def test_the_article_s_call_runs(server_engine: Engine) -> None:
    with running(server_engine, ServerConfig(port=0, api_keys=("token-abc123",))) as one:
        client = openai.OpenAI(base_url=f"{one.url}/v1", api_key="token-abc123")
        completion = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hello!"}]
        )
    message = completion.choices[0].message
    assert message.role == "assistant"
    assert isinstance(message.content, str)


def test_models_are_listed(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "kveik")
    assert client.models.retrieve(MODEL).id == MODEL


def test_an_unknown_model_cannot_be_retrieved(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("other/model")
    assert error.value.code == "model_not_found"


def test_a_chat_answer_has_the_shape_of_openai_s(client: openai.OpenAI) -> None:
    answer = chat(client)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert (choice.message.role, choice.message.tool_calls) == ("assistant", None)
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


def test_a_text_answer_has_the_shape_of_openai_s(client: openai.OpenAI) -> None:
    answer = complete(client)
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert isinstance(choice.text, str)


def test_completions_stop_at_sixteen_tokens_by_default(client: openai.OpenAI) -> None:
    answer = complete(client, max_tokens=None, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 16


def test_chat_goes_to_the_end_of_the_context_by_default(
    client: openai.OpenAI, server: RunningServer
) -> None:
    answer = chat(client, max_tokens=None, extra_body={"ignore_eos": True})
    assert answer.usage.total_tokens == server.engine.info.max_model_len
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_token_limit_work(client: openai.OpenAI, name: str) -> None:
    answer = chat(client, **{"max_tokens": openai.omit, name: 3}, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 3


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "completions"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_prompt_is_warmed_without_an_answer(
    client: openai.OpenAI, name: str, streamed: bool
) -> None:
    text = f"Warm this, {name}, {streamed}. " * 4
    ask: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
    function, limit = chat, {"max_tokens": openai.omit, name: 0}
    if name == "completions":
        ask, function, limit = {"prompt": text}, complete, {"max_tokens": 0}
    if streamed:
        chunks = list(function(client, stream=True, **ask, **limit))
        assert joined(chunks) == ""
        assert chunks[-1].choices[0].finish_reason == "length"
    else:
        answer = function(client, **ask, **limit)
        assert answer.choices[0].finish_reason == "length"
        assert (answer.usage.completion_tokens, answer.usage.kveik["stored_tokens"]) == (
            0,
            answer.usage.prompt_tokens - answer.usage.prompt_tokens_details.cached_tokens,
        )
    usage = function(client, **ask).usage
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1


def test_the_two_token_limits_exclude_each_other(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        chat(client, max_tokens=3, max_completion_tokens=3)
    assert error.value.param == "max_tokens"


def test_text_parts_equal_the_joined_text(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "Once upon"}, {"type": "text", "text": " a time"}]
    in_parts = chat(client, messages=[{"role": "user", "content": parts}])
    assert in_parts.choices[0].message.content == chat(client).choices[0].message.content


@pytest.mark.parametrize("role", ["system", "developer"])
def test_developer_is_the_newer_name_of_system(client: openai.OpenAI, role: str) -> None:
    messages = [{"role": role, "content": "Be brief."}, *USER]
    old = chat(client, messages=[{"role": "system", "content": "Be brief."}, *USER])
    new = chat(client, messages=messages)
    assert new.choices[0].message.content == old.choices[0].message.content
    assert new.usage.prompt_tokens == old.usage.prompt_tokens


def test_an_answer_can_be_sent_back_as_the_client_dumps_it(client: openai.OpenAI) -> None:
    answer = chat(client).choices[0].message.model_dump()
    follow = chat(client, messages=[*USER, answer, {"role": "user", "content": "And then?"}])
    assert follow.usage.completion_tokens > 0


# ---- prompts


@pytest.mark.parametrize(
    ("prompt", "choices"),
    [
        ("Hello", 1),
        (["Hello", "World"], 2),
        ([40, 41, 42], 1),
        ([[40, 41, 42], [50]], 2),
        ("ünïcødé 你好 🙂", 1),
        ("a\x00b", 1),
    ],
)
def test_every_form_of_prompt(client: openai.OpenAI, prompt: Any, choices: int) -> None:
    answer = complete(client, prompt=prompt)
    assert [choice.index for choice in answer.choices] == list(range(choices))


def test_several_prompts_equal_one_request_each(client: openai.OpenAI) -> None:
    together = complete(client, prompt=["Hello", "World"], n=2)
    alone = [complete(client, prompt=prompt, n=2) for prompt in ("Hello", "World")]
    assert [c.text for c in together.choices] == [c.text for one in alone for c in one.choices]
    assert together.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)
    assert together.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)


def test_token_ids_equal_their_text(client: openai.OpenAI, server: RunningServer) -> None:
    ids = server.engine.tokenizer.encode("Once upon")
    assert complete(client, prompt=ids).choices[0].text == complete(client).choices[0].text


def test_echo_puts_the_prompt_in_front(client: openai.OpenAI) -> None:
    plain, echoed = complete(client), complete(client, echo=True)
    assert echoed.choices[0].text == "Once upon" + plain.choices[0].text


def test_echo_of_several_prompts_and_choices(client: openai.OpenAI) -> None:
    answer = complete(client, prompt=["Hello", "World"], n=2, echo=True)
    texts = [choice.text for choice in answer.choices]
    assert [text[:5] for text in texts] == ["Hello", "Hello", "World", "World"]


def test_echo_with_logprobs_covers_the_prompt(client: openai.OpenAI) -> None:
    block = complete(client, echo=True, logprobs=2).choices[0].logprobs
    assert len(block.tokens) == len(block.token_logprobs) == len(block.text_offset)
    assert block.token_logprobs[0] is None
    assert all(value <= 0 for value in block.token_logprobs[1:])
    assert all(2 <= len(top) <= 3 for top in block.top_logprobs[1:])


def test_echo_in_a_stream(client: openai.OpenAI) -> None:
    chunks = list(complete(client, echo=True, stream=True))
    assert joined(chunks) == complete(client, echo=True).choices[0].text


# ---- sampling


def test_temperature_zero_is_greedy_whatever_the_seed(client: openai.OpenAI) -> None:
    texts = {complete(client, temperature=0, seed=seed).choices[0].text for seed in (1, 2)}
    assert len(texts) == 1


def test_what_is_not_sent_comes_from_generation_config(
    client: openai.OpenAI, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = complete(client, temperature=0).choices[0].text
    sampled = complete(client, temperature=1).choices[0].text
    assert greedy != sampled
    info = dataclasses.replace(server.engine.info, defaults={"temperature": 0.0})
    monkeypatch.setattr(server.engine, "info", info)
    assert complete(client).choices[0].text == greedy
    assert complete(client, temperature=1).choices[0].text == sampled


def test_the_same_seed_gives_the_same_text(client: openai.OpenAI) -> None:
    assert complete(client).choices[0].text == complete(client).choices[0].text


def test_seeds_differ(client: openai.OpenAI) -> None:
    texts = {complete(client, seed=seed, max_tokens=16).choices[0].text for seed in range(4)}
    assert len(texts) > 1


def test_top_k_one_is_greedy(client: openai.OpenAI) -> None:
    greedy = complete(client, temperature=0).choices[0].text
    assert complete(client, extra_body={"top_k": 1}).choices[0].text == greedy
    assert complete(client, top_p=1e-9).choices[0].text == greedy
    assert complete(client, extra_body={"min_p": 1.0}).choices[0].text == greedy


def test_logit_bias_forces_a_token(client: openai.OpenAI, server: RunningServer) -> None:
    (token,) = server.engine.tokenizer.encode("z", add_special_tokens=False)
    answer = chat(client, logit_bias={str(token): 100}, temperature=0)
    assert answer.choices[0].message.content == "z" * 8


def test_penalties_change_the_text(client: openai.OpenAI, server: RunningServer) -> None:
    (token,) = server.engine.tokenizer.encode("z", add_special_tokens=False)
    bias = {"logit_bias": {str(token): 6}, "temperature": 0, "max_tokens": 24}
    base = complete(client, **bias).choices[0].text
    for change in (
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"extra_body": {"repetition_penalty": 10.0}},
    ):
        assert complete(client, **bias, **change).choices[0].text != base


def test_n_choices_equal_their_stream_and_differ(client: openai.OpenAI) -> None:
    answer = chat(client, n=3, max_tokens=12)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    chunks = streamed_chat(client, n=3, max_tokens=12)
    assert [joined(chunks, index) for index in range(3)] == texts
    assert answer.usage.prompt_tokens == chat(client).usage.prompt_tokens
    assert (
        answer.choices[0].message.content == chat(client, max_tokens=12).choices[0].message.content
    )


# ---- stops


def _text(client: openai.OpenAI, **options: Any) -> str:
    text: str = complete(client, max_tokens=24, **options).choices[0].text
    return text


def test_a_stop_string_is_cut_wherever_it_lies(client: openai.OpenAI) -> None:
    """Every substring of the text as a stop string, also across tokens, in both forms."""
    whole = _text(client)
    for start in range(2, min(len(whole) - 3, 12)):
        stop = whole[start : start + 3]
        expected = whole[: whole.find(stop)]
        answer = complete(client, max_tokens=24, stop=stop)
        assert answer.choices[0].text == expected
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].stop_reason == stop
        assert joined(list(complete(client, max_tokens=24, stop=[stop], stream=True))) == expected


def test_a_stop_string_can_be_kept(client: openai.OpenAI) -> None:
    whole = _text(client)
    stop = whole[4:6]
    kept = _text(client, stop=stop, extra_body={"include_stop_str_in_output": True})
    assert kept == whole[: whole.find(stop) + len(stop)]


def test_a_stop_that_never_comes_changes_nothing(client: openai.OpenAI) -> None:
    assert _text(client, stop=["never there", "nor this"]) == _text(client)


def test_a_stop_token_id_ends_the_text(client: openai.OpenAI, server: RunningServer) -> None:
    (token,) = server.engine.tokenizer.encode("z", add_special_tokens=False)
    answer = complete(client, logit_bias={str(token): 100}, extra_body={"stop_token_ids": [token]})
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason, choice.stop_reason) == ("", "stop", token)


def test_the_end_token_ends_the_text(client: openai.OpenAI, server: RunningServer) -> None:
    end = server.engine.tokenizer.eos_token_ids[0]
    forced = {"logit_bias": {str(end): 100}}
    ended = chat(client, **forced, logprobs=True)
    assert (ended.choices[0].message.content, ended.choices[0].finish_reason) == ("", "stop")
    assert ended.choices[0].logprobs.content == []
    later = chat(client, **forced, extra_body={"min_tokens": 5})
    assert later.usage.completion_tokens == 6
    ignored = chat(client, **forced, extra_body={"ignore_eos": True})
    assert ignored.usage.completion_tokens == 8
    shown = chat(client, **forced, extra_body={"ignore_eos": True, "skip_special_tokens": False})
    assert shown.choices[0].message.content == server.engine.tokenizer.token_text(end) * 8


# ---- log-probabilities


@pytest.mark.parametrize("count", [0, 1, 20])
def test_chat_logprobs(client: openai.OpenAI, count: int) -> None:
    answer = chat(client, logprobs=True, top_logprobs=count)
    content = answer.choices[0].logprobs.content
    assert len(content) == 8
    for entry in content:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == count
        assert sorted((one.logprob for one in entry.top_logprobs), reverse=True) == [
            one.logprob for one in entry.top_logprobs
        ]
    joined_bytes = bytes(byte for entry in content for byte in entry.bytes)
    assert joined_bytes.decode(errors="replace") == answer.choices[0].message.content


def test_chat_logprobs_are_the_same_in_a_stream(client: openai.OpenAI) -> None:
    whole = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    chunks = streamed_chat(client, logprobs=True, top_logprobs=2)
    pieces = [c.choices[0].logprobs for c in chunks if c.choices and c.choices[0].logprobs]
    assert [entry for piece in pieces for entry in piece.content] == whole


def test_a_stop_string_takes_its_logprobs_along(
    client: openai.OpenAI, server: RunningServer
) -> None:
    """Tokens that were held back for a stop string go with it; those before it stay."""
    (token,) = server.engine.tokenizer.encode("z", add_special_tokens=False)
    bias = {str(token): 100}
    cut = chat(client, logit_bias=bias, logprobs=True, stop="zzz").choices[0]
    assert (cut.message.content, cut.logprobs.content) == ("", [])
    kept = chat(client, logit_bias=bias, logprobs=True, stop="zzx").choices[0]
    assert (kept.message.content, len(kept.logprobs.content)) == ("z" * 8, 8)
    text = complete(client, logit_bias=bias, logprobs=0, stop="zzz").choices[0]
    assert (text.text, text.logprobs.tokens) == ("", [])


@pytest.mark.parametrize("count", [0, 1, 5])
def test_completion_logprobs(client: openai.OpenAI, count: int) -> None:
    choice = complete(client, logprobs=count).choices[0]
    block = choice.logprobs
    assert len(block.tokens) == len(block.token_logprobs) == len(block.top_logprobs) == 8
    assert all(value <= 0 for value in block.token_logprobs)
    for token, value, top in zip(
        block.tokens, block.token_logprobs, block.top_logprobs, strict=True
    ):
        assert top[token] == pytest.approx(value)
        assert max(1, count) <= len(top) <= count + 1
    assert block.text_offset[0] == 0
    assert block.text_offset == sorted(block.text_offset)
    streamed = list(complete(client, logprobs=count, stream=True))
    tokens = [t for c in streamed for o in c.choices if o.logprobs for t in o.logprobs.tokens]
    offsets = [t for c in streamed for o in c.choices if o.logprobs for t in o.logprobs.text_offset]
    assert (tokens, offsets) == (block.tokens, block.text_offset)


def test_prompt_logprobs(client: openai.OpenAI, server: RunningServer) -> None:
    answer = complete(client, extra_body={"prompt_logprobs": 2})
    rows = answer.choices[0].prompt_logprobs
    ids = server.engine.tokenizer.encode("Once upon")
    assert len(rows) == len(ids)
    assert rows[0] is None
    for token, row in zip(ids[1:], rows[1:], strict=True):
        assert row[str(token)]["logprob"] <= 0
        assert {1, 2} <= {entry["rank"] for entry in row.values()}
    in_chat = chat(client, extra_body={"prompt_logprobs": 0})
    assert len(in_chat.prompt_logprobs) == in_chat.usage.prompt_tokens


# ---- streams


def test_a_chat_stream_is_well_formed(client: openai.OpenAI) -> None:
    chunks = streamed_chat(client)
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert deltas[0].content == ""
    assert all(delta.role is None for delta in deltas[1:])
    assert [chunk.choices[0].finish_reason for chunk in chunks].count(None) == len(chunks) - 1
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0},
        {"temperature": 2.0, "max_tokens": 60},
        {"n": 2, "max_tokens": 30},
        {"messages": [{"role": "user", "content": "日本語 🙂 ünïcødé"}], "max_tokens": 60},
    ],
)
def test_joined_deltas_are_the_whole_text(client: openai.OpenAI, options: dict[str, Any]) -> None:
    whole = chat(client, **options)
    chunks = streamed_chat(client, **options)
    for choice in whole.choices:
        assert joined(chunks, choice.index) == choice.message.content


def test_multi_byte_characters_are_never_split(
    client: openai.OpenAI, server: RunningServer
) -> None:
    """Bytes of one character, one token each, forced by turns of stop and prompt."""
    text = "🙂é你"
    tokenizer = server.engine.tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) > len(text)  # otherwise nothing could be split
    bias = {str(token): 50 for token in ids}
    chunks = streamed_chat(client, logit_bias=bias, max_tokens=64)
    whole = chat(client, logit_bias=bias, max_tokens=64)
    assert joined(chunks) == whole.choices[0].message.content


def test_usage_in_a_stream(client: openai.OpenAI) -> None:
    chunks = streamed_chat(client, stream_options={"include_usage": True})
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks[:-1])
    last = chunks[-1]
    assert last.choices == []
    plain = chat(client).usage
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (
        plain.prompt_tokens,
        plain.completion_tokens,
        plain.total_tokens,
    )


def test_a_text_stream_is_well_formed(client: openai.OpenAI) -> None:
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    assert joined(chunks) == complete(client).choices[0].text
    assert chunks[-1].usage.completion_tokens == 8


def test_a_stream_of_several_prompts_interleaves_by_index(client: openai.OpenAI) -> None:
    options = {"prompt": ["Hello", "World"], "n": 2, "max_tokens": 12}
    chunks = list(complete(client, stream=True, **options))
    whole = complete(client, **options)
    assert [joined(chunks, index) for index in range(4)] == [c.text for c in whole.choices]


def test_the_client_s_stream_helper(client: openai.OpenAI, server: RunningServer) -> None:
    (token,) = server.engine.tokenizer.encode("z", add_special_tokens=False)
    options: Any = {"logit_bias": {str(token): 100}, "stop": "zzz", "max_tokens": 8}
    with client.chat.completions.stream(model=MODEL, messages=USER, **options) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "stop"
    assert final.choices[0].message.content == ""


def test_an_error_before_a_stream_is_an_ordinary_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        chat(client, stream=True, messages=[{"role": "user", "content": "x" * 5000}])
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "messages")


# ---- the cache shows


def test_usage_says_what_came_from_the_cache(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "A prompt of its own, to be sent twice. " * 4}]
    cold, warm = chat(client, messages=messages).usage, chat(client, messages=messages).usage
    assert cold.prompt_tokens_details.cached_tokens < 32
    assert warm.prompt_tokens_details.cached_tokens == warm.prompt_tokens - 1
    stream = streamed_chat(client, messages=messages, stream_options={"include_usage": True})
    assert stream[-1].usage == warm


def test_usage_says_why_not_more(client: openai.OpenAI) -> None:
    usage = complete(client, prompt="Quite another beginning").usage
    miss = usage.prompt_tokens_details.miss
    assert miss["position"] == usage.prompt_tokens_details.cached_tokens
    assert miss["reason"] in ("new", "diverged")


def test_the_same_prompt_warm_and_cold_gives_the_same_text(
    client: openai.OpenAI, server: RunningServer
) -> None:
    prompt = "Warm and cold must not differ. " * 6
    cold = complete(client, prompt=prompt, logprobs=3)
    warm = complete(client, prompt=prompt, logprobs=3)
    assert warm.usage.prompt_tokens_details.cached_tokens > 0
    assert warm.choices == cold.choices


# ---- errors as the client sees them


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"store": True}, "store"),
        ({"extra_body": {"nonsense": 1}}, "nonsense"),
        ({"extra_body": {"min_tokens": 9}}, "min_tokens"),
        ({"extra_body": {"stop_token_ids": [99999]}}, "stop_token_ids"),
        ({"extra_body": {"cache_salt": ""}}, "cache_salt"),
        ({"extra_body": {"prompt_logprobs": 1}, "stream": True}, "prompt_logprobs"),
    ],
)
def test_a_bad_parameter_is_named(
    client: openai.OpenAI, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        chat(client, **options)
    assert error.value.param == param
    assert error.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    "options",
    [
        {"response_format": {"type": "text"}},
        {"tools": []},
        {"user": "someone"},
        {"service_tier": "auto"},
        {"store": False},
        {"modalities": ["text"]},
        {"extra_body": {"best_of": 1, "metadata": None}},
        {"extra_body": {"top_k": -1}},
    ],
)
def test_a_value_that_asks_for_what_happens_anyway_is_accepted(
    client: openai.OpenAI, options: dict[str, Any]
) -> None:
    assert chat(client, **options).choices[0].message.content == (
        chat(client).choices[0].message.content
    )


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="gpt-5", messages=USER)
    assert error.value.code == "model_not_found"


def test_routes_that_are_not_served(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model=MODEL, prompt="x")
    with pytest.raises(openai.NotFoundError):
        client.moderations.create(input="x")


def test_a_longer_text_than_the_context(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        complete(client, prompt="y" * 5000)
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "prompt")
    with pytest.raises(openai.BadRequestError) as error:
        complete(client, max_tokens=512)
    assert error.value.code == "context_length_exceeded"


def test_log_probabilities_are_probabilities(client: openai.OpenAI) -> None:
    """20 alternatives of a vocabulary of 320 sum to at most 1."""
    content = chat(client, logprobs=True, top_logprobs=20).choices[0].logprobs.content
    for entry in content:
        assert sum(math.exp(one.logprob) for one in entry.top_logprobs) <= 1 + 1e-6


@pytest.mark.parametrize("use_async", [True])
def test_the_asynchronous_client(server: RunningServer, use_async: bool) -> None:
    import asyncio

    async def go() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            options: Any = {"model": MODEL, "messages": USER, "max_tokens": 8, "seed": 7}
            whole, stream = await asyncio.gather(
                client.chat.completions.create(**options),
                client.chat.completions.create(**options, stream=True),
            )
            text = ""
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
            return whole.choices[0].message.content, text

    whole, text = asyncio.run(go())
    assert whole == text
