"""From a checkpoint to packed weights, one tensor at a time, and the place of each layer's K, V."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import ml_dtypes
import numpy as np

from kveik.errors import ModelLoadError
from kveik.kernels.ops import Array, Ops, QuantizedArray, Weight, WeightKind
from kveik.models.architecture import Architecture
from kveik.models.checkpoint import Checkpoint
from kveik.models.quantized import Scheme, read_matrix
from kveik.models.weight_cache import WeightCache


class LayerPlace(NamedTuple):
    """A layer's KvGroup, and its number among the layers of that group's arena."""

    group: int
    layer: int


def places(architecture: Architecture) -> tuple[LayerPlace, ...]:
    """One per layer, in layer order."""
    groups = architecture.groups(block_size=1, itemsize=1)
    found = {
        layer: LayerPlace(number, place)
        for number, group in enumerate(groups)
        for place, layer in enumerate(group.layers)
    }
    return tuple(found[layer] for layer in range(architecture.num_layers))


class StoredMatrix(NamedTuple):
    """A matrix [rows, columns] that lies quantised in the checkpoint, in tensors `name`.part."""

    scheme: Scheme
    rows: int
    columns: int
    parts: Sequence[str]


@dataclass(frozen=True, slots=True)
class LayerNorm:
    weight: Weight  # [H]
    bias: Weight  # [H]


@dataclass(frozen=True, slots=True)
class Weights:
    """Packs tensors by name, as the file stores them; `dtype` "bfloat16" rounds them to bf16.

    done(): called after each tensor. quantized: by name, without ".weight". dequantized: names of
    those that `QuantizedArray` cannot describe, so that they were packed as plain matrices.
    cache: packed matrices on disk. forms: what the packed matrices are kept as, and how many."""

    checkpoint: Checkpoint
    ops: Ops
    dtype: str
    done: Callable[[], None]
    quantized: Mapping[str, StoredMatrix] = field(default_factory=dict)
    dequantized: list[str] = field(default_factory=list)
    cache: WeightCache | None = None
    forms: Counter[str] = field(default_factory=Counter)

    def array(self, name: str) -> Array:
        """A tensor on the host, of the dtype of the file or bfloat16."""
        values = self.checkpoint.take(name)
        self.done()
        return self._rounded(values)

    def matrix(self, name: str) -> Array | QuantizedArray:
        """`name`.weight [out, in], or what is stored in its place."""
        stored = self.quantized.get(name)
        if stored is None:
            return self.array(name + ".weight")
        parts = {part: self.checkpoint.take(f"{name}.{part}") for part in stored.parts}
        try:
            matrix = read_matrix(stored.scheme, stored.rows, stored.columns, parts)
        except ValueError as error:
            file = self.checkpoint.file(f"{name}.{stored.parts[0]}")
            raise ModelLoadError(
                f"{file}: {name}: {error}; quantize the model again or use another checkpoint"
            ) from error
        self.done()
        if isinstance(matrix, QuantizedArray):
            return matrix
        self.dequantized.append(name)
        return self._rounded(matrix)

    def _rounded(self, values: Array) -> Array:
        if self.dtype == "bfloat16" and values.dtype != ml_dtypes.bfloat16:
            # through float32 first: float64 is rounded twice, like the other dtypes of the engine
            return values.astype(np.float32, copy=False).astype(ml_dtypes.bfloat16)
        return values

    def linear(self, name: str, bias: bool) -> Weight:
        """`name`.weight [out, in] with `name`.bias [out]."""

        def pack() -> Weight:
            vector = self.array(name + ".bias") if bias else None
            return self.pack(self.matrix(name), "linear", vector)

        return self._kept(name, pack)

    def pack(self, matrix: Array | QuantizedArray, kind: WeightKind, bias: Array | None) -> Weight:
        """A matrix [out, in] for products."""
        return self._counted(self.ops.pack_weight(matrix, kind, bias))

    def _kept(self, name: str, pack: Callable[[], Weight]) -> Weight:
        """The matrix from the cache, else packed and kept there."""
        if self.cache is None:
            return pack()
        kept = self.cache.take(name)
        if kept is not None:
            return self._counted(kept)
        weight = pack()
        self.cache.keep(name, weight)
        return weight

    def _counted(self, weight: Weight) -> Weight:
        self.forms[self.ops.kept_as(weight)] += 1
        return weight

    def count(self, name: str) -> None:
        """Counts the tensors of a matrix that was restored from the cache."""
        if name in self.quantized or f"{name}.weight" in self.checkpoint:
            self.done()
        if f"{name}.bias" in self.checkpoint:
            self.done()

    def embedding(self, name: str) -> Weight:
        """`name`.weight [V, H], for `embed`."""
        return self.ops.pack_weight(self.array(name + ".weight"), "embedding", None)

    def embedding_and_head(self, name: str, head: str, tied: bool) -> tuple[Weight, Weight]:
        """`name`.weight for `embed` and `head`.weight for `logits`, both [V, H]. A tied head is the
        embedding, packed a second time: rows are looked up, columns are multiplied."""
        table = self.array(name + ".weight")
        packed_head = self._kept(
            head,
            lambda: self.pack(table if tied else self.matrix(head), "head", None),
        )
        return self.ops.pack_weight(table, "embedding", None), packed_head

    def vector(self, name: str) -> Weight:
        return self.ops.pack_weight(self.array(name), "vector", None)

    def layer_norm(self, name: str) -> LayerNorm:
        return LayerNorm(self.vector(name + ".weight"), self.vector(name + ".bias"))
