"""POST /v1/messages through the real `anthropic` client: words, shapes, events, errors, retries."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
from server_harness import (
    LONG,
    MODEL,
    Brake,
    RunningServer,
    broken_off,
    leave_early,
    running,
    tiny_engine,
    until,
)

from kveik.config import ServerConfig
from kveik.engine.engine import Engine

GREEDY = {"temperature": 0}
ASK: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 12,
    "messages": [{"role": "user", "content": "Tell me of the sea."}],
    "extra_body": GREEDY,
}


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[anthropic.Anthropic]:
    with server.anthropic() as one:
        yield one


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def asking(**fields: Any) -> dict[str, Any]:
    """ASK with other fields; what the client does not know goes into the body as it is."""
    known = {"max_tokens", "messages", "system", "stop_sequences", "metadata", "model",
             "cache_control", "service_tier", "thinking", "tools", "tool_choice"}  # fmt: skip
    extra = {name: value for name, value in fields.items() if name not in known}
    plain = {name: value for name, value in fields.items() if name in known}
    return {**ASK, **plain, "extra_body": {**GREEDY, **extra}}


# ---- one answer


def test_a_message(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**ASK)
    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", MODEL)
    assert text_of(message)
    assert message.stop_reason == "max_tokens"
    assert message.stop_sequence is None
    assert message.usage.output_tokens == 12
    assert message._request_id


def test_the_same_text_as_a_chat_completion(
    client: anthropic.Anthropic, server: RunningServer
) -> None:
    """system, then messages; the same template, so the same prompt."""
    system, content = "You are a sailor.", "Tell me of the sea."
    message = client.messages.create(**asking(system=system))
    with server.openai() as other:
        chat = other.chat.completions.create(
            model=MODEL,
            messages=[{"role": "system", "content": system}, {"role": "user", "content": content}],
            max_tokens=12,
            temperature=0,
        )
    assert text_of(message) == chat.choices[0].message.content
    usage = message.usage
    assert chat.usage is not None
    assert (usage.input_tokens + (usage.cache_read_input_tokens or 0)) == chat.usage.prompt_tokens


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"system": "You sail."}, {"system": [{"type": "text", "text": "You sail."}]}),
        (
            {"system": "You sail. Far."},
            {"system": [{"type": "text", "text": "You sail."}, {"type": "text", "text": " Far."}]},
        ),
        ({"system": ""}, {}),
        (
            {"messages": [{"role": "user", "content": "Hello there"}]},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello there"}]}]},
        ),
        (
            {"messages": [{"role": "user", "content": "a\n\nb"}]},
            {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
        ),
        ({}, {"metadata": {"user_id": "u-1"}}),
        ({}, {"tools": [], "tool_choice": {"type": "none"}, "thinking": {"type": "disabled"}}),
        ({}, {"service_tier": "standard_only"}),
        (
            {"system": "You sail."},
            {"messages": [{"role": "system", "content": "You sail."}, *ASK["messages"]]},
        ),
    ],
    ids=lambda fields: ",".join(fields) or "plain",
)
def test_two_ways_to_say_the_same(
    client: anthropic.Anthropic, one: dict[str, Any], other: dict[str, Any]
) -> None:
    first, second = (client.messages.create(**asking(**fields)) for fields in (one, other))
    assert text_of(first) == text_of(second)
    assert prompt_tokens(first.usage) == prompt_tokens(second.usage)


def prompt_tokens(usage: Any) -> int:
    """The three kinds of input tokens add up to the prompt."""
    return int(
        usage.input_tokens
        + (usage.cache_creation_input_tokens or 0)
        + (usage.cache_read_input_tokens or 0)
    )


def test_an_answer_can_be_sent_back(client: anthropic.Anthropic) -> None:
    first = client.messages.create(**ASK)
    again = [*ASK["messages"], first.to_param(), {"role": "user", "content": "And then?"}]
    second = client.messages.create(**asking(messages=again))
    assert text_of(second)
    assert (second.usage.cache_read_input_tokens or 0) >= prompt_tokens(first.usage)
    cited = [{"type": "text", "text": text_of(first), "citations": None}]
    again[1] = {"role": "assistant", "content": cited}
    assert text_of(client.messages.create(**asking(messages=again))) == text_of(second)


def test_a_stop_sequence_ends_the_text(client: anthropic.Anthropic) -> None:
    text = text_of(client.messages.create(**ASK))
    stop = text[3:5]
    cut = text[: text.index(stop)]
    message = client.messages.create(**asking(stop_sequences=["never there", stop]))
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert text_of(message) == cut


def test_the_end_of_a_turn(server: RunningServer, client: anthropic.Anthropic) -> None:
    """The tiny model ends its turn somewhere when it is asked often enough."""
    for number in range(40):
        asked = asking(
            messages=[{"role": "user", "content": f"{number}"}], max_tokens=60, temperature=1
        )
        message = client.messages.create(**asked)
        if message.stop_reason == "end_turn":
            assert message.stop_sequence is None
            assert message.usage.output_tokens <= 60
            return
    pytest.fail("no turn ended")


def test_an_answer_that_fills_the_context(
    client: anthropic.Anthropic, server: RunningServer
) -> None:
    """Clients send one large max_tokens for every model: it is cut, and said."""
    stop = {"kveik": {"write": False}}
    message = client.messages.create(**asking(max_tokens=100_000, **stop))
    room = server.engine.info.max_model_len - prompt_tokens(message.usage)
    if message.stop_reason == "model_context_window_exceeded":
        assert message.usage.output_tokens == room
    else:
        assert message.stop_reason == "end_turn"
        assert message.usage.output_tokens <= room


@pytest.mark.parametrize("fields", [{"top_k": 1}, {"top_p": 0.0}, {"temperature": 0.0}])
def test_sampling_fields_are_used(client: anthropic.Anthropic, fields: dict[str, Any]) -> None:
    """Each of them makes the text greedy; without them it is drawn."""
    asked = {**asking(max_tokens=16, **{"temperature": 1.0, **fields})}
    greedy = text_of(client.messages.create(**asking(max_tokens=16)))
    assert text_of(client.messages.create(**asked)) == greedy
    drawn = {text_of(client.messages.create(**asking(max_tokens=16, temperature=1.0)))
             for _ in range(4)}  # fmt: skip
    assert len(drawn) > 1


def test_count_tokens(client: anthropic.Anthropic) -> None:
    asked = {"model": MODEL, "system": "You sail.", "messages": ASK["messages"]}
    count = client.messages.count_tokens(**asked)
    message = client.messages.create(**asking(system="You sail."))
    assert count.input_tokens == prompt_tokens(message.usage)


# ---- streams


def test_a_stream_has_the_events_of_the_api(client: anthropic.Anthropic) -> None:
    events = list(client.messages.create(**ASK, stream=True))
    kinds = [kind for kind, _ in itertools.groupby(event.type for event in events)]
    assert kinds == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start, delta = events[0], events[-2]
    assert start.type == "message_start"
    assert start.message.content == []
    assert start.message.stop_reason is None
    assert start.message.usage.output_tokens == 0
    assert delta.type == "message_delta"
    assert delta.delta.stop_reason == "max_tokens"
    assert delta.usage.output_tokens == 12


def test_events_are_named_and_pinged(server: RunningServer) -> None:
    body = {key: value for key, value in ASK.items() if key != "extra_body"}
    with server.http() as http:
        answer = http.post("/v1/messages", json={**body, **GREEDY, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = answer.text.removesuffix("\n\n").split("\n\n")
    names = [block.split("\n")[0].removeprefix("event: ") for block in blocks]
    assert names[:3] == ["message_start", "content_block_start", "ping"]
    assert names[-1] == "message_stop"
    assert all(
        f'data: {{"type":"{name}"' in block for name, block in zip(names, blocks, strict=True)
    )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"system": "You are a sailor."},
        {"max_tokens": 1},
        {"stop_sequences": ["e"]},
        {"stop_sequences": ["a", "t", "s"], "max_tokens": 40},
        {"messages": [{"role": "user", "content": "Grüße 漢字 🙂"}], "max_tokens": 60},
    ],
    ids=lambda fields: ",".join(fields) or "plain",
)
def test_a_stream_joined_is_the_whole_answer(
    client: anthropic.Anthropic, fields: dict[str, Any]
) -> None:
    asked = asking(**fields)
    client.messages.create(**asked)  # both below find the same in the cache
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == text_of(whole)
    assert (final.content[0].type, final.stop_reason, final.stop_sequence) == (
        whole.content[0].type,
        whole.stop_reason,
        whole.stop_sequence,
    )
    told = [message.usage.model_dump(exclude={"kveik"}) for message in (final, whole)]
    assert told[0] == told[1]


def test_a_stream_without_text_has_no_block(client: anthropic.Anthropic) -> None:
    text = text_of(client.messages.create(**ASK))
    events = list(client.messages.create(**asking(stop_sequences=[text[0]]), stream=True))
    assert [event.type for event in events] == ["message_start", "message_delta", "message_stop"]
    whole = client.messages.create(**asking(stop_sequences=[text[0]]))
    assert whole.content == []
    assert whole.stop_sequence == text[0]


def test_the_async_client(server: RunningServer) -> None:
    async def both() -> tuple[str, str]:
        async with anthropic.AsyncAnthropic(
            base_url=server.url, api_key="none", max_retries=0
        ) as client:
            whole, _ = await asyncio.gather(
                client.messages.create(**ASK), client.messages.create(**ASK)
            )
            async with client.messages.stream(**ASK) as stream:
                return text_of(whole), await stream.get_final_text()

    whole, streamed = asyncio.run(both())
    assert whole == streamed


def test_who_leaves_ends_the_request(server: RunningServer, client: anthropic.Anthropic) -> None:
    first = leave_early(
        server, lambda: client.messages.create(**asking(max_tokens=LONG), stream=True)
    )
    assert first.type == "message_start"


def test_a_stream_that_fails_says_so(server: RunningServer, client: anthropic.Anthropic) -> None:
    events = broken_off(
        server, lambda: client.messages.create(**asking(max_tokens=LONG), stream=True)
    )
    next(events)
    with pytest.raises(anthropic.APIStatusError) as caught:
        list(events)
    assert caught.value.type == "overloaded_error"
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["request_id"] == caught.value.request_id


def test_the_model_is_listed(client: anthropic.Anthropic) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


# ---- errors


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": "12"}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
    ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
     "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
     "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]},
     "messages[0].content[0]"),
    ({"system": [{"type": "text", "text": 5}]}, "system[0].text"),
    ({"system": 5}, "system"),
    ({"tools": [{"name": "f", "input_schema": {"type": "object"}}]}, "tools"),
    ({"tool_choice": {"type": "auto"}}, "tool_choice"),
    ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking"),
    ({"container": "c"}, "container"),
    ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
    ({"output_config": {"effort": "low"}}, "output_config"),
    ({"speed": "fast"}, "speed"),
    ({"stop_sequences": [""]}, "stop_sequences[0]"),
    ({"temperature": 1.5}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"metadata": {"user": "x"}}, "metadata.user"),
    ({"cache_control": {"type": "lasting"}}, "cache_control"),
    ({"cache_control": {"type": "ephemeral", "ttl": "2h"}}, "cache_control"),
    ({"frobnicate": 1}, "frobnicate"),
    ({"kveik": {"sesion": "x"}}, "kveik.sesion"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "place"), WRONG, ids=lambda value: str(value)[:40])
def test_what_cannot_be_served_is_a_bad_request(
    client: anthropic.Anthropic, fields: dict[str, Any], place: str
) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**asking(**fields))
    error = caught.value
    assert error.type == "invalid_request_error"
    assert error.api_message is not None
    assert error.api_message.startswith(f"{place}:")
    assert isinstance(error.body, dict)
    assert error.body["type"] == "error"
    assert error.body["request_id"] == error.request_id != ""
    assert error.body["error"]["details"]["param"] == place


def test_an_unknown_model_is_not_found(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(**{**ASK, "model": "claude-none"})
    assert caught.value.type == "not_found_error"
    assert caught.value.error_code == "model_not_found"


def test_a_prompt_beyond_the_context(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**asking(messages=[{"role": "user", "content": "sea " * 900}]))
    assert caught.value.error_code == "context_length_exceeded"


def test_paths_and_methods_of_others(server: RunningServer, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.batches.list()
    assert caught.value.type == "not_found_error"
    with server.http() as http:
        refused = http.get("/v1/messages")
    assert refused.status_code == 405
    assert refused.json()["type"] == "error"
    assert refused.headers["request-id"] == refused.headers["x-request-id"]


def test_other_paths_keep_their_shape(server: RunningServer) -> None:
    with server.http() as http:
        answer = http.get("/v1/messagesx")
    assert "request-id" not in answer.headers
    assert set(answer.json()) == {"error"}


def test_a_body_that_is_too_large(server_engine: Engine) -> None:
    config = ServerConfig(port=0, max_body_bytes=2000)
    with running(server_engine, config) as server, server.anthropic() as client:
        with pytest.raises(anthropic.RequestTooLargeError) as caught:
            client.messages.create(**asking(messages=[{"role": "user", "content": "sea " * 900}]))
        assert caught.value.type == "request_too_large"


def test_keys(server_engine: Engine) -> None:
    config = ServerConfig(port=0, api_keys=("alice", "bob"))
    with running(server_engine, config) as server:
        with (
            server.anthropic("mallory") as client,
            pytest.raises(anthropic.AuthenticationError) as caught,
        ):
            client.messages.create(**ASK)
        assert caught.value.type == "authentication_error"
        assert caught.value.request_id
        with server.anthropic("alice") as client:
            assert text_of(client.messages.create(**ASK))
        with anthropic.Anthropic(base_url=server.url, auth_token="bob", max_retries=0) as client:
            assert text_of(client.messages.create(**ASK))


def test_a_foreign_host_is_forbidden(server: RunningServer) -> None:
    with (
        server.anthropic(default_headers={"host": "evil.example"}) as client,
        pytest.raises(anthropic.PermissionDeniedError) as caught,
    ):
        client.messages.create(**ASK)
    assert caught.value.type == "permission_error"


def test_a_full_queue_is_a_rate_limit_and_is_tried_again(
    tiny_folder: Callable[..., Path],
) -> None:
    engine = tiny_engine(tiny_folder(), max_queued_requests=1, max_num_seqs=1)
    statuses: list[int] = []
    try:
        with running(engine) as server, server.anthropic() as client, Brake(engine) as brake:
            brake.step(2)
            held = [client.messages.create(**asking(max_tokens=LONG), stream=True)]
            until(lambda: engine.stats().running == 1)
            waiting = threading.Thread(target=client.messages.create, kwargs=ASK)
            waiting.start()
            until(lambda: engine.stats().waiting == 1)
            with pytest.raises(anthropic.RateLimitError) as caught:
                client.messages.create(**ASK)
            assert caught.value.type == "rate_limit_error"
            assert caught.value.response.headers["retry-after"] == "1"

            def noted(response: httpx2.Response) -> None:
                statuses.append(response.status_code)
                if held:
                    held.pop().close()
                brake.release()
                until(lambda: engine.stats().waiting == 0)

            patient = anthropic.DefaultHttpxClient(event_hooks={"response": [noted]})
            with server.anthropic(max_retries=3, http_client=patient) as again:
                assert text_of(again.messages.create(**ASK))
            waiting.join(30)
    finally:
        engine.stop()
    assert statuses == [429, 200]


def test_a_server_that_stops_is_overloaded(tiny_folder: Callable[..., Path]) -> None:
    engine = tiny_engine(tiny_folder())
    try:
        with running(engine) as server, server.anthropic() as client:
            server.service.phase = "draining"
            with pytest.raises(anthropic.OverloadedError) as caught:
                client.messages.create(**ASK)
            assert caught.value.type == "overloaded_error"
            assert caught.value.response.headers["retry-after"]
            server.service.phase = "ready"
    finally:
        engine.stop()
