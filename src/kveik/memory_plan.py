"""Will it fit: the arithmetic of weights and KV cache. Pure; standard library only.

    KV per token = 2 (K and V) x layers x KV heads x head size x bytes per value

Layers with a sliding window keep at most `window` tokens per sequence. MB and GB are powers of ten,
MiB and GiB powers of two.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kveik.errors import ConfigError

BYTES_PER_VALUE: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}

_HEADER_LIMIT = 100_000_000
_GPT_FAMILY = ("gpt2", "gpt_neo")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What decides the size of a model's cache. parameters None: not known (no weights shown)."""

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    parameters: int | None = None
    window: int | None = None
    windowed_layers: int = 0
    max_positions: int | None = None

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not a positive number")
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"kv_heads: {self.kv_heads} does not divide the {self.heads} attention heads",
                param="kv_heads",
            )


PRESETS: Mapping[str, ModelShape] = {
    shape.name: shape
    for shape in (
        ModelShape("llama-3-70b", 80, 64, 8, 128, 70_553_706_496, max_positions=8192),
        ModelShape("llama-2-70b", 80, 64, 8, 128, 68_976_648_192, max_positions=4096),
        ModelShape("gpt-3", 96, 96, 96, 128, 174_600_000_000, max_positions=2048),
        ModelShape("gpt-neo-1.3b", 24, 16, 16, 128, 1_315_575_808, 256, 12, 2048),
    )
}


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes, for `users` sequences of `context` tokens. `*_own` is the counterfactual in which
    every attention head has keys and values of its own. free: memory to fit into, None: not asked.
    """

    shape: ModelShape
    context: int
    users: int
    weight_bytes: int | None
    kv_value_bytes: int
    kv_per_token: int
    kv_per_token_own: int
    kv_context: int
    kv_context_own: int
    kv_total: int
    total: int
    free: int | None

    @property
    def fits(self) -> bool | None:
        return None if self.free is None else self.total <= self.free

    @property
    def users_that_fit(self) -> int | None:
        """Sequences of `context` tokens beside the weights."""
        if self.free is None:
            return None
        return max(0, (self.free - (self.weight_bytes or 0)) // self.kv_context)


def memory_plan(
    shape: ModelShape,
    *,
    context: int,
    users: int = 1,
    dtype: str = "bfloat16",
    kv_dtype: str = "bfloat16",
    free: int | None = None,
) -> MemoryPlan:
    """Raises ConfigError for a number below one."""
    for name, value in (("context", context), ("users", users)):
        if value < 1:
            raise ConfigError(f"{name}: {value} is not a positive number", param=name)
    value_bytes = BYTES_PER_VALUE[kv_dtype]
    per_layer = 2 * shape.kv_heads * shape.head_dim * value_bytes
    groups = shape.heads // shape.kv_heads
    kept = min(context, shape.window or context)
    full_layers = shape.layers - shape.windowed_layers
    kv_context = per_layer * (full_layers * context + shape.windowed_layers * kept)
    parameters = shape.parameters
    weights = None if parameters is None else parameters * BYTES_PER_VALUE[dtype]
    return MemoryPlan(
        shape=shape,
        context=context,
        users=users,
        weight_bytes=weights,
        kv_value_bytes=value_bytes,
        kv_per_token=per_layer * shape.layers,
        kv_per_token_own=per_layer * shape.layers * groups,
        kv_context=kv_context,
        kv_context_own=kv_context * groups,
        kv_total=kv_context * users,
        total=kv_context * users + (weights or 0),
        free=free,
    )


def read_shape(source: str) -> ModelShape:
    """The shape of a preset, a config.json, or a folder that holds one.

    Parameters are counted in the headers of the safetensors files beside it, or else computed.
    Raises ConfigError naming what is missing."""
    if source in PRESETS:
        return PRESETS[source]
    path = Path(source)
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{source}: not a preset ({', '.join(PRESETS)}) and no config.json can be read there "
            f"({type(error).__name__})",
            param="model",
        ) from None
    if not isinstance(config, dict):
        raise ConfigError(f"{file}: expected a JSON object")
    name = path.name if path.is_dir() else path.parent.name or source
    return _shape_from_config(config, name, str(file), _stored_parameters(file.parent))


def _shape_from_config(
    config: Mapping[str, Any], name: str, where: str, stored: int | None
) -> ModelShape:
    def number(*keys: str, default: int | None = None) -> int:
        for key in keys:
            value = config.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        if default is None:
            raise ConfigError(f"{where}: no positive number under {' or '.join(keys)}")
        return default

    layers = number("num_hidden_layers", "n_layer", "num_layers")
    heads = number("num_attention_heads", "n_head", "num_heads")
    hidden = number("hidden_size", "n_embd")
    head_dim = number("head_dim", default=max(1, hidden // heads))
    window, windowed = _windows(config, layers)
    shape = ModelShape(
        name=name,
        layers=layers,
        heads=heads,
        kv_heads=number("num_key_value_heads", default=heads),
        head_dim=head_dim,
        window=window,
        windowed_layers=windowed,
        max_positions=number("max_position_embeddings", "n_positions", default=2048),
        parameters=stored,
    )
    if stored is not None:
        return shape
    vocabulary = number("vocab_size", default=1)
    inner = number("intermediate_size", "n_inner", default=4 * hidden)
    counted = _count_parameters(config, shape, hidden, vocabulary, inner)
    return replace(shape, parameters=counted)


def _windows(config: Mapping[str, Any], layers: int) -> tuple[int | None, int]:
    """(window in tokens, how many layers have it) of Mistral, Qwen and GPT-Neo configurations."""
    if config.get("model_type") == "gpt_neo":
        return int(config.get("window_size") or 256), layers // 2
    window = config.get("sliding_window")
    if not isinstance(window, int) or config.get("use_sliding_window") is False:
        return None, 0
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        return window, sum(kind == "sliding_attention" for kind in kinds)
    first = int(config.get("max_window_layers") or 0) if "use_sliding_window" in config else 0
    return window, max(0, layers - first)


def _count_parameters(
    config: Mapping[str, Any], shape: ModelShape, hidden: int, vocabulary: int, inner: int
) -> int:
    attention = 2 * hidden * (shape.heads + shape.kv_heads) * shape.head_dim
    if config.get("model_type") in _GPT_FAMILY:
        vectors = 6 if config["model_type"] == "gpt_neo" else 9  # Neo has no bias on q, k, v
        layer = attention + 2 * hidden * inner + vectors * hidden + inner
        tables = (vocabulary + (shape.max_positions or 0)) * hidden
        return tables + shape.layers * layer + 2 * hidden
    layer = attention + 3 * hidden * inner + 2 * hidden
    tables = 1 if config.get("tie_word_embeddings") else 2
    return tables * vocabulary * hidden + shape.layers * layer + hidden


def _stored_parameters(folder: Path) -> int | None:
    """Elements of all tensors, from the headers of the safetensors files; None without any."""
    files = sorted(folder.glob("*.safetensors"))
    return sum(map(_elements_of, files)) if files else None


def _elements_of(file: Path) -> int:
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(_HEADER_LIMIT, file.stat().st_size):
                raise ValueError("the header is larger than the file")
            header = json.loads(stream.read(length))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        return sum(math.prod(entry["shape"]) for entry in tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: not a readable safetensors file ({error})") from None
