"""What an engine is made of, and the sizes that follow from it.

`load_parts` reads the files of a model; tests build `EngineParts` themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kveik.config import DEFAULT_MODEL_PATH, EngineConfig
from kveik.engine.embedder import Embedder
from kveik.engine.pool import free_memory, pool_blocks
from kveik.engine.savings import ModelFacts
from kveik.engine.tokenizer import Tokenizer
from kveik.errors import ConfigError
from kveik.kernels.backend import choose_ops
from kveik.kernels.ops import KvSpec, Ops
from kveik.models import Model, load_model

Progress = Callable[[str, float], None]
"""progress(stage, share done 0..1)"""

DEFAULT_MODEL_ID = "kveik-default"


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Sizes found at start-up."""

    model_id: str
    architecture: str
    parameters: int
    dtype: str
    weights: str  # what matrices are kept as: "int4, int8 in 1 of 155 matrices"
    kv_dtype: str
    kernel: str  # "reference (numpy float32)"
    max_model_len: int
    vocab_size: int
    block_size: int
    pool_blocks: tuple[int, ...]
    pool_tokens: int
    pool_bytes: int
    kv_bytes_per_token: int
    block_bytes: tuple[int, ...]  # of one block of each group
    hidden_size: int  # numbers of an embedding
    defaults: dict[str, float]  # sampling defaults of generation_config.json
    embedding_model: str | None = None  # its id


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What an engine is made of; `Engine.load` reads it from files, tests hand it over.

    end_ids: every id that ends a text. pool_blocks: per group; None: sized from the config.
    layer_parameters: those that every prompt token is multiplied with; attention_width: query heads
    times their size."""

    model: Model
    ops: Ops
    tokenizer: Tokenizer
    config: EngineConfig
    end_ids: tuple[int, ...] = ()
    model_id: str = "model"
    architecture: str = ""
    parameters: int = 0
    layer_parameters: int = 0
    attention_width: int = 0
    hidden_size: int = 0
    dtype: str = "float32"
    weights: str = "float32"
    kv_dtype: str = "float32"
    max_model_len: int | None = None
    defaults: Mapping[str, float] = field(default_factory=dict)
    pool_blocks: tuple[int, ...] | None = None
    embedder: Embedder | None = None


def engine_info(parts: EngineParts) -> EngineInfo:
    model, config = parts.model, parts.config
    if config.max_num_seqs < 1:
        raise ConfigError(
            f"max_num_seqs: {config.max_num_seqs} is less than one sequence", param="max_num_seqs"
        )
    if config.max_num_batched_tokens < config.block_size:
        raise ConfigError(
            f"max_num_batched_tokens: {config.max_num_batched_tokens} is less than one block of "
            f"{config.block_size} tokens",
            param="max_num_batched_tokens",
        )
    max_model_len = parts.max_model_len or config.max_model_len or model.max_position
    blocks = parts.pool_blocks or pool_blocks(model.groups, config, max_model_len, free_memory())
    return EngineInfo(
        model_id=parts.model_id,
        architecture=parts.architecture,
        parameters=parts.parameters,
        dtype=parts.dtype,
        weights=parts.weights,
        kv_dtype=parts.kv_dtype,
        kernel=parts.ops.level,
        max_model_len=max_model_len,
        vocab_size=model.vocab_size,
        block_size=config.block_size,
        pool_blocks=blocks,
        pool_tokens=min(blocks) * config.block_size,
        pool_bytes=sum(
            count * group.bytes_per_block for count, group in zip(blocks, model.groups, strict=True)
        ),
        kv_bytes_per_token=sum(group.bytes_per_block for group in model.groups)
        // config.block_size,
        block_bytes=tuple(group.bytes_per_block for group in model.groups),
        hidden_size=parts.hidden_size,
        defaults=dict(parts.defaults),
        embedding_model=parts.embedder.model_id if parts.embedder else None,
    )


def model_facts(parts: EngineParts) -> ModelFacts:
    """What a prompt token costs, for the estimate of what the cache saves."""
    model = parts.model
    return ModelFacts(
        parameters=parts.layer_parameters or parts.parameters,
        attention_width=parts.attention_width or model.num_kv_heads * model.head_dim,
        layers=tuple((len(group.layers), group.window) for group in model.groups),
    )


def kv_specs(model: Model, info: EngineInfo) -> list[KvSpec]:
    return [
        KvSpec(
            num_layers=len(group.layers),
            num_blocks=blocks,
            block_size=info.block_size,
            num_kv_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            dtype=info.kv_dtype,
        )
        for group, blocks in zip(model.groups, info.pool_blocks, strict=True)
    ]


def load_parts(config: EngineConfig, progress: Progress | None = None) -> EngineParts:
    """Model and tokenizer of `config.model`, and the embedding model. Raises ModelLoadError naming
    file and remedy."""
    ops = choose_ops(config)
    model_id = config.served_model_name or config.model or DEFAULT_MODEL_ID
    embedder = Embedder.load(config, model_id) if config.embedding_model else None
    loaded = load_model(
        config.model or str(DEFAULT_MODEL_PATH),
        ops,
        dtype=config.dtype,
        kv_dtype=config.kv_dtype,
        block_size=config.block_size,
        max_model_len=config.max_model_len,
        rope_theta=config.rope_theta,
        rope_scaling=config.rope_scaling,
        hub_token=config.hub_token,
        progress=progress,
    )
    tokenizer = Tokenizer.from_folder(
        loaded.folder, chat_template=config.chat_template, eos_token_ids=loaded.end_ids
    )
    return EngineParts(
        model=loaded.model,
        ops=ops,
        tokenizer=tokenizer,
        config=config,
        end_ids=tuple(sorted({*loaded.end_ids, *tokenizer.eos_token_ids})),
        model_id=model_id,
        architecture=loaded.architecture,
        parameters=loaded.parameters,
        layer_parameters=loaded.layer_parameters,
        attention_width=loaded.attention_width,
        hidden_size=loaded.hidden_size,
        dtype=loaded.dtype,
        weights=loaded.weights,
        kv_dtype=loaded.kv_dtype,
        max_model_len=loaded.max_model_len,
        defaults=loaded.sampling_defaults,
        embedder=embedder,
    )
