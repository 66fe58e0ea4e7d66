"""Products with int8 and int4 weights: every level of this machine has the bits of plain loops, for
every row alone and in company, and near to those of the matrix that was quantised."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from kveik.kernels.extension import native_extension
from kveik.kernels.ops import Ops, QuantizedArray
from kveik.kernels.reference import dequantized

if native_extension().module is None:
    pytest.skip(native_extension().missing, allow_module_level=True)

from kveik.kernels import _native
from kveik.kernels.native import native_ops

LEVELS = [level for level in _native.levels() if level != "scalar"]
POOL = _native.Pool(2)
ORACLE = native_ops("scalar", 1)


@pytest.fixture(scope="module", params=LEVELS)
def ops(request: pytest.FixtureRequest) -> Ops:
    return native_ops(request.param, threads=2)


def bits_of(array: Any) -> Any:
    return np.ascontiguousarray(array).view(np.uint32)


def same(one: Any, other: Any) -> bool:
    """Bit for bit; one NaN is as good as another."""
    return bool(((bits_of(one) == bits_of(other)) | (np.isnan(one) & np.isnan(other))).all())


def random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def stored(outs: int, ins: int, bits: int, group: int, zeros: bool = False) -> QuantizedArray:
    """What a checkpoint might store."""
    generator = np.random.default_rng(outs * ins + group)
    low, high = (-128, 128) if bits == 8 else (0, 16)
    shape = outs, ins // group
    return QuantizedArray(
        values=generator.integers(low, high, (outs, ins)).astype(np.int8),
        scales=generator.uniform(0.001, 0.1, shape).astype(np.float32),
        zeros=generator.integers(0, 16, shape).astype(np.uint8) if zeros else None,
        bits=bits,  # type: ignore[arg-type]
        group=group,
    )


FORMATS = [(8, 0), (8, 64), (8, 128), (4, 0), (4, 64), (4, 128), (4, 192)]
ROTATED = pytest.mark.parametrize("rotated", [True, False])
SHAPES = [(1, 1), (16, 64), (33, 127), (70, 384), (40, 1500)]


@ROTATED
@pytest.mark.parametrize(("bits", "group"), FORMATS)
def test_every_level_has_the_bits_of_plain_loops(
    ops: Ops, bits: int, group: int, rotated: bool
) -> None:
    for outs, ins in SHAPES:
        weight, bias = random(outs, ins, seed=1), random(outs, seed=2)
        packed = _native.quantize(POOL, weight, bias, bits, group, rotated)
        for rows in (1, 2, 3, 4, 7, 8, 9, 16, 17, 33, 40):
            x = random(rows, ins, seed=rows) * 10.0 ** (rows % 7 - 3)
            assert same(ops.linear(x, packed, None), ORACLE.linear(x, packed, None))


@ROTATED
@pytest.mark.parametrize(("bits", "group"), [(8, 0), (4, 128)])
def test_a_row_has_the_bits_that_it_has_alone(
    ops: Ops, bits: int, group: int, rotated: bool
) -> None:
    weight, bias = random(70, 300, seed=1), random(70, seed=2)
    packed = _native.quantize(POOL, weight, bias, bits, group, rotated)
    x = random(300, 300, seed=3)
    alone = np.concatenate([ops.linear(x[i : i + 1], packed, None) for i in range(len(x))])
    for rows in (*range(1, 131), 255, 257, 300):
        start = (rows * 37) % (len(x) - rows + 1)
        together = ops.linear(x[start : start + rows], packed, None)
        assert same(together, alone[start : start + rows]), rows


@ROTATED
def test_rows_beyond_a_section_of_the_cache(ops: Ops, rotated: bool) -> None:
    """5632 inputs: 80 rows of two planes are multiplied together, 160 of one, then the next."""
    for bits, group in ((8, 0), (4, 128)):
        packed = _native.quantize(POOL, random(64, 5632, seed=1), None, bits, group, rotated)
        x = random(200, 5632, seed=3)
        together = ops.linear(x, packed, None)
        for row in (0, 15, 79, 80, 81, 159, 160, 161, 199):
            assert same(together[row : row + 1], ops.linear(x[row : row + 1], packed, None))


@ROTATED
@pytest.mark.parametrize("level", LEVELS)
def test_threads_and_panels_leave_no_trace(level: str, rotated: bool) -> None:
    weight, x = random(200, 300, seed=1), random(70, 300, seed=2)
    for bits, group in ((8, 0), (4, 64)):
        one, two, three = (native_ops(level, threads) for threads in (1, 2, 3))
        packed = _native.quantize(POOL, weight, None, bits, group, rotated)
        part = _native.quantize(POOL, weight[:33], None, bits, group, rotated)
        alone = one.linear(x, packed, None)
        assert same(two.linear(x, packed, None), alone)
        assert same(three.linear(x, packed, None), alone)
        assert same(two.linear(x, part, None), alone[:, :33])


@ROTATED
@pytest.mark.parametrize("bits", [8, 4])
def test_a_broken_row_stays_alone(ops: Ops, bits: int, rotated: bool) -> None:
    packed = _native.quantize(POOL, random(40, 70), random(40, seed=2), bits, 0, rotated)
    x = random(20, 70, seed=1)
    clean = ops.linear(x, packed, None)
    for value in (np.nan, np.inf, -np.inf):
        for row in (0, 7, 8, 19):
            spoiled = x.copy()
            spoiled[row, 3] = value
            got = ops.linear(spoiled, packed, None)
            others = np.arange(20) != row
            assert same(got[others], clean[others])
            assert np.isnan(got[row]).all()


@ROTATED
@pytest.mark.parametrize("bits", [8, 4])
def test_rows_of_zeros_and_next_to_nothing_give_the_bias(
    ops: Ops, bits: int, rotated: bool
) -> None:
    bias = random(40, seed=2)
    packed = _native.quantize(POOL, random(40, 70), bias, bits, 64, rotated)
    x = random(3, 70, seed=1)
    x[1], x[2] = 0, 1e-38
    got = ops.linear(x, packed, None)
    assert same(got[1], bias)
    assert same(got[2], bias)
    nothing = _native.quantize(POOL, np.zeros((40, 70), np.float32), bias, bits, 64, rotated)
    assert same(ops.linear(x, nothing, None), np.tile(bias, (3, 1)))


def test_16_bits_are_enough_for_a_row(ops: Ops) -> None:
    """Half a step of 1 / 32512 of the largest input, times the weights' magnitudes."""
    array = stored(50, 512, 8, 512)
    packed = ops.pack_weight(array, "linear", None)
    x = random(9, 512, seed=4) ** 3
    weight = dequantized(array).astype(np.float64)
    step = np.abs(x).max(1, keepdims=True) / 32512
    bound = step / 2 * np.abs(weight).sum(1) + 1e-5 * (np.abs(x) @ np.abs(weight).T)
    assert (np.abs(ops.linear(x, packed, None) - x.astype(np.float64) @ weight.T) <= bound).all()


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(8, 64), (8, 300), (4, 64), (4, 128), (4, 300)])
def test_stored_values_are_packed_as_they_are(ops: Ops, bits: int, group: int, zeros: bool) -> None:
    """A row with a single 1 reads one column of the matrix back."""
    if bits == 8 and zeros:
        return
    ins = 300 if group == 300 else 384
    array = stored(37, ins, bits, group, zeros)
    packed = ops.pack_weight(array, "linear", None)
    read = ops.linear(np.eye(ins, dtype=np.float32), packed, None).T
    assert np.allclose(read, dequantized(array), rtol=1e-6, atol=0)
    x = random(19, ins, seed=5)
    assert same(ops.linear(x, packed, None), ORACLE.linear(x, packed, None))


