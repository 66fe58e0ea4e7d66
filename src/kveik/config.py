"""Configuration: frozen records, the one table of limits, the only reader of the environment.

Precedence: command line over `KVEIK_*` environment over `--config FILE` (TOML or JSON) over
defaults. Sizes found at start-up are returned by the engine, never written back. Standard library.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from kveik.errors import ConfigError, InvalidRequest

DEFAULT_POLICY = "hit-density"
"""Of eviction: docs/DEFAULT_POLICY.md says what it is and how it was found."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Bounds (inclusive) of one number that a request may carry."""

    low: float
    high: float
    integer: bool = True


LIMITS: dict[str, Limit] = {
    "n": Limit(1, 128),
    "temperature": Limit(0.0, 2.0, integer=False),
    "top_k": Limit(0, 1_000_000),
    "top_p": Limit(0.0, 1.0, integer=False),
    "min_p": Limit(0.0, 1.0, integer=False),
    "repetition_penalty": Limit(0.01, 10.0, integer=False),
    "presence_penalty": Limit(-2.0, 2.0, integer=False),
    "frequency_penalty": Limit(-2.0, 2.0, integer=False),
    "logit_bias": Limit(-100.0, 100.0, integer=False),
    "logit_bias_count": Limit(0, 1024),
    "seed": Limit(-(2**63), 2**63 - 1),
    "max_tokens": Limit(0, 2**31 - 1),  # 0: computes the prompt only
    "min_tokens": Limit(0, 2**31 - 1),
    "logprobs": Limit(0, 20),
    "completion_logprobs": Limit(0, 5),
    "prompt_logprobs": Limit(0, 20),
    "stop_count": Limit(0, 16),
    "stop_length": Limit(1, 1000),
    "stop_token_ids_count": Limit(0, 128),
    "prompt_count": Limit(1, 1024),
    "choice_count": Limit(1, 4096),  # prompts times n of one HTTP request
    "message_count": Limit(1, 4096),
    "token_id": Limit(0, 2**31 - 1),
    "history_sessions": Limit(0, 1024),  # conversations kept for one namespace
    "history_bytes": Limit(0, 32 * 1024 * 1024),  # of their messages
    "named_caches": Limit(0, 1024),  # of one namespace
    "named_tokens": Limit(0, 16 * 1024 * 1024),  # that they remember together
    "gone_names": Limit(0, 1024),  # expired ones that are still told from unknown ones
    "chat_characters": Limit(0, 4 * 1024 * 1024),  # of a rendered conversation
    "identifier_length": Limit(1, 128),  # of a session, context, tag, document, version or name
    "tag_count": Limit(0, 16),
    "salt_length": Limit(1, 1024),  # characters of a cache_salt
    "ttl": Limit(1.0, 366 * 86400.0, integer=False),  # seconds
    "breakpoint_count": Limit(0, 4),  # of cache_control in one request
    "document_count": Limit(0, 256),  # labelled parts of one request
    "age": Limit(0.0, 3660 * 86400.0, integer=False),  # seconds, of a selector
    "listing_count": Limit(1, 1000),  # entries of a listing
    "history_steps": Limit(1, 2160),  # of ten seconds
    "tenant_count": Limit(1, 10_000),  # entries of a keys file
    "dimensions": Limit(1, 2**20),  # of an embedding
    "stream_sinks": Limit(0, 4096),  # tokens of a stream's beginning that stay
    "stream_window": Limit(1, 2**24),  # recent tokens that it keeps
    "schema_characters": Limit(
        1, 1024 * 1024
    ),  # of one schema of prompt modules, or a prompt of it
    "schema_elements": Limit(0, 4096),  # of one schema, as often as they stand in it
    "schema_depth": Limit(0, 16),  # elements inside elements
    "parameter_length": Limit(1, 65536),  # tokens reserved for an argument
    "schema_count": Limit(0, 256),  # of one namespace
    "module_count": Limit(0, 256),  # modules in one prompt
    "forget_count": Limit(1, 256),  # turns that are named one by one
    "forget_gaps": Limit(0, 16),  # stretches that are forgotten at once
    "dashboards": Limit(0, 16),  # open at once
    "dashboard_rate": Limit(1.0, 50.0, integer=False),  # updates per second
    "tree_rows": Limit(1, 200),  # of one look at the prefix tree
}
"""Every bounded number of every front end, in one place (invariant 9)."""


