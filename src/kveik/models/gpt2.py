"""GPT-2 and GPT-Neo: learned absolute positions, layer norm with bias, a plain GELU MLP.

What differs from the Llama family is the structure, so it is a file of its own (Radford et al.
2019; Black et al. 2021). Positions live in the hidden state: K and V cannot be seen at another
position, hence no shift. GPT-Neo's local layers form a KvGroup of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kveik.kernels.ops import Arena, Array, AttentionSpec, Batch, Ops, Weight
from kveik.models.architecture import Architecture
from kveik.models.weights import LayerNorm, LayerPlace, Weights, places

IGNORED = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
"""Endings of the causal masks that these checkpoints store."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Packed weights of one layer, where its K and V live, and how it attends."""

    place: LayerPlace
    attention: AttentionSpec
    input_norm: LayerNorm
    query: Weight  # [H, H]
    key: Weight  # [H, H]
    value: Weight  # [H, H]
    output: Weight  # [H, H]
    inner_norm: LayerNorm
    up: Weight  # [I, H]
    down: Weight  # [H, I]


@dataclass(frozen=True, slots=True)
class Gpt:
    """Callable: (batch, arenas) -> logits float32 [R, V] = logits(hidden(batch, arenas))."""

    ops: Ops
    eps: float
    gelu: Literal["tanh", "erf"]
    embedding: Weight  # [V, H]
    positions: Weight  # [P, H]
    layers: tuple[Layer, ...]
    norm: LayerNorm
    head: Weight  # [V, H]

    def __call__(self, batch: Batch, arenas: Sequence[Arena]) -> Array:
        return self.logits(self.hidden(batch, arenas))

    def logits(self, hidden: Array) -> Array:
        return self.ops.logits(hidden, self.head)  # [R, V]

    def hidden(self, batch: Batch, arenas: Sequence[Arena]) -> Array:
        """What the head reads of batch.logit_rows, behind the last norm: [R, H]."""
        ops = self.ops
        x = ops.embed(self.embedding, batch.token_ids)  # [T, H]
        x = ops.embed_add(x, self.positions, batch.positions)  # [T, H]
        residual: Array | None = None
        for layer in self.layers:
            h, residual = self._norm(x, layer.input_norm, residual)  # [T, H]
            h = self._attend(h, layer, batch, arenas)  # [T, H]
            if layer is self.layers[-1]:  # nothing beyond needs the other rows
                h = ops.take_rows(h, batch.logit_rows)  # [R, H]
                residual = ops.take_rows(residual, batch.logit_rows)  # [R, H]
            x = ops.linear(h, layer.output, batch.adapters)  # [T or R, H]
            h, residual = self._norm(x, layer.inner_norm, residual)
            h = ops.gelu(ops.linear(h, layer.up, batch.adapters), self.gelu)  # [T or R, I]
            x = ops.linear(h, layer.down, batch.adapters)  # [T or R, H]
        h, _ = self._norm(x, self.norm, residual)
        return h

    def _norm(self, x: Array, norm: LayerNorm, residual: Array | None) -> tuple[Array, Array]:
        return self.ops.layer_norm(x, norm.weight, norm.bias, self.eps, residual)

    def _attend(self, h: Array, layer: Layer, batch: Batch, arenas: Sequence[Arena]) -> Array:
        """h [T, H] -> [T, H]; writes the K and V of these rows first (nothing is rotated)."""
        ops, place = self.ops, layer.place
        query = ops.linear(h, layer.query, batch.adapters)  # [T, H]
        key = ops.linear(h, layer.key, batch.adapters)  # [T, H]
        value = ops.linear(h, layer.value, batch.adapters)  # [T, H]
        arena, group = arenas[place.group], batch.groups[place.group]
        ops.rope_write_kv(key, value, arena, place.layer, group, layer.attention)
        return ops.paged_attention(query, arena, place.layer, group, layer.attention)


