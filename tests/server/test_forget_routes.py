"""Forgetting over HTTP: every chat route, usage, sessions that go on, refusals by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cache_server import CHAT, TEXT, CacheServer, cache_server, fresh, user
from server_harness import MODEL

SMALL = {"max_model_len": 2048}


@pytest.fixture(scope="module")
def one(tiny_folder: Callable[..., Path]) -> Iterator[CacheServer]:
    with cache_server(tiny_folder(max_position_embeddings=2048), kv_memory=8 * 2**20) as server:
        yield server


def told(response: Any, status: int = 400) -> tuple[str, str]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    return error["param"], error["message"]


def details(usage: Any) -> tuple[int, int]:
    found = usage["prompt_tokens_details"]
    return found["cached_tokens"], found.get("approximate_cached_tokens", 0)


def talked(server: CacheServer, session: str, texts: list[str], **native: Any) -> None:
    for number, text in enumerate(texts):
        goes_on = {"continue": True} if number else {}
        server.usage(user(text), kveik={"session": session, **goes_on, **native})


def test_forget(one: CacheServer) -> None:
    texts = [fresh(20) for _ in range(4)]
    talked(one, "plain", texts)
    before = one.usage(user("next"), kveik={"session": "plain", "continue": True})
    wanted = {"session": "plain", "continue": True, "forget": {"turns": [2]}, "explain": True}
    usage = one.usage(user("then"), kveik=wanted)
    exact, approximate = details(usage)
    forgotten = usage["kveik"]["forgotten_tokens"]
    assert usage["prompt_tokens"] < before["prompt_tokens"]
    assert approximate > exact > 60
    assert exact + approximate > usage["prompt_tokens"] - 40
    assert forgotten > 60
    explained = usage["kveik"]["explanation"]
    assert explained["cause"] == "forgotten"
    assert (explained["forgotten_tokens"], explained["approximate_tokens"]) == (
        forgotten,
        approximate,
    )
    after = one.usage(user("and then"), kveik={"session": "plain", "continue": True})
    assert details(after)[0] == exact
    assert details(after)[1] > approximate
    assert after["kveik"]["forgotten_tokens"] == forgotten
    plain = one.usage([*user(texts[0]), *user(texts[2])], kveik={"write": False})
    assert "forgotten_tokens" not in plain["kveik"]
    assert details(plain)[1] == 0


def test_a_conversation_that_is_sent_again_may_forget_too(one: CacheServer) -> None:
    messages: list[Any] = []
    for number in range(3):
        messages += user(fresh(20))
        body = {"model": MODEL, "messages": messages, "max_tokens": 2, "temperature": 0}
        answer = one.post(CHAT, body)["choices"][0]["message"]["content"]
        messages += [{"role": "assistant", "content": answer or f"w{number}"}]
    kveik = {"session": "again", "forget": {"turns": "1-1"}}
    usage = one.usage([*messages, *user("next")], kveik=kveik)
    assert usage["kveik"]["forgotten_tokens"] > 50
    assert details(usage)[1] > 60
    after = one.usage(user("then"), kveik={"session": "again", "continue": True})
    assert details(after)[1] > details(usage)[1]
    param, why = told(
        one.send(
            "POST",
            CHAT,
            {
                "model": MODEL,
                "messages": user("x"),
                "kveik": {"session": "again", "continue": True, "forget": {"turns": [1]}},
            },
        )
    )
    assert (param, "forgotten before" in why) == ("kveik.forget.turns", True)


@pytest.mark.parametrize("route", ["chat", "responses", "messages"])
def test_every_chat_route_forgets(one: CacheServer, route: str) -> None:
    session = f"route-{route}"
    talked(one, session, [fresh(20) for _ in range(3)])
    kveik = {"session": session, "continue": True, "forget": {"turns": [2]}}
    body: dict[str, Any] = {"model": MODEL, "kveik": kveik}
    if route == "responses":
        usage = one.post("/v1/responses", {**body, "input": "x", "max_output_tokens": 2})["usage"]
    else:
        path = CHAT if route == "chat" else "/v1/messages"
        usage = one.post(path, {**body, "messages": user("x"), "max_tokens": 2})["usage"]
    assert usage["kveik"]["forgotten_tokens"] > 50


def test_by_tag_and_by_document(one: CacheServer) -> None:
    talked(one, "labels", [fresh(20)])
    goes_on = {"session": "labels", "continue": True}
    one.usage(user(fresh(20)), kveik={**goes_on, "tags": ["draft"]})
    book = {"text": fresh(40), "document": "book@2"}
    one.usage(user(book, "what is it?"), kveik=goes_on)
    first = one.usage(user("then"), kveik={**goes_on, "forget": {"tag": "draft"}})
    assert details(first)[1] > 100
    second = one.usage(user("then"), kveik={**goes_on, "forget": {"document": "book@2"}})
    assert second["prompt_tokens"] < first["prompt_tokens"] - 100
    assert second["kveik"]["forgotten_tokens"] > first["kveik"]["forgotten_tokens"] + 100
    assert details(second)[1] > 0


def test_an_aborted_answer_forgets_nothing(one: CacheServer) -> None:
    talked(one, "cut", [fresh(20) for _ in range(3)])
    kveik = {"session": "cut", "continue": True, "forget": {"turns": [2]}}
    body = {
        "model": MODEL,
        "messages": user("x"),
        "max_tokens": 900,
        "ignore_eos": True,  # it must not end by itself before the client is gone
        "stream": True,
        "kveik": kveik,
    }
    with one.server.http() as http, http.stream("POST", CHAT, json=body) as response:
        next(response.iter_lines())
    usage = one.usage(user("y"), kveik={"session": "cut", "continue": True})
    assert "forgotten_tokens" not in usage["kveik"]


@pytest.mark.parametrize(
    ("kveik", "param"),
    [
        ({"forget": {"turns": [1]}}, "kveik.forget"),
        ({"session": "refused", "forget": {"turns": [1], "tag": "t"}}, "kveik.forget"),
        ({"session": "refused", "forget": {"turns": []}}, "kveik.forget"),
        ({"session": "refused", "forget": {"turns": "3-1"}}, "kveik.forget"),
        ({"session": "refused", "forget": {}}, "kveik.forget"),
        ({"session": "refused", "forget": {"turns": [1]}}, "kveik.forget"),  # nothing was said
        (
            {"session": "refused", "continue": True, "forget": {"turns": [9]}},
            "kveik.forget.turns",
        ),
        ({"session": "refused", "continue": True, "forget": {"tag": "t"}}, "kveik.forget.tag"),
        (
            {"session": "refused", "continue": True, "forget": {"document": "d@1"}},
            "kveik.forget.document",
        ),
        (
            {"session": "refused", "continue": True, "write": False, "forget": {"turns": [1]}},
            "write",
        ),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(one: CacheServer, kveik: Any, param: str) -> None:
    talked(one, "refused", [fresh(20) for _ in range(3)])
    body = {"model": MODEL, "messages": user("x"), "max_tokens": 1, "kveik": kveik}
    assert told(one.send("POST", CHAT, body))[0] == param


def test_other_fields_that_say_something_else(one: CacheServer) -> None:
    talked(one, "other", [fresh(20) for _ in range(3)])
    kveik = {"session": "other", "continue": True, "forget": {"turns": [1]}}
    body = {"model": MODEL, "messages": user("x"), "max_tokens": 1, "kveik": kveik}
    assert told(one.send("POST", CHAT, {**body, "cache_prompt": False}))[0] in ("forget", "write")
    window = {**body, "stream_window": "4+60"}
    assert told(one.send("POST", CHAT, window))[0] == "stream_window"
    assert told(one.send("POST", CHAT, {**body, "prompt_logprobs": 1}))[0] == "prompt_logprobs"
    modular = {**body, "messages": user({"text": "x", "cache": "module"})}
    assert told(one.send("POST", CHAT, modular))[0] == "kveik.forget"
    prompt = {"model": MODEL, "prompt": "x", "max_tokens": 1, "kveik": {"session": "other"}}
    prompt["kveik"]["forget"] = {"turns": [1]}
    assert told(one.send("POST", TEXT, prompt))[0] == "kveik.forget"
    gone = {**body, "kveik": {**kveik, "session": "nobody"}}
    assert told(one.send("POST", CHAT, gone), 409)[0] == "kveik.continue"


def test_an_open_stream_forgets_by_itself(one: CacheServer) -> None:
    one.usage(user("x"), kveik={"session": "endless", "stream_window": "4+60"})
    kveik = {"session": "endless", "continue": True, "forget": {"turns": [1]}}
    body = {"model": MODEL, "messages": user("x"), "max_tokens": 1, "kveik": kveik}
    param, why = told(one.send("POST", CHAT, body))
    assert (param, "an open stream" in why) == ("kveik.forget", True)
