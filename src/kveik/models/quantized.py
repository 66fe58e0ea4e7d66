"""Matrices that a checkpoint stores quantised: their tensors, and what those stand for.

Pure functions over arrays that somebody else read. O outputs, I inputs, G groups of inputs that
share a scale and a zero point. A word is an int32 of n = 32 / bits values, lowest bits first.
Sizes that n or the group does not divide are rounded up.

  gptq    qweight int32 [I / n, O]: words along the inputs; qzeros int32 [G, O / n], in the first
          version of the format less one; scales [G, O]; g_idx int32 [I]: the group of each input
          (absent: in order). Old writers add a bias of zeros.
  awq     qweight int32 [I, O / 8]: words along the outputs, whose eight values are those of the
          outputs 0 2 4 6 1 3 5 7; qzeros int32 [G, O / 8] alike; scales [G, O]
  packed  weight_packed int32 [O, I / n], weight_zero_point int32 [O / n, G]: signed values with
          2^(bits - 1) added; weight_scale [O, G]; weight_shape [2]; weight_g_idx int32 [I]
  int8    weight int8 [O, I], weight_zero_point int8 [O, G]: signed values of 8 or 4 bits;
          weight_scale [O, G]; weight_g_idx int32 [I]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kveik.kernels.ops import QuantizedArray

Layout = Literal["gptq", "awq", "packed", "int8"]
Host = NDArray[Any]
Floats = NDArray[np.float32]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""AWQ_ORDER[i]: which of eight outputs has the i-th lowest bits of a word."""

_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one matrix is stored. group: inputs that share a scale, None: all of a row.

    asymmetric: there must be zero points (gptq and awq always have them). less_one: the zero
    points of the first GPTQ format. one_scale: one for the whole matrix (weight_scale [1])."""

    layout: Layout
    bits: Literal[4, 8]
    group: int | None
    asymmetric: bool = False
    less_one: bool = False
    one_scale: bool = False

    def group_size(self, columns: int) -> int:
        return min(self.group or columns, columns)


class StoredTensor(NamedTuple):
    """dtypes: as the header of the file may name them. optional: read if it is there."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    optional: bool = False


def stored_tensors(scheme: Scheme, rows: int, columns: int) -> dict[str, StoredTensor]:
    """The tensors of a matrix [rows, columns] by the last part of their names."""
    words, groups = 32 // scheme.bits, _pieces(columns, scheme.group_size(columns))
    if scheme.layout == "gptq":
        return {
            "qweight": StoredTensor((_pieces(columns, words), rows), ("I32",)),
            "qzeros": StoredTensor((groups, _pieces(rows, words)), ("I32",)),
            "scales": StoredTensor((groups, rows), _FLOATS),
            "g_idx": StoredTensor((columns,), ("I32",), optional=True),
            "bias": StoredTensor((rows,), _FLOATS, optional=True),
        }
    if scheme.layout == "awq":
        return {
            "qweight": StoredTensor((columns, _pieces(rows, words)), ("I32",)),
            "qzeros": StoredTensor((groups, _pieces(rows, words)), ("I32",)),
            "scales": StoredTensor((groups, rows), _FLOATS),
        }
    scales = (1,) if scheme.one_scale else (rows, groups)
    common = {
        "weight_scale": StoredTensor(scales, _FLOATS),
        "weight_g_idx": StoredTensor((columns,), ("I32",), optional=True),
    }
    if scheme.layout == "int8" or scheme.one_scale:  # one zero point is not worth packing
        zeros = StoredTensor(scales, ("I8",), not scheme.asymmetric)
    else:
        zeros = StoredTensor((_pieces(rows, words), groups), ("I32",), not scheme.asymmetric)
    common["weight_zero_point"] = zeros
    if scheme.layout == "int8":
        return {"weight": StoredTensor((rows, columns), ("I8",)), **common}
    return {
        "weight_packed": StoredTensor((rows, _pieces(columns, words)), ("I32",)),
        "weight_shape": StoredTensor((2,), ("I64", "I32")),
        **common,
    }


def read_matrix(
    scheme: Scheme, rows: int, columns: int, parts: Mapping[str, Host]
) -> QuantizedArray | Floats:
    """The matrix [rows, columns] of checked `parts`, of which each begins with a view of a file.

    float32 where no QuantizedArray can stand for it: groups that are not in order (desc_act) or
    not of one size, zero points of 8 bits. ValueError names the part that is wrong, and why."""
    values, scales, zeros, order = _READERS[scheme.layout](scheme, rows, columns, parts)
    group = scheme.group_size(columns)
    in_order = np.arange(columns) // group
    order = in_order if order is None else _checked_order(order, scales.shape[1])
    middle = 8 if scheme.bits == 4 else 0
    if zeros is not None and (zeros == middle).all():
        zeros = None
    fits = columns % group == 0 and (scheme.bits == 4 or zeros is None)
    if fits and np.array_equal(order, in_order):
        points = None if zeros is None else zeros.astype(np.uint8)
        return QuantizedArray(values, scales, points, scheme.bits, group)
    differences = values.astype(np.int16)
    differences -= middle if zeros is None else _spread_groups(zeros.astype(np.int16), order)
    plain = _spread_groups(scales, order)
    plain *= differences
    return plain


class _Unpacked(NamedTuple):
    """values int8 [O, I] and zeros int8 [O, G]: signed for 8 bits, 0 .. 15 for 4 bits;
    scales float32 [O, G]; order: the group of each input."""

    values: NDArray[np.int8]
    scales: Floats
    zeros: NDArray[np.int8] | None
    order: Host | None