def check_limit(name: str, value: object, *, param: str | None = None) -> None:
    """Raise InvalidRequest naming `param` (default: name) unless value lies within LIMITS[name]."""
    limit = LIMITS[name]
    field = param or name
    kinds = (int,) if limit.integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        wanted = "an integer" if limit.integer else "a number"
        raise InvalidRequest(f"{field}: expected {wanted}, got {type(value).__name__}", param=field)
    assert isinstance(value, (int, float))
    if not (limit.low <= value <= limit.high) or (isinstance(value, float) and math.isnan(value)):
        low, high = (int(limit.low), int(limit.high)) if limit.integer else (limit.low, limit.high)
        raise InvalidRequest(f"{field}: {value} is outside {low} .. {high}", param=field)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What the engine is built from. None means: decided at start-up, reported by EngineInfo."""

    model: str | None = None  # folder, hub id, or None for the embedded default model
    served_model_name: str | None = None
    embedding_model: str | None = None  # folder of an embedding model beside it
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    kv_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    weights: Literal["auto", "bf16", "int8", "int4"] = "auto"  # how matrices are kept
    kernels: Literal["auto", "reference", "portable", "avx2", "avx512", "avx512_bf16", "amx"] = (
        "auto"
    )
    threads: int | None = None  # of the native kernels; None: the cores this process may use
    max_model_len: int | None = None  # tokens
    block_size: int = 16  # tokens; a divisor of 64 (the KV tile of the kernels)
    kv_memory: int | None = None  # bytes; None: a quarter of the memory that is free at start
    max_num_seqs: int = 64  # sequences computed in one step
    max_num_batched_tokens: int = 1024  # token budget of one step
    max_queued_requests: int = 1024
    max_queued_tokens: int = 4_000_000
    enable_prefix_caching: bool = True
    policy: str = DEFAULT_POLICY  # a name in cache/policy.py, or module:Class
    record: str | None = None  # file for a trace of the traffic
    session_idle: float = 1800.0  # seconds without a request after which a session ends
    pin_share: float = 0.25  # of the pool, at most, may be pinned
    relevance: Literal["off", "demote", "delete"] = "demote"  # of what a session left behind
    follow_topics: bool = False  # of sessions that announce no context
    stream_window: str | None = None  # sinks+window[/evict] of requests that name none
    rope_theta: float | None = None
    rope_scaling: str | None = None  # JSON object as in config.json
    chat_template: str | None = None  # chatml | llama2 | alpaca | path of a Jinja file
    hub_token: str | None = field(default=None, repr=False)
    seed: int = 0  # of requests that bring none: drawn from (seed, arrival number)

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and value < 1:
                _refuse(name, f"{value} is not a positive number")
        if self.block_size not in _BLOCK_SIZES:
            _refuse("block_size", f"{self.block_size} is not one of {_listed(_BLOCK_SIZES)}")
        if not 0.0 <= self.pin_share <= 0.9:
            _refuse("pin_share", f"{self.pin_share} is outside 0 .. 0.9")
        if self.stream_window is not None:
            parse_stream_window(self.stream_window, "stream_window")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The HTTP door. api_keys: each is its own cache namespace."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    admin_keys: tuple[str, ...] = field(default=(), repr=False)
    keys_file: str | None = None  # JSON or TOML: name, key, admin, reserved, maximum of each tenant
    warm: str | None = None  # manifest of what is computed in the background after the start
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 8 * 1024 * 1024
    max_header_bytes: int = 64 * 1024
    drain_seconds: float = 5.0
    send_buffer_bytes: int = 1024 * 1024
    slow_reader_seconds: float = 30.0
    log_format: Literal["text", "json"] = "text"

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            _refuse("port", f"{self.port} is outside 0 .. 65535")


DEFAULT_MODEL_PATH = Path(__file__).parent / "assets" / "default"

_BLOCK_SIZES = (1, 2, 4, 8, 16, 32, 64)
_POSITIVE = (
    "max_model_len",
    "kv_memory",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_queued_requests",
    "max_queued_tokens",
    "threads",
    "rope_theta",
    "session_idle",
)


@dataclass(frozen=True, slots=True)
class Option:
    """A field (`attribute`) of a record as the outside names it: `--max-model-len`,
    `KVEIK_MAX_MODEL_LEN`, and `max_model_len` (or `max-model-len`) in a configuration file.

    kind "bytes": a number with an optional unit (2GiB); "duration": seconds, or with a unit (30m);
    "list": repeatable on the command line,
    comma-separated in the environment. `flag` where the name differs from the field's."""

    attribute: str
    kind: Literal["text", "integer", "number", "bytes", "duration", "switch", "list"]
    help: str
    choices: tuple[str, ...] = ()
    flag: str | None = None

    @property
    def name(self) -> str:
        return self.flag or self.attribute

    @property
    def variable(self) -> str:
        return "KVEIK_" + self.name.upper()


