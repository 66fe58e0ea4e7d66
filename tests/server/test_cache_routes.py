"""The cache's own routes: named caches, sessions, documents, invalidation, and who may do what."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cache_server import CacheServer, cache_server, fresh, user
from prometheus_client.parser import text_string_to_metric_families

from kveik.config import ServerConfig

ADA, BO, OPS = "ada-key", "bo-key", "ops-key"
COLD = 16


@pytest.fixture(scope="module")
def one(
    tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CacheServer]:
    """Two tenants and an operator; ada's key unless a test says otherwise."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    entries = [{"name": "ada", "key": ADA}, {"name": "bo", "key": BO}]
    path.write_text(json.dumps({"keys": [*entries, {"name": "ops", "key": OPS, "admin": True}]}))
    config = ServerConfig(port=0, keys_file=str(path))
    with cache_server(tiny_folder(), config, key=ADA) as server:
        yield server


def error(response: Any) -> tuple[int, str, str]:
    body = response.json()["error"]
    return response.status_code, body["code"], body["param"]


# --- named caches


def test_a_named_cache_from_its_making_to_its_end(one: CacheServer) -> None:
    text = fresh()
    made = one.post("/v1/caches", {"name": "faq", "prompt": text, "tags": ["tv"], "ttl": "1h"})
    assert (made["name"], made["status"], made["kind"]) == ("faq", "ready", "prompt")
    assert made["tokens"] > 100
    assert made["bytes"] > 0
    assert made["seconds"] is not None
    assert made["time_left"] == 3600
    one.clock.advance(60)
    assert one.cached("Hello", cached_content="faq") >= made["tokens"] - 1
    found = one.send("GET", "/v1/caches/faq").json()
    assert found["hits"] == 1
    assert [cache["name"] for cache in one.send("GET", "/v1/caches").json()["data"]] == ["faq"]
    receipt = one.send("DELETE", "/v1/caches/faq").json()
    assert set(receipt) == {"blocks", "tokens", "bytes", "deferred"}
    assert error(one.send("GET", "/v1/caches/faq"))[0] == 404


def test_the_same_content_renews_and_other_content_is_a_conflict(one: CacheServer) -> None:
    body = {"name": "same", "prompt": fresh(), "ttl": 100}
    one.post("/v1/caches", body)
    one.clock.advance(60)
    assert one.post("/v1/caches", body)["time_left"] == 100
    assert error(one.send("POST", "/v1/caches", {**body, "prompt": fresh()}))[0] == 409


def test_an_expired_cache_says_so(one: CacheServer) -> None:
    one.post("/v1/caches", {"name": "brief", "prompt": fresh(), "ttl": 60})
    one.clock.advance(61)
    for response in (
        one.send("GET", "/v1/caches/brief"),
        one.send("POST", "/v1/completions", completion(cached_content="brief")),
    ):
        assert error(response)[:2] == (404, "cache_expired")


def test_patch_changes_what_is_sent(one: CacheServer) -> None:
    one.post("/v1/caches", {"name": "patched", "prompt": fresh(), "ttl": 60, "tags": ["a"]})
    changed = one.send("PATCH", "/v1/caches/patched", {"ttl": "2h", "tags": ["b"]}).json()
    assert (changed["time_left"], changed["tags"], changed["pinned"]) == (7200, ["b"], False)
    assert one.send("PATCH", "/v1/caches/patched", {"pin": True}).json()["pinned"]
    kept = one.send("PATCH", "/v1/caches/patched", {"ttl": None}).json()
    assert (kept["time_left"], kept["pinned"], kept["tags"]) == (None, True, ["b"])
    for body, param in (({}, "ttl"), ({"clock": "last_use"}, "clock"), ({"name": "n"}, "name")):
        assert error(one.send("PATCH", "/v1/caches/patched", body))[::2] == (400, param)
    one.send("DELETE", "/v1/caches/patched")


