"""Writers of quantised checkpoints, value by value as the formats describe them, and what they
stand for. Slow and plain on purpose: the readers in kveik are checked against them."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

Tensors = dict[str, np.ndarray]
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


@dataclass
class Quantised:
    """values [out, in] and zeros [out, groups] of 0 .. 2^bits - 1, scales [out, groups],
    order [in]: the group of each input. weight = (value - zero) * scale."""

    values: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    order: np.ndarray
    bits: int

    def plain(self) -> np.ndarray:
        difference = self.values - self.zeros[:, self.order]
        return difference.astype(np.float32) * self.scales.astype(np.float32)[:, self.order]


def quantise(
    matrix: np.ndarray,
    bits: int,
    group: int,
    *,
    symmetric: bool = True,
    shuffled: bool = False,
    scale_type: type = np.float16,
) -> Quantised:
    """Round to nearest, group by group; group -1: one for a whole row. shuffled: inputs belong to
    groups in a random order."""
    rows, columns = matrix.shape
    order = np.arange(columns) // (columns if group == -1 else group)
    if shuffled:
        order = np.random.default_rng(7).permutation(order)
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    groups = int(order.max()) + 1
    scales = np.zeros((rows, groups), scale_type)
    zeros = np.full((rows, groups), middle)
    values = np.zeros((rows, columns), np.int64)
    for number in range(groups):
        part = matrix[:, order == number].astype(np.float64)
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if symmetric:
            scale = (np.abs(part).max(1) / (middle - 1)).astype(scale_type)
        else:
            scale = ((high - low) / top).astype(scale_type)
            zeros[:, number] = np.clip(np.rint(-low / scale.astype(np.float64)), 0, top)
        scales[:, number] = scale
        rounded = np.rint(part / scale.astype(np.float64)[:, None]) + zeros[:, number, None]
        values[:, order == number] = np.clip(rounded, 0, top)
    return Quantised(values, zeros, scales, order, bits)


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """[a, n] of 0 .. 2^bits - 1 -> int32 [a, n * bits / 32 rounded up], lowest bits first."""
    rows, columns = values.shape
    words = np.zeros((rows, -(-columns * bits // 32)), np.uint32)
    for column in range(columns):
        word, bit = divmod(column * bits, 32)
        words[:, word] |= values[:, column].astype(np.uint32) << np.uint32(bit)
    return words.view(np.int32)


def gptq(q: Quantised, *, less_one: bool = True, with_order: bool = True) -> Tensors:
    zeros = pack(q.zeros.T, q.bits)
    if less_one:
        ones = sum(1 << bit for bit in range(0, 32, q.bits))
        less = (zeros.view(np.uint32).astype(np.int64) - ones) % 2**32
        zeros = less.astype(np.uint32).view(np.int32)
    tensors = {
        "qweight": np.ascontiguousarray(pack(q.values, q.bits).T),
        "qzeros": zeros,
        "scales": np.ascontiguousarray(q.scales.T),
    }
    return {**tensors, "g_idx": q.order.astype(np.int32)} if with_order else tensors


def awq(q: Quantised) -> Tensors:
    def pack_outputs(values: np.ndarray) -> np.ndarray:
        """[n, out] -> int32 [n, out / 8]"""
        shuffled = np.zeros_like(values)
        for column in range(values.shape[1]):
            eight, place = divmod(column, 8)
            shuffled[:, column] = values[:, 8 * eight + AWQ_ORDER[place]]
        return pack(shuffled, 4)

    return {
        "qweight": pack_outputs(q.values.T),
        "qzeros": pack_outputs(q.zeros.T),
        "scales": np.ascontiguousarray(q.scales.T),
    }


def packed(q: Quantised, *, asymmetric: bool = False, with_order: bool = False) -> Tensors:
    tensors = {
        "weight_packed": pack(q.values, q.bits),
        "weight_scale": q.scales.astype(ml_dtypes.bfloat16),
        "weight_shape": np.array(q.values.shape, np.int64),
    }
    if asymmetric:
        tensors["weight_zero_point"] = np.ascontiguousarray(pack(q.zeros.T, q.bits).T)
    return {**tensors, "weight_g_idx": q.order.astype(np.int32)} if with_order else tensors


def int8(q: Quantised, *, asymmetric: bool = False) -> Tensors:
    middle = 2 ** (q.bits - 1)
    tensors = {
        "weight": (q.values - middle).astype(np.int8),
        "weight_scale": q.scales.astype(np.float32),
    }
    if asymmetric:
        tensors["weight_zero_point"] = (q.zeros - middle).astype(np.int8)
    return tensors