def tensor_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Every tensor under its Hugging Face name, without the optional prefix "transformer."."""
    a = architecture
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (a.vocab_size, a.hidden_size),
        "wpe.weight": (a.max_position, a.hidden_size),
    }
    for layer in range(a.num_layers):
        prefix = f"h.{layer}."
        blocks = _gpt2_shapes(a) if a.model_type == "gpt2" else _neo_shapes(a)
        shapes.update({prefix + name: shape for name, shape in blocks.items()})
        for norm in ("ln_1", "ln_2"):
            shapes[f"{prefix}{norm}.weight"] = shapes[f"{prefix}{norm}.bias"] = (a.hidden_size,)
    shapes["ln_f.weight"] = shapes["ln_f.bias"] = (a.hidden_size,)
    if not a.tied_head:
        shapes["lm_head.weight"] = (a.vocab_size, a.hidden_size)
    return shapes


def _gpt2_shapes(a: Architecture) -> dict[str, tuple[int, ...]]:
    """GPT-2 stores its linear layers as Conv1D: [in, out]; query, key, value are fused."""
    hidden, inner = a.hidden_size, a.inner_size
    return {
        "attn.c_attn.weight": (hidden, 3 * hidden),
        "attn.c_attn.bias": (3 * hidden,),
        "attn.c_proj.weight": (hidden, hidden),
        "attn.c_proj.bias": (hidden,),
        "mlp.c_fc.weight": (hidden, inner),
        "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (inner, hidden),
        "mlp.c_proj.bias": (hidden,),
    }


def _neo_shapes(a: Architecture) -> dict[str, tuple[int, ...]]:
    """GPT-Neo stores [out, in]; query, key and value have no bias."""
    hidden, inner = a.hidden_size, a.inner_size
    return {
        "attn.attention.q_proj.weight": (hidden, hidden),
        "attn.attention.k_proj.weight": (hidden, hidden),
        "attn.attention.v_proj.weight": (hidden, hidden),
        "attn.attention.out_proj.weight": (hidden, hidden),
        "attn.attention.out_proj.bias": (hidden,),
        "mlp.c_fc.weight": (inner, hidden),
        "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (hidden, inner),
        "mlp.c_proj.bias": (hidden,),
    }


def build(architecture: Architecture, ops: Ops, weights: Weights) -> Gpt:
    """Pack the weights of a checked checkpoint."""
    a, spots = architecture, places(architecture)
    layer_of = _gpt2_layer if a.model_type == "gpt2" else _neo_layer
    embedding, head = weights.embedding_and_head("wte", "lm_head", a.tied_head)
    return Gpt(
        ops=ops,
        eps=a.norm_eps,
        gelu=a.gelu,
        embedding=embedding,
        positions=weights.embedding("wpe"),
        layers=tuple(layer_of(a, n, spots[n], weights) for n in range(a.num_layers)),
        norm=weights.layer_norm("ln_f"),
        head=head,
    )


def _gpt2_layer(a: Architecture, layer: int, place: LayerPlace, weights: Weights) -> Layer:
    prefix = f"h.{layer}."

    def conv(name: str) -> tuple[Array, Array]:
        """Conv1D weight [in, out] -> [out, in], and bias [out]."""
        weight = weights.array(f"{prefix}{name}.weight")
        return np.ascontiguousarray(weight.T), weights.array(f"{prefix}{name}.bias")

    def pack(weight: Array, bias: Array) -> Weight:
        return weights.pack(weight, "linear", bias)

    fused, fused_bias = conv("attn.c_attn")  # [3 H, H], [3 H]
    size = a.hidden_size
    query, key, value = (
        pack(fused[start : start + size], fused_bias[start : start + size])
        for start in (0, size, 2 * size)
    )
    return Layer(
        place=place,
        attention=a.attention(layer),
        input_norm=weights.layer_norm(prefix + "ln_1"),
        query=query,
        key=key,
        value=value,
        output=pack(*conv("attn.c_proj")),
        inner_norm=weights.layer_norm(prefix + "ln_2"),
        up=pack(*conv("mlp.c_fc")),
        down=pack(*conv("mlp.c_proj")),
    )


def _neo_layer(a: Architecture, layer: int, place: LayerPlace, weights: Weights) -> Layer:
    prefix = f"h.{layer}."
    attention = prefix + "attn.attention."
    return Layer(
        place=place,
        attention=a.attention(layer),
        input_norm=weights.layer_norm(prefix + "ln_1"),
        query=weights.linear(attention + "q_proj", bias=False),
        key=weights.linear(attention + "k_proj", bias=False),
        value=weights.linear(attention + "v_proj", bias=False),
        output=weights.linear(attention + "out_proj", bias=True),
        inner_norm=weights.layer_norm(prefix + "ln_2"),
        up=weights.linear(prefix + "mlp.c_fc", bias=True),
        down=weights.linear(prefix + "mlp.c_proj", bias=True),
    )
