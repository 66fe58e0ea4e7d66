"""The reference backend: numpy, float32 arithmetic, the specification of every other backend.

Exactness: the bits of a row never depend on the number of rows, their order, their neighbours or
the thread count. BLAS promises nothing of the kind, so every product runs in tiles of exactly
`TILE_ROWS` zero-padded rows, for one row as for a thousand, and against panels of fixed width;
everything else is elementwise or reduces one contiguous row at a time. A tile times a panel stays
below the size at which OpenBLAS wakes its threads.

It must not know models, requests or the cache; it owns no state but the arenas it hands out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from kveik.kernels.ops import Ops, QuantizedArray, WeightKind
from kveik.kernels.reference_attention import (
    TILE_ROWS,
    allocate_kv,
    copy_blocks,
    erase_blocks,
    paged_attention,
    rope_write_kv,
)
from kveik.kernels.reference_sampling import sample

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

NUMERICS = "reference-1"
PANEL_WIDTHS = (64, 32, 16)
THREADLESS_PRODUCTS = 1 << 18
"""OpenBLAS uses one thread for up to this many multiplications."""


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """panels: [P, 1, in, n] columns of the transposed weight, zero-padded to P * n >= out_features;
    bias: [out_features] or None."""

    panels: Floats
    out_features: int
    bias: Floats | None


def reference_ops() -> Ops:
    """The numpy backend; its arrays are numpy arrays."""
    return Ops(
        name="reference",
        level=f"numpy {np.__version__} ({_instruction_set()})",
        numerics_version=f"{NUMERICS}/{_numerics_probe()}",
        dtype="float32",
        allocate=allocate,
        allocate_kv=allocate_kv,
        upload=upload,
        download=download,
        pack_weight=pack_weight,
        kept_as=kept_as,
        embed=embed,
        embed_add=embed_add,
        rms_norm=rms_norm,
        layer_norm=layer_norm,
        linear=linear,
        qk_norm=qk_norm,
        rope_write_kv=rope_write_kv,
        paged_attention=paged_attention,
        silu_mul=silu_mul,
        gelu=gelu,
        add=add,
        take_rows=take_rows,
        logits=logits,
        sample=sample,
        sum_rows=sum_rows,
        copy_blocks=copy_blocks,
        erase_blocks=erase_blocks,
        capture=capture,
    )


# ---- memory ------------------------------------------------------------------------------------


def allocate(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Zeros. dtype: a numpy name or "bfloat16"."""
    return np.zeros(shape, ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype))


def upload(values: Any, shape: tuple[int, ...]) -> Ids:
    """A copy as int64 in `shape`; values: a buffer of int64 or a sequence of integers."""
    return np.array(values, dtype=np.int64).reshape(shape)


def download(array: NDArray[Any]) -> Any:
    """Nested Python lists."""
    return array.tolist()