def test_wait_false_answers_at_once(one: CacheServer) -> None:
    made = one.post("/v1/caches", {"name": "later", "tokens": list(range(5, 60)), "wait": False})
    assert made["status"] in ("computing", "ready")
    ready = one.post("/v1/caches", {"name": "later", "tokens": list(range(5, 60))})
    assert ready["status"] == "ready"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "a b c"}, "name"),
        ({"name": "n"}, "messages"),
        ({"name": "n", "prompt": "a", "tokens": [1]}, "messages"),
        ({"name": "n\n", "prompt": "a"}, "name"),
        ({"name": "n" * 129, "prompt": "a"}, "name"),
        ({"name": "n", "prompt": ""}, "prompt"),
        ({"name": "n", "tokens": [-1]}, "tokens"),
        ({"name": "n", "prompt": "a", "clock": "first_use"}, "clock"),
        ({"name": "n", "prompt": "a", "pin": 1}, "pin"),
        ({"name": "n", "prompt": "a", "session": "s"}, "session"),
    ],
)
def test_a_wrong_cache_names_its_field(one: CacheServer, body: Any, param: str) -> None:
    assert error(one.send("POST", "/v1/caches", body))[::2] == (400, param)


def test_only_the_operator_makes_public_caches(one: CacheServer) -> None:
    body = {"name": "shared", "prompt": fresh(), "public": True}
    assert error(one.send("POST", "/v1/caches", body))[:2] == (403, "permission_denied")
    made = one.send("POST", "/v1/caches", body, OPS).json()
    assert made["public"]
    for key in (ADA, BO):
        assert one.cached("Hi", key, cached_content="shared") >= made["tokens"] - 1
        assert error(one.send("DELETE", "/v1/caches/shared", key=key))[0] == 404
        seen = one.send("GET", "/v1/caches/shared", key=key).json()
        assert (seen["hits"], seen["last_use"]) == (None, None)  # they tell of other keys
    assert one.send("GET", "/v1/caches/shared", key=OPS).json()["hits"] == 2
    assert one.send("DELETE", "/v1/caches/shared?namespace=public", key=ADA).status_code == 403
    changed = one.send("PATCH", "/v1/caches/shared", {"tags": ["tv"]}, key=OPS)
    assert changed.json()["tags"] == ["tv"]
    assert error(one.send("PATCH", "/v1/caches/shared", {"tags": []}, key=ADA))[0] == 404
    assert one.send("DELETE", "/v1/caches/shared", key=OPS).status_code == 200
    assert one.send("POST", "/v1/caches", body, OPS).status_code == 200
    assert one.send("DELETE", "/v1/caches/shared?namespace=public", key=OPS).status_code == 200


# --- sessions, documents, invalidation


def test_sessions_are_listed_and_ended(one: CacheServer) -> None:
    text = fresh()
    one.cached(text, kveik={"session": "chat-1"})
    listed = {item["session"]: item for item in one.send("GET", "/v1/sessions").json()["data"]}
    assert listed["chat-1"]["tokens"] > 100
    assert one.send("DELETE", "/v1/sessions/chat-1").json()["tokens"] > 100
    assert one.send("DELETE", "/v1/sessions/chat-1").status_code == 404
    assert one.peek(text) < COLD


def test_a_new_version_drops_the_old_ones_only(one: CacheServer) -> None:
    old = user("Read ", {"text": fresh(), "document": "price-list@1"}, "Go.")
    other = user("Read ", {"text": fresh(), "document": "other@1"}, "Go.")
    one.cached(old)
    one.cached(other)
    assert one.post("/v1/documents/price-list", {"version": "2"})["tokens"] > 0
    assert one.peek(old) < 40
    assert one.peek(other) > 100
    assert error(one.send("POST", "/v1/documents/a@b", {"version": "2"}))[0] == 400
    assert error(one.send("POST", "/v1/documents/a", {}))[::2] == (400, "version")


def test_what_a_selector_names_goes(one: CacheServer) -> None:
    for selector, label in (
        ({"tag": "t1"}, {"tags": ["t1"]}),
        ({"session": "s1"}, {"session": "s1"}),
        ({"context": "c1"}, {"session": "s2", "context": "c1"}),
        ({"older_than": 50}, {}),
        ({"older_than": "50s"}, {}),
        ({"all": True}, {}),
    ):
        text = fresh()
        one.cached(text, kveik=label)
        one.clock.advance(60)
        receipt = one.post("/v1/cache/invalidate", selector)
        assert receipt["tokens"] + receipt["deferred"] > 0, selector
        assert one.peek(text) < COLD, selector


