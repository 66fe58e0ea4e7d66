"""What the cache did lately: history, requests and curve, and who may see what of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cache_server import CacheServer, cache_server, fresh

from kveik.config import ServerConfig
from kveik.engine.explain import CAUSES

ADA, BO, OPS = "ada-key", "bo-key", "ops-key"


@pytest.fixture
def one(tiny_folder: Callable[..., Path], tmp_path: Path) -> Iterator[CacheServer]:
    """Two tenants and an operator; ada's key unless a test says otherwise."""
    path = tmp_path / "keys.json"
    entries = [{"name": "ada", "key": ADA}, {"name": "bo", "key": BO}]
    path.write_text(json.dumps({"keys": [*entries, {"name": "ops", "key": OPS, "admin": True}]}))
    with cache_server(tiny_folder(), ServerConfig(port=0, keys_file=str(path)), key=ADA) as server:
        yield server


def get(server: CacheServer, path: str, key: str = ADA) -> Any:
    response = server.send("GET", path, key=key)
    assert response.status_code == 200, response.text
    return response.json()


def test_today_the_series_and_the_requests_say_what_usage_said(one: CacheServer) -> None:
    text = fresh()
    usages = [one.usage(text), one.usage(text), one.usage(text + " and more"), one.usage("Hi")]
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    assert cached[0] == 0 < cached[1] == usages[0]["prompt_tokens"] - 1
    history = get(one, "/v1/cache/history")
    expected = {
        "requests": 4,
        "hit_requests": sum(tokens > 0 for tokens in cached),
        "prompt_tokens": sum(usage["prompt_tokens"] for usage in usages),
        "cached_tokens": sum(cached),
        "approximate_tokens": 0,
        "generated_tokens": 4,
    }
    saved = sum(usage["kveik"]["seconds_saved"] for usage in usages)
    for name, value in expected.items():
        assert history["today"][name] == value, name
        assert sum(history["series"][name]) == value, name
    assert history["today"]["seconds_saved"] == pytest.approx(saved, abs=1e-4)
    assert history["today"]["share"] == pytest.approx(sum(cached) / expected["prompt_tokens"])
    assert history["now"] is None
    assert "used_bytes" not in history["series"]

    data = get(one, "/v1/cache/requests")["data"]
    assert [row["number"] for row in data] == [4, 3, 2, 1]
    for row, usage, tokens in zip(reversed(data), usages, cached, strict=True):
        assert row["prompt_tokens"] == usage["prompt_tokens"]
        assert row["cached_tokens"] == tokens
        assert row["computed_tokens"] == usage["prompt_tokens"] - tokens
        assert (row["generated_tokens"], row["outcome"]) == (1, "finished")
    assert data[3]["explanation"] == {
        "position": 0,
        "reason": "new",
        "cause": "new_content",
        "advice": CAUSES["new_content"],
    }
    assert data[2]["explanation"]["cause"] == "complete"
    assert data[1]["explanation"]["position"] == cached[2]
    assert [row["number"] for row in get(one, "/v1/cache/requests?top=2")["data"]] == [4, 3]
    assert len(get(one, "/v1/cache/history?steps=1")["series"]["requests"]) == 1


def test_a_key_sees_its_own_and_an_operator_everything(one: CacheServer) -> None:
    one.usage(fresh())
    one.usage(fresh(), key=BO)
    for key in (ADA, BO):
        assert get(one, "/v1/cache/history", key)["today"]["requests"] == 1
        (row,) = get(one, "/v1/cache/requests", key)["data"]
        assert "namespace" not in row
    assert get(one, "/v1/cache/history", OPS)["today"]["requests"] == 0
    assert get(one, "/v1/cache/requests", OPS)["data"] == []
    everything = get(one, "/v1/cache/history?scope=all", OPS)
    assert everything["today"]["requests"] == 2
    assert everything["now"]["running"] == 0
    pool = everything["now"]["cached_bytes"]
    assert 0 < pool == everything["series"]["cached_bytes"][-1] < everything["now"]["total_bytes"]
    data = get(one, "/v1/cache/requests?scope=all", OPS)["data"]
    assert [row["namespace"] for row in data] == ["bo", "ada"]
    of_bo = get(one, "/v1/cache/requests?namespace=bo", OPS)["data"]
    assert [row["number"] for row in of_bo] == [1]  # which tells nobody of others
    for path in ("history?scope=all", "requests?scope=all", "history?namespace=bo", "curve"):
        assert one.send("GET", f"/v1/cache/{path}", key=ADA).status_code == 403, path
    for path in ("history?scope=mine", "history?steps=0", "requests?top=x"):
        assert one.send("GET", f"/v1/cache/{path}", key=OPS).status_code == 400, path


def test_the_curve_has_this_pool_and_what_it_really_served(one: CacheServer) -> None:
    text = fresh()
    first, second = one.usage(text), one.usage(text)
    curve = get(one, "/v1/cache/curve", OPS)
    assert curve["sizes"] == sorted(set(curve["sizes"]))
    assert len(curve["sizes"]) == len(curve["hit_rates"])
    assert curve["now"] in curve["sizes"]
    assert curve["tokens"] == first["prompt_tokens"] + second["prompt_tokens"]
    assert curve["share"] == 1
    served = second["prompt_tokens_details"]["cached_tokens"] / curve["tokens"]
    assert curve["served"] == pytest.approx(served)
    assert curve["half"] == curve["this"] == curve["twice"] == pytest.approx(served)
