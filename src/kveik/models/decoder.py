"""The Llama family (Llama, Mistral, Qwen2, Qwen3) as one list of op calls.

Pre-norm decoder with rotary positions, grouped-query attention and a gated MLP (Touvron et al.
2023); flags of `Architecture` turn on QKV bias, QK norm, windows and a tied head. Arrays are
touched only through `Ops`, and no branch depends on their values. Shapes: T rows of this step,
R rows whose logits are wanted, H hidden size, Q heads, KV heads, D head size, I inner size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kveik.kernels.ops import Arena, Array, AttentionSpec, Batch, Ops, Weight
from kveik.models.architecture import Architecture
from kveik.models.weights import LayerPlace, Weights, places

IGNORED = (".rotary_emb.inv_freq",)
"""Endings of tensors that old checkpoints carry and nobody needs."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Packed weights of one layer, where its K and V live, and how it attends."""

    place: LayerPlace
    attention: AttentionSpec
    input_norm: Weight  # [H]
    query: Weight  # [Q * D, H]
    key: Weight  # [KV * D, H]
    value: Weight  # [KV * D, H]
    query_norm: Weight | None  # [D]
    key_norm: Weight | None  # [D]
    output: Weight  # [H, Q * D]
    inner_norm: Weight  # [H]
    gate: Weight  # [I, H]
    up: Weight  # [I, H]
    down: Weight  # [H, I]


@dataclass(frozen=True, slots=True)
class Decoder:
    """Callable: (batch, arenas) -> logits float32 [R, V] = logits(hidden(batch, arenas))."""

    ops: Ops
    eps: float
    embedding: Weight  # [V, H]
    layers: tuple[Layer, ...]
    norm: Weight  # [H]
    head: Weight  # [V, H]

    def __call__(self, batch: Batch, arenas: Sequence[Arena]) -> Array:
        return self.logits(self.hidden(batch, arenas))

    def logits(self, hidden: Array) -> Array:
        return self.ops.logits(hidden, self.head)  # [R, V]

    def hidden(self, batch: Batch, arenas: Sequence[Arena]) -> Array:
        """What the head reads of batch.logit_rows, behind the last norm: [R, H]."""
        ops, eps = self.ops, self.eps
        x = ops.embed(self.embedding, batch.token_ids)  # [T, H]
        residual: Array | None = None
        for layer in self.layers:
            h, residual = ops.rms_norm(x, layer.input_norm, None, eps, residual)  # [T, H]
            h = self._attend(h, layer, batch, arenas)  # [T, Q * D]
            if layer is self.layers[-1]:  # nothing beyond needs the other rows
                h = ops.take_rows(h, batch.logit_rows)  # [R, Q * D]
                residual = ops.take_rows(residual, batch.logit_rows)  # [R, H]
            x = ops.linear(h, layer.output, batch.adapters)  # [T or R, H]
            h, residual = ops.rms_norm(x, layer.inner_norm, None, eps, residual)
            gate = ops.linear(h, layer.gate, batch.adapters)  # [T or R, I]
            up = ops.linear(h, layer.up, batch.adapters)  # [T or R, I]
            x = ops.linear(ops.silu_mul(gate, up), layer.down, batch.adapters)  # [T or R, H]
        h, _ = ops.rms_norm(x, self.norm, None, eps, residual)
        return h

    def _attend(self, h: Array, layer: Layer, batch: Batch, arenas: Sequence[Arena]) -> Array:
        """h [T, H] -> [T, Q * D]; writes the K and V of these rows first."""
        ops, spec, place = self.ops, layer.attention, layer.place
        query = ops.linear(h, layer.query, batch.adapters)  # [T, Q * D]
        key = ops.linear(h, layer.key, batch.adapters)  # [T, KV * D]
        value = ops.linear(h, layer.value, batch.adapters)  # [T, KV * D]
        if layer.query_norm is not None:
            query = ops.qk_norm(query, layer.query_norm, spec.num_heads, self.eps)
        if layer.key_norm is not None:
            key = ops.qk_norm(key, layer.key_norm, spec.num_kv_heads, self.eps)
        arena, group = arenas[place.group], batch.groups[place.group]
        ops.rope_write_kv(key, value, arena, place.layer, group, spec)
        return ops.paged_attention(query, arena, place.layer, group, spec)


def tensor_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint under its Hugging Face name; linear weights are [out, in]."""
    a = architecture
    hidden, inner, query = a.hidden_size, a.inner_size, a.num_heads * a.head_dim
    key = a.num_kv_heads * a.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (a.vocab_size, hidden)}
    for layer in range(a.num_layers):
        prefix = f"model.layers.{layer}."
        linears = {
            "self_attn.q_proj": (query, hidden, a.qkv_bias),
            "self_attn.k_proj": (key, hidden, a.qkv_bias),
            "self_attn.v_proj": (key, hidden, a.qkv_bias),
            "self_attn.o_proj": (hidden, query, a.output_bias),
            "mlp.gate_proj": (inner, hidden, a.mlp_bias),
            "mlp.up_proj": (inner, hidden, a.mlp_bias),
            "mlp.down_proj": (hidden, inner, a.mlp_bias),
        }
        for name, (rows, columns, bias) in linears.items():
            shapes[f"{prefix}{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{prefix}{name}.bias"] = (rows,)
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
        if a.qk_norm:
            shapes[prefix + "self_attn.q_norm.weight"] = (a.head_dim,)
            shapes[prefix + "self_attn.k_norm.weight"] = (a.head_dim,)
    shapes["model.norm.weight"] = (hidden,)
    if not a.tied_head:
        shapes["lm_head.weight"] = (a.vocab_size, hidden)
    return shapes


def build(architecture: Architecture, ops: Ops, weights: Weights) -> Decoder:
    """Pack the weights of a checked checkpoint."""
    embedding, head = weights.embedding_and_head(
        "model.embed_tokens", "lm_head", architecture.tied_head
    )
    spots = places(architecture)
    return Decoder(
        ops=ops,
        eps=architecture.norm_eps,
        embedding=embedding,
        layers=tuple(
            _layer(architecture, layer, spots[layer], weights)
            for layer in range(architecture.num_layers)
        ),
        norm=weights.vector("model.norm.weight"),
        head=head,
    )


def _layer(architecture: Architecture, layer: int, place: LayerPlace, weights: Weights) -> Layer:
    a, prefix = architecture, f"model.layers.{layer}."
    attention, mlp = prefix + "self_attn.", prefix + "mlp."
    return Layer(
        place=place,
        attention=a.attention(layer),
        input_norm=weights.vector(prefix + "input_layernorm.weight"),
        query=weights.linear(attention + "q_proj", a.qkv_bias),
        key=weights.linear(attention + "k_proj", a.qkv_bias),
        value=weights.linear(attention + "v_proj", a.qkv_bias),
        query_norm=weights.vector(attention + "q_norm.weight") if a.qk_norm else None,
        key_norm=weights.vector(attention + "k_norm.weight") if a.qk_norm else None,
        output=weights.linear(attention + "o_proj", a.output_bias),
        inner_norm=weights.vector(prefix + "post_attention_layernorm.weight"),
        gate=weights.linear(mlp + "gate_proj", a.mlp_bias),
        up=weights.linear(mlp + "up_proj", a.mlp_bias),
        down=weights.linear(mlp + "down_proj", a.mlp_bias),
    )
