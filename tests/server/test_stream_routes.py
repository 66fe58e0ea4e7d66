"""Endless streams over HTTP: every route, sessions that go on, refusals that name the field."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cache_server import CHAT, TEXT, CacheServer, cache_server, fresh, user
from server_harness import MODEL

WINDOW = {"sinks": 4, "window": 60, "evict": 1}
SMALL = {"max_model_len": 256}


@pytest.fixture(scope="module")
def one(tiny_folder: Callable[..., Path]) -> Iterator[CacheServer]:
    with cache_server(tiny_folder(), **SMALL) as server:
        yield server


def told(response: Any, status: int) -> Any:
    assert response.status_code == status, response.text
    return response.json()["error"]


ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"messages": user("@")}),
    "completions": (TEXT, {"prompt": "@"}),
    "responses": ("/v1/responses", {"input": "@"}),
    "messages": ("/v1/messages", {"messages": [{"role": "user", "content": "@"}]}),
}


def filled(value: Any, text: str) -> Any:
    return json.loads(json.dumps(value).replace('"@"', json.dumps(text)))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("place", ["kveik", "beside"])
def test_every_route_takes_a_prompt_that_is_longer_than_the_context(
    one: CacheServer, route: str, place: str
) -> None:
    path, body = ROUTES[route]
    longest = "max_output_tokens" if route == "responses" else "max_tokens"
    body = {"model": MODEL, longest: 3, **filled(body, fresh(200))}
    if route == "messages":
        assert one.send("POST", path, body).status_code == 400
    else:
        assert told(one.send("POST", path, body), 400)["code"] == "context_length_exceeded"
    body |= {"stream_window": WINDOW} if place == "beside" else {"kveik": {"stream_window": WINDOW}}
    usage = one.post(path, body)["usage"]
    assert usage["kveik"]["evicted_tokens"] > 256


def test_an_answer_may_be_longer_than_the_context(one: CacheServer) -> None:
    body = {
        "model": MODEL,
        "messages": user("Hi"),
        "max_tokens": 600,
        "ignore_eos": True,
        "kveik": {"stream_window": "4+60"},
    }
    answer = one.post(CHAT, body)
    assert answer["usage"]["completion_tokens"] == 600
    assert answer["choices"][0]["finish_reason"] == "length"


def test_without_a_limit_an_answer_in_one_piece_ends_with_the_context(one: CacheServer) -> None:
    body = {"model": MODEL, "messages": user("Hi"), "ignore_eos": True, "stream_window": WINDOW}
    assert one.post(CHAT, body)["usage"]["completion_tokens"] == 256
    body = {"model": MODEL, "prompt": "Hi", "ignore_eos": True, "stream_window": WINDOW}
    assert one.post(TEXT, body)["usage"]["completion_tokens"] == 256


def test_without_a_limit_a_stream_of_events_goes_on_until_the_client_leaves(
    one: CacheServer,
) -> None:
    body = {
        "model": MODEL,
        "messages": user("Hi"),
        "ignore_eos": True,
        "stream": True,
        "stream_window": WINDOW,
    }
    with one.server.http() as http, http.stream("POST", CHAT, json=body) as response:
        lines = (line for line in response.iter_lines() if line.startswith("data:"))
        for _ in range(700):
            assert "error" not in next(lines)


def test_usage_of_others_is_silent(one: CacheServer) -> None:
    assert "evicted_tokens" not in one.usage(user("Hi"))["kveik"]
    assert one.usage(user("Hi"), stream_window=WINDOW)["kveik"]["evicted_tokens"] == 0


def test_stream_window(one: CacheServer) -> None:
    """What docs/CACHE_FIELDS.md names: it changes what is cached, here what comes behind it."""
    text = fresh(25)
    one.usage(text, stream_window=WINDOW)
    assert one.peek(text) == 64 // 16 * 16


def test_explain(one: CacheServer) -> None:
    text = fresh(100)
    usage = one.usage(text, kveik={"explain": True}, stream_window=WINDOW)
    assert usage["kveik"]["explanation"]["evicted_tokens"] > 0
    body = {"prompt": text, "stream_window": WINDOW}
    found = one.post("/v1/cache/explain", body)
    assert found["evicted_tokens"] == usage["kveik"]["explanation"]["evicted_tokens"]
    assert found["position"] == 63
    assert "evicted_tokens" not in one.post("/v1/cache/explain", {"prompt": text})


# --- sessions


def turn(one: CacheServer, session: str, text: str, *, goes_on: bool, **fields: Any) -> Any:
    kveik = {"session": session, **({"continue": True} if goes_on else {})}
    window = {} if goes_on else {"stream_window": WINDOW}
    return one.usage(user(text), kveik=kveik, max_tokens=8, ignore_eos=True, **window, **fields)


def test_a_session_goes_on_for_ever_with_what_is_new(one: CacheServer) -> None:
    turn(one, "log", fresh(), goes_on=False)
    sizes = [turn(one, "log", f"line {n % 10}", goes_on=True) for n in range(40)]
    assert len({usage["prompt_tokens"] for usage in sizes}) == 1
    assert sizes[-1]["prompt_tokens"] < 40
    evicted = [usage["kveik"]["evicted_tokens"] for usage in sizes]
    assert evicted == sorted(evicted)
    assert evicted[-1] > 600
    assert "kveik:open_streams{" in one.send("GET", "/metrics").text
    receipt = one.send("DELETE", "/v1/sessions/log").json()
    seen = WINDOW["sinks"] + WINDOW["window"]
    assert receipt["tokens"] >= seen - one.server.engine.info.block_size
    assert receipt["bytes"]["memory"] > 0


@pytest.mark.parametrize("route", ["chat", "responses", "messages"])
def test_every_chat_route_goes_on(one: CacheServer, route: str) -> None:
    path, body = ROUTES[route]
    longest = "max_output_tokens" if route == "responses" else "max_tokens"
    body = {"model": MODEL, longest: 4, **body}
    session = f"on-{route}"
    first = {**filled(body, fresh()), "kveik": {"session": session, "stream_window": WINDOW}}
    one.post(path, first)
    after = {**filled(body, "And?"), "kveik": {"session": session, "continue": True}}
    assert one.post(path, after)["usage"]["kveik"]["evicted_tokens"] > 0
    one.send("DELETE", f"/v1/sessions/{session}")


def test_a_stream_that_is_gone_is_a_conflict(one: CacheServer) -> None:
    turn(one, "gone", fresh(), goes_on=False)
    one.send("DELETE", "/v1/sessions/gone")
    body = {
        "model": MODEL,
        "messages": user("more"),
        "kveik": {"session": "gone", "continue": True},
    }
    assert told(one.send("POST", CHAT, body), 409)["param"] == "kveik.continue"
    turn(one, "idle", fresh(), goes_on=False)
    one.clock.advance(1801)
    body["kveik"] = {"session": "idle", "continue": True}
    assert told(one.send("POST", CHAT, body), 409)["param"] == "kveik.continue"


@pytest.mark.parametrize("fields", [{"tags": ["news"]}, {"ttl": 60}])
def test_what_is_deleted_takes_its_stream_along(one: CacheServer, fields: dict[str, Any]) -> None:
    kveik = {"session": "doomed", **fields}
    one.usage(user(fresh()), kveik=kveik, stream_window=WINDOW)
    if "tags" in fields:
        one.post("/v1/cache/invalidate", {"tag": "news"})
    else:
        one.clock.advance(61)
    body = {
        "model": MODEL,
        "messages": user("more"),
        "kveik": {"session": "doomed", "continue": True},
    }
    assert one.send("POST", CHAT, body).status_code == 409


def test_over_the_budget_a_session_is_told_to_wait(tiny_folder: Callable[..., Path]) -> None:
    with cache_server(tiny_folder(), pin_share=0.05, kv_memory=2**20) as server:
        body = {"model": MODEL, "messages": user("Hi"), "max_tokens": 2, "stream_window": WINDOW}
        answers = [
            server.send("POST", CHAT, {**body, "kveik": {"session": f"s{n}"}}) for n in range(3)
        ]
        assert answers[0].status_code == 200
        error = told(answers[-1], 429)
        assert error["param"] == "stream_window"
        assert int(answers[-1].headers["retry-after"]) > 0
        server.post(CHAT, body)  # one that does not stay open is served
        server.send("DELETE", "/v1/sessions/s0")


# --- refusals


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream_window": {"sinks": 4}}, "stream_window"),
        ({"stream_window": {"sinks": -1, "window": 8}}, "stream_window"),
        ({"stream_window": {"window": 8, "evict": 9}}, "stream_window"),
        ({"stream_window": "many"}, "stream_window"),
        ({"stream_window": True}, "stream_window"),
        ({"kveik": {"stream_window": 5}}, "kveik.stream_window"),
        ({"kveik": {"stream_window": "4+8"}, "stream_window": "4+9"}, "stream_window"),
        ({"stream_window": "4+1000"}, "stream_window"),
        ({"stream_window": "4+60", "n": 2}, "n"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    one: CacheServer, fields: dict[str, Any], param: str
) -> None:
    body = {"model": MODEL, "messages": user("Hi"), "max_tokens": 2, **fields}
    assert told(one.send("POST", CHAT, body), 400)["param"] == param


def test_what_says_nothing_to_a_stream_that_goes_on_is_refused(one: CacheServer) -> None:
    turn(one, "mute", fresh(), goes_on=False)
    body = {
        "model": MODEL,
        "messages": user("more"),
        "kveik": {"session": "mute", "continue": True, "priority": "low"},
    }
    assert told(one.send("POST", CHAT, body), 400)["param"] == "kveik.priority"
    body["kveik"] = {"session": "mute", "continue": True, "stream_window": "4+61"}
    assert told(one.send("POST", CHAT, body), 400)["param"] == "stream_window"
    turn(one, "mute", "more", goes_on=True)  # refused requests leave the stream as it was
    one.send("DELETE", "/v1/sessions/mute")


def test_the_default_of_a_server(tiny_folder: Callable[..., Path]) -> None:
    with cache_server(tiny_folder(), stream_window="4+60", **SMALL) as server:
        assert server.usage(user(fresh(200)))["kveik"]["evicted_tokens"] > 0
        assert "evicted_tokens" not in server.usage(user("Hi"), stream_window=False)["kveik"]
        assert "evicted_tokens" not in server.usage(user("Hi"), n=2)["kveik"]