ENGINE_OPTIONS: tuple[Option, ...] = (
    Option("model", "text", "Folder in Hugging Face format or hub id; default: the embedded model"),
    Option("served_model_name", "text", "Model id that clients see; default: the model"),
    Option(
        "embedding_model",
        "text",
        "Folder of an embedding model (sentence-transformers, BERT-like) to serve beside the model",
    ),
    Option("dtype", "text", "Of the weights", ("auto", "float32", "bfloat16")),
    Option("kv_dtype", "text", "Of keys and values", ("auto", "float32", "bfloat16")),
    Option(
        "weights",
        "text",
        "How matrices are kept; int8 and int4 are made at the first load",
        ("auto", "bf16", "int8", "int4"),
    ),
    Option(
        "kernels",
        "text",
        "Kernels to compute with; default: the fastest that this machine has",
        ("auto", "reference", "portable", "avx2", "avx512", "avx512_bf16", "amx"),
    ),
    Option("threads", "integer", "Threads of the kernels; default: the cores it may use"),
    Option("max_model_len", "integer", "Longest sequence in tokens; default: the model's"),
    Option("block_size", "integer", "Tokens of one KV block, a divisor of 64"),
    Option(
        "kv_memory", "bytes", "Memory of the KV pool, such as 2GiB; default: 1/4 of what is free"
    ),
    Option("max_num_seqs", "integer", "Sequences computed in one step"),
    Option("max_num_batched_tokens", "integer", "Token budget of one step"),
    Option(
        "max_queued_requests",
        "integer",
        "Requests that may wait, background work apart; more get 429",
    ),
    Option("max_queued_tokens", "integer", "Prompt tokens that may wait; more get 429"),
    Option("enable_prefix_caching", "switch", "Reuse keys and values between requests"),
    Option(
        "policy",
        "text",
        "Which cached blocks go first: lru, cost, fifo, slru, s3fifo, lfu-aged, arc, reuse-time, "
        "tail-lru, hit-density, or module:Class",
    ),
    Option(
        "record",
        "text",
        "Write a trace of the traffic into this new file: lengths and keyed digests, no text",
    ),
    Option("session_idle", "duration", "A session ends after so long without a request, as 30m"),
    Option("pin_share", "number", "Share of the KV pool that may be pinned"),
    Option(
        "relevance",
        "text",
        "What becomes of blocks of a context that a session has left",
        ("off", "demote", "delete"),
    ),
    Option(
        "follow_topics",
        "switch",
        "Find the topic of sessions that announce no context, and demote what they leave",
    ),
    Option(
        "stream_window",
        "text",
        "Every request is an endless stream that keeps so much, as 4+1020 (sinks + window); "
        "4+1020/64 forgets 64 tokens at a time",
    ),
    Option("rope_theta", "number", "Overrides the model's RoPE base"),
    Option("rope_scaling", "text", "Overrides the model's RoPE scaling: JSON as in config.json"),
    Option("chat_template", "text", "chatml, llama2, alpaca or a Jinja file"),
    Option("hub_token", "text", "Token for gated models of the hub; default: HF_TOKEN"),
    Option("seed", "integer", "Of requests that bring none"),
)