def _gptq(scheme: Scheme, rows: int, columns: int, parts: Mapping[str, Host]) -> _Unpacked:
    bias = parts.get("bias")
    if bias is not None and bias.any():
        raise ValueError("bias is not zero, but this model_type has no bias there")
    words = parts["qzeros"]
    if scheme.less_one:  # taken off whole words, borrows and all, by those who wrote them
        one = 0x11111111 if scheme.bits == 4 else 0x01010101
        words = (words.view(np.uint32) + np.uint32(one)).view(np.int32)
    values = unpack(parts["qweight"].T, scheme.bits)[:, :columns]
    zeros = unpack(words, scheme.bits)[:, :rows].T
    return _Unpacked(
        _centred(values, scheme.bits),
        _float32(parts["scales"].T),
        _centred(zeros, scheme.bits),
        parts.get("g_idx"),
    )


def _awq(scheme: Scheme, rows: int, columns: int, parts: Mapping[str, Host]) -> _Unpacked:
    def outputs(words: Host) -> Host:
        """int32 [n, O / 8] -> uint8 [O, n]"""
        turned = np.ascontiguousarray(words.T)  # [O / 8, n]
        eights = np.empty((len(turned), 8, len(words)), np.uint8)
        for place, output in enumerate(AWQ_ORDER):
            eights[:, output] = turned >> (4 * place) & 15
        return eights.reshape(-1, len(words))[:rows]

    return _Unpacked(
        _centred(outputs(parts["qweight"]), scheme.bits),
        _float32(parts["scales"].T),
        _centred(outputs(parts["qzeros"]), scheme.bits),
        None,
    )


def _packed(scheme: Scheme, rows: int, columns: int, parts: Mapping[str, Host]) -> _Unpacked:
    shape = parts["weight_shape"].tolist()
    if shape != [rows, columns]:
        raise ValueError(f"weight_shape says {shape}, config.json asks for {[rows, columns]}")
    points = parts.get("weight_zero_point")
    if points is None or scheme.one_scale:
        zeros = _signed(points, "weight_zero_point", scheme.bits)
    else:
        zeros = _centred(unpack(points.T, scheme.bits)[:, :rows].T, scheme.bits)
    values = unpack(parts["weight_packed"], scheme.bits)[:, :columns]
    return _spread(_centred(values, scheme.bits), zeros, parts)


def _int8(scheme: Scheme, rows: int, columns: int, parts: Mapping[str, Host]) -> _Unpacked:
    values = _signed(parts["weight"], "weight", scheme.bits)
    assert values is not None
    zeros = _signed(parts.get("weight_zero_point"), "weight_zero_point", scheme.bits)
    return _spread(values, zeros, parts)


_READERS: Mapping[Layout, Callable[[Scheme, int, int, Mapping[str, Host]], _Unpacked]] = {
    "gptq": _gptq,
    "awq": _awq,
    "packed": _packed,
    "int8": _int8,
}


def unpack(words: Host, bits: int) -> NDArray[np.uint8]:
    """int32 [..., n] -> [..., n * 32 / bits], the lowest bits of a word first; bits: 4 or 8."""
    octets = np.ascontiguousarray(words, "<i4").view(np.uint8)  # [..., 4 n]
    if bits == 8:
        return octets
    halves = np.stack((octets & 15, octets >> 4), axis=-1)  # [..., 4 n, 2]
    return halves.reshape(*octets.shape[:-1], -1)


def _centred(stored: NDArray[np.uint8], bits: int) -> NDArray[np.int8]:
    """0 .. 255 -> -128 .. 127; 4 bits stay as they are. Contiguous."""
    moved = stored ^ np.uint8(128) if bits == 8 else stored
    return np.ascontiguousarray(moved).view(np.int8)


def _signed(stored: Host | None, name: str, bits: int) -> NDArray[np.int8] | None:
    """int8 as it is; 4 bits: -8 .. 7 -> 0 .. 15."""
    if stored is None or bits == 8:
        return stored
    if stored.size and not -8 <= int(stored.min()) <= int(stored.max()) <= 7:
        raise ValueError(f"{name} has values outside -8 .. 7, the range of 4 bits")
    return stored + np.int8(8)


def _spread(
    values: NDArray[np.int8], zeros: NDArray[np.int8] | None, parts: Mapping[str, Host]
) -> _Unpacked:
    """One scale for the whole matrix becomes one per row."""
    scales, rows = _float32(parts["weight_scale"]), len(values)
    if scales.ndim == 1:
        scales = np.full((rows, 1), scales[0])
        zeros = None if zeros is None else np.full((rows, 1), zeros[0])
    return _Unpacked(values, scales, zeros, parts.get("weight_g_idx"))


def _float32(stored: Host) -> Floats:
    return np.ascontiguousarray(stored, dtype=np.float32)


def _spread_groups(per_group: Host, order: Host) -> Host:
    """[O, G] -> [O, I]; order is within bounds ("clip" only spares the proof for each number)."""
    return per_group.take(order, axis=1, mode="clip")


def _checked_order(order: Host, groups: int) -> Host:
    if order.size and not 0 <= int(order.min()) <= int(order.max()) < groups:
        raise ValueError(f"the groups of its inputs (g_idx) are not all within 0 .. {groups - 1}")
    return order


def _pieces(size: int, piece: int) -> int:
    return -(-size // piece)
