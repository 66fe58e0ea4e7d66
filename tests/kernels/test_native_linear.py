"""Products with bfloat16 weights and the kernels of single rows, at every level of this machine:
close to numpy, and equal bit for bit whatever the rows around, the threads and the panels."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kveik.kernels.extension import native_extension
from kveik.kernels.ops import Ops
from kveik.kernels.reference import reference_ops

if native_extension().module is None:
    pytest.skip(native_extension().missing, allow_module_level=True)

from kveik.kernels import _native
from kveik.kernels.native import native_ops

LEVELS = _native.levels()
REFERENCE = reference_ops()


@pytest.fixture(scope="module", params=LEVELS)
def ops(request: pytest.FixtureRequest) -> Ops:
    return native_ops(request.param, threads=2)


def bits(array: Any) -> Any:
    return np.ascontiguousarray(array).view(np.uint32)


def rounded(array: Any) -> Any:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("outs", "ins"), [(1, 1), (16, 32), (31, 33), (33, 128), (70, 300), (96, 5000)]
)
def test_a_product_is_that_of_numpy(ops: Ops, outs: int, ins: int) -> None:
    """Sums of float32 in any order differ by a few units of the sum of magnitudes."""
    weight, bias = random(outs, ins, seed=1), random(outs, seed=2)
    for rows in (1, 2, 15, 16, 17, 33, 70):
        x = random(rows, ins, seed=100 + rows)
        got = ops.linear(x, ops.pack_weight(weight, "linear", bias), None)
        wide = rounded(x).astype(np.float64), rounded(weight).astype(np.float64)
        expected = wide[0] @ wide[1].T + bias
        bound = np.abs(wide[0]) @ np.abs(wide[1]).T + np.abs(bias)
        assert (np.abs(got - expected) <= 2e-6 * bound + 1e-7).all()


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_stored_type_is_rounded_to_bfloat16(ops: Ops, stored: Any) -> None:
    weight = random(40, 70).astype(stored)
    x = random(3, 70, seed=3)
    plain = weight.astype(np.float32).astype(ml_dtypes.bfloat16)
    one = ops.linear(x, ops.pack_weight(weight, "linear", None), None)
    other = ops.linear(x, ops.pack_weight(plain, "linear", None), None)
    assert (bits(one) == bits(other)).all()


@pytest.mark.parametrize(("outs", "ins"), [(70, 96), (40, 2200)])
def test_a_row_has_the_bits_that_it_has_alone(ops: Ops, outs: int, ins: int) -> None:
    weight = ops.pack_weight(random(outs, ins, seed=1), "linear", random(outs, seed=2))
    x = random(530, ins, seed=3)
    alone = np.concatenate([ops.linear(x[i : i + 1], weight, None) for i in range(len(x))])
    for rows in (*range(1, 131), 255, 256, 257, 272, 513, 530):
        start = (rows * 37) % (len(x) - rows + 1)
        together = ops.linear(x[start : start + rows], weight, None)
        assert (bits(together) == bits(alone[start : start + rows])).all(), rows


@pytest.mark.parametrize("level", LEVELS)
def test_threads_and_panels_leave_no_trace(level: str) -> None:
    weight, x = random(200, 300, seed=1), random(70, 300, seed=2)
    results = []
    for threads in (1, 2, 3):
        own = native_ops(level, threads)
        results.append(own.linear(x, own.pack_weight(weight, "linear", None), None))
        part = own.linear(x, own.pack_weight(weight[:33], "linear", None), None)
        assert (bits(part) == bits(results[0][:, :33])).all()
    assert all((bits(result) == bits(results[0])).all() for result in results)


def test_a_broken_row_stays_alone(ops: Ops) -> None:
    weight = ops.pack_weight(random(40, 70), "linear", None)
    x = random(20, 70, seed=1)
    clean = ops.linear(x, weight, None)
    for value in (np.nan, np.inf, -np.inf):
        spoiled = x.copy()
        spoiled[7, 3] = value
        got = ops.linear(spoiled, weight, None)
        others = np.arange(20) != 7
        assert (bits(got[others]) == bits(clean[others])).all()
        assert not np.isfinite(got[7]).any()


def test_levels_agree_within_the_stated_tolerance() -> None:
    """1e-5 of the sum of magnitudes: rounding of float32 sums of thousands of terms."""
    weight, x = random(64, 4096, seed=1), random(5, 4096, seed=2)
    bound = np.abs(x) @ np.abs(weight).T
    results = [
        (own := native_ops(level, 1)).linear(x, own.pack_weight(weight, "linear", None), None)
        for level in LEVELS
    ]
    for result in results:
        assert (np.abs(result - results[0]) <= 1e-5 * bound).all()


# ---- rows and elements --------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 200),
    residual=st.booleans(),
    seed=st.integers(0, 99),
    level=st.sampled_from(LEVELS),
)
def test_norms_are_those_of_numpy(
    rows: int, width: int, residual: bool, seed: int, level: str
) -> None:
    own = native_ops(level, 2)
    x, other = random(rows, width, seed=seed), random(rows, width, seed=seed + 1)
    weight, bias = random(width, seed=5), random(width, seed=6)
    added = other if residual else None
    for name in ("rms_norm", "layer_norm"):
        expected, total = getattr(REFERENCE, name)(x, weight, bias, 1e-5, added)
        vector = own.pack_weight(weight, "vector", None), own.pack_weight(bias, "vector", None)
        got, sums = getattr(own, name)(x, *vector, 1e-5, added)
        assert np.allclose(got, expected, rtol=2e-5, atol=2e-5)
        assert (bits(sums) == bits(total)).all()
        last, _ = getattr(own, name)(x[-1:], *vector, 1e-5, None if added is None else added[-1:])
        assert (bits(last) == bits(got[-1:])).all()


@pytest.mark.parametrize("heads", [1, 3])
def test_every_head_is_normed_by_itself(ops: Ops, heads: int) -> None:
    x, weight = random(7, heads * 24), random(24, seed=1)
    got = ops.qk_norm(x, ops.pack_weight(weight, "vector", None), heads, 1e-6)
    assert np.allclose(got, REFERENCE.qk_norm(x, weight, heads, 1e-6), rtol=2e-6, atol=2e-6)


def test_activations_are_those_of_numpy(ops: Ops) -> None:
    x = np.concatenate((random(9, 37) * 4, np.linspace(-120, 120, 37, dtype=np.float32)[None]))
    up = random(10, 37, seed=1)
    assert np.allclose(ops.silu_mul(x, up), REFERENCE.silu_mul(x, up), rtol=3e-6, atol=1e-30)
    for form in ("tanh", "erf"):
        assert np.allclose(ops.gelu(x, form), REFERENCE.gelu(x, form), rtol=4e-6, atol=1e-6)
    assert (bits(ops.add(x, up)) == bits(x + up)).all()


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_rows_of_a_table_widen_exactly(ops: Ops, stored: Any) -> None:
    table = random(50, 19).astype(stored)
    table[0, :3] = (np.inf, 6e-8, -0.0)
    ids = np.array([0, 49, 3, 3], np.int64)
    packed, x = ops.pack_weight(table, "embedding", None), random(4, 19, seed=2)
    assert (bits(ops.embed(packed, ids)) == bits(table[ids].astype(np.float32))).all()
    assert (bits(ops.embed_add(x, packed, ids)) == bits(x + table[ids].astype(np.float32))).all()
    with pytest.raises(IndexError, match=r"50 is outside 0 \.\. 49"):
        ops.embed(packed, np.array([50], np.int64))


def test_rows_are_taken(ops: Ops) -> None:
    x = random(5, 6)
    assert (ops.take_rows(x, np.array([4, 0], np.int64)) == x[[4, 0]]).all()


def test_a_wrong_width_is_refused(ops: Ops) -> None:
    with pytest.raises(ValueError, match="rows of 5 meet a weight that takes 4"):
        ops.linear(random(2, 5), ops.pack_weight(random(3, 4), "linear", None), None)


# ---- recordings ---------------------------------------------------------------------------------


def test_a_recording_replays_what_the_ops_compute(ops: Ops) -> None:
    """The fused products of a replay have the bits of single ops, for any number of rows."""
    from kveik.kernels.ops import Batch

    table = ops.pack_weight(random(30, 100), "embedding", None)
    gate, up = (ops.pack_weight(random(72, 100, seed=s), "linear", None) for s in (1, 2))
    down = ops.pack_weight(random(100, 72, seed=3), "linear", None)
    norm = ops.pack_weight(random(100, seed=4), "vector", None)
    head = ops.pack_weight(random(30, 100, seed=5), "linear", None)

    def forward(batch: Batch, arenas: Any) -> Any:
        x = ops.embed(table, batch.token_ids)
        h, residual = ops.rms_norm(x, norm, None, 1e-5, None)
        h = ops.linear(ops.silu_mul(ops.linear(h, gate, None), ops.linear(h, up, None)), down, None)
        h, residual = ops.rms_norm(h, norm, None, 1e-5, residual)
        return ops.logits(ops.take_rows(ops.add(h, residual), batch.logit_rows), head)

    replay = ops.capture(forward, 0)
    for rows in (1, 17, 40, 3, 300):
        ids = np.arange(rows, dtype=np.int64) * 7 % 30
        wanted = np.array(sorted({0, rows // 2, rows - 1}), np.int64)
        batch = Batch(ids, ids, wanted, ())
        assert (bits(replay(batch, [])) == bits(forward(batch, []))).all()
    assert replay(Batch(ids, ids, np.zeros(0, np.int64), ()), []).shape == (0, 30)
