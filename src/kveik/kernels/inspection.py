"""Looking over a backend's shoulder: keys, values and attention weights as numpy arrays.

`Inspector.ops` is the backend itself, which shows beside what it computes what it was given. For
one sequence that is computed cold, in one span and one segment of each group. Weights of attention
are worked out here, because kernels never have them all at once.
"""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from kveik.kernels.ops import Arena, Array, AttentionSpec, GroupBatch, Ops
from kveik.kernels.reference_attention import turned

Floats = NDArray[np.float32]


class Inspector:
    """Collects one entry per layer, in order; T tokens.

    keys, values: float32 [KV, T, D], as they are kept (keys turned to their positions, both rounded
    to `kv_dtype`). attention: float32 [Q, T, T]; row i: how much of token 0 .. i goes into token i.
    """

    def __init__(self, ops: Ops, kv_dtype: str) -> None:
        self.keys: list[Floats] = []
        self.values: list[Floats] = []
        self.attention: list[Floats] = []
        self.ops = replace(
            ops,
            rope_write_kv=self._rope_write_kv,
            paged_attention=self._paged_attention,
            capture=lambda forward, bucket: forward,  # what is replayed cannot be looked at
        )
        self._backend = ops
        self._kv_dtype = ml_dtypes.bfloat16 if kv_dtype == "bfloat16" else np.float32

    def _rope_write_kv(
        self, k: Array, v: Array, arena: Arena, layer: int, group: GroupBatch, spec: AttentionSpec
    ) -> None:
        self._backend.rope_write_kv(k, v, arena, layer, group, spec)
        keys, values = _heads(k, spec.num_kv_heads), _heads(v, spec.num_kv_heads)
        if spec.rope is not None:
            keys = turned(keys, np.asarray(group.key_positions), spec.rope)
        self.keys.append(keys.astype(self._kv_dtype).astype(np.float32))
        self.values.append(values.astype(self._kv_dtype).astype(np.float32))

    def _paged_attention(
        self, q: Array, arena: Arena, layer: int, group: GroupBatch, spec: AttentionSpec
    ) -> Array:
        self.attention.append(_attention(_heads(q, spec.num_heads), self.keys[-1], group, spec))
        return self._backend.paged_attention(q, arena, layer, group, spec)


def _heads(x: Floats, heads: int) -> Floats:
    """[T, heads * D] -> [heads, T, D]."""
    return np.asarray(x).reshape(len(x), heads, -1).swapaxes(0, 1)


def _attention(q: Floats, keys: Floats, group: GroupBatch, spec: AttentionSpec) -> Floats:
    """Unturned q [Q, T, D], keys [KV, T, D] -> softmax over what the windows show, [Q, T, T]."""
    positions, first, last = np.asarray(group.windows).reshape(-1, 3).T
    if spec.rope is not None:
        q = turned(q, positions, spec.rope)
    keys = keys.repeat(spec.num_heads // spec.num_kv_heads, axis=0)
    scores = np.matmul(q * np.float32(spec.scale), keys.swapaxes(1, 2))
    slots = np.arange(keys.shape[1])
    scores[:, (slots < first[:, None]) | (slots > last[:, None])] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    weights: Floats = np.exp(scores, out=scores)
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights
