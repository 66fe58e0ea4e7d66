"""The routes behind the dashboard: the stream of changes, the tree, one request; who sees what."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cache_server import TEXT, CacheServer, cache_server, fresh, user
from server_harness import MODEL, RunningServer, until

from kveik.config import LIMITS, ServerConfig
from kveik.engine.engine import Engine
from kveik.server import watch_stream

ADMIN, ANNA, BORIS = "admin-key", "anna-key", "boris-key"


@pytest.fixture(scope="module")
def plain(tiny_folder: Callable[..., Path]) -> Iterator[CacheServer]:
    with cache_server(tiny_folder()) as one:
        yield one


@pytest.fixture(scope="module")
def shared(tiny_folder: Callable[..., Path], tmp_path_factory: Any) -> Iterator[CacheServer]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    entries = [
        {"name": "operator", "key": ADMIN, "admin": True},
        {"name": "anna", "key": ANNA},
        {"name": "boris", "key": BORIS},
    ]
    path.write_text(json.dumps({"keys": entries}))
    with cache_server(tiny_folder(), ServerConfig(port=0, keys_file=str(path)), ANNA) as one:
        yield one


class Events:
    """What a stream of changes tells, put together."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.iter_lines()
        self.told: list[tuple[str, Any]] = []
        self.owners: dict[str, str] = {}
        self.kinds: dict[int, int] = {}
        self.holders: dict[int, int] = {}
        self.requests: list[Any] = []

    def next(self) -> tuple[str, Any]:
        name = ""
        for line in self._lines:
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
                self._take(name, data)
                return name, data
        raise AssertionError("the stream ended")

    def until(self, condition: Callable[[], bool], most: int = 400) -> None:
        for _ in range(most):
            if condition():
                return
            self.next()
        raise AssertionError("it was not told")

    def _take(self, name: str, data: Any) -> None:
        self.told.append((name, data))
        if name == "blocks":
            self.owners.update(data["owners"])
            for index, place in enumerate(data["at"]):
                self.kinds[place] = data["kind"][index]
                self.holders[place] = data["owner"][index]
        if name == "requests":
            self.requests += data["requests"]

    def owned(self) -> dict[str, int]:
        """Blocks by the name of their owner."""
        counts: dict[str, int] = {}
        for place, kind in self.kinds.items():
            if kind > 1:
                name = self.owners[str(self.holders[place])]
                counts[name] = counts.get(name, 0) + 1
        return counts

    def first(self, name: str) -> Any:
        self.until(lambda: any(event == name for event, _ in self.told))
        return next(data for event, data in self.told if event == name)


