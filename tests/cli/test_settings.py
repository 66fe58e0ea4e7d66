"""Where options come from, which source wins, and that every error names its source."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from kveik.config import (
    ENGINE_OPTIONS,
    SERVER_OPTIONS,
    EngineConfig,
    ServerConfig,
    engine_config,
    parse_bytes,
    read_settings,
)
from kveik.errors import ConfigError


def test_every_field_is_an_option() -> None:
    for record, options in ((EngineConfig, ENGINE_OPTIONS), (ServerConfig, SERVER_OPTIONS)):
        assert [option.attribute for option in options] == [one.name for one in fields(record)]


def test_arguments_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "kveik.toml"
    file.write_text('block-size = 8\nmax_num_seqs = 3\nkv_memory = "1GiB"\nport = 1\n')
    environment = {"KVEIK_MAX_NUM_SEQS": "5", "KVEIK_PORT": "2", "OTHER": "x"}
    settings = read_settings({"port": 3, "host": None}, environment, str(file))
    assert settings.engine == EngineConfig(block_size=8, max_num_seqs=5, kv_memory=2**30)
    assert settings.server == ServerConfig(port=3)
    assert read_settings({}, {"KVEIK_CONFIG": str(file)}).server.port == 1
    assert read_settings({}, {}).engine == EngineConfig()


def test_a_json_file_with_typed_values(tmp_path: Path) -> None:
    file = tmp_path / "kveik.json"
    values: dict[str, Any] = {
        "api_key": ["one", "two"],
        "enable_prefix_caching": False,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "drain_seconds": 1,
        "rope_theta": 5e5,
    }
    file.write_text(json.dumps(values))
    settings = read_settings({}, {}, str(file))
    assert settings.server == ServerConfig(api_keys=("one", "two"), drain_seconds=1.0)
    assert not settings.engine.enable_prefix_caching
    assert settings.engine.rope_theta == 500000.0
    assert json.loads(settings.engine.rope_scaling or "") == values["rope_scaling"]


def test_keys_from_arguments_environment_and_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfirst\n\n second \n")
    given = {"api_key": ["third"], "api_key_file": str(file)}
    assert read_settings(given, {}).server.api_keys == ("third", "first", "second")
    environment = {"KVEIK_API_KEY": "a, b"}
    assert read_settings({"api_key": []}, environment).server.api_keys == ("a", "b")
    assert "third" not in repr(read_settings(given, {}))
    file.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_settings({"api_key_file": str(file)}, {})


def test_the_hub_token_may_come_from_hf_token() -> None:
    environment = {"HF_TOKEN": "h", "KVEIK_KV_MEMORY": "1GiB"}
    assert read_settings({}, environment).engine.hub_token == "h"
    assert read_settings({}, environment | {"KVEIK_HUB_TOKEN": "k"}).engine.hub_token == "k"
    assert engine_config({}, environment) == EngineConfig(hub_token="h"), "LLM() reads no KVEIK_*"


@pytest.mark.parametrize(
    ("given", "environment", "words"),
    [
        ({"block_size": 12}, {}, ("block_size", "12", "64")),
        ({"kv_memory": "lots"}, {}, ("--kv-memory", "lots", "2GiB")),
        ({"kv_memory": "0"}, {}, ("kv_memory", "0")),
        ({"dtype": "int4"}, {}, ("--dtype", "int4", "bfloat16")),
        ({"port": 70000}, {}, ("port", "70000", "65535")),
        ({}, {"KVEIK_PORT": "http"}, ("KVEIK_PORT", "http", "integer")),
        ({}, {"KVEIK_MAX_MODEL_LEN": "1.5"}, ("KVEIK_MAX_MODEL_LEN", "1.5")),
        ({}, {"KVEIK_ENABLE_PREFIX_CACHING": "maybe"}, ("KVEIK_ENABLE_PREFIX_CACHING", "maybe")),
        ({}, {"KVEIK_DRAIN_SECONDS": "nan"}, ("KVEIK_DRAIN_SECONDS", "finite")),
        ({}, {"KVEIK_CONFIG": "/nowhere.toml"}, ("/nowhere.toml",)),
        ({"api_key_file": "/nowhere"}, {}, ("api_key_file", "/nowhere")),
    ],
)
def test_an_error_names_its_source(
    given: dict[str, Any], environment: dict[str, str], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(given, environment)
    for word in words:
        assert word in caught.value.message


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("prot = 8000", "prot"),
        ("port = true", "port"),
        ("port = 1.5", "port"),
        ("model = 3", "model"),
        ("api_key = [1]", "api_key"),
        ("port = ", "TOML"),
    ],
)
def test_a_wrong_line_of_a_file(tmp_path: Path, text: str, word: str) -> None:
    file = tmp_path / "kveik.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=word):
        read_settings({}, {}, str(file))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 * 2**30),
        ("512MB", 512_000_000),
        ("1.5k", 1536),
        ("3 T", 3 * 2**40),
        ("10", 10),
        (7, 7),
        ("64b", 64),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_bytes(text, "x") == size


@pytest.mark.parametrize("text", ["", "-1", "2GiBs", "GiB", "1e9", "0x10"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_bytes(text, "x")