def test_a_prefix_is_selected_as_text_or_tokens(one: CacheServer) -> None:
    text = fresh()
    one.cached(text)
    ids = one.post("/tokenize", {"prompt": text})["tokens"]
    one.post("/v1/cache/invalidate", {"tokens": ids[:40]})
    assert one.peek(text) < 40
    one.cached(text)
    one.post("/v1/cache/invalidate", {"prefix": text})
    assert one.peek(text) < len(ids)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "tag"),
        ({"tag": "a b"}, "tag"),
        ({"all": False}, "all"),
        ({"all": True, "tag": "a"}, "all"),
        ({"version": "1"}, "version"),
        ({"document": "d", "version": "1", "not_version": "2"}, "not_version"),
        ({"document": "d@1"}, "document"),
        ({"prefix": "a", "tokens": [1]}, "tokens"),
        ({"older_than": -1}, "older_than"),
        ({"older_than": "soon"}, "older_than"),
        ({"model": "other", "all": True}, "model"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_selector_names_its_field(one: CacheServer, body: Any, param: str) -> None:
    status, _, named = error(one.send("POST", "/v1/cache/invalidate", body))
    assert status in (400, 404)
    assert named == param


def test_an_unknown_field_tells_which_there_are(one: CacheServer) -> None:
    answer = one.send("POST", "/v1/cache/invalidate", {"selector": {"tag": "news"}})
    assert error(answer)[::2] == (400, "selector")
    told = answer.json()["error"]["message"]
    assert told.startswith("selector: unknown field; known are all, model, name, tag, ")


# --- who may do what


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "Hi", "max_tokens": 1, **fields}


def test_not_there_and_not_yours_look_the_same(one: CacheServer) -> None:
    """The same status and body, byte for byte, whether another key has it or nobody."""
    one.post("/v1/caches", {"name": "secret", "prompt": fresh()}, BO)
    one.cached(fresh(), BO, kveik={"session": "secret", "tags": ["secret"]})
    calls = [
        ("GET", "/v1/caches/{}", None),
        ("DELETE", "/v1/caches/{}", None),
        ("PATCH", "/v1/caches/{}", {"ttl": 60}),
        ("DELETE", "/v1/sessions/{}", None),
        ("POST", "/v1/documents/{}", {"version": "1"}),
        ("POST", "/v1/cache/invalidate", {"tag": "{}"}),
        ("POST", "/v1/cache/invalidate", {"name": "{}"}),
        ("POST", "/v1/completions", completion(cached_content="{}")),
    ]
    for method, path, body in calls:
        answers = []
        for name in ("secret", "nobody"):
            sent = json.loads(json.dumps(body).replace("{}", name))
            response = one.send(method, path.replace("{}", name), sent)
            answers.append((response.status_code, response.text.replace(name, "NAME")))
        assert answers[0] == answers[1], (method, path)
    names = [cache["name"] for cache in one.send("GET", "/v1/caches").json()["data"]]
    assert "secret" not in names
    assert "secret" not in one.send("GET", "/v1/sessions").text
    assert "secret" not in one.send("GET", "/v1/cache").text


def test_an_operator_manages_others_by_name(one: CacheServer) -> None:
    text = fresh()
    one.cached(text, BO, kveik={"tags": ["bo-tag"]})
    for name in ("bo", "ada", "nobody"):  # a data key learns nothing from names
        denied = one.send("POST", f"/v1/cache/invalidate?namespace={name}", {"tag": "bo-tag"})
        assert error(denied)[:2] == (403, "permission_denied")
    unknown = one.send("GET", "/v1/caches?namespace=nobody", key=OPS)
    assert error(unknown)[::2] == (404, "namespace")
    assert "tag:bo-tag" in one.send("GET", "/v1/cache?namespace=bo", key=OPS).text
    one.post("/v1/cache/invalidate?namespace=bo", {"tag": "bo-tag"}, OPS)
    assert one.peek(text, BO) < COLD