@pytest.mark.parametrize("bits", [8, 4])
def test_groups_that_tiles_cannot_follow_become_int8(ops: Ops, bits: int) -> None:
    for group, ins in ((32, 96), (48, 144)):
        array = stored(37, ins, bits, group, zeros=bits == 4)
        read = ops.linear(
            np.eye(ins, dtype=np.float32), ops.pack_weight(array, "linear", None), None
        )
        exact = dequantized(array)
        assert (np.abs(read.T - exact) <= np.abs(exact).max() / 127 * 0.51).all()


def turned(rows: Any) -> Any:
    """The rotation as a matrix: signs, then in each block Hadamard's matrix (Sylvester's, which
    is made by doubling), divided so that lengths stay. rows [n, in] -> [n, in padded]"""
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 128))).astype(np.float64)
    width = rows.shape[1]
    places = np.arange(width, dtype=np.uint64)
    mixed = places * 0x9E3779B1 & 0xFFFFFFFF
    mixed = (mixed ^ mixed >> np.uint64(15)) * 0x85EBCA77 & 0xFFFFFFFF
    rows = np.where(mixed >> np.uint64(31), -rows, rows)
    block = min(width & -width, 4096)
    matrix = np.ones((1, 1))
    while len(matrix) < block:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (rows.reshape(-1, block) @ matrix / np.sqrt(block)).reshape(rows.shape)


