"""The native backend: csrc's kernels behind `Ops`.

`capture` records the ops of a forward pass once, with symbolic values in place of arrays, and
replays them for every step in one native call, which releases the GIL once. An op that is called
with real arrays runs as a program of its own, so there is one way through the native code.

It must not know models, requests or the cache. Weights are bfloat16 in tile order (csrc/README.md);
rows are float32. The logits that a replay returns lie in the program's memory: they are valid until
its next step.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np

from kveik.kernels import _native
from kveik.kernels.cores import usable_cores
from kveik.kernels.native_sampling import sample
from kveik.kernels.ops import (
    Array,
    AttentionSpec,
    Batch,
    GroupBatch,
    KvSpec,
    Ops,
    PackedForm,
    QuantizedArray,
    WeightKind,
)
from kveik.kernels.reference import allocate, download, sum_rows

NUMERICS = "native-2"
PACKING = 2
"""Of packed matrices in files: changes with their layout and with the rule of quantising."""

WeightBits: TypeAlias = Literal["bf16", "int8", "int4"]

# Bits and inputs that share a scale (0: all of a row), by the figures of bench/weights_quality.py.
# The head stays at 8 bits: it costs a twentieth of the bytes and half of the divergence.
_INT8 = (8, 0)
_QUANTIZED: Mapping[str, tuple[int, int]] = {"int8": _INT8, "int4": (4, 128)}


@dataclass(frozen=True, slots=True)
class Value:
    """An array that will be: number `index` of the program that is being recorded."""

    program: _native.Program
    index: int


@dataclass(frozen=True, slots=True)
class _Ids:
    """token_ids, positions or logit_rows of the batch that will be."""

    program: _native.Program
    field: Literal["token_ids", "positions", "logit_rows"]


@dataclass(frozen=True, slots=True)
class _Place:
    """A group of the batch, or its arena."""

    group: int


def native_ops(
    level: str | None = None, threads: int | None = None, weights: WeightBits = "bf16"
) -> Ops:
    """The backend of one engine, with threads of its own.

    level: "amx", "avx512_bf16", "avx512", "avx2", "portable" or "scalar"; None: the best of this
    machine.
    threads: None: as many as cores that this process may use.
    weights: how matrices are kept; what a checkpoint stores quantised stays as it is.
    Raises ValueError for a level that this machine or this build does not have."""
    found = _native.levels()
    if level is not None and level not in found:
        raise ValueError(f"level {level!r} is not one of {', '.join(found)}")
    backend = _Backend(level or found[0], threads or usable_cores(), weights)
    return backend.ops()


class _Backend:
    """The ops of one level over one pool of threads."""

    def __init__(self, level: str, threads: int, weights: WeightBits) -> None:
        self._level = level
        self._weights = weights
        self._pool = _native.Pool(threads)

    def ops(self) -> Ops:
        return Ops(
            name="native",
            level=f"{self._level}, {self._pool.threads} threads",
            numerics_version=f"{NUMERICS}/{self._level}/{self._weights}",
            dtype="bfloat16",
            allocate=allocate,
            allocate_kv=_allocate_kv,
            upload=_upload,
            download=download,
            pack_weight=self.pack_weight,
            kept_as=_kept_as,
            embed=self.embed,
            embed_add=self.embed_add,
            rms_norm=self.rms_norm,
            layer_norm=self.layer_norm,
            linear=self.linear,
            qk_norm=self.qk_norm,
            rope_write_kv=self.rope_write_kv,
            paged_attention=self.paged_attention,
            silu_mul=self.silu_mul,
            gelu=self.gelu,
            add=self.add,
            take_rows=self.take_rows,
            logits=self.logits,
            sample=partial(sample, level=self._level, pool=self._pool),
            sum_rows=sum_rows,
            copy_blocks=_native.Arena.copy_blocks,
            erase_blocks=_native.Arena.erase_blocks,
            capture=self.capture,
            packed_form=self._packed_form(),
        )

    # ---- weights -------------------------------------------------------------------------------

    def pack_weight(self, array: Any, kind: WeightKind, bias: Any | None) -> Any:
        if kind == "vector":
            return _native.vector(_stored(array))
        if kind == "embedding":
            table = _stored(array)
            return _native.table(table, table)
        own = None if bias is None else _stored(bias)
        if isinstance(array, QuantizedArray):
            return self._pack_quantized(array, own)
        if self._weights == "bf16":
            return _native.pack_bf16(self._pool, _stored(array), own)
        bits, group = _INT8 if kind == "head" else _QUANTIZED[self._weights]
        return _native.quantize(self._pool, _stored(array), own, bits, group, True)

    def _packed_form(self) -> PackedForm:
        return PackedForm(
            version=f"{self._weights}-{PACKING}",
            parts=_native.packed_parts,
            checksum=partial(_native.checksum, self._pool),
            read=partial(_native.read_packed, self._pool),
        )

    def _pack_quantized(self, array: QuantizedArray, bias: Any | None) -> Any:
        values, scales = (np.ascontiguousarray(a) for a in (array.values, array.scales))
        zeros = None if array.zeros is None else np.ascontiguousarray(array.zeros)
        return _native.pack_quantized(
            self._pool, values, scales, zeros, array.bits, array.group, bias
        )

    # ---- ops: recorded when they meet a Value, else run at once --------------------------------

    def embed(self, table: Any, ids: Any) -> Any:
        if isinstance(ids, _Ids):
            by_position = ids.field == "positions"
            return Value(ids.program, ids.program.embed(table, -1, by_position))
        return self._eager(lambda p, _: p.embed(table, -1, False), ids=ids)

    def embed_add(self, x: Any, table: Any, positions: Any) -> Any:
        if isinstance(x, Value):
            return Value(x.program, x.program.embed(table, x.index, True))
        return self._eager(lambda p, v: p.embed(table, v[0], True), x, ids=positions)

    def linear(self, x: Any, weight: Any, adapters: Any | None) -> Any:
        if adapters is not None:
            raise NotImplementedError("the native backend has no adapters")
        return self._op(lambda p, v: p.linear(v[0], weight), x)

    def logits(self, x: Any, head: Any) -> Any:
        if not isinstance(head, _native.Linear):
            raise TypeError('the head of the logits must be packed as "linear"')
        return self.linear(x, head, None)

    def rms_norm(
        self, x: Any, weight: Any, bias: Any | None, eps: float, residual: Any | None
    ) -> tuple[Any, Any]:
        return self._norm(x, weight, None, eps, residual, layer=False)

    def layer_norm(
        self, x: Any, weight: Any, bias: Any | None, eps: float, residual: Any | None
    ) -> tuple[Any, Any]:
        return self._norm(x, weight, bias, eps, residual, layer=True)

    def _norm(
        self, x: Any, weight: Any, bias: Any, eps: float, residual: Any, *, layer: bool
    ) -> tuple[Any, Any]:
        if isinstance(x, Value):
            other = -1 if residual is None else residual.index
            normed, total = x.program.norm(x.index, weight, bias, eps, other, layer)
            return Value(x.program, normed), Value(x.program, total)
        arrays = (x,) if residual is None else (x, residual)

        def normed_of(p: _native.Program, v: list[int]) -> int:
            return p.norm(v[0], weight, bias, eps, v[1] if len(v) > 1 else -1, layer)[0]

        total = x if residual is None else self.add(residual, x)
        return self._eager(normed_of, *arrays), total

    def qk_norm(self, x: Any, weight: Any, heads: int, eps: float) -> Any:
        return self._op(lambda p, v: p.qk_norm(v[0], weight, heads, eps), x)

    def silu_mul(self, gate: Any, up: Any) -> Any:
        return self._op(lambda p, v: p.silu_mul(*v), gate, up)

    def gelu(self, x: Any, form: Literal["tanh", "erf"]) -> Any:
        return self._op(lambda p, v: p.gelu(v[0], form == "tanh"), x)

    def add(self, x: Any, y: Any) -> Any:
        return self._op(lambda p, v: p.add(*v), x, y)

    def take_rows(self, x: Any, rows: Any) -> Any:
        if isinstance(x, Value):
            return Value(x.program, x.program.take_rows(x.index))
        return self._eager(lambda p, v: p.take_rows(v[0]), x, logit_rows=rows)

    def rope_write_kv(
        self, k: Any, v: Any, arena: Any, layer: int, group: Any, spec: AttentionSpec
    ) -> None:
        fields = _spec_fields(spec)
        if isinstance(k, Value):
            k.program.rope_write_kv(k.index, v.index, group.group, layer, fields)
            return

        def write(p: _native.Program, values: list[int]) -> int:
            keys, vals = values
            p.rope_write_kv(keys, vals, 0, layer, fields)
            return p.add(keys, vals)  # a program has an output

        self._eager(write, k, v, group=group, arena=arena)

    def paged_attention(
        self, q: Any, arena: Any, layer: int, group: Any, spec: AttentionSpec
    ) -> Any:
        fields = _spec_fields(spec)
        if isinstance(q, Value):
            return Value(q.program, q.program.attention(q.index, group.group, layer, fields))
        return self._eager(
            lambda p, v: p.attention(v[0], 0, layer, fields), q, group=group, arena=arena
        )

    # ---- running -------------------------------------------------------------------------------

    def _op(self, record: Callable[[_native.Program, list[int]], int], *arrays: Any) -> Any:
        first = arrays[0]
        if isinstance(first, Value):
            return Value(first.program, record(first.program, [a.index for a in arrays]))
        return self._eager(record, *arrays)

    def _eager(
        self,
        record: Callable[[_native.Program, list[int]], int],
        *arrays: Any,
        ids: Any = None,
        logit_rows: Any = None,
        group: GroupBatch | None = None,
        arena: Any = None,
    ) -> Any:
        """Records one op over real arrays [T, n] and runs it; returns a new array."""
        program = _native.Program(self._pool, self._level)
        inputs = [np.ascontiguousarray(a, np.float32) for a in arrays]
        program.finish([record(program, [program.input(a.shape[1]) for a in inputs])])
        named = _NOTHING if ids is None else ids
        rows = len(inputs[0]) if inputs else len(named)
        wanted = _NOTHING if logit_rows is None else logit_rows
        groups = [] if group is None else [_group_arrays(group)]
        arenas = [] if arena is None else [arena]
        return program.run(named, named, wanted, groups, arenas, inputs, rows).copy()

    def capture(self, forward: Callable[..., Any], bucket: int) -> Callable[..., Any]:
        """`forward(batch, arenas)`, recorded at its first call; bucket is of no account: one
        recording serves every number of rows."""
        return _Replay(forward, self._pool, self._level)


class _Replay:
    """A forward pass that is recorded when it is first called."""

    def __init__(self, forward: Callable[..., Any], pool: _native.Pool, level: str) -> None:
        self._forward = forward
        self._pool = pool
        self._level = level
        self._program: _native.Program | None = None

    def __call__(self, batch: Batch, arenas: Sequence[Any]) -> Array:
        if self._program is None:
            self._program = self._record(len(arenas))
        return self._program.run(
            batch.token_ids,
            batch.positions,
            batch.logit_rows,
            [_group_arrays(group) for group in batch.groups],
            list(arenas),
            [],
            len(batch.token_ids),
        )

    def _record(self, groups: int) -> _native.Program:
        program = _native.Program(self._pool, self._level)
        places: list[Any] = [_Place(group) for group in range(groups)]
        batch = Batch(
            token_ids=_Ids(program, "token_ids"),
            positions=_Ids(program, "positions"),
            logit_rows=_Ids(program, "logit_rows"),
            groups=tuple(places),
        )
        logits = self._forward(batch, places)
        program.finish([logits.index])
        return program


_NOTHING = array("q")


def _group_arrays(group: GroupBatch) -> tuple[Any, ...]:
    return (
        group.slots,
        group.key_positions,
        group.spans,
        group.segments,
        group.blocks,
        group.windows,
        group.block_size,
    )


def _spec_fields(spec: AttentionSpec) -> tuple[int, int, int, float, list[float], float]:
    rope = spec.rope
    frequencies = [] if rope is None else list(rope.inverse_frequencies)
    magnitude = 1.0 if rope is None else rope.magnitude
    return spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.scale, frequencies, magnitude


def _stored(array: Any) -> Any:
    """As the native side reads it: float32, float16, or bfloat16 as uint16; contiguous."""
    array = np.asarray(array)
    if array.dtype == ml_dtypes.bfloat16:
        array = array.view(np.uint16)
    elif array.dtype not in (np.float32, np.float16):
        array = array.astype(np.float32)
    return np.ascontiguousarray(array)


def _kept_as(weight: _native.Linear) -> str:
    sizes, _ = _native.packed_parts(weight)
    return ("bf16", "int8", "int4")[sizes[0]]


# ---- memory ------------------------------------------------------------------------------------


def _allocate_kv(spec: KvSpec) -> Any:
    return _native.Arena(
        spec.dtype,
        spec.num_layers,
        spec.num_kv_heads,
        spec.num_blocks,
        spec.block_size,
        spec.head_dim,
    )


def _upload(values: Any, shape: tuple[int, ...]) -> Any:
    """Flat int64 as it is: the native side reads buffers, whatever their owner."""
    return values if isinstance(values, memoryview) else np.asarray(values, np.int64).reshape(-1)
