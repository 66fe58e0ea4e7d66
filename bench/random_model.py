"""The real decoder on random weights that never touch a disk, and K/V memory full of numbers.

decoder(config, ops, block_size)   the network that `load_model` would make of a checkpoint of
                                   bench/peers/checkpoints.py, drawn by the same rule
attention_of(model, ops)           the same layers without their products: attention alone
filled(ops, spec)                  an arena whose every slot was written
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "peers"))

import checkpoints

from kveik.kernels.ops import (
    Arena,
    Array,
    AttentionSpec,
    Batch,
    GroupBatch,
    KvSpec,
    Ops,
    Weight,
)
from kveik.models import decoder as decoder_model
from kveik.models.architecture import Architecture, read_architecture
from kveik.models.loader import Network
from kveik.models.weights import Weights

VOCABULARY = 256  # of the queries of attention alone
FILLED = 4096  # slots that are written at once


@dataclass(frozen=True)
class Model:
    """A network for the runner, with what the benches ask about it."""

    architecture: Architecture
    network: Network


def decoder(config: dict[str, Any], ops: Ops, block_size: int) -> Model:
    """config: one of checkpoints.SHAPES, or one with fewer layers."""
    architecture = read(config)
    weights = Weights(_Drawn(config), ops, "bfloat16", lambda: None)  # type: ignore[arg-type]
    network = decoder_model.build(architecture, ops, weights)
    return Model(architecture, _network(architecture, network, block_size))


def attention_of(config: dict[str, Any], ops: Ops, block_size: int) -> Model:
    """Attention of every layer and nothing else. The queries of the first are drawn, those of the
    others are what the layer before gave."""
    architecture = read(config)
    spec = architecture.attention(0)
    width = spec.num_heads * spec.head_dim
    values = np.random.default_rng(0).standard_normal((VOCABULARY, width), dtype=np.float32)
    table = ops.pack_weight(values, "embedding", None)
    network = _AttentionAlone(ops, table, architecture.num_layers, spec)
    return Model(architecture, _network(architecture, network, block_size))


def read(config: dict[str, Any]) -> Architecture:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return read_architecture(Path(folder))


def kv_spec(architecture: Architecture, blocks: int, block_size: int, ops: Ops) -> KvSpec:
    a = architecture
    return KvSpec(a.num_layers, blocks, block_size, a.num_kv_heads, a.head_dim, ops.dtype)


def filled(ops: Ops, spec: KvSpec) -> Arena:
    arena = ops.allocate_kv(spec)
    fill(ops, arena, spec)
    return arena


def fill(ops: Ops, arena: Arena, spec: KvSpec) -> None:
    """Random K and V in every slot.

    Memory that nobody wrote to is one page of zeros, which stays in the first-level cache."""
    attention = AttentionSpec(spec.num_kv_heads, spec.num_kv_heads, spec.head_dim, 1.0)
    width, slots = spec.num_kv_heads * spec.head_dim, spec.num_blocks * spec.block_size
    shape = (2, min(FILLED, slots), width)
    keys, values = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    for first in range(0, slots, FILLED):
        count = min(FILLED, slots - first)
        group = _writes(ops, range(first, first + count), spec.block_size)
        for layer in range(spec.num_layers):
            ops.rope_write_kv(keys[:count], values[:count], arena, layer, group, attention)


def _writes(ops: Ops, slots: Sequence[int], block_size: int) -> GroupBatch:
    """Rows that write and see nothing."""
    nothing = ops.upload([], (0,))
    return GroupBatch(
        slots=ops.upload(slots, (len(slots),)),
        key_positions=ops.upload([0] * len(slots), (len(slots),)),
        spans=ops.upload([], (0, 4)),
        segments=ops.upload([], (0, 3)),
        blocks=nothing,
        windows=ops.upload([], (0, 3)),
        block_size=block_size,
    )


def _network(architecture: Architecture, network: Any, block_size: int) -> Network:
    a = architecture
    return Network(
        groups=a.groups(block_size, 2),
        num_kv_heads=a.num_kv_heads,
        head_dim=a.head_dim,
        vocab_size=a.vocab_size,
        max_position=a.max_position,
        can_shift=a.can_shift,
        fingerprint=b"random",
        network=network,
    )


@dataclass(frozen=True)
class _AttentionAlone:
    """Callable: (batch, arenas) -> the batch's logit rows [R, Q * D]."""

    ops: Ops
    queries: Weight  # [VOCABULARY, Q * D]
    layers: int
    spec: AttentionSpec

    def __call__(self, batch: Batch, arenas: Sequence[Arena]) -> Array:
        x = self.ops.embed(self.queries, batch.token_ids)
        for layer in range(self.layers):
            x = self.ops.paged_attention(x, arenas[0], layer, batch.groups[0], self.spec)
        return self.ops.take_rows(x, batch.logit_rows)


class _Drawn:
    """What `Weights` asks of a checkpoint; every tensor is drawn when it is taken."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._shapes = checkpoints.shapes(config)
        self._tied = config["tie_word_embeddings"]

    def take(self, name: str) -> Any:
        bits = checkpoints.tensor(name, self._shapes[name], tied=self._tied)
        return bits.view(ml_dtypes.bfloat16)