SERVER_OPTIONS: tuple[Option, ...] = (
    Option("host", "text", "Address to listen on"),
    Option("port", "integer", "Port to listen on"),
    Option("api_keys", "list", "Key that clients must send; repeatable", flag="api_key"),
    Option("admin_keys", "list", "Key for what concerns other keys; repeatable", flag="admin_key"),
    Option(
        "keys_file",
        "text",
        "Tenants with their keys and shares of the cache; see docs/MANAGED_CACHE.md",
    ),
    Option("warm", "text", "Manifest (YAML or JSON) of prompts to compute in the background"),
    Option("cors_origins", "list", "Web origin that may call; repeatable", flag="cors_origin"),
    Option("max_body_bytes", "bytes", "Largest request body"),
    Option("max_header_bytes", "bytes", "Largest request head"),
    Option("drain_seconds", "number", "How long running requests may end after SIGTERM"),
    Option("send_buffer_bytes", "bytes", "Unsent text kept for a slow reader"),
    Option("slow_reader_seconds", "number", "After this long without reading, a stream is ended"),
    Option("log_format", "text", "Of the log", ("text", "json")),
)

API_KEY_FILE = Option("api_key_file", "text", "File with one API key per line (# starts a comment)")
"""Not a field: its keys are appended to `api_keys`."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything read from arguments, environment and file."""

    engine: EngineConfig
    server: ServerConfig


def read_settings(
    given: Mapping[str, Any],
    environment: Mapping[str, str],
    file: str | None = None,
) -> Settings:
    """Merge the sources: `given` (by option name, None: not given) over `KVEIK_*` over `file`
    (or KVEIK_CONFIG) over the defaults.

    Raises ConfigError naming the argument, variable or key, its value and what is accepted."""
    options = {option.name: option for option in (*ENGINE_OPTIONS, *SERVER_OPTIONS, API_KEY_FILE)}
    values: dict[str, Any] = {}
    path = file or environment.get("KVEIK_CONFIG")
    for key, value in (_read_file(Path(path)) if path else {}).items():
        option = options.get(key.replace("-", "_"))
        if option is None:
            raise ConfigError(f"{path}: unknown option {key!r}", param=key)
        values[option.name] = _parse(option, value, f"{path}: {key}")
    for option in options.values():
        if (text := environment.get(option.variable)) is not None:
            values[option.name] = _parse(option, text, option.variable)
    for name, value in given.items():
        if value is not None and value not in ((), []):
            values[name] = _parse(options[name], value, "--" + name.replace("_", "-"))
    values.setdefault("hub_token", environment.get("HF_TOKEN"))
    if key_file := values.pop(API_KEY_FILE.name, None):
        values["api_key"] = (*values.get("api_key", ()), *_read_keys(Path(key_file)))
    return Settings(
        engine=EngineConfig(**_fields(ENGINE_OPTIONS, values)),
        server=ServerConfig(**_fields(SERVER_OPTIONS, values)),
    )


def engine_config(options: Mapping[str, Any], environment: Mapping[str, str]) -> EngineConfig:
    """The configuration of `LLM(**options)`: only the hub token may come from the environment.

    Raises TypeError for an unknown option, ConfigError for a value that cannot be used."""
    known = {option.attribute: option for option in ENGINE_OPTIONS}
    for name in options:
        if name not in known:
            raise TypeError(f"unknown option {name!r}; the options are {_listed(known)}")
    values = {
        name: _parse(known[name], value, name)
        for name, value in options.items()
        if value is not None
    }
    values.setdefault("hub_token", environment.get("HF_TOKEN"))
    return EngineConfig(**values)