@contextlib.contextmanager
def watching(
    server: CacheServer, query: str = "", key: str | None = None, rate: str = "rate=50"
) -> Iterator[Events]:
    key = key or server.key
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    with (
        server.server.http() as http,
        http.stream("GET", f"/v1/cache/watch?{rate}{query}", headers=headers) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Events(response)


def get(server: CacheServer, path: str, key: str | None = None) -> Any:
    response = server.send("GET", path, key=key)
    assert response.status_code == 200, response.text
    return response.json()


def rows(server: CacheServer, key: str | None = None, query: str = "") -> list[Any]:
    return list(get(server, f"/v1/cache/tree?rows=200{query}", key)["rows"])


def row_with(server: CacheServer, text: str, key: str | None = None, query: str = "") -> Any:
    return next(row for row in rows(server, key, query) if text in row["text"])


# --- the stream


def test_the_first_events_tell_everything(plain: CacheServer) -> None:
    text = fresh()
    plain.usage(text)
    with watching(plain) as events:
        about = events.first("about")
        assert (about["model"], about["scope"], about["operator"]) == (MODEL, "own", True)
        assert about["pool_blocks"] == plain.server.engine.info.pool_blocks[0]
        blocks = events.first("blocks")
        assert blocks["size"] == about["pool_blocks"]
        assert len({len(blocks[name]) for name in ("at", "kind", "owner", "created", "used")}) == 1
        assert events.owned()["plain"] >= plain.peek(text) // 16
        now = events.first("now")
        assert now["today"]["prompt_tokens"] > 0
        assert now["now"]["total_bytes"] == about["pool_blocks"] * about["block_bytes"]
        assert len(events.first("history")["series"]["cached_tokens"]) >= 1
        curve = events.first("curve")
        assert curve["now"] == about["pool_blocks"]
        assert events.first("lists") == {"caches": [], "sessions": [], "streams": []}
        assert [name for name, _ in events.told].count("about") == 1


def test_changes_come_as_they_happen(plain: CacheServer) -> None:
    plain.usage(fresh())
    with watching(plain) as events:
        events.first("blocks")
        before = events.owned().get("session:talk", 0)
        assert before == 0
        plain.usage(user(fresh()), kveik={"session": "talk"})
        events.until(lambda: events.owned().get("session:talk", 0) > 0)
        events.until(lambda: bool(events.requests))
        assert events.requests[-1]["outcome"] == "finished"
        told = sum(len(data["at"]) for name, data in events.told[6:] if name == "blocks")
        assert 0 < told < 100  # only what changed
        plain.send("DELETE", "/v1/sessions/talk")
        events.until(lambda: events.owned().get("session:talk", 0) == 0)


def test_named_caches_sessions_and_streams_are_listed(plain: CacheServer) -> None:
    plain.post("/v1/caches", {"name": "listed", "prompt": fresh(), "ttl": "1h"})
    body = {"session": "log", "stream_window": "4+60"}
    plain.usage(user(fresh()), kveik=body, max_tokens=4)
    with watching(plain) as events:
        lists = events.first("lists")
    (cache,) = (one for one in lists["caches"] if one["name"] == "listed")
    assert cache["time_left"] == 3600.0
    assert "log" in [one["session"] for one in lists["sessions"]]
    (stream,) = (one for one in lists["streams"] if one["session"] == "log")
    assert (stream["sinks"], stream["window"], stream["running"]) == (4, 60, False)
    assert 0 < stream["tokens"] <= 64
    assert stream["evicted"] > 0
    plain.send("DELETE", "/v1/sessions/log")
    plain.send("DELETE", "/v1/caches/listed")


def test_a_client_that_leaves_is_no_onlooker_any_more(plain: CacheServer) -> None:
    service = plain.server.service
    with watching(plain) as events:
        events.first("now")
        assert service.watchers == 1
        assert plain.server.engine.partings.is_watched("")
    until(lambda: service.watchers == 0)
    assert not plain.server.engine.partings.is_watched("")


def test_the_number_of_dashboards_is_bounded(plain: CacheServer) -> None:
    most = int(LIMITS["dashboards"].high)
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(watching(plain)) for _ in range(most)]
        for one in opened:
            one.first("about")
        refused = plain.send("GET", "/v1/cache/watch")
        assert refused.status_code == 429
        assert refused.headers["retry-after"]
    until(lambda: plain.server.service.watchers == 0)
    with watching(plain) as events:
        events.first("about")


@pytest.mark.parametrize("query", ["rate=0", "rate=51", "rate=x", "rate=nan", "scope=every"])
def test_a_wrong_query_is_refused_by_name(plain: CacheServer, query: str) -> None:
    refused = plain.send("GET", f"/v1/cache/watch?{query}")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == query.split("=")[0]


def test_updates_that_are_dear_become_rare(
    plain: CacheServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bytes] = []
    frames = watch_stream.View.frames

    def counted(view: watch_stream.View) -> bytes:
        made.append(frames(view))
        return made[-1]

    monkeypatch.setattr(watch_stream.View, "frames", counted)
    monkeypatch.setattr(watch_stream, "SHARE", 1e-9)
    monkeypatch.setattr(watch_stream, "RATE", 200.0)
    with watching(plain, rate="") as events:
        events.first("history")
        until(lambda: len(made) == 2)  # the whole pool, told first, costs no pause
        for _ in range(5):
            plain.usage(fresh(10))
        assert len(made) == 2
    with watching(plain) as events:  # who asks for a rate has it
        until(lambda: len(made) > 5)
        assert events.first("about")


def test_a_server_that_stops_ends_the_stream(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_stream, "RATE", 1e-6)  # and waits for no update
    with cache_server(tiny_folder()) as server, watching(server, rate="") as events:
        events.first("now")
        server.server.stop()
        with pytest.raises(AssertionError, match="the stream ended"):
            events.until(lambda: False, 10_000)


# --- the tree


def test_the_tree_opens_level_by_level(plain: CacheServer) -> None:
    trunk = fresh(40)
    for end in (" left", " right"):
        plain.usage(trunk + end * 20)
    top = row_with(plain, trunk[:40])
    assert top["children"] == 2
    assert top["start"] == 0
    assert top["bytes"] == top["blocks"] * sum(plain.server.engine.info.block_bytes)
    below = get(plain, f"/v1/cache/tree?node={top['node']}")
    assert below["count"] == 2
    assert sorted(row["text"].split()[-1] for row in below["rows"]) == ["left", "right"]
    for row in below["rows"]:
        assert row["start"] == top["tokens"]
        assert row["children"] == 0
    assert top["blocks_below"] == sum(row["blocks"] for row in below["rows"])


