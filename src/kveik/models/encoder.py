"""BERT and its kin as encoders: every token sees every token of its text (Devlin et al. 2019).

Norms stand behind the residual sums; positions are learned. Attention is the paged one of all other
models: K and V of a text are written, then each row's window shows all of them. Layers come one
after another, so one layer of arena serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kveik.kernels.ops import Arena, Array, AttentionSpec, Batch, Ops, Weight
from kveik.models.checkpoint import Checkpoint
from kveik.models.encoder_config import EncoderSetup, EncoderShape, Gelu, read_encoder
from kveik.models.weights import LayerNorm, Weights

_IGNORED = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids")
"""What checkpoints have beside the encoder; no embedding is made of it."""


@dataclass(frozen=True, slots=True)
class Layer:
    query: Weight  # [H, H]
    key: Weight  # [H, H]
    value: Weight  # [H, H]
    output: Weight  # [H, H]
    attention_norm: LayerNorm
    up: Weight  # [I, H]
    down: Weight  # [H, I]
    norm: LayerNorm


@dataclass(frozen=True, slots=True)
class Encoder:
    """Callable: (batch, arenas) -> hidden states float32 [R, H] of batch.logit_rows."""

    ops: Ops
    eps: float
    gelu: Gelu
    attention: AttentionSpec
    embedding: Weight  # [V, H]
    positions: Weight  # [P, H], the row of token type 0 added
    embedding_norm: LayerNorm
    layers: tuple[Layer, ...]

    def __call__(self, batch: Batch, arenas: Sequence[Arena]) -> Array:
        ops = self.ops
        x = ops.embed_add(
            ops.embed(self.embedding, batch.token_ids), self.positions, batch.positions
        )
        x = self._norm(x, self.embedding_norm, None)  # [T, H]
        for layer in self.layers:
            h = self._attend(x, layer, batch, arenas)  # [T, H]
            if layer is self.layers[-1]:  # nothing beyond needs the other rows
                h = ops.take_rows(h, batch.logit_rows)  # [R, H]
                x = ops.take_rows(x, batch.logit_rows)  # [R, H]
            x = self._norm(ops.linear(h, layer.output, None), layer.attention_norm, x)
            h = ops.gelu(ops.linear(x, layer.up, None), self.gelu)  # [T or R, I]
            x = self._norm(ops.linear(h, layer.down, None), layer.norm, x)
        return x

    def _norm(self, x: Array, norm: LayerNorm, residual: Array | None) -> Array:
        normed, _ = self.ops.layer_norm(x, norm.weight, norm.bias, self.eps, residual)
        return normed

    def _attend(self, x: Array, layer: Layer, batch: Batch, arenas: Sequence[Arena]) -> Array:
        """x [T, H] -> [T, H]"""
        ops, [group], [arena] = self.ops, batch.groups, arenas
        query = ops.linear(x, layer.query, None)
        key, value = ops.linear(x, layer.key, None), ops.linear(x, layer.value, None)
        ops.rope_write_kv(key, value, arena, 0, group, self.attention)
        return ops.paged_attention(query, arena, 0, group, self.attention)


@dataclass(frozen=True, slots=True)
class LoadedEncoder:
    setup: EncoderSetup
    encoder: Encoder
    dtype: str


def load_encoder(
    path: str, ops: Ops, dtype: Literal["auto", "float32", "bfloat16"]
) -> LoadedEncoder:
    """The encoder of a folder, on these kernels. Raises ModelLoadError naming file and remedy."""
    setup = read_encoder(path)
    kept = ops.dtype if dtype == "auto" else dtype
    checkpoint = Checkpoint.open(setup.folder).without_prefix(setup.shape.prefix)
    checkpoint.check(_tensor_shapes(setup.shape), _IGNORED)
    weights = Weights(checkpoint, ops, kept, lambda: None)
    return LoadedEncoder(setup, _build(setup.shape, ops, weights), kept)


def _tensor_shapes(shape: EncoderShape) -> dict[str, tuple[int, ...]]:
    hidden, inner = shape.hidden_size, shape.inner_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (shape.vocab_size, hidden),
        "embeddings.position_embeddings.weight": (shape.positions, hidden),
        "embeddings.token_type_embeddings.weight": (shape.token_types, hidden),
    }
    norms = ["embeddings.LayerNorm"]
    for number in range(shape.num_layers):
        prefix = f"encoder.layer.{number}."
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{prefix}attention.{name}.weight"] = (hidden, hidden)
            shapes[f"{prefix}attention.{name}.bias"] = (hidden,)
        shapes[prefix + "intermediate.dense.weight"] = (inner, hidden)
        shapes[prefix + "intermediate.dense.bias"] = (inner,)
        shapes[prefix + "output.dense.weight"] = (hidden, inner)
        shapes[prefix + "output.dense.bias"] = (hidden,)
        norms += (prefix + "attention.output.LayerNorm", prefix + "output.LayerNorm")
    for name in norms:
        shapes[name + ".weight"] = shapes[name + ".bias"] = (hidden,)
    return shapes


def _build(shape: EncoderShape, ops: Ops, weights: Weights) -> Encoder:
    def layer(number: int) -> Layer:
        prefix = f"encoder.layer.{number}."
        attention = prefix + "attention."
        return Layer(
            query=weights.linear(attention + "self.query", bias=True),
            key=weights.linear(attention + "self.key", bias=True),
            value=weights.linear(attention + "self.value", bias=True),
            output=weights.linear(attention + "output.dense", bias=True),
            attention_norm=weights.layer_norm(attention + "output.LayerNorm"),
            up=weights.linear(prefix + "intermediate.dense", bias=True),
            down=weights.linear(prefix + "output.dense", bias=True),
            norm=weights.layer_norm(prefix + "output.LayerNorm"),
        )

    positions = np.asarray(weights.array("embeddings.position_embeddings.weight"), np.float32)
    types = np.asarray(weights.array("embeddings.token_type_embeddings.weight"), np.float32)
    return Encoder(
        ops=ops,
        eps=shape.norm_eps,
        gelu=shape.gelu,
        attention=AttentionSpec(
            shape.num_heads, shape.num_heads, shape.head_dim, shape.head_dim**-0.5
        ),
        embedding=weights.embedding("embeddings.word_embeddings"),
        positions=ops.pack_weight(positions + types[0], "embedding", None),
        embedding_norm=weights.layer_norm("embeddings.LayerNorm"),
        layers=tuple(layer(number) for number in range(shape.num_layers)),
    )
