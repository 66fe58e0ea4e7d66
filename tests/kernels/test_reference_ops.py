"""Every op of the reference backend but attention and sampling, against torch."""

from __future__ import annotations

import math
from array import array

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kveik.kernels.ops import AttentionSpec, GroupBatch, KvSpec, QuantizedArray, RopeSpec
from kveik.kernels.reference import PackedLinear, reference_ops

OPS = reference_ops()


def floats(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * np.float32(scale)


def wide(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.astype(np.float64))


def near(got: np.ndarray, expected: torch.Tensor, tolerance: float = 2e-6) -> None:
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected.numpy(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(1, 16, 1), (3, 320, 70), (8, 64, 64), (17, 513, 100), (130, 32, 5), (2, 1025, 33)],
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(rows: int, inputs: int, outputs: int, with_bias: bool) -> None:
    x, weight = floats(rows, inputs), floats(outputs, inputs, seed=1, scale=inputs**-0.5)
    bias = floats(outputs, seed=2) if with_bias else None
    got = OPS.linear(x, OPS.pack_weight(weight, "linear", bias), None)
    near(got, F.linear(wide(x), wide(weight), None if bias is None else wide(bias)), 5e-6)
    assert got.flags.c_contiguous


def test_linear_of_rows_that_are_a_view() -> None:
    x, weight = floats(40, 24), floats(9, 12, seed=1)
    view = x[5:21, ::2]
    got = OPS.linear(view, OPS.pack_weight(weight, "column", None), None)
    near(got, F.linear(wide(np.ascontiguousarray(view)), wide(weight)), 5e-6)


@pytest.mark.parametrize(
    ("bits", "zeros", "group"), [(8, False, 32), (8, False, 96), (4, False, 48), (4, True, 32)]
)
def test_a_quantized_weight_multiplies_like_the_matrix_it_stands_for(
    bits: int, zeros: bool, group: int
) -> None:
    rows, columns = 70, 96
    generator = np.random.default_rng(4)
    low, high = (-128, 128) if bits == 8 else (0, 16)
    values = generator.integers(low, high, (rows, columns), dtype=np.int8)
    scales = floats(rows, columns // group, scale=0.1)
    points = generator.integers(0, 16, scales.shape, dtype=np.uint8) if zeros else None
    stored = QuantizedArray(values, scales, points, bits, group)  # type: ignore[arg-type]
    matrix = np.zeros((rows, columns))
    for row in range(rows):
        for column in range(columns):
            zero = {4: 8, 8: 0}[bits] if points is None else points[row, column // group]
            difference = int(values[row, column]) - int(zero)
            matrix[row, column] = difference * float(scales[row, column // group])
    x, bias = floats(3, columns, seed=1), floats(rows, seed=2)
    got = OPS.linear(x, OPS.pack_weight(stored, "linear", bias), None)
    near(got, F.linear(wide(x), wide(matrix), wide(bias)), 2e-5)
    plain = OPS.pack_weight(matrix.astype(np.float32), "linear", bias)
    np.testing.assert_array_equal(got, OPS.linear(x, plain, None))


def test_weights_are_widened_and_copied() -> None:
    weight = floats(20, 16).astype(ml_dtypes.bfloat16)
    packed = OPS.pack_weight(weight, "row", None)
    assert isinstance(packed, PackedLinear)
    x = floats(2, 16, seed=3)
    expected = F.linear(wide(x), wide(weight.astype(np.float32)))
    weight[:] = 0
    near(OPS.linear(x, packed, None), expected, 5e-6)


@pytest.mark.parametrize(
    ("shape", "kind"), [((4,), "linear"), ((4,), "embedding"), ((4, 2), "vector")]
)
def test_a_weight_of_the_wrong_shape_is_named(shape: tuple[int, ...], kind: str) -> None:
    with pytest.raises(ValueError, match=kind):
        OPS.pack_weight(np.zeros(shape), kind, None)  # type: ignore[arg-type]


def test_rows_of_the_wrong_width_are_named() -> None:
    with pytest.raises(ValueError, match="rows of 5 meet a weight that takes 4"):
        OPS.linear(floats(1, 5), OPS.pack_weight(floats(3, 4), "linear", None), None)


def test_logits_and_the_packing_they_need() -> None:
    x, head = floats(3, 16), floats(50, 16, seed=1)
    near(OPS.logits(x, OPS.pack_weight(head, "linear", None)), wide(x) @ wide(head).T, 5e-6)
    with pytest.raises(TypeError, match="linear"):
        OPS.logits(x, OPS.pack_weight(head, "embedding", None))


def test_embed_and_take_rows() -> None:
    table, ids = floats(11, 6), np.array([0, 10, 3, 3])
    packed = OPS.pack_weight(table, "embedding", None)
    np.testing.assert_array_equal(OPS.embed(packed, ids), table[ids])
    x = floats(4, 6, seed=1)
    np.testing.assert_array_equal(OPS.embed_add(x, packed, ids), x + table[ids])
    np.testing.assert_array_equal(OPS.take_rows(x, np.array([3, 1])), x[[3, 1]])


@pytest.mark.parametrize("bad", [-1, 11])
def test_an_id_outside_the_table_is_an_error(bad: int) -> None:
    with pytest.raises(IndexError):
        OPS.embed(floats(11, 6), np.array([0, bad]))


@pytest.mark.parametrize("with_residual", [False, True])
def test_rms_norm(with_residual: bool) -> None:
    x, weight, eps = floats(7, 33, scale=3), floats(33, seed=1), 1e-5
    residual = floats(7, 33, seed=2) if with_residual else None
    normed, stream = OPS.rms_norm(x, OPS.pack_weight(weight, "vector", None), None, eps, residual)
    total = wide(x) if residual is None else wide(x) + wide(residual)
    near(normed, F.rms_norm(total, (33,), wide(weight), eps))
    near(stream, total)


@pytest.mark.parametrize("with_residual", [False, True])
def test_layer_norm(with_residual: bool) -> None:
    x, weight, bias, eps = floats(7, 48, scale=3), floats(48, seed=1), floats(48, seed=2), 1e-5
    residual = floats(7, 48, seed=3) if with_residual else None
    normed, stream = OPS.layer_norm(x + 4, weight, bias, eps, residual)
    total = wide(x + 4) if residual is None else wide(x + 4) + wide(residual)
    near(normed, F.layer_norm(total, (48,), wide(weight), wide(bias), eps), 5e-6)
    near(stream, total)
    near(OPS.layer_norm(x, weight, None, eps, None)[0],
         F.layer_norm(wide(x), (48,), wide(weight), None, eps), 5e-6)  # fmt: skip


def test_qk_norm_norms_each_head_by_itself() -> None:
    x, weight = floats(5, 4 * 16), floats(16, seed=1)
    expected = F.rms_norm(wide(x).view(5, 4, 16), (16,), wide(weight), 1e-6).reshape(5, 64)
    near(OPS.qk_norm(x, weight, 4, 1e-6), expected)


def test_silu_mul() -> None:
    gate, up = floats(5, 40, scale=20), floats(5, 40, seed=1)
    gate[0, :3] = (-100, 0, 100)
    near(OPS.silu_mul(gate, up), F.silu(wide(gate)) * wide(up))


@pytest.mark.parametrize("form", ["tanh", "erf"])
def test_gelu(form: str) -> None:
    x = np.concatenate((np.linspace(-8, 8, 4001), [-40, 0, 40])).astype(np.float32)[None]
    expected = F.gelu(wide(x), approximate="tanh" if form == "tanh" else "none")
    got = OPS.gelu(x, form)  # type: ignore[arg-type]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-15, rtol=4e-7)


def test_add() -> None:
    x, y = floats(3, 4), floats(3, 4, seed=1)
    np.testing.assert_array_equal(OPS.add(x, y), x + y)


def test_no_rows_pass_through_every_op() -> None:
    none, ids = np.zeros((0, 16), np.float32), np.zeros(0, np.int64)
    packed = OPS.pack_weight(floats(5, 16), "linear", floats(5))
    table, vector = floats(3, 16), floats(16)
    assert OPS.linear(none, packed, None).shape == OPS.logits(none, packed).shape == (0, 5)
    assert OPS.sample(OPS.logits(none, packed), []) == []
    spec, arena = AttentionSpec(2, 2, 8, 1.0, RopeSpec((1.0, 0.5))), KvSpec(1, 2, 4, 2, 8)
    batch = GroupBatch(ids, ids, ids.reshape(0, 4), ids.reshape(0, 3), ids, ids.reshape(0, 3), 4)
    OPS.rope_write_kv(none, none, OPS.allocate_kv(arena), 0, batch, spec)
    for out in (
        OPS.rms_norm(none, vector, None, 1e-5, none)[0],
        OPS.layer_norm(none, vector, vector, 1e-5, None)[0],
        OPS.qk_norm(none, floats(8), 2, 1e-5),
        OPS.silu_mul(none, none),
        OPS.gelu(none, "tanh"),
        OPS.gelu(none, "erf"),
        OPS.embed(table, ids),
        OPS.embed_add(none, table, ids),
        OPS.take_rows(none, ids),
        OPS.paged_attention(none, OPS.allocate_kv(arena), 0, batch, spec),
    ):
        assert out.shape == (0, 16)


def test_arrays_go_up_and_down() -> None:
    values = array("q", [1, 2, 3, 4, 5, 6])
    for source in (values, list(values), memoryview(values)):
        up = OPS.upload(source, (2, 3))
        assert up.dtype == np.int64
        assert OPS.download(up) == [[1, 2, 3], [4, 5, 6]]
    values[0] = 99
    assert OPS.upload(memoryview(values)[:0], (0, 3)).shape == (0, 3)
    assert up[0, 0] == 1
    assert OPS.allocate((2, 3), "bfloat16").dtype == ml_dtypes.bfloat16
    assert not OPS.allocate((2, 3), "float32").any()


def test_capture_changes_nothing() -> None:
    def forward() -> int:
        return 3

    assert OPS.capture(forward, 1) is forward


def test_a_backend_says_what_it_is() -> None:
    assert OPS.name == "reference"
    assert OPS.level.startswith("numpy ")
    assert OPS.numerics_version == reference_ops().numerics_version


def test_sums_of_parts_are_the_sum_and_near_to_the_truth() -> None:
    x = floats(300, 40, seed=8) * np.float32(50) + np.float32(3)
    [whole] = OPS.sum_rows(x, [(0, 300)])
    parts = OPS.sum_rows(x, [(0, 7), (7, 200), (207, 93)])
    assert [sum(column) for column in zip(*parts, strict=True)] == whole
    for found, column in zip(whole, x.T, strict=True):
        assert found / 2**30 == pytest.approx(math.fsum(column.tolist()), abs=300 * 2**-31)
    assert OPS.sum_rows(x[200:203], [(1, 1)]) == OPS.sum_rows(x, [(201, 1)])


@pytest.mark.parametrize("value", [np.nan, np.inf, 65536.0])
def test_what_cannot_be_added_up_is_said(value: float) -> None:
    x = floats(3, 4)
    x[1, 2] = value
    with pytest.raises(FloatingPointError, match="hidden states"):
        OPS.sum_rows(x, [(0, 3)])
    assert OPS.sum_rows(x, [(0, 1), (2, 1)])  # other rows are not concerned
