"""POST /v1/responses through the real `openai` client."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import openai
import pytest
from server_harness import LONG, MODEL, RunningServer, broken_off, leave_early, running

from kveik.config import ServerConfig
from kveik.engine.engine import Engine

ASK: dict[str, Any] = {
    "model": MODEL,
    "input": "Tell me of the sea.",
    "max_output_tokens": 12,
    "temperature": 0,
}


def test_a_response(client: openai.OpenAI) -> None:
    response = client.responses.create(**ASK, metadata={"trip": "7"})
    assert response.id.startswith("resp_")
    assert (response.object, response.model) == ("response", MODEL)
    assert response.output_text
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.metadata == {"trip": "7"}
    assert response.temperature == 0
    assert response.max_output_tokens == 12
    assert response.error is None
    usage = response.usage
    assert usage is not None
    assert usage.output_tokens == 12
    assert usage.total_tokens == usage.input_tokens + 12


def test_the_same_text_as_a_chat_completion(client: openai.OpenAI) -> None:
    response = client.responses.create(**ASK, instructions="You are a sailor.")
    chat = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "You are a sailor."},
            {"role": "user", "content": "Tell me of the sea."},
        ],
        max_tokens=12,
        temperature=0,
    )
    assert response.output_text == chat.choices[0].message.content
    assert response.usage is not None
    assert chat.usage is not None
    assert response.usage.input_tokens == chat.usage.prompt_tokens


@pytest.mark.parametrize(
    "other",
    [
        {"input": [{"role": "user", "content": ASK["input"]}]},
        {"input": [{"type": "message", "role": "user", "content": ASK["input"]}]},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": ASK["input"]}]}]},
        {
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "Tell me"},
                        {"type": "input_text", "text": " of the sea."},
                    ],
                }
            ]
        },
        {"instructions": ""},
        {"store": False, "user": "u", "tools": [], "truncation": "disabled"},
        {"text": {"format": {"type": "text"}}, "tool_choice": "auto"},
    ],
    ids=lambda fields: ",".join(fields),
)
def test_two_ways_to_say_the_same(client: openai.OpenAI, other: dict[str, Any]) -> None:
    first = client.responses.create(**ASK)
    second = client.responses.create(**{**ASK, **other})
    assert first.output_text == second.output_text
    assert first.usage is not None
    assert second.usage is not None
    assert first.usage.input_tokens == second.usage.input_tokens


def test_a_whole_turn_is_completed(client: openai.OpenAI) -> None:
    for number in range(40):
        asked = {**ASK, "input": f"{number}", "temperature": 1, "max_output_tokens": 60}
        response = client.responses.create(**asked)
        if response.status == "completed":
            assert response.incomplete_details is None
            assert response.output[0].type == "message"
            assert response.output[0].status == "completed"
            return
    pytest.fail("no turn ended")


def test_top_p_is_used(client: openai.OpenAI) -> None:
    greedy = client.responses.create(**ASK).output_text
    narrow = client.responses.create(**{**ASK, "temperature": 1, "top_p": 0})
    assert narrow.output_text == greedy
    drawn = {client.responses.create(**{**ASK, "temperature": 1}).output_text for _ in range(4)}
    assert len(drawn) > 1


def test_an_answer_can_be_sent_back(client: openai.OpenAI) -> None:
    first = client.responses.create(**ASK)
    items: list[Any] = [{"role": "user", "content": ASK["input"]}]
    items += [item.to_dict() for item in first.output]
    items.append({"role": "user", "content": "And then?"})
    second = client.responses.create(**{**ASK, "input": items})
    assert first.usage is not None
    assert second.usage is not None
    assert second.output_text
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens


def test_what_was_cached_is_told(client: openai.OpenAI) -> None:
    asked = {**ASK, "input": "Something that nobody has asked here before, I am sure."}
    first, second = client.responses.create(**asked), client.responses.create(**asked)
    assert first.usage is not None
    assert second.usage is not None
    read = second.usage.input_tokens_details.cached_tokens
    assert read == second.usage.input_tokens - 1
    assert first.usage.input_tokens_details.cached_tokens < read
    assert first.output_text == second.output_text


def test_the_native_object(client: openai.OpenAI) -> None:
    """What a request does not write is not there; why it is not is told."""
    asked = {**ASK, "input": "A question that only this test of the native object asks."}
    written = client.responses.create(**asked, extra_body={"kveik": {"write": False}})
    again = client.responses.create(**asked, extra_body={"kveik": {"explain": True}})
    assert written.usage is not None
    assert again.usage is not None
    assert written.usage.input_tokens_details.cache_write_tokens == 0
    assert again.usage.input_tokens_details.cached_tokens < written.usage.input_tokens - 16
    assert again.usage.input_tokens_details.cache_write_tokens > 0
    assert again.usage.to_dict()["kveik"]["explanation"]  # type: ignore[index]
    kept = client.responses.create(**asked)
    assert kept.usage is not None
    assert kept.usage.input_tokens_details.cached_tokens == kept.usage.input_tokens - 1


def test_only_what_ends_at_a_breakpoint_is_stored(client: openai.OpenAI) -> None:
    shared = "Something long that all of these questions begin with, whoever asks them. "
    parts: list[Any] = [
        {"type": "input_text", "text": shared, "prompt_cache_breakpoint": {"mode": "explicit"}},
        {"type": "input_text", "text": "And this, which nobody asks twice, is not stored."},
    ]
    asked = {
        **ASK,
        "instructions": "Sail on.",
        "input": [{"role": "user", "content": parts}],
        "prompt_cache_options": {"mode": "explicit"},
    }
    client.responses.create(**asked)
    again = client.responses.create(**asked)
    assert again.usage is not None
    read = again.usage.input_tokens_details.cached_tokens
    assert 16 < read < again.usage.input_tokens - 16


# ---- streams


def test_a_stream_has_the_events_of_the_api(client: openai.OpenAI) -> None:
    events = list(client.responses.create(**ASK, stream=True))
    kinds = [kind for kind, _ in itertools.groupby(event.type for event in events)]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[0].response.status == "in_progress"
    assert events[0].response.usage is None


@pytest.mark.parametrize(
    "fields",
    [{}, {"instructions": "Sail."}, {"max_output_tokens": 1}, {"input": "Grüße 漢字 🙂"}],
    ids=lambda fields: ",".join(fields) or "plain",
)
def test_a_stream_joined_is_the_whole_answer(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    asked = {**ASK, **fields}
    client.responses.create(**asked)  # both below find the same in the cache
    whole = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))
    joined = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert joined == whole.output_text
    last = events[-1]
    assert last.type == "response.incomplete"
    told = [
        one.model_dump(exclude={"id", "created_at", "output"}) for one in (last.response, whole)
    ]
    assert told[0] == told[1]
    assert last.response.output_text == joined


def test_the_stream_helper_and_the_async_client(server: RunningServer) -> None:
    async def both() -> tuple[str, str]:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0
        ) as client:
            whole = await client.responses.create(**ASK)
            texts = []
            async with client.responses.stream(**ASK) as stream:
                async for event in stream:
                    if event.type == "response.output_text.delta":
                        texts.append(event.delta)
            return whole.output_text, "".join(texts)

    whole, streamed = asyncio.run(both())
    assert whole == streamed != ""


def test_who_leaves_ends_the_request(server: RunningServer, client: openai.OpenAI) -> None:
    asked = {**ASK, "max_output_tokens": LONG}
    first = leave_early(server, lambda: client.responses.create(**asked, stream=True))
    assert first.type == "response.created"


def test_a_stream_that_fails_says_so(server: RunningServer, client: openai.OpenAI) -> None:
    asked = {**ASK, "max_output_tokens": LONG}
    events = broken_off(server, lambda: client.responses.create(**asked, stream=True))
    first, *rest = events
    assert first.sequence_number == 0
    assert [event.type for event in rest[-2:]] == ["error", "response.failed"]
    assert rest[-1].type == "response.failed"
    assert rest[-1].response.error is not None
    assert rest[-1].response.error.code == "server_error"


# ---- errors


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
         "input[0].content[0].type"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "o"}]},
         "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 1}]}]},
         "input[0].content[0].text"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"text": {"format": {"type": "json_object"}}}, "text"),
        ({"background": True}, "background"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"truncation": "auto"}, "truncation"),
        ({"extra_body": {"frobnicate": 1}}, "frobnicate"),
        ({"input": "sea " * 900}, "input"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_cannot_be_served_is_a_bad_request(
    client: openai.OpenAI, fields: dict[str, Any], place: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{**ASK, **fields})
    assert caught.value.param == place


def test_keys_and_models(server_engine: Engine) -> None:
    config = ServerConfig(port=0, api_keys=("alice", "bob"))
    with running(server_engine, config) as server:
        with server.openai("mallory") as client, pytest.raises(openai.AuthenticationError):
            client.responses.create(**ASK)
        with server.openai("alice") as client, pytest.raises(openai.NotFoundError):
            client.responses.create(**{**ASK, "model": "gpt-none"})