def pack_weight(array: Any, kind: WeightKind, bias: Any | None) -> PackedLinear | Floats:
    """Host array of any float dtype, or a QuantizedArray -> float32, laid out for its op.

    "embedding" [V, H] and "vector" [n] stay plain arrays; every other kind [out, in] becomes
    panels. Raises ValueError for a shape that the kind cannot have."""
    quantized = isinstance(array, QuantizedArray)
    weight = dequantized(array) if quantized else np.array(array, dtype=np.float32, order="C")
    if kind == "vector" or kind == "embedding":
        if weight.ndim != (1 if kind == "vector" else 2):
            raise ValueError(f"a weight of kind {kind!r} cannot have the shape {weight.shape}")
        return weight
    if weight.ndim != 2:
        raise ValueError(f"a weight of kind {kind!r} must be [out, in], got {weight.shape}")
    rows, columns = weight.shape
    width = _panel_width(columns)
    count = -(-rows // width)
    padded = np.zeros((count * width, columns), np.float32)
    padded[:rows] = weight
    panels = np.ascontiguousarray(padded.reshape(count, 1, width, columns).swapaxes(2, 3))
    return PackedLinear(panels, rows, None if bias is None else np.array(bias, dtype=np.float32))


def kept_as(weight: PackedLinear) -> str:
    return str(weight.panels.dtype)


def dequantized(array: QuantizedArray) -> Floats:
    """The matrix [out, in] that `array` stands for: one float32 product per number."""
    rows, columns = array.values.shape
    grouped = array.values.reshape(rows, columns // array.group, array.group)
    middle = np.int8(8 if array.bits == 4 else 0)
    zeros = middle if array.zeros is None else array.zeros[:, :, None].astype(np.int8)
    weight: Floats = (grouped - zeros) * array.scales[:, :, None]
    return weight.reshape(rows, columns)


def _panel_width(in_features: int) -> int:
    for width in PANEL_WIDTHS:
        if TILE_ROWS * width * in_features <= THREADLESS_PRODUCTS:
            return width
    return PANEL_WIDTHS[-1]


# ---- products ----------------------------------------------------------------------------------


def linear(x: Floats, weight: PackedLinear, adapters: NDArray[Any] | None) -> Floats:
    """x [T, in] -> [T, out]. Raises NotImplementedError for adapters."""
    if adapters is not None:
        raise NotImplementedError("the reference backend has no adapters")
    rows, width = x.shape
    panels = weight.panels
    if panels.shape[2] != width:
        raise ValueError(f"rows of {width} meet a weight that takes {panels.shape[2]}")
    product = np.matmul(_tiles(x), panels)  # [P, tiles, 8, n]
    shape = product.shape[1] * TILE_ROWS, len(panels) * panels.shape[3]
    flat = product.transpose(1, 2, 0, 3).reshape(shape)
    out = np.ascontiguousarray(flat[:rows, : weight.out_features])
    if weight.bias is not None:
        out += weight.bias
    return out


def _tiles(x: Floats) -> Floats:
    """[T, K] -> [1, tiles, 8, K], zero-padded."""
    rows, width = x.shape
    count = -(-rows // TILE_ROWS)
    if rows == count * TILE_ROWS and x.flags.c_contiguous:
        return x.reshape(1, count, TILE_ROWS, width)
    padded = np.zeros((count * TILE_ROWS, width), np.float32)
    padded[:rows] = x
    return padded.reshape(1, count, TILE_ROWS, width)


def logits(x: Floats, head: PackedLinear) -> Floats:
    """x [R, H] -> float32 [R, V]."""
    if not isinstance(head, PackedLinear):
        raise TypeError('the head of the logits must be packed as "linear"')
    return linear(x, head, None)


# ---- rows --------------------------------------------------------------------------------------


def embed(table: Floats, ids: Ids) -> Floats:
    """table [V, H], ids [T] -> [T, H]. Raises IndexError for an id outside the table."""
    if ids.size and ids.min() < 0:
        raise IndexError(f"id {ids.min()} is not in a table of {len(table)} rows")
    return table.take(ids, axis=0)


def embed_add(x: Floats, table: Floats, positions: Ids) -> Floats:
    """x [T, H] + table[positions]."""
    return x + embed(table, positions)


def take_rows(x: Floats, rows: Ids) -> Floats:
    """x [T, H], rows [R] -> [R, H]."""
    return x.take(rows, axis=0)


SUM_UNITS = 2.0**30
"""In which sums of rows are counted: finer than float32 for any value from 2^-6 on."""

SUMMABLE = 2.0**16
"""Values below it leave room for 2^17 rows in 64 bits."""


def sum_rows(x: Floats, ranges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """x [R, H] -> the sum of every range (first row, rows) in units of 2^-30.

    Raises FloatingPointError for values that are not numbers, or 65536 and more."""
    sums: list[list[int]] = []
    for first, count in ranges:
        rows = x[first : first + count]
        if not (np.abs(rows) < SUMMABLE).all():
            raise FloatingPointError("hidden states are not finite, or too large to be added up")
        units = np.rint(rows.astype(np.float64) * SUM_UNITS).astype(np.int64)
        sums.append(units.sum(axis=0).tolist())
    return sums


def _row_sums(x: Floats) -> Floats:
    """[..., n] -> [..., 1]; numpy sums each contiguous row pairwise by itself."""
    sums: Floats = np.add.reduce(np.ascontiguousarray(x), axis=-1, keepdims=True)
    return sums


def rms_norm(
    x: Floats, weight: Floats, bias: Floats | None, eps: float, residual: Floats | None
) -> tuple[Floats, Floats]:
    """Zhang and Sennrich 2019: x / sqrt(mean(x^2) + eps) * weight, after adding the residual."""
    if residual is not None:
        x = residual + x
    mean_square: Floats = _row_sums(x * x) / np.float32(x.shape[-1])
    normed: Floats = x / np.sqrt(mean_square + np.float32(eps)) * weight
    return normed, x


def layer_norm(
    x: Floats, weight: Floats, bias: Floats | None, eps: float, residual: Floats | None
) -> tuple[Floats, Floats]:
    """Ba et al. 2016: (x - mean) / sqrt(variance + eps) * weight + bias, after the residual."""
    if residual is not None:
        x = residual + x
    count = np.float32(x.shape[-1])
    centred: Floats = x - _row_sums(x) / count
    variance: Floats = _row_sums(centred * centred) / count
    normed: Floats = centred / np.sqrt(variance + np.float32(eps)) * weight
    return (normed if bias is None else normed + bias), x


def qk_norm(x: Floats, weight: Floats, heads: int, eps: float) -> Floats:
    """RMS norm of every head by itself: x [T, heads * D], weight [D]."""
    normed, _ = rms_norm(x.reshape(len(x), heads, len(weight)), weight, None, eps, None)
    return normed.reshape(x.shape)


# ---- elementwise -------------------------------------------------------------------------------


def add(x: Floats, y: Floats) -> Floats:
    return x + y


def silu_mul(gate: Floats, up: Floats) -> Floats:
    """gate * sigmoid(gate) * up."""
    with np.errstate(over="ignore"):
        below: Floats = np.exp(-gate)
    below += 1
    return gate / below * up


def gelu(x: Floats, form: Literal["tanh", "erf"]) -> Floats:
    """Hendrycks and Gimpel 2016: x * Phi(x), or its tanh approximation. Worked in float64."""
    wide = x.astype(np.float64)
    if form == "tanh":
        inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide * wide * wide)
        twice = 1 + np.tanh(inner)
    else:
        twice = _erfc(wide * -math.sqrt(0.5))
    activated: Floats = (0.5 * wide * twice).astype(np.float32)
    return activated


_ERFC_SERIES = (
    -1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806,
    0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277,
)  # fmt: skip


def _erfc(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 - erf(x) with a relative error below 1.2e-7 (Press et al., Numerical Recipes, 6.2)."""
    size = np.abs(x)
    t = 1 / (1 + 0.5 * size)
    series = np.full_like(x, _ERFC_SERIES[-1])
    for coefficient in reversed(_ERFC_SERIES[:-1]):
        series = series * t + coefficient
    tail = t * np.exp(series - size * size)
    both: NDArray[np.float64] = np.where(x < 0, 2 - tail, tail)
    return both


# ---- the backend itself ------------------------------------------------------------------------


def capture(forward: Callable[..., Any], bucket: int) -> Callable[..., Any]:
    """Nothing to replay: numpy runs `forward` as it is."""
    return forward


def _instruction_set() -> str:
    """The widest instruction set that numpy found on this machine, e.g. "X86_V4"."""
    features: dict[str, Any] = np.show_config(mode="dicts")  # type: ignore[assignment]
    simd = features.get("SIMD Extensions", {})
    found = simd.get("found") or simd.get("baseline") or ["scalar"]
    return str(found[-1])


def _numerics_probe() -> str:
    """Eight hex digits that change with the bits of products, exponentials and angles.

    What a machine, a BLAS kernel or a numpy build computes differently must not meet under one
    engine fingerprint, so the fingerprint holds what they compute and not only their names."""
    grid = np.linspace(-3, 3, TILE_ROWS * 320).reshape(TILE_ROWS, 320)
    x = np.sin(grid * 7).astype(np.float32)
    weight = np.cos(np.arange(320 * 320) * 0.37).astype(np.float32).reshape(320, 320)
    product = linear(x, pack_weight(weight, "linear", None), None)  # type: ignore[arg-type]
    parts = (np.sin(grid), np.cos(grid), np.tanh(grid), product, np.exp(x), np.exp(grid))
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:8]
