"""/ready answers at once; /ready?warm=1 when what the manifest names is computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from server_harness import MODEL, Brake, running, tiny_engine, until

from kveik.config import ServerConfig
from kveik.engine.manifest import read_manifest
from kveik.errors import ConfigError
from kveik.server.auth import KeyRing
from kveik.server.keys_file import Tenant, tenant_namespace
from kveik.server.run import read_warm_manifest
from kveik.server.service import Service

PROMPT = "What's the weather today? " * 6


def manifest_file(folder: Path, *entries: dict[str, object]) -> Path:
    path = folder / "warm.json"
    path.write_text(json.dumps({"entries": entries}))
    return path


def test_ready_is_immediate_and_warm_when_done(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    path = manifest_file(tmp_path, {"prompt": PROMPT}, {"name": "timer", "prompt": "Set a timer"})
    engine = tiny_engine(tiny_folder())
    with running(engine, ServerConfig(port=0, warm=str(path))) as server, server.http() as http:
        assert http.get("/ready?warm=1").status_code == 200  # nothing was to be warmed
        with Brake(engine) as brake:
            manifest = read_manifest(path)
            server.loop.call_soon_threadsafe(server.service.start_warming, manifest)
            until(lambda: server.service.warm is not None)
            assert http.get("/ready").status_code == 200
            warming = http.get("/ready?warm=1")
            assert warming.status_code == 503
            assert warming.headers["retry-after"] == "1"
            assert warming.json()["warm"]["total"] == 2
            assert not warming.json()["warm"]["finished"]
            assert "weather" not in warming.text
            assert "timer" not in warming.text
            brake.release()
        until(lambda: http.get("/ready?warm=1").status_code == 200)
        assert http.get("/ready?warm=1").json()["warm"]["done"] == 2
        body = {"model": MODEL, "prompt": PROMPT + "Well?", "max_tokens": 1}
        usage = http.post("/v1/completions", json=body).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] > 50
        assert http.get("/v1/caches/timer").json()["status"] == "ready"
        assert "entries" in http.get("/v1/cache/manifest?top=5").json()
        assert http.get("/ready?warm=2").status_code == 400
    engine.stop()


def test_an_entry_needs_a_tenant_where_there_are_several() -> None:
    ring = KeyRing((), (), (Tenant("ada", "k"), Tenant("bo", "l")))
    assert ring.warm_namespace("ada") == tenant_namespace("ada")
    assert KeyRing((), ()).warm_namespace(None) == ""
    assert KeyRing((), (), (Tenant("ada", "k"),)).warm_namespace(None) == tenant_namespace("ada")
    for name in (None, "cy"):
        with pytest.raises(ConfigError, match="tenant"):
            ring.warm_namespace(name)


def test_a_wrong_manifest_is_told_before_anything_starts(tmp_path: Path) -> None:
    path = manifest_file(tmp_path, {"prompt": "a", "tenant": "nobody"})
    config = ServerConfig(port=0, warm=str(path))
    with pytest.raises(ConfigError, match="nobody"):
        read_warm_manifest(config, Service.of(config))
    with pytest.raises(ConfigError, match="missing"):
        read_warm_manifest(ServerConfig(warm=str(tmp_path / "missing.yaml")), Service.of(config))