def parse_bytes(text: str | int, source: str) -> int:
    """A size: 1073741824, 512MB (10^6), 2GiB or 2G (2^30). ConfigError naming `source`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?B)?|B)?\s*", str(text), re.IGNORECASE)
    if match is None:
        _refuse(source, f"{str(text)!r} is not a size such as 2GiB or 512MB")
    number, unit, suffix = match.groups()
    base = 1000 if (suffix or "").upper() == "B" else 1024
    return int(float(number) * base ** (" KMGT".index(unit.upper()) if unit else 0))


def parse_stream_window(value: str, source: str) -> tuple[int, int, int]:
    """(sinks, window, evict) of "4+1020" or "4+1020/64", in tokens. ConfigError naming `source`."""
    match = re.fullmatch(r"\s*(\d{1,9})\s*\+\s*(\d{1,9})\s*(?:/\s*(\d{1,9})\s*)?", value)
    if match is None:
        _refuse(source, f"{value[:40]!r} is not sinks+window in tokens, such as 4+1020")
    sinks, window, evict = (int(one or 1) for one in match.groups())
    try:
        check_stream_window(sinks, window, evict)
    except ValueError as error:
        _refuse(source, str(error))
    return sinks, window, evict


def check_stream_window(sinks: int, window: int, evict: int) -> None:
    """ValueError saying which of the three cannot be."""
    for name, value in (("stream_sinks", sinks), ("stream_window", window)):
        low, high = int(LIMITS[name].low), int(LIMITS[name].high)
        if not low <= value <= high:
            raise ValueError(f"{name[7:]} {value} is outside {low} .. {high}")
    if not 1 <= evict <= window:
        raise ValueError(f"evict {evict} is outside 1 .. {window}, the window")


def parse_duration(value: object, source: str) -> float:
    """Seconds from 90, "90s", "30m", "24h" or "7d". ConfigError naming `source`."""
    units = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*([smhd]?)\s*", str(value), re.IGNORECASE)
    if match is None or isinstance(value, bool) or not float(match[1]):
        _refuse(source, f"{str(value)[:40]!r} is not a duration such as 90, 30m or 24h")
    return float(match[1]) * units[match[2].lower()]


def _parse(option: Option, value: Any, source: str) -> Any:
    """`value` (text, or what TOML and JSON make of it) as the option's kind."""
    if option.kind == "list":
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
            _refuse(source, "expected a list of strings")
        return tuple(item.strip() for item in items if item.strip())
    if option.kind == "bytes" and isinstance(value, str | int) and not isinstance(value, bool):
        return parse_bytes(value, source)
    if option.kind == "duration":
        return parse_duration(value, source)
    if option.kind == "switch":
        return _parse_switch(value, source)
    if option.kind in ("integer", "number") and not isinstance(value, bool):
        return _parse_number(value, source, integer=option.kind == "integer")
    if option.kind == "text" and isinstance(value, dict):
        value = json.dumps(value)  # rope_scaling may be a table of the file
    if option.kind != "text" or not isinstance(value, str | Path):
        _refuse(source, f"{value!r} is not a value of kind {option.kind}")
    if option.choices and value not in option.choices:
        _refuse(source, f"{str(value)!r} is not one of {_listed(option.choices)}")
    return str(value)


def _parse_switch(value: Any, source: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "false": False, "no": False, "off": False}
    if isinstance(value, bool):
        return value
    if str(value).strip().lower() not in words:
        _refuse(source, f"{value!r} is neither true nor false")
    return words[str(value).strip().lower()]


def _parse_number(value: Any, source: str, *, integer: bool) -> int | float:
    try:
        number = int(value) if integer and not isinstance(value, float) else float(value)
    except (TypeError, ValueError):
        _refuse(source, f"{value!r} is not {'an integer' if integer else 'a number'}")
    if not math.isfinite(number) or (integer and number != int(number)):
        _refuse(source, f"{value!r} is not {'an integer' if integer else 'a finite number'}")
    return int(number) if integer else number


def _fields(options: Iterable[Option], values: Mapping[str, Any]) -> dict[str, Any]:
    return {option.attribute: values[option.name] for option in options if option.name in values}


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML or JSON ({error})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected options and their values")
    return content


def _read_keys(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"api_key_file: {path} cannot be read ({error})") from None
    keys = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    if not keys:
        raise ConfigError(f"api_key_file: {path} holds no key")
    return keys


def _listed(names: Iterable[object]) -> str:
    return ", ".join(str(name) for name in names)


def _refuse(source: str, why: str) -> NoReturn:
    raise ConfigError(f"{source}: {why}", param=source)