@pytest.mark.parametrize("ins", [64, 384, 896, 2048, 5632, 8192])
def test_rotated_products_are_those_of_rounded_turned_rows(ops: Ops, ins: int) -> None:
    """int8 with one scale a row, x with 8 bits and one scale: computed here in double precision."""
    weight, x = random(33, ins, seed=1), random(5, ins, seed=2) ** 3
    packed = _native.quantize(POOL, weight, None, 8, 0, True)

    def rounded(rows: Any) -> Any:
        step = np.abs(rows).max(1, keepdims=True) / 127
        return np.rint(rows / step) * step

    expected = rounded(turned(x)) @ rounded(turned(weight)).T
    scale = np.abs(x).max() * np.sqrt(ins)
    # a few numbers lie so near to a half that float32 rounds them to the other side
    assert np.abs(ops.linear(x, packed, None) - expected).max() <= 2e-3 * scale


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_quantised_matrix_is_near_to_what_it_was(dtype: Any) -> None:
    """By its products, with x in 16 bits."""
    weight = random(40, 256, seed=6).astype(dtype)
    wide, x = weight.astype(np.float32), random(50, 256, seed=7)
    for bits, group, share in ((8, 0, 0.0075), (4, 128, 0.11)):
        stored_bits = weight.view(np.uint16) if dtype == ml_dtypes.bfloat16 else weight
        packed = _native.quantize(POOL, stored_bits, None, bits, group, False)
        exact = x @ wide.T
        error = native_ops(LEVELS[0], 1).linear(x, packed, None) - exact
        assert np.sqrt((error**2).mean() / (exact**2).mean()) <= share, bits


def test_large_inputs_take_no_bits_from_the_others() -> None:
    """Rows with two inputs a hundred times as large as the rest: what the rotation is for."""
    own = native_ops(LEVELS[0], 1, "int8")
    weight, x = random(40, 2048, seed=6), random(20, 2048, seed=7)
    weight[:, [5, 700]] = 0  # their part of the products would hide the others
    exact = x @ weight.T
    x[:, [5, 700]] *= 100
    error = own.linear(x, own.pack_weight(weight, "linear", None), None) - exact
    assert np.sqrt((error**2).mean() / (exact**2).mean()) <= 0.04


def test_int8_steps_are_a_127th_of_the_largest() -> None:
    weight = random(40, 256, seed=6)
    packed = _native.quantize(POOL, weight, None, 8, 0, False)
    read = native_ops(LEVELS[0], 1).linear(np.eye(256, dtype=np.float32), packed, None)
    step = np.abs(weight).max(1) / 127
    assert np.allclose(read.T, np.rint(weight / step[:, None]) * step[:, None], rtol=1e-5)


