"""What bench/kernels.py times on the native kernels: ops of the 1.1B shape, each many times over.

A chain applies one op again and again, every time with weights (or K and V) of its own, as the
layers of a model do: one recorded program, so that a call costs what it costs inside a step, and
more bytes than the third-level cache holds, so that few rows read memory. The same chain runs on
any backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from random_model import filled

from kveik.kernels.ops import (
    Arena,
    Array,
    AttentionSpec,
    Batch,
    GroupBatch,
    KvSpec,
    Ops,
    RopeSpec,
    SampleRow,
)

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 2048, 5632, 32, 4, 64, 32000
QUERY, KEY = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
BLOCK, CONTEXT = 16, 1024
KV_BYTES = 2  # of a number in the cache of the native kernels
LAYERS = 22  # of chains without weights
BEYOND_CACHE = 320_000_000  # bytes that the chain of few rows reads at least
MANY = 512  # rows from which on arithmetic counts, not bytes

Forward = Callable[[Batch, Sequence[Arena]], Array]


@dataclass(frozen=True)
class Product:
    """Matrices that are multiplied one after the other. shapes: [out, in]; body: (ops, x, packed)
    -> y. width: of x. chained: y is the next x; else two different x take turns, since products of
    one x side by side are joined."""

    name: str
    shapes: tuple[tuple[int, int], ...]
    body: Callable[[Ops, Array, Sequence[Any]], Array]
    width: int = HIDDEN
    chained: bool = False
    kind: str = "linear"
    widths: tuple[str, ...] = ("bf16", "int8", "int4")
    most_rows: int = 1 << 20

    @property
    def numbers(self) -> int:
        return sum(rows * columns for rows, columns in self.shapes)


def _one(ops: Ops, x: Array, weights: Sequence[Any]) -> Array:
    return ops.linear(x, weights[0], None)


def _queries_keys_values(ops: Ops, x: Array, weights: Sequence[Any]) -> Array:
    query, _, _ = (ops.linear(x, weight, None) for weight in weights)
    return query


def _gated(ops: Ops, x: Array, weights: Sequence[Any]) -> Array:
    gate, up = (ops.linear(x, weight, None) for weight in weights)
    return ops.silu_mul(gate, up)


PRODUCTS = (
    Product(
        "q, k, v",
        ((QUERY, HIDDEN), (KEY, HIDDEN), (KEY, HIDDEN)),
        _queries_keys_values,
        chained=True,
    ),
    Product("attention output", ((HIDDEN, QUERY),), _one, chained=True),
    Product("gate, up, SiLU", ((INNER, HIDDEN), (INNER, HIDDEN)), _gated),
    Product("down", ((HIDDEN, INNER),), _one, width=INNER),
    Product(
        "head",
        ((VOCABULARY, HIDDEN),),
        _one,
        kind="head",
        widths=("bf16", "int8"),  # it never has 4 bits
        most_rows=MANY - 1,
    ),
)


@dataclass(frozen=True)
class Chain:
    """A forward pass that does one thing `times` times; bytes (of weights, keys and values) and
    operations of one time, 0 where neither is what it costs."""

    forward: Forward
    times: int
    bytes: int = 0
    operations: int = 0
    arena: Arena | None = None

    def rate(self, seconds: float, rows: int) -> tuple[float, str]:
        """Of one time that took so long: what limits so many rows, and its unit."""
        if self.operations and rows >= MANY:
            return self.operations / seconds / 1e12, "TFLOP/s"
        if self.bytes and rows < MANY:
            return self.bytes / seconds / 1e9, "GB/s"
        return 1e6 * seconds, "us"


def product_chain(product: Product, ops: Ops, rows: int) -> Chain:
    """As often as leaves the cache behind; where many rows are multiplied, twice."""
    generator = np.random.default_rng(0)
    arrays = [
        generator.standard_normal(shape, dtype=np.float32) * np.float32(shape[1] ** -0.5)
        for shape in product.shapes
    ]
    packed = [_pack(ops, product, arrays)]
    size = sum(packed_bytes(ops, weight) for weight in packed[0]) or 4 * product.numbers
    times = 2 if rows >= MANY else max(2, -(-BEYOND_CACHE // size))
    packed += [_pack(ops, product, arrays) for _ in range(times - 1)]
    tables = [_table(ops, rows, product.width, seed) for seed in (0, 1)]

    def forward(batch: Batch, arenas: Sequence[Arena]) -> Array:
        x, other = (ops.embed(table, batch.token_ids) for table in tables)
        for weights in packed:
            y = product.body(ops, x, weights)
            x, other = (y, other) if product.chained else (other, x)
        return ops.take_rows(y, batch.logit_rows)

    return Chain(ops.capture(forward, 0), times, size, 2 * product.numbers * rows)


def _pack(ops: Ops, product: Product, arrays: Sequence[Any]) -> list[Any]:
    return [ops.pack_weight(array, product.kind, None) for array in arrays]  # type: ignore[arg-type]


def packed_bytes(ops: Ops, weight: Any) -> int:
    """Of a packed matrix, scales included; 0 where the backend does not say."""
    if ops.packed_form is None:
        return 0
    return sum(memoryview(part).nbytes for part in ops.packed_form.parts(weight)[1])


def _table(ops: Ops, rows: int, width: int, seed: int) -> Any:
    values = np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32)
    return ops.pack_weight(values, "embedding", None)


# ---- ops without matrices -----------------------------------------------------------------------


def norm_chain(ops: Ops, rows: int) -> Chain:
    table = _table(ops, rows, HIDDEN, 0)
    weight = ops.pack_weight(np.ones(HIDDEN, np.float32), "vector", None)

    def forward(batch: Batch, arenas: Sequence[Arena]) -> Array:
        x, residual = ops.embed(table, batch.token_ids), None
        for _ in range(LAYERS):
            x, residual = ops.rms_norm(x, weight, None, 1e-5, residual)
        return ops.take_rows(x, batch.logit_rows)

    return Chain(ops.capture(forward, 0), LAYERS)


def write_chain(ops: Ops, rows: int) -> Chain:
    """Rotates and writes the K and V of the rows."""
    table = _table(ops, rows, KEY, 0)

    def forward(batch: Batch, arenas: Sequence[Arena]) -> Array:
        x = ops.embed(table, batch.token_ids)
        for layer in range(LAYERS):
            ops.rope_write_kv(x, x, arenas[0], layer, batch.groups[0], SPEC)
        return ops.take_rows(x, batch.logit_rows)

    return Chain(ops.capture(forward, 0), LAYERS, arena=_arena(ops, rows))


def attention_chain(ops: Ops, rows: int) -> Chain:
    table = _table(ops, rows, QUERY, 0)

    def forward(batch: Batch, arenas: Sequence[Arena]) -> Array:
        x = ops.embed(table, batch.token_ids)
        for layer in range(LAYERS):
            x = ops.paged_attention(x, arenas[0], layer, batch.groups[0], SPEC)
        return ops.take_rows(x, batch.logit_rows)

    each = rows // sequences(rows)
    seen = sequences(rows) * sum(range(CONTEXT - each + 1, CONTEXT + 1))  # by all rows together
    return Chain(
        ops.capture(forward, 0),
        LAYERS,
        bytes=sequences(rows) * CONTEXT * 2 * KEY * KV_BYTES,
        operations=4 * seen * QUERY,
        arena=_arena(ops, rows),
    )


def sample_chain(ops: Ops, rows: int) -> Chain:
    """Not a part of the program: one call of its own behind it."""
    shape = (rows, VOCABULARY)
    logits = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    draws = [SampleRow(row, 0.5, 0.8, top_p=0.95) for row in range(rows)]

    def forward(batch: Batch, arenas: Sequence[Arena]) -> Array:
        return ops.sample(logits, draws)

    return Chain(forward, 1)


@dataclass(frozen=True)
class Other:
    """An op without matrices."""

    name: str
    make: Callable[[Ops, int], Chain]
    most_rows: int = 1 << 20


OTHERS = (
    Other("RMS norm and residual", norm_chain),
    Other("rotate and write K, V", write_chain),
    Other(f"paged attention, context {CONTEXT}", attention_chain),
    Other("sample (T=0.8, top_p=0.95)", sample_chain, most_rows=MANY - 1),
)

SPEC = AttentionSpec(
    HEADS,
    KV_HEADS,
    HEAD_DIM,
    HEAD_DIM**-0.5,
    RopeSpec(tuple(10000.0 ** (-i / (HEAD_DIM // 2)) for i in range(HEAD_DIM // 2))),
)


def sequences(rows: int) -> int:
    """1 and 16 rows decode, one each; many rows are the prompt of one sequence."""
    return 1 if rows >= MANY else rows


def _arena(ops: Ops, rows: int) -> Arena:
    blocks = sequences(rows) * CONTEXT // BLOCK
    return filled(ops, KvSpec(LAYERS, blocks, BLOCK, KV_HEADS, HEAD_DIM, ops.dtype))


def batch(ops: Ops, rows: int, make: Callable[[int, int, int], GroupBatch]) -> Batch:
    """The last rows of sequences of CONTEXT tokens; make(sequences, cached, rows of each)."""
    each = rows // sequences(rows)
    ids = ops.upload(range(rows), (rows,))
    none = ops.upload([], (0,))
    return Batch(ids, ids, none, (make(sequences(rows), CONTEXT - each, each),))
