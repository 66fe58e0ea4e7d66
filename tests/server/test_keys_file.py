"""Tenants in a keys file: what is read, what is refused, and reloading while requests run."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cache_server import cache_server, fresh
from server_harness import MODEL, Brake, RunningServer, running, until

from kveik.config import ServerConfig
from kveik.engine.engine import Engine
from kveik.errors import ConfigError
from kveik.server.auth import KeyRing
from kveik.server.keys_file import Tenant, read_keys_file, tenant_namespace
from kveik.server.run import refuse_open_door

ADA, ADA_NEW, BO, ADMIN = "ada-key-canary", "ada-new-canary", "bo-key-canary", "admin-key-canary"
ENTRIES: list[dict[str, Any]] = [
    {"name": "ada", "key": ADA, "reserved": "64KiB", "maximum": 4_000_000},
    {"name": "bo", "key": BO},
    {"name": "ops", "key": ADMIN, "admin": True},
]
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Tell me " * 8}], "max_tokens": 2}


def write(path: Path, entries: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps({"keys": entries}))
    return path


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def tenants(server_engine: Engine, tmp_path: Path) -> Iterator[tuple[RunningServer, Path]]:
    path = write(tmp_path / "keys.json", ENTRIES)
    with running(server_engine, ServerConfig(port=0, keys_file=str(path))) as one:
        yield one, path


def test_json_and_toml_say_the_same(tmp_path: Path) -> None:
    toml = tmp_path / "keys.toml"
    toml.write_text(
        f'[[keys]]\nname = "ada"\nkey = "{ADA}"\nreserved = "64KiB"\nmaximum = 4000000\n'
        f'[[keys]]\nname = "bo"\nkey = "{BO}"\n'
        f'[[keys]]\nname = "ops"\nkey = "{ADMIN}"\nadmin = true\n'
    )
    assert read_keys_file(toml) == read_keys_file(write(tmp_path / "keys.json", ENTRIES))
    assert read_keys_file(toml)[0] == Tenant("ada", ADA, False, 2**16, 4_000_000)


@pytest.mark.parametrize(
    ("entries", "wanted"),
    [
        ([], "1 .. "),
        ([{"name": "a"}], "keys[0]: key"),
        ([{"key": "k"}], "keys[0]: name"),
        ([{"name": "a b", "key": "k"}], "keys[0]: name"),
        ([{"name": "a", "key": ""}], "keys[0]: key"),
        ([{"name": "a", "key": " k"}], "keys[0]: key"),
        ([{"name": "a", "key": "k"}, {"name": "b", "key": "k"}], "keys[1]: key"),
        ([{"name": "a", "key": "k", "admin": 1}], "keys[0]: admin"),
        ([{"name": "a", "key": "k", "reserved": "much"}], "keys[0]: reserved"),
        ([{"name": "a", "key": "k", "reserved": 9, "maximum": 8}], "keys[0]: reserved"),
        ([{"name": "a", "key": "k", "maximum": True}], "keys[0]: maximum"),
        ([{"name": "a", "key": "k", "quota": 8}], "quota"),
        ([{"name": "a", "key": "k"}, {"name": "a", "key": "l", "maximum": 8}], "keys[1]"),
        (["a"], "keys[0]"),
    ],
)
def test_a_wrong_file_names_its_entry(tmp_path: Path, entries: list[Any], wanted: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_keys_file(write(tmp_path / "keys.json", entries))
    assert wanted in error.value.message
    assert "keys.json" in error.value.message


@pytest.mark.parametrize("text", ["", "{", '{"keys": {}}', '{"keys": [], "more": 1}', "[]"])
def test_what_is_no_keys_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_keys_file(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys_file(tmp_path / "missing.json")


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="give it once"):
        KeyRing((ADA,), (), (Tenant("ada", ADA),))


def test_a_keys_file_closes_the_door() -> None:
    refuse_open_door(ServerConfig(host="0.0.0.0", keys_file="keys.json"))
    with pytest.raises(ConfigError):
        refuse_open_door(ServerConfig(host="0.0.0.0"))


def test_a_rotated_key_keeps_its_cache(tenants: tuple[RunningServer, Path]) -> None:
    server, path = tenants

    def cached(key: str) -> int:
        answer = http.post("/v1/chat/completions", json=CHAT, headers=bearer(key)).json()
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    with server.http() as http:
        http.post("/reset_prefix_cache?scope=all", headers=bearer(ADMIN))
        assert cached(ADA) == 0
        assert cached(BO) == 0
        write(path, [{**ENTRIES[0], "key": ADA_NEW}, *ENTRIES[1:]])
        server.loop.call_soon_threadsafe(server.service.reload_keys)
        until(lambda: len(server.service.tenants) == 3 and server.service.tenants[0].key == ADA_NEW)
        assert http.get("/v1/models", headers=bearer(ADA)).status_code == 401
        assert cached(ADA_NEW) > 16


def test_a_broken_file_keeps_the_old_keys(
    tenants: tuple[RunningServer, Path], caplog: pytest.LogCaptureFixture
) -> None:
    server, path = tenants
    path.write_text('{"keys": [{"name": "ada", "key": "other-canary", "reserved": "?"}]}')
    with caplog.at_level(logging.INFO, logger="kveik.server"):
        server.service.reload_keys()
    with server.http() as http:
        assert http.get("/v1/models", headers=bearer(ADA)).status_code == 200
    lines = [record.message for record in caplog.records if record.name == "kveik.server"]
    assert len(lines) == 1
    assert "keys[0]: reserved" in lines[0]
    assert "canary" not in caplog.text


def test_a_request_outlives_its_key(tenants: tuple[RunningServer, Path]) -> None:
    server, path = tenants
    body = {**CHAT, "max_tokens": 6, "ignore_eos": True, "stream": True}
    with (
        Brake(server.engine) as brake,
        server.http() as http,
        http.stream("POST", "/v1/chat/completions", json=body, headers=bearer(ADA)) as answer,
    ):
        brake.step(3)
        write(path, ENTRIES[1:])
        server.service.reload_keys()
        brake.release()
        text = "".join(answer.iter_text())
    assert text.endswith("data: [DONE]\n\n")
    with server.http() as http:
        assert http.get("/v1/models", headers=bearer(ADA)).status_code == 401


def test_a_namespace_follows_from_the_name_and_does_not_show_it() -> None:
    ring = KeyRing((), (), (Tenant("ada-canary", ADA), Tenant("bo", BO)))
    caller = ring.caller([(b"x-api-key", ADA.encode())])
    assert caller.namespace == tenant_namespace("ada-canary") == ring.namespace_of("ada-canary")
    assert "canary" not in caller.namespace
    assert ring.name_of(caller.namespace) == "ada-canary"
    assert not caller.operator


def test_shares_are_set_at_the_start_and_again(
    tenants: tuple[RunningServer, Path], caplog: pytest.LogCaptureFixture
) -> None:
    server, path = tenants

    def reserved(name: str) -> int:
        return server.engine.cache_usage(tenant_namespace(name))[2]

    assert reserved("ada") >= 2**16
    assert reserved("bo") == 0
    write(path, [ENTRIES[0], {**ENTRIES[1], "reserved": "128KiB"}, ENTRIES[2]])
    server.service.reload_keys()
    assert reserved("bo") >= 2**17
    write(path, [{"name": "cy", "key": "cy-key", "reserved": "1TiB"}])  # more than the pool
    with caplog.at_level(logging.ERROR, logger="kveik.server"):
        server.service.reload_keys()
    assert "the keys stay as they were" in caplog.text
    assert reserved("bo") >= 2**17
    with server.http() as http:
        assert http.get("/v1/models", headers=bearer(ADA)).status_code == 200


def test_reserved_and_maximum_decide_who_is_evicted(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """A tenant that floods: its maximum drops its own blocks, a reserve keeps the other's."""
    for shares, stays in (({"reserved": "96KiB"}, True), ({}, False)):
        entries = [{**ENTRIES[1], **shares}, {"name": "ops", "key": ADMIN, "admin": True}]
        path = write(tmp_path / "shares.json", [*entries, {"name": "flood", "key": ADA}])
        config = ServerConfig(port=0, keys_file=str(path))
        with cache_server(tiny_folder(), config, kv_memory=2**18) as small:
            kept = fresh(20)
            small.cached(kept, BO)
            for _ in range(12):
                small.cached(fresh(20), ADA)
            assert (small.peek(kept, BO) > 16) is stays
    path = write(tmp_path / "shares.json", [{**ENTRIES[1], "maximum": "16KiB"}, *entries[1:]])
    with cache_server(tiny_folder(), ServerConfig(port=0, keys_file=str(path))) as roomy:
        text = fresh(60)
        roomy.cached(text, BO)
        size = roomy.usage(text, BO)["prompt_tokens"]
        assert roomy.peek(text, BO) < size // 2