def test_a_place_keeps_its_name_while_it_is_there(plain: CacheServer) -> None:
    text = fresh()
    plain.usage(text)
    assert row_with(plain, text[:30])["node"] == row_with(plain, text[:30])["node"]


def act(server: CacheServer, node: str, action: str, key: str | None = None) -> Any:
    return server.send("POST", "/v1/cache/tree", {"node": node, "action": action}, key)


def test_expire_deletes_the_row_and_everything_below(plain: CacheServer) -> None:
    trunk = fresh(40)
    plain.usage(trunk + " left" * 20)
    plain.usage(trunk + " right" * 20)
    erased = plain.server.engine.stats().cache.erased_blocks
    top = row_with(plain, trunk[:40])
    receipt = act(plain, top["node"], "expire").json()
    assert receipt["blocks"] == top["blocks"] + top["blocks_below"]
    assert plain.peek(trunk) < 16
    until(lambda: plain.server.engine.stats().cache.erased_blocks > erased)
    assert act(plain, top["node"], "expire").status_code == 404
    assert act(plain, "0123456789abcdef", "pin").status_code == 404


def test_evict_makes_room_and_pin_keeps(plain: CacheServer) -> None:
    text = fresh(60)
    plain.usage(text)
    row = row_with(plain, text[:30])
    assert act(plain, row["node"], "pin").json()["blocks"] == row["blocks"]
    row = row_with(plain, text[:30])
    assert (row["pinned"], row["pinned_by_hand"]) == (True, True)
    assert act(plain, row["node"], "evict").json()["blocks"] == 0
    assert plain.peek(text) > 1
    assert act(plain, row["node"], "unpin").status_code == 200
    row = row_with(plain, text[:30])
    assert not row["pinned"]
    assert act(plain, row["node"], "evict").json()["blocks"] == row["blocks"]
    assert plain.peek(text) < 16
    plain.server.engine.check()


def test_a_pin_beyond_the_budget_is_refused(tiny_folder: Callable[..., Path]) -> None:
    with cache_server(tiny_folder(), pin_share=0.0) as server:
        text = fresh()
        server.usage(text)
        refused = act(server, row_with(server, text[:20])["node"], "pin")
        assert refused.status_code == 409, refused.text


def test_a_hostile_prompt_is_told_as_it_is(plain: CacheServer) -> None:
    hostile = '<script>alert("x")</script><img src=x onerror=alert(1)> \u2028 </ul> ' + fresh(20)
    plain.usage(hostile)
    assert hostile[:40] in row_with(plain, "<script>")["text"]


# --- one request


def test_a_request_is_explained_in_words_while_somebody_watches(plain: CacheServer) -> None:
    text = fresh(60)
    plain.usage(text + " The bridge is closed.")
    plain.usage(text + " The harbour is open.")  # nobody watches
    silent = get(plain, "/v1/cache/requests")["data"][0]["number"]
    with watching(plain) as events:
        events.first("now")
        plain.clock.advance(1.0)
        plain.usage(text + " The castle burns.")
        events.until(lambda: bool(events.requests) and events.requests[-1]["number"] > silent)
        number = events.requests[-1]["number"]
        told = get(plain, f"/v1/cache/requests/{number}")
        assert told["in_words"] is True
        assert "castle" in told["explanation"]["wanted"]["text"]
        assert told["explanation"]["prompt_tokens"] == told["prompt_tokens"]
        assert told["explanation"]["hit_tokens"]["by_level"]["states"] == told["cached_tokens"]
        before = get(plain, f"/v1/cache/requests/{silent}")
        assert before["in_words"] is False
        assert before["explanation"]["reason"] == told["explanation"]["reason"] == "diverged"
        plain.post("/v1/cache/invalidate", {"tag": "whatever"})  # forgets texts of the namespace
        assert get(plain, f"/v1/cache/requests/{number}")["in_words"] is False
    assert plain.send("GET", "/v1/cache/requests/999999").status_code == 404
    assert plain.send("GET", "/v1/cache/requests/x").status_code == 400


def test_who_did_not_ask_is_not_told_because_somebody_watches(plain: CacheServer) -> None:
    text = fresh(60)
    with watching(plain) as events:
        events.first("now")
        plain.usage(text + " one")
        plain.clock.advance(1.0)
        assert "explanation" not in plain.usage(text + " two")["kveik"]
        asked = plain.usage(text + " three", kveik={"explain": True})["kveik"]
        assert asked["explanation"]["reason"] == "diverged"


# --- who sees what


