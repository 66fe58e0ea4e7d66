"""Configuration: frozen records, the one table of limits, the only reader of the environment.

Precedence: command line over `KVEIK_*` environment over `--config FILE` (TOML or JSON) over
defaults. Sizes found at start-up are returned by the engine, never written back. Standard library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kveik.errors import InvalidRequest


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
    "max_tokens": Limit(1, 2**31 - 1),
    "min_tokens": Limit(0, 2**31 - 1),
    "logprobs": Limit(0, 20),
    "completion_logprobs": Limit(0, 5),
    "prompt_logprobs": Limit(0, 20),
    "stop_count": Limit(0, 16),
    "stop_length": Limit(1, 1000),
    "stop_token_ids_count": Limit(0, 128),
    "prompt_count": Limit(1, 1024),
    "message_count": Limit(1, 4096),
    "token_id": Limit(0, 2**31 - 1),
    "chat_characters": Limit(0, 4 * 1024 * 1024),  # of a rendered conversation
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
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    kv_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_model_len: int | None = None  # tokens
    block_size: int = 16  # tokens; a divisor of 64 (the KV tile of the kernels)
    kv_memory: int | None = None  # bytes; None: a quarter of the memory that is free at start
    max_num_seqs: int = 64  # sequences computed in one step
    max_num_batched_tokens: int = 512  # token budget of one step
    max_queued_requests: int = 1024
    max_queued_tokens: int = 4_000_000
    enable_prefix_caching: bool = True
    policy: str = "lru"
    rope_theta: float | None = None
    rope_scaling: str | None = None  # JSON object as in config.json
    chat_template: str | None = None  # chatml | llama2 | alpaca | path of a Jinja file
    hub_token: str | None = None
    seed: int = 0  # of requests that bring none: drawn from (seed, arrival number)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The HTTP door. api_keys: each is its own cache namespace."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    admin_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 8 * 1024 * 1024
    max_header_bytes: int = 64 * 1024
    drain_seconds: float = 5.0
    send_buffer_bytes: int = 1024 * 1024
    slow_reader_seconds: float = 30.0
    log_format: Literal["text", "json"] = "text"


DEFAULT_MODEL_PATH = Path(__file__).parent / "assets" / "default"