def test_a_listing_of_all_has_sizes_and_no_labels(one: CacheServer) -> None:
    one.cached(fresh(), BO, kveik={"tags": ["bo-canary"], "session": "bo-canary"})
    assert error(one.send("GET", "/v1/cache?scope=all"))[:2] == (403, "permission_denied")
    listing = one.send("GET", "/v1/cache?scope=all&top=1000", key=OPS).json()["data"]
    assert {"ada", "bo"} <= {block["namespace"] for block in listing}
    assert "canary" not in json.dumps(listing)
    assert all("claims" not in block for block in listing)
    for query in ("scope=mine", "top=0", "top=many", "top=1001"):
        assert one.send("GET", f"/v1/cache?{query}", key=OPS).status_code == 400


def test_labels_are_in_no_log_and_no_metric(
    one: CacheServer, caplog: pytest.LogCaptureFixture
) -> None:
    words = {name: f"{name}-canary" for name in ("session", "context")}
    with caplog.at_level(logging.DEBUG, logger="kveik"):
        labelled = user({"text": fresh(), "document": "doc-canary@1"}, "Why?")
        native = {**words, "tags": ["tag-canary"]}
        one.cached(labelled, kveik=native, cache_salt="salt-canary", prompt_cache_key="key-canary")
        one.post("/v1/caches", {"name": "name-canary", "prompt": fresh(), "tags": ["tag-canary"]})
        one.send("GET", "/v1/caches/name-canary")
        one.send("POST", "/v1/documents/doc-canary", {"version": "version-canary"})
        one.send("POST", "/v1/cache/invalidate", {"tag": "tag-canary"})
        one.send("DELETE", "/v1/sessions/session-canary?namespace=tenant-canary")
        one.send("DELETE", "/v1/sessions/session-canary")
        metrics = one.send("GET", "/metrics", key=OPS).text
    logged = [record.getMessage() for record in caplog.records if record.name.startswith("kveik")]
    assert any("/v1/caches/{name:path}" in line for line in logged)
    assert not [line for line in logged if "canary" in line]
    assert "canary" not in metrics
    assert not {"ada", "bo"} & set(metrics.replace('"', " ").split())


# --- figures


def figures(one: CacheServer) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(one.send("GET", "/metrics", key=OPS).text):
        for sample in family.samples:
            labels = [f"{k}={v}" for k, v in sorted(sample.labels.items()) if k != "model_name"]
            found["|".join([sample.name, *labels])] = sample.value
    return found


def test_figures_follow_what_happens(one: CacheServer) -> None:
    before = figures(one)
    text = fresh()
    one.cached(text, kveik={"session": "figures", "ttl": 30})
    one.clock.advance(20)
    one.cached(text, kveik={"session": "figures", "ttl": 30})
    made = one.post("/v1/caches", {"name": "figures", "prompt": fresh(30), "pin": True})
    during = figures(one)
    one.clock.advance(31)
    assert one.peek(text) < COLD
    after = figures(one)

    def moved(name: str, late: dict[str, float] = after) -> float:
        return late[name] - before[name]

    assert moved("kveik:sessions", during) == 1
    assert moved("kveik:named_caches", during) == 1
    assert moved("kveik:kv_bytes|kind=pinned", during) >= made["bytes"] > 0
    assert during["kveik:kv_bytes|kind=logical"] > 0
    assert moved("kveik:reuse_gap_seconds_sum") >= 20
    assert moved("kveik:misses_total|reason=expired") == 1
    assert moved("kveik:evictions_total|reason=expired") > 0
    assert moved("kveik:erased_blocks_total") > 0
    assert moved("kveik:level_hit_tokens_total|level=states|tier=memory") > 100
    assert moved("kveik:stored_tokens_total") > 100
    assert "kveik:evicted_block_age_seconds_count" in after
    one.send("DELETE", "/v1/caches/figures")
