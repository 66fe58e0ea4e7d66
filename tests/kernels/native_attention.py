"""The attention kernels of one native level behind the calls that tables.py uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from kveik.kernels.extension import native_extension
from kveik.kernels.ops import AttentionSpec, GroupBatch, KvSpec

NATIVE: Any = native_extension()[0]
NO_IDS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class NativeArena:
    """keys, values: the planes as the numbers they hold, [layers, KV heads, blocks, numbers]."""

    memory: Any
    keys: np.ndarray
    values: np.ndarray


class NativeAttention:
    """One-op programs of `level`, run by `threads` threads."""

    def __init__(self, level: str, threads: int = 1) -> None:
        self.level = level
        self._pool = NATIVE.Pool(threads)
        self._programs: dict[Any, Any] = {}

    def allocate_kv(self, spec: KvSpec) -> NativeArena:
        memory = NATIVE.Arena(
            spec.dtype, spec.num_layers, spec.num_kv_heads, spec.num_blocks, spec.block_size,
            spec.head_dim,
        )  # fmt: skip
        dtype = ml_dtypes.bfloat16 if spec.dtype == "bfloat16" else np.float32
        return NativeArena(memory, memory.keys.view(dtype), memory.values.view(dtype))

    def rope_write_kv(
        self, k: Any, v: Any, arena: NativeArena, layer: int, batch: GroupBatch, spec: AttentionSpec
    ) -> None:
        self._run("rope_write_kv", (k, v), arena, layer, batch, spec)

    def paged_attention(
        self, q: Any, arena: NativeArena, layer: int, batch: GroupBatch, spec: AttentionSpec
    ) -> np.ndarray:
        return self._run("attention", (q,), arena, layer, batch, spec)

    def _run(
        self, op: str, inputs: Any, arena: NativeArena, layer: int, batch: GroupBatch,
        spec: AttentionSpec,
    ) -> np.ndarray:  # fmt: skip
        rows = len(inputs[0])
        widths = tuple(x.shape[1] for x in inputs)
        key = (op, widths, layer, spec)
        if key not in self._programs:
            self._programs[key] = self._record(op, widths, layer, spec)
        slots = batch.slots if len(batch.slots) else np.zeros(rows, np.int64)
        positions = batch.key_positions if len(batch.slots) else slots
        group = [slots, positions, batch.spans, batch.segments, batch.blocks, batch.windows]
        arrays = (*(np.ascontiguousarray(a, np.int64) for a in group), batch.block_size)
        inputs = [np.ascontiguousarray(x, np.float32) for x in inputs]
        out = self._programs[key].run(
            NO_IDS, NO_IDS, NO_IDS, [arrays], [arena.memory], inputs, rows
        )  # fmt: skip
        return out.copy()

    def _record(self, op: str, widths: tuple[int, ...], layer: int, spec: AttentionSpec) -> Any:
        program = NATIVE.Program(self._pool, self.level)
        rope = ((), 1.0)
        if spec.rope is not None:
            rope = (spec.rope.inverse_frequencies, spec.rope.magnitude)
        fields = (
            spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.scale, list(rope[0]), rope[1],
        )  # fmt: skip
        values = [program.input(width) for width in widths]
        out = getattr(program, op)(*values, 0, layer, fields)
        program.finish([program.add(*values) if out is None else out])
        return program