def test_int4_has_less_error_than_the_plain_scale() -> None:
    """-8 is for the largest weight of either sign, and the scale is searched."""
    weight = random(64, 512, seed=7)
    packed = _native.quantize(POOL, weight, None, 4, 128, False)
    read = native_ops(LEVELS[0], 1).linear(np.eye(512, dtype=np.float32), packed, None)
    groups = weight.reshape(64, 4, 128)
    step = np.abs(groups).max(2, keepdims=True) / 7
    plain = (np.clip(np.rint(groups / step), -8, 7) * step).reshape(64, 512)
    assert ((read.T - weight) ** 2).sum() < 0.9 * ((plain - weight) ** 2).sum()


@ROTATED
def test_a_broken_weight_spoils_its_own_column(ops: Ops, rotated: bool) -> None:
    weight = random(20, 130)
    weight[3, 5] = np.nan
    for bits in (8, 4):
        packed = _native.quantize(POOL, weight, None, bits, 64, rotated)
        got = ops.linear(random(5, 130), packed, None)
        assert np.isnan(got[:, 3]).all()
        assert np.isfinite(np.delete(got, 3, 1)).all()


def test_the_head_keeps_8_bits() -> None:
    own = native_ops(LEVELS[0], 1, "int4")
    weight = random(64, 512)
    sizes = [own.pack_weight(weight, kind, None).nbytes for kind in ("head", "linear")]  # type: ignore[arg-type]
    assert sizes == [64 * 512 + 64 * 4, 64 * 512 // 2 + 64 * 4 * 4]


def test_gated_products_are_those_of_single_ops(ops: Ops) -> None:
    """What a recording fuses has the bits of the ops by themselves, also for mixed widths."""
    from kveik.kernels.ops import Batch

    table = ops.pack_weight(random(30, 200), "embedding", None)
    for first, second in (
        ((8, True), (8, True)),
        ((4, False), (4, False)),
        ((4, True), (4, True)),
        ((8, True), (4, True)),
        ((8, True), (8, False)),
    ):
        gate, up = (
            _native.quantize(POOL, random(72, 200, seed=bits), None, bits, 64, rotated)
            for bits, rotated in (first, second)
        )
        down = _native.quantize(POOL, random(200, 72, seed=3), random(200, seed=4), 8, 0, True)

        def forward(
            batch: Batch, arenas: Any, gate: Any = gate, up: Any = up, down: Any = down
        ) -> Any:
            x = ops.embed(table, batch.token_ids)
            inner = ops.silu_mul(ops.linear(x, gate, None), ops.linear(x, up, None))
            return ops.take_rows(ops.linear(inner, down, None), batch.logit_rows)

        replay = ops.capture(forward, 0)
        for rows in (1, 17, 3, 40):
            ids = np.arange(rows, dtype=np.int64) * 7 % 30
            wanted = np.arange(rows, dtype=np.int64)
            batch = Batch(ids, ids, wanted, ())
            assert same(replay(batch, []), forward(batch, []))


def test_wrong_shapes_are_refused() -> None:
    array = stored(8, 128, 4, 64)
    with pytest.raises(ValueError, match="scales and zeros must be"):
        _native.pack_quantized(POOL, array.values, array.scales[:, :1], None, 4, 64, None)
    with pytest.raises(ValueError, match="a group divides the inputs"):
        _native.pack_quantized(POOL, array.values, array.scales, None, 4, 60, None)
    with pytest.raises(ValueError, match="multiple of 64"):
        _native.quantize(POOL, random(8, 128), None, 8, 32, True)
    with pytest.raises(ValueError, match="131072 inputs"):
        _native.quantize(POOL, np.zeros((1, 131073), np.float32), None, 8, 0, True)
