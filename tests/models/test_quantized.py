"""The layouts of quantised matrices, each against a writer that goes value by value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import packing
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kveik.kernels.ops import QuantizedArray
from kveik.kernels.reference import dequantized
from kveik.models.quantized import Scheme, read_matrix, stored_tensors, unpack

BITS = st.sampled_from([4, 8])
SIZES = st.integers(1, 40)
SEEDS = st.integers(0, 2**32 - 1)


@given(words=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=9), bits=BITS)
def test_unpack_reads_the_lowest_bits_first(words: list[int], bits: int) -> None:
    each = 32 // bits
    expected = [(word >> (bits * i)) % 2**bits for word in words for i in range(each)]
    assert unpack(np.array([words], np.int32), bits).tolist() == [expected]


def some_matrix(
    rows: int, columns: int, bits: int, group: int | None, seed: int, symmetric: bool = False
) -> packing.Quantised:
    """Random values and zero points over the whole range, groups in order."""
    generator = np.random.default_rng(seed)
    order = np.arange(columns) // min(group or columns, columns)
    shape = (rows, int(order[-1]) + 1)
    zeros = np.full(shape, 2 ** (bits - 1))
    if not symmetric:
        zeros = generator.integers(0, 2**bits, shape)
    return packing.Quantised(
        values=generator.integers(0, 2**bits, (rows, columns)),
        zeros=zeros,
        scales=generator.normal(size=shape).astype(np.float16),
        order=order,
        bits=bits,
    )


def read(scheme: Scheme, q: packing.Quantised, tensors: packing.Tensors) -> Any:
    """Checks the shapes as a checkpoint does, then reads."""
    rows, columns = q.values.shape
    expected = stored_tensors(scheme, rows, columns)
    for part, tensor in expected.items():
        assert part in tensors or tensor.optional, part
        assert part not in tensors or tensors[part].shape == tensor.shape, part
    assert set(tensors) <= set(expected)
    return read_matrix(scheme, rows, columns, tensors)


def assert_stands_for(matrix: Any, q: packing.Quantised) -> None:
    """To the bit: the value less the zero point is exact, and one product is rounded once."""
    if isinstance(matrix, QuantizedArray):
        assert matrix.values.dtype == np.int8
        assert matrix.scales.dtype == np.float32
        assert matrix.values.flags.c_contiguous
        assert matrix.scales.flags.c_contiguous
        assert matrix.scales.shape == (len(q.values), q.values.shape[1] // matrix.group)
        if matrix.bits == 4:
            assert 0 <= matrix.values.min() <= matrix.values.max() <= 15
        if matrix.zeros is not None:
            assert (matrix.bits, matrix.zeros.dtype) == (4, np.uint8)
            assert matrix.zeros.flags.c_contiguous
            assert matrix.zeros.max() <= 15
        matrix = dequantized(matrix)
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, q.plain())


@settings(max_examples=60, deadline=None)
@given(rows=SIZES, columns=SIZES, bits=BITS, group=SIZES, seed=SEEDS, less_one=st.booleans())
def test_gptq(rows: int, columns: int, bits: int, group: int, seed: int, less_one: bool) -> None:
    q = some_matrix(rows, columns, bits, group, seed)
    scheme = Scheme("gptq", bits, group, less_one=less_one)  # type: ignore[arg-type]
    for with_order in (True, False):
        stored = packing.gptq(q, less_one=less_one, with_order=with_order)
        assert_stands_for(read(scheme, q, stored), q)


@settings(max_examples=60, deadline=None)
@given(rows=SIZES, columns=SIZES, group=SIZES, seed=SEEDS)
def test_awq(rows: int, columns: int, group: int, seed: int) -> None:
    q = some_matrix(8 * rows, columns, 4, group, seed)
    assert_stands_for(read(Scheme("awq", 4, group), q, packing.awq(q)), q)


@settings(max_examples=60, deadline=None)
@given(rows=SIZES, columns=SIZES, bits=BITS, group=SIZES, seed=SEEDS, asymmetric=st.booleans())
@pytest.mark.parametrize("layout", ["packed", "int8"])
def test_compressed_tensors(
    layout: str, rows: int, columns: int, bits: int, group: int, seed: int, asymmetric: bool
) -> None:
    q = some_matrix(rows, columns, bits, group, seed, symmetric=not asymmetric)
    if layout == "packed":
        q.scales = q.scales.astype(packing.ml_dtypes.bfloat16)
    write = packing.packed if layout == "packed" else packing.int8
    scheme = Scheme(layout, bits, group, asymmetric=asymmetric)  # type: ignore[arg-type]
    assert_stands_for(read(scheme, q, write(q, asymmetric=asymmetric)), q)


@pytest.mark.parametrize("layout", ["packed", "int8"])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_one_scale_for_a_whole_matrix(layout: str, asymmetric: bool) -> None:
    q = some_matrix(24, 40, 8, None, 3, symmetric=True)
    q.scales[:] = q.scales[0]
    q.zeros[:] = 131 if asymmetric else 128
    q.scales = q.scales.astype(packing.ml_dtypes.bfloat16)
    stored = packing.packed(q) if layout == "packed" else packing.int8(q)
    stored["weight_scale"] = stored["weight_scale"][0]
    if asymmetric:
        stored["weight_zero_point"] = np.array([3], np.int8)
    scheme = Scheme(layout, 8, None, asymmetric=asymmetric, one_scale=True)  # type: ignore[arg-type]
    assert_stands_for(read(scheme, q, stored), q)


@pytest.mark.parametrize(
    ("bits", "group", "symmetric", "quantized"),
    [
        (4, 16, True, True),
        (4, 16, False, True),
        (4, None, False, True),
        (4, 64, True, True),  # longer than a row
        (8, 16, True, True),
        (8, None, True, True),
        (8, 16, False, False),
        (4, 15, True, False),
    ],
)
def test_what_stays_quantised(
    bits: int, group: int | None, symmetric: bool, quantized: bool
) -> None:
    q = some_matrix(16, 48, bits, group, 5, symmetric)
    scheme = Scheme("gptq", bits, group, less_one=True)  # type: ignore[arg-type]
    matrix = read(scheme, q, packing.gptq(q))
    assert isinstance(matrix, QuantizedArray) is quantized
    if quantized:
        assert (matrix.zeros is None) is symmetric
        assert matrix.group == min(group or 48, 48)


def test_groups_out_of_order_become_a_plain_matrix() -> None:
    q = some_matrix(16, 48, 4, 16, 5)
    q.order = np.random.default_rng(1).permutation(q.order)
    matrix = read(Scheme("gptq", 4, 16, less_one=True), q, packing.gptq(q))
    assert isinstance(matrix, np.ndarray)
    assert_stands_for(matrix, q)
    stored = packing.packed(q, asymmetric=True, with_order=True)
    q.scales = q.scales.astype(packing.ml_dtypes.bfloat16)
    assert_stands_for(read(Scheme("packed", 4, 16, asymmetric=True), q, stored), q)


def test_a_bias_of_zeros_is_nothing() -> None:
    q = some_matrix(16, 48, 4, 16, 5)
    stored = {**packing.gptq(q), "bias": np.zeros(16, np.float16)}
    assert_stands_for(read(Scheme("gptq", 4, 16, less_one=True), q, stored), q)


PACKED = Scheme("packed", 4, 16)


@pytest.mark.parametrize(
    ("scheme", "change", "message"),
    [
        (Scheme("gptq", 4, 16), {"g_idx": np.full(48, 3, np.int32)}, "not all within 0 .. 2"),
        (Scheme("gptq", 4, 16), {"g_idx": np.full(48, -1, np.int32)}, "not all within 0 .. 2"),
        (Scheme("gptq", 4, 16), {"bias": np.ones(16, np.float16)}, "bias is not zero"),
        (PACKED, {"weight_shape": np.array([48, 16])}, r"weight_shape says \[48, 16\]"),
        (
            replace(PACKED, layout="int8"),
            {"weight": np.full((16, 48), 8, np.int8)},
            "weight has values outside -8 .. 7",
        ),
        (
            replace(PACKED, layout="int8"),
            {"weight_zero_point": np.full((16, 3), -9, np.int8)},
            "weight_zero_point has values outside",
        ),
    ],
)
def test_values_that_cannot_be(scheme: Scheme, change: packing.Tensors, message: str) -> None:
    q = some_matrix(16, 48, 4, 16, 5, symmetric=True)
    write: Any = {"gptq": packing.gptq, "packed": packing.packed, "int8": packing.int8}
    stored = {**write[scheme.layout](q), **change}
    with pytest.raises(ValueError, match=message):
        read_matrix(scheme, 16, 48, stored)