def test_a_tenant_sees_its_own_namespace_only(shared: CacheServer) -> None:
    mine, theirs = fresh(30), fresh(50)
    shared.usage(mine, ANNA)
    shared.usage(user(theirs), BORIS, kveik={"session": "secret"})
    with watching(shared, key=ANNA) as events:
        about = events.first("about")
        assert (about["operator"], about["tenants"], about["pool_blocks"]) == (False, [], None)
        blocks = events.first("blocks")
        own = len([kind for kind in events.kinds.values() if kind])
        assert blocks["size"] == own == shared.peek(mine, ANNA) // 16 + 1
        assert set(events.owned()) == {"plain"}
        assert events.first("now")["now"] is None
        events.first("history")
        shared.usage(fresh(50), BORIS)
        seen = len(events.told)
        events.until(lambda: len(events.told) > seen + 2)
        assert len([kind for kind in events.kinds.values() if kind]) == own
        assert "curve" not in [name for name, _ in events.told]
        everything = json.dumps(events.told)
        assert "secret" not in everything
        assert "boris" not in everything
    assert [row["text"] for row in rows(shared, ANNA) if theirs[:20] in row["text"]] == []
    hidden = row_with(shared, theirs[:20], BORIS)
    for action in ("pin", "evict", "expire"):
        assert act(shared, hidden["node"], action, ANNA).status_code == 404
    assert shared.send("GET", f"/v1/cache/tree?node={hidden['node']}", key=ANNA).status_code == 404
    ids = {one["id"] for one in get(shared, "/v1/cache/requests", BORIS)["data"]}
    for one in get(shared, "/v1/cache/requests", ANNA)["data"]:
        assert get(shared, f"/v1/cache/requests/{one['number']}", ANNA)["id"] not in ids


@pytest.mark.parametrize("query", ["scope=all", "namespace=boris"])
def test_others_are_for_operators(shared: CacheServer, query: str) -> None:
    for path in ("/v1/cache/watch", "/v1/cache/tree", "/v1/cache/requests/1"):
        if path != "/v1/cache/watch" and query == "scope=all":
            continue
        assert shared.send("GET", f"{path}?{query}", key=ANNA).status_code == 403
    body = {"node": "x", "action": "pin"}
    assert shared.send("POST", f"/v1/cache/tree?{query}", body, ANNA).status_code in (403, 404)


def test_an_operator_sees_everybody_without_words_and_one_tenant_with_them(
    shared: CacheServer,
) -> None:
    text = fresh(60)
    shared.usage(user(text), BORIS, kveik={"session": "talk", "tags": ["label"]})
    with watching(shared, "&scope=all", ADMIN) as events:
        about = events.first("about")
        assert about["tenants"] == ["anna", "boris", "operator"]
        events.first("blocks")
        assert events.owned()["boris"] > 0
        events.first("requests")
        assert "boris" in {one["namespace"] for one in events.requests}
        assert events.first("lists")["sessions"] == []
        told = json.dumps(events.told)
        assert "talk" not in told
        assert "label" not in told
    with watching(shared, "&namespace=boris", ADMIN) as events:
        events.first("blocks")
        assert events.owned()["session:talk"] > 0
        assert "talk" in [one["session"] for one in events.first("lists")["sessions"]]
        assert events.first("now")["now"]["total_bytes"] > 0
    assert row_with(shared, text[:20], ADMIN, "&namespace=boris")["claims"] == [
        "session:talk",
        "tag:label",
    ]


def test_looking_on_does_not_disturb_what_runs(plain: CacheServer) -> None:
    """Answers are the same, and every book adds up, with dashboards and deeds at the same time."""
    engine: Engine = plain.server.engine
    prompts = [fresh(40) for _ in range(6)]
    body = {"model": MODEL, "max_tokens": 12, "temperature": 0}
    alone = [plain.post(TEXT, {**body, "prompt": one})["choices"][0]["text"] for one in prompts]
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            for row in rows(plain)[:4]:
                act(plain, row["node"], "evict")

    with watching(plain) as events:
        other = threading.Thread(target=disturb)
        other.start()
        try:
            for _ in range(3):
                for one, text in zip(prompts, alone, strict=True):
                    got = plain.post(TEXT, {**body, "prompt": one})["choices"][0]["text"]
                    assert got == text
                    events.next()
        finally:
            stop.set()
            other.join()
    engine.check()


def test_a_page_of_another_origin_may_not_watch(server: RunningServer) -> None:
    with server.http() as http:
        headers = {"origin": "https://evil.example"}
        assert http.get("/v1/cache/watch", headers=headers).status_code == 403
