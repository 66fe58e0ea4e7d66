"""The table of HTTP shapes: what was sent -> status, param, code. The body is always OpenAI's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from server_harness import MODEL, RunningServer, running, sse

from kveik.config import LIMITS, ServerConfig
from kveik.engine.engine import Engine

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
GOOD: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
GOOD_TEXT: dict[str, Any] = {"model": MODEL, "prompt": "Hi"}


def check_error(response: Any, status: int, param: str | None, code: str | None = None) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    if param is not None:
        assert error["message"].startswith(param)
    if code is not None:
        assert error["code"] == code
    if status in (400, 404, 405, 413, 415):
        assert error["type"] == "invalid_request_error"
    assert response.headers["x-request-id"]


def with_messages(messages: Any) -> dict[str, Any]:
    return {**GOOD, "messages": messages}


def with_content(content: Any) -> dict[str, Any]:
    return with_messages([{"role": "user", "content": content}])


IMAGE = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}

BAD_CHATS: list[tuple[Any, str | None]] = [
    ({"model": MODEL}, "messages"),
    ({"messages": GOOD["messages"]}, "model"),
    ({**GOOD, "model": None}, "model"),
    ({**GOOD, "model": 5}, "model"),
    (with_messages(None), "messages"),
    (with_messages("string"), "messages"),
    (with_messages({}), "messages"),
    (with_messages([]), "messages"),
    (with_messages([123]), "messages[0]"),
    (with_messages([{}]), "messages[0].role"),
    (with_messages([{"role": 123}]), "messages[0].role"),
    (with_messages([{"role": "wizard", "content": "x"}]), "messages[0].role"),
    (with_messages([{"role": "user"}]), "messages[0].content"),
    (with_content(123), "messages[0].content"),
    (with_content(None), "messages[0].content"),
    (with_content([]), "messages[0].content"),
    (with_content([5]), "messages[0].content[0]"),
    (with_content([{}]), "messages[0].content[0].type"),
    (with_content([{"type": "text"}]), "messages[0].content[0].text"),
    (with_content([{"type": "text", "text": 5}]), "messages[0].content[0].text"),
    (with_content([{"type": "text", "text": "a"}, IMAGE]), "messages[0].content[1]"),
    (with_content([{"type": "input_audio"}]), "messages[0].content[0]"),
    (
        with_content([{"type": "text", "text": "a", "cache_control": {"type": "persistent"}}]),
        "messages[0].content[0].cache_control",
    ),
    (with_messages([*GOOD["messages"], {}]), "messages[1].role"),
    (with_messages([{"role": "tool", "content": "x"}]), "messages[0].role"),
    (with_messages([{"role": "user", "content": "x", "name": "me"}]), "messages[0].name"),
    (with_messages([{"role": "user", "content": "x", "zzz": 1}]), "messages[0].zzz"),
    (
        with_messages([{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]),
        "messages[0].tool_calls",
    ),
    ({**GOOD, "response_format": {"type": "sound"}}, "response_format"),
    ({**GOOD, "response_format": {"type": "json_schema", "json_schema": 123}}, "response_format"),
    ({**GOOD, "response_format": {"type": "json_schema", "json_schema": {"type": "hiccup"}}},
     "response_format"),
    ({**GOOD, "stream": "yes"}, "stream"),
    ({**GOOD, "stream": 1}, "stream"),
    ({**GOOD, "stream": True, "stream_options": 5}, "stream_options"),
    ({**GOOD, "stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ({**GOOD, "stream": True, "stream_options": {"include_usage": 1}},
     "stream_options.include_usage"),
    ({**GOOD, "stream": True, "stream_options": {"include_obfuscation": True}},
     "stream_options.include_obfuscation"),
    ({**GOOD, "echo": True}, "echo"),
    ({**GOOD, "logprobs": 5}, "logprobs"),
    ({**GOOD, "stop": 5}, "stop"),
    ({**GOOD, "stop": [5]}, "stop"),
    ({**GOOD, "stop": "x" * 1001}, "stop"),
    ({**GOOD, "logit_bias": []}, "logit_bias"),
    ({**GOOD, "logit_bias": {"1": "5"}}, "logit_bias"),
    ({**GOOD, "logit_bias": {"1": True}}, "logit_bias"),
    ({**GOOD, "logit_bias": {"-1": 1}}, "logit_bias"),
    ({**GOOD, "stop_token_ids": ["1"]}, "stop_token_ids"),
    ({**GOOD, "stop_token_ids": [-1]}, "stop_token_ids"),
    ({**GOOD, "user": 5}, "user"),
    ({**GOOD, "cache_salt": ""}, "cache_salt"),
    ({**GOOD, "cache_salt": "s" * 1025}, "cache_salt"),
    ({**GOOD, "cache_prompt": "no"}, "cache_prompt"),
    ({**GOOD, "cached_content": "a b"}, "cached_content"),
    ({**GOOD, "prompt_cache_key": "k" * 129}, "prompt_cache_key"),
    ({**GOOD, "prompt_cache_retention": "1w"}, "prompt_cache_retention"),
    ({**GOOD, "prompt_cache_options": {"mode": "off"}}, "prompt_cache_options.mode"),
    ({**GOOD, "prompt_cache_options": {"ttl": "soon"}}, "prompt_cache_options.ttl"),
    ({**GOOD, "kveik": []}, "kveik"),
    ({**GOOD, "kveik": {"sesion": "s"}}, "kveik.sesion"),
    ({**GOOD, "kveik": {"session": ""}}, "kveik.session"),
    ({**GOOD, "kveik": {"session": "a b"}}, "kveik.session"),
    ({**GOOD, "kveik": {"session": "s\n"}}, "kveik.session"),
    ({**GOOD, "kveik": {"context": "c"}}, "kveik.context"),
    ({**GOOD, "kveik": {"continue": True}}, "kveik.continue"),
    ({**GOOD, "kveik": {"relevance": "demote"}}, "kveik.relevance"),
    ({**GOOD, "kveik": {"tags": ["t"] * 17}}, "kveik.tags"),
    ({**GOOD, "kveik": {"tags": ["a", 5]}}, "kveik.tags"),
    ({**GOOD, "kveik": {"ttl": 0}}, "kveik.ttl"),
    ({**GOOD, "kveik": {"ttl": True}}, "kveik.ttl"),
    ({**GOOD, "kveik": {"ttl": "1y"}}, "kveik.ttl"),
    ({**GOOD, "kveik": {"ttl_mode": "delete"}}, "kveik.ttl_mode"),
    ({**GOOD, "kveik": {"clock": "last_use"}}, "kveik.clock"),
    ({**GOOD, "kveik": {"ttl": 9, "clock": "wall"}}, "kveik.clock"),
    ({**GOOD, "kveik": {"priority": 1}}, "kveik.priority"),
    ({**GOOD, "kveik": {"write": 1}}, "kveik.write"),
    ({**GOOD, "kveik": {"write": True}, "cache_prompt": False}, "kveik.write"),
    ({**GOOD, "kveik": {"ttl": 9}, "prompt_cache_retention": "24h"}, "kveik.ttl"),
    (with_content([{"type": "text", "text": "a", "document": "d"}]),
     "messages[0].content[0].document"),
    (with_content([{"type": "text", "text": "a", "document": "d@"}]),
     "messages[0].content[0].document"),
    (with_content([{"type": "text", "text": "a", "prompt_cache_breakpoint": True}]),
     "messages[0].content[0].prompt_cache_breakpoint"),
    (with_content([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}] * 5),
     "messages"),
    ({**GOOD, "unknown_field": None}, "unknown_field"),
]  # fmt: skip

UNSERVED = (
    "tools", "tool_choice", "functions", "function_call", "parallel_tool_calls", "audio",
    "modalities", "prediction", "reasoning_effort", "verbosity", "web_search_options",
    "cache_control", "session_id", "extra_key", "id_slot", "kv_transfer_params", "n_cache_reuse",
    "n_discard", "n_keep",
    "safety_identifier", "service_tier", "store", "metadata", "best_of",
)  # fmt: skip


@pytest.mark.parametrize(("body", "param"), BAD_CHATS)
def test_a_bad_chat_names_its_field(server: RunningServer, body: Any, param: str) -> None:
    with server.http() as http:
        check_error(http.post(CHAT, json=body), 400, param)


@pytest.mark.parametrize("field", UNSERVED)
def test_a_field_that_is_not_served_is_named(server: RunningServer, field: str) -> None:
    with server.http() as http:
        response = http.post(CHAT, json={**GOOD, field: {"some": "thing"}})
        check_error(response, 400, field, "unsupported_feature")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": MODEL}, "prompt"),
        ({**GOOD_TEXT, "prompt": None}, "prompt"),
        ({**GOOD_TEXT, "prompt": []}, "prompt"),
        ({**GOOD_TEXT, "prompt": 5}, "prompt"),
        ({**GOOD_TEXT, "prompt": {}}, "prompt"),
        ({**GOOD_TEXT, "prompt": [1, "x"]}, "prompt"),
        ({**GOOD_TEXT, "prompt": [1, True]}, "prompt"),
        ({**GOOD_TEXT, "prompt": [1, 2.0]}, "prompt"),
        ({**GOOD_TEXT, "prompt": [-1]}, "prompt"),
        ({**GOOD_TEXT, "prompt": [2**31]}, "prompt"),
        ({**GOOD_TEXT, "prompt": ["a", 5]}, "prompt[1]"),
        ({**GOOD_TEXT, "prompt": [[1], ["x"]]}, "prompt[1]"),
        ({**GOOD_TEXT, "prompt": ["x"] * 1025}, "prompt"),
        ({**GOOD_TEXT, "prompt": ["x"] * 1024, "n": 128}, "n"),
        ({**GOOD_TEXT, "suffix": "x"}, "suffix"),
        ({**GOOD_TEXT, "best_of": 2}, "best_of"),
        ({**GOOD_TEXT, "logprobs": True}, "logprobs"),
        ({**GOOD_TEXT, "max_completion_tokens": 5}, "max_completion_tokens"),
        ({**GOOD_TEXT, "messages": []}, "messages"),
    ],
)
def test_a_bad_completion_names_its_field(server: RunningServer, body: Any, param: str) -> None:
    with server.http() as http:
        check_error(http.post(TEXT, json=body), 400, param)


def test_token_ids_outside_the_vocabulary_and_empty_prompts(server: RunningServer) -> None:
    with server.http() as http:
        outside = http.post(TEXT, json={**GOOD_TEXT, "prompt": [319, 320]})
        assert outside.status_code == 400
        assert outside.json()["error"]["param"] == "prompt"
        empty = http.post(TEXT, json={**GOOD_TEXT, "prompt": [[]]})
        assert empty.status_code == 400


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "nonsense", "[]", "5", '"text"', "null", "{'model': 1}", '{"model": NaN}',
        '{"temperature": Infinity}', '{"temperature": 1e309}', '{"temperature": -1e309}',
        '{"model": "\\ud800"}', '{"\\udfff": 1}', '{"a": 1, "a": 2}', '{"model": "x",}',
        '{"a": ' + "[" * 100_000, '{"a": ' * 2000 + "1" + "}" * 2000, '{"n": ' + "1" * 5000 + "}",
        '{"messages": [{"role": "user", "role": "system", "content": "x"}]}', "\ufeff{}",
        "{" + ",".join(f'"k{i}": 1' for i in range(2000)) + "}",
    ],
)  # fmt: skip
def test_bad_json(server: RunningServer, text: str) -> None:
    with server.http() as http:
        headers = {"content-type": "application/json"}
        response = http.post(CHAT, content=text.encode("utf-8", "surrogatepass"), headers=headers)
        param = response.json()["error"]["param"]
        check_error(response, 400, param)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"n": 1', '"n": 1, "n": 1'),
        ('"n": 1', '"temperature": NaN'),
        ('"n": 1', '"temperature": 1e309'),
        ('"n": 1', '"temperature": -Infinity'),
        ('"Hi"', '"\\ud83d"'),
        ('"Hi"', '"a\\udc00\\ud83d"'),
        ('"role": "user"', '"role": "system", "role": "user"'),
    ],
)
def test_one_flaw_in_a_good_body(server: RunningServer, old: str, new: str) -> None:
    body = json.dumps({**GOOD, "n": 1, "max_tokens": 1})
    headers = {"content-type": "application/json"}
    with server.http() as http:
        assert http.post(CHAT, content=body, headers=headers).status_code == 200
        response = http.post(CHAT, content=body.replace(old, new), headers=headers)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "invalid_json"


def test_a_whole_surrogate_pair_is_a_character(server: RunningServer) -> None:
    headers = {"content-type": "application/json"}
    with server.http() as http:
        response = http.post("/tokenize", content=r'{"prompt": "\ud83d\ude42"}', headers=headers)
        assert response.json()["tokens"] == server.engine.tokenizer.encode("🙂")


def test_a_body_that_is_not_utf8(server: RunningServer) -> None:
    with server.http() as http:
        headers = {"content-type": "application/json; charset=utf-8"}
        response = http.post(CHAT, content=b'{"model": "\xff"}', headers=headers)
        check_error(response, 400, None, "invalid_json")


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/xml", "application/json; charset=utf-16"]
)
def test_the_wrong_content_type(server: RunningServer, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    with server.http() as http:
        response = http.post(CHAT, content=json.dumps(GOOD), headers=headers)
        check_error(response, 415, None, "unsupported_media_type")


@pytest.mark.parametrize(
    "path",
    ["/nope", "/v1", "/v1/", "/v1/chat/completions/", "/docs", "/v1/audio/speech", "//v1/models",
     "/V1/models", "/v1/models/x"],
)  # fmt: skip
def test_unknown_routes_and_models(server: RunningServer, path: str) -> None:
    with server.http() as http:
        response = http.get(path)
        param = "model" if path == "/v1/models/x" else None
        assert response.status_code == 404
        assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("DELETE", CHAT, "POST"),
        ("PUT", TEXT, "POST"),
        ("POST", "/v1/models", "GET"),
        ("PATCH", "/health", "GET"),
        ("GET", "/tokenize", "POST"),
    ],
)
def test_the_wrong_method(server: RunningServer, method: str, path: str, allowed: str) -> None:
    with server.http() as http:
        response = http.request(method, path)
        check_error(response, 405, None, "method_not_allowed")
        assert allowed in response.headers["allow"]


def test_the_context_is_named(server: RunningServer) -> None:
    with server.http() as http:
        response = http.post(CHAT, json={**GOOD, "max_tokens": 512})
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
        assert "512" in error["message"]


def test_tokenize_and_detokenize(server: RunningServer) -> None:
    tokenizer = server.engine.tokenizer
    with server.http() as http:
        plain = http.post("/tokenize", json={"model": MODEL, "prompt": "Hello 🙂"}).json()
        assert plain["tokens"] == tokenizer.encode("Hello 🙂")
        assert plain["count"] == len(plain["tokens"])
        assert plain["max_model_len"] == server.engine.info.max_model_len
        assert plain["token_strs"] is None
        bare = {"prompt": "Hello", "add_special_tokens": False, "return_token_strs": True}
        shown = http.post("/tokenize", json=bare).json()
        assert "".join(shown["token_strs"]) == "Hello"
        messages = {"messages": GOOD["messages"]}
        turn = http.post("/tokenize", json=messages).json()
        assert turn["tokens"] == tokenizer.encode_chat(GOOD["messages"])
        ended = http.post("/tokenize", json={**messages, "add_generation_prompt": False}).json()
        assert ended["count"] < turn["count"]
        ids = tokenizer.encode("Hello 🙂", add_special_tokens=False)
        assert http.post("/detokenize", json={"tokens": ids}).json() == {"prompt": "Hello 🙂"}
        check_error(http.post("/tokenize", json={}), 400, "prompt")
        check_error(http.post("/tokenize", json={"prompt": "a", **messages}), 400, "prompt")
        check_error(http.post("/tokenize", json={"prompt": "a", "x": 1}), 400, "x")
        check_error(http.post("/detokenize", json={"tokens": "a"}), 400, "tokens")
        check_error(http.post("/detokenize", json={"tokens": [10**6]}), 400, "tokens")
        wrong = http.post("/tokenize", json={"prompt": "a", "model": "x"})
        assert wrong.status_code == 404


def test_the_raw_stream(server: RunningServer) -> None:
    with server.http() as http:
        body = {**GOOD, "stream": True, "max_tokens": 5, "stream_options": {"include_usage": True}}
        response = http.post(CHAT, json=body)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    *chunks, usage, done = sse(response.text)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert all(chunk["usage"] is None for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


def test_request_ids(server: RunningServer) -> None:
    with server.http() as http:
        assert http.get("/health", headers={"x-request-id": "a-B_c.1"}).headers["x-request-id"] == (
            "a-B_c.1"
        )
        for strange in ("a b", "x" * 65, "a\tb", "é"):
            given = http.get("/health", headers={"x-request-id": strange.encode()})
            assert len(given.headers["x-request-id"]) == 32


def test_bodies_and_headers_over_the_cap(server_engine: Engine) -> None:
    config = ServerConfig(port=0, max_body_bytes=2000, max_header_bytes=4000)
    with running(server_engine, config) as one, one.http() as http:
        check_error(http.post(CHAT, json=with_content("x" * 3000)), 413, None, "request_too_large")

        def parts():  # type: ignore[no-untyped-def]
            for _ in range(50):
                yield b" " * 100

        headers = {"content-type": "application/json"}
        check_error(http.post(CHAT, content=parts(), headers=headers), 413, None)
        check_error(http.get("/health", headers={"x-long": "y" * 5000}), 431, None)
        check_error(http.get("/health", headers={"x-long": "y" * 60_000}), 431, None)
        check_error(http.get("/v1/models/" + "z" * 5000), 431, None)
        assert http.get("/health").status_code == 200


# ---- every number of every front end (promise 19)

NUMBERS = {
    CHAT: ["n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed",
           "presence_penalty", "frequency_penalty", "max_tokens", "max_completion_tokens",
           "min_tokens", "top_logprobs", "prompt_logprobs"],
    TEXT: ["n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed",
           "presence_penalty", "frequency_penalty", "max_tokens", "min_tokens", "logprobs",
           "prompt_logprobs"],
}  # fmt: skip
LIMIT_OF = {
    (CHAT, "top_logprobs"): "logprobs",
    (TEXT, "logprobs"): "completion_logprobs",
    (CHAT, "max_completion_tokens"): "max_tokens",
}
ENDINGS = ("context_length_exceeded", "pool_too_small")


def cases() -> list[Any]:
    made = []
    for path, fields in NUMBERS.items():
        for field in fields:
            limit = LIMITS[LIMIT_OF.get((path, field), field)]
            low, high = (
                (int(limit.low), int(limit.high)) if limit.integer else (limit.low, limit.high)
            )
            step = 1 if limit.integer else 0.001
            if field == "top_k":
                low = -1  # vLLM's other way to say off
            values = [low - step, low, high, high + step, -1, 2**31, 2**63, -(2**63) - 1, 10**30]
            for value in values:
                good = low <= value <= high
                made.append(pytest.param(path, field, value, good, id=f"{field}={value}{path}"))
            made.append(pytest.param(path, field, None, True, id=f"{field}=null{path}"))
            for value in (True, "1", [1], {}, low + 0.5 if limit.integer else "0.5"):
                made.append(pytest.param(path, field, value, False, id=f"{field}={value!r}{path}"))
    return made


@pytest.mark.parametrize(("path", "field", "value", "good"), cases())
def test_every_number_is_bounded(
    server: RunningServer, number_client: Any, path: str, field: str, value: Any, good: bool
) -> None:
    body = {**(GOOD if path == CHAT else GOOD_TEXT), "max_tokens": 2}
    if field == "top_logprobs":
        body["logprobs"] = True
    if field == "max_completion_tokens":
        del body["max_tokens"]
        body["stop_token_ids"] = list(range(128))  # ends soon where the value is null
    body[field] = value
    if path == TEXT and field == "n" and good and value:
        body["max_tokens"] = 1
    response = number_client.post(path, json=body)
    if not good:
        check_error(response, 400, field, "invalid_value")
    elif response.status_code != 200:  # within bounds, but not in this context or with max_tokens
        error = response.json()["error"]
        assert response.status_code == 400
        assert field in ("max_tokens", "max_completion_tokens", "min_tokens")
        assert error["code"] in ENDINGS or error["param"] == "min_tokens"


@pytest.fixture(scope="module")
def number_client(server: RunningServer) -> Any:
    with server.http() as http:
        yield http
