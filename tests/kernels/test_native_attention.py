"""Native attention against the reference, and the bits it must not change, at every level.

Sequences of tables.py: shifted, skipped and cut segments, partial tails, windows, homes beside the
block grid. Unwritten slots hold NaN throughout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_attention import NATIVE, NativeAttention
from tables import Case, Piece, attend, batch_of, random_case, random_rope, turn

from kveik.kernels.ops import AttentionSpec, GroupBatch, KvSpec, RopeSpec
from kveik.kernels.reference import reference_ops

if NATIVE is None:
    pytest.skip("the native extension is not built", allow_module_level=True)

LEVELS: list[str] = NATIVE.levels()
EXACT = [level for level in LEVELS if level != "scalar"]
DTYPES = ("float32", "bfloat16")
REFERENCE = reference_ops()
OPS = {(level, threads): NativeAttention(level, threads) for level in LEVELS for threads in (1, 2)}


def tolerance(level: str, dtype: str) -> float:
    """bfloat16 keys may round to the other neighbour; some levels round queries and weights too."""
    if dtype == "float32":
        return 1e-5
    return 2e-2 if level in ("amx", "avx512_bf16") else 2e-3


def filled(ops: Any, case: Case, dtype: str) -> Any:
    arena = case.arena(ops, dtype=dtype)
    case.write(ops, arena)
    return arena


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.fixture(params=EXACT)
def ops(request: pytest.FixtureRequest) -> NativeAttention:
    return OPS[request.param, 2]


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# ---- agreement ---------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 24, 32, 64])
def test_any_block_size_agrees_with_the_reference(level: str, size: int, dtype: str) -> None:
    for seed in range(4):
        agrees(level, dtype, random_case(seed + 10 * size, size=size))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("head_dim", [8, 9, 20, 33, 64, 80, 96, 128])
def test_any_head_size_agrees_with_the_reference(level: str, head_dim: int, dtype: str) -> None:
    for seed in range(3):
        agrees(level, dtype, random_case(seed + 1000 * head_dim, head_dim=head_dim))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("share", [1, 2, 3, 5, 7, 8, 40])
def test_any_number_of_heads_agrees_with_the_reference(level: str, share: int, dtype: str) -> None:
    agrees(level, dtype, random_case(share, share=share))


def agrees(level: str, dtype: str, case: Case) -> None:
    native = OPS[level, 2]
    got = attend(native, filled(native, case, dtype), case)
    wanted = attend(REFERENCE, filled(REFERENCE, case, dtype), case)
    np.testing.assert_allclose(got, wanted, atol=tolerance(level, dtype), rtol=0)


ROPES = {
    "default": RopeSpec(tuple(10000.0 ** (-i / 32) for i in range(32))),
    "partial": RopeSpec(tuple(10000.0 ** (-i / 8) for i in range(8))),
    "magnitude": RopeSpec(tuple(500000.0 ** (-i / 32) for i in range(32)), 1.14),
    "none": None,
}


@pytest.mark.parametrize("window", [None, 48])
@pytest.mark.parametrize("base", [1_000, 4_000_000, 3_000_000_000])
@pytest.mark.parametrize("rope", ROPES)
def test_a_shifted_cache_equals_dense_attention_far_out(
    ops: NativeAttention, rope: str, base: int, window: int | None
) -> None:
    """Sinks at home 0 seen `base` later and a recent window that starts inside a block."""
    rng = np.random.default_rng(5)
    recent = base - base % 16
    pieces = (
        Piece((9, 3), 0, 0, 20, recent - 20 + 5),
        Piece(tuple(range(20, 32)), recent, 5, 150, 0),
    )
    case = Case(
        AttentionSpec(6, 2, 64, 64**-0.5, ROPES[rope]), 16, pieces, 40, window,
        rng.standard_normal((170, 2, 64), dtype=np.float32),
        rng.standard_normal((170, 2, 64), dtype=np.float32),
        rng.standard_normal((40, 6, 64), dtype=np.float32),
        64,
    )  # fmt: skip
    got = attend(ops, filled(ops, case, "float32"), case)
    np.testing.assert_allclose(got, case.truth(), atol=1e-5, rtol=0)


def test_large_scores_agree(ops: NativeAttention) -> None:
    """Beyond what the rounding by addition holds: nearly all weight lies on one slot."""
    case = replace(random_case(3, head_dim=16), window=None)
    case = replace(case, spec=replace(case.spec, scale=3e6))
    got = attend(ops, filled(ops, case, "float32"), case)
    np.testing.assert_allclose(got, case.truth(), atol=1e-3, rtol=0)


# ---- bits of a row -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(100, 106))
def test_chunks_blocks_and_threads_do_not_change_a_bit(
    ops: NativeAttention, dtype: str, seed: int
) -> None:
    case = random_case(seed, rows=75)
    arena = filled(ops, case, dtype)
    whole = attend(ops, arena, case)
    for chunk in (1, 7, 16, 64):
        assert same_bits(attend(ops, arena, case, chunk), whole)
    moved = case.moved(np.random.default_rng(seed))
    assert same_bits(attend(ops, filled(ops, moved, dtype), moved), whole)
    alone = OPS[ops.level, 1]
    assert same_bits(attend(alone, filled(alone, case, dtype), case), whole)


def test_blocks_of_another_size_do_not_change_a_bit(ops: NativeAttention, dtype: str) -> None:
    case = prompt(np.random.default_rng(3), 530, 70, 16)
    whole = attend(ops, filled(ops, case, dtype), case)
    for size in (1, 2, 8, 24, 64):
        other = replace(
            case, block_size=size, num_blocks=600,
            pieces=(replace(case.pieces[0], blocks=tuple(range(-(-530 // size)))),),
        )  # fmt: skip
        assert same_bits(attend(ops, filled(ops, other, dtype), other), whole)


def prompt(rng: np.random.Generator, tokens: int, rows: int, size: int, share: int = 3) -> Case:
    """A plain prompt at home 0 in scattered blocks."""
    spec = AttentionSpec(2 * share, 2, 32, 0.2, RopeSpec(tuple(0.9**i for i in range(16))))
    count = -(-tokens // size)
    blocks = tuple(int(b) for b in rng.permutation(count + 5)[:count])

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    return Case(spec, size, (Piece(blocks, 0, 0, tokens, 0),), rows, None, draw(tokens, 2, 32),
                draw(tokens, 2, 32), draw(rows, 2 * share, 32), count + 5)  # fmt: skip


def test_leading_blocks_may_be_dropped(ops: NativeAttention, dtype: str) -> None:
    """Behind a window the table begins with a later block: splits lie on the home grid, not on
    the segment's."""
    case = replace(prompt(np.random.default_rng(6), 700, 30, 16), window=330)
    whole = attend(ops, filled(ops, case, dtype), case)
    (piece,) = case.pieces
    for dropped in (1, 7, 21):
        gone = 16 * dropped
        cut = Piece(piece.blocks[dropped:], gone, 0, 700 - gone, 0)
        shorter = replace(
            case, pieces=(cut,), keys=case.keys[gone:], values=case.values[gone:]
        )  # fmt: skip
        assert same_bits(attend(ops, filled(ops, shorter, dtype), shorter), whole)


def test_a_segment_may_be_cut_between_splits(ops: NativeAttention, dtype: str) -> None:
    """Two segments of equal shift, cut at a border of the home grid, are one."""
    case = prompt(np.random.default_rng(7), 600, 30, 16)
    whole = attend(ops, filled(ops, case, dtype), case)
    (piece,) = case.pieces
    left, right = piece.blocks[:16], piece.blocks[16:]
    cut = replace(case, pieces=(Piece(left, 0, 0, 256, 0), Piece(right, 256, 0, 344, 0)))
    assert same_bits(attend(ops, filled(ops, cut, dtype), cut), whole)


def test_a_prefix_may_be_cached_up_to_any_slot(ops: NativeAttention, dtype: str) -> None:
    """The rows from each block boundary on, and from one slot before and behind it."""
    case = prompt(np.random.default_rng(8), 300, 300, 16)
    arena = filled(ops, case, dtype)
    whole = attend(ops, arena, case)
    for boundary in range(16, 300, 16):
        for first in (boundary - 1, boundary, boundary + 1):
            stop = min(first + 1 + first % 20, 300)
            queries, batch = batch_of([case], [range(first, stop)])
            got = ops.paged_attention(queries, arena, 0, batch, case.spec)
            assert same_bits(got.reshape(whole[first:stop].shape), whole[first:stop])


def test_token_by_token_is_written_as_all_at_once(ops: NativeAttention, dtype: str) -> None:
    case = random_case(40)
    whole, grown = filled(ops, case, dtype), case.arena(ops, dtype=dtype)
    for token in range(len(case.keys)):
        case.write(ops, grown, [token])
    assert same_bits(grown.keys, whole.keys)
    assert same_bits(grown.values, whole.values)


def test_rows_that_decode_see_only_what_is_written_by_then(
    ops: NativeAttention, dtype: str
) -> None:
    case = random_case(7, rows=20)
    whole = attend(ops, filled(ops, case, dtype), case)
    arena = case.arena(ops, dtype=dtype)
    first = len(case.keys) - case.rows
    case.write(ops, arena, range(first))
    for row in range(case.rows):
        case.write(ops, arena, [first + row])
        queries, batch = batch_of([case], [range(row, row + 1)])
        got = ops.paged_attention(queries, arena, 0, batch, case.spec)
        assert got.tobytes() == whole[row].tobytes()


# ---- company -----------------------------------------------------------------------------------


def family(rng: np.random.Generator, count: int, shared: int, share: int) -> list[Case]:
    """Sequences with one beginning of `shared` tokens, in the same blocks of one arena."""
    first = prompt(rng, shared, 1, 16, share)
    common = first.pieces[0].blocks[: shared // 16]
    cases, free = [], len(first.pieces[0].blocks) + 5
    for _ in range(count):
        length = shared + int(rng.integers(1, 300))
        own = -(-length // 16) - len(common)
        case = prompt(rng, length, int(rng.integers(1, 5)), 16, share)
        blocks = (*common, *range(free, free + own))
        free += own
        keys, values = case.keys.copy(), case.values.copy()
        keys[: 16 * len(common)] = first.keys[: 16 * len(common)]
        values[: 16 * len(common)] = first.values[: 16 * len(common)]
        cases.append(replace(case, pieces=(Piece(blocks, 0, 0, length, 0),), keys=keys,
                             values=values))  # fmt: skip
    return [replace(case, num_blocks=free) for case in cases]


def alone(ops: NativeAttention, dtype: str, case: Case) -> np.ndarray:
    return attend(ops, filled(ops, case, dtype), case)


def together(
    ops: NativeAttention, dtype: str, cases: Sequence[Case], rows: Sequence[range]
) -> list[np.ndarray]:
    arena = cases[0].arena(ops, dtype=dtype)
    for case in cases:
        case.write(ops, arena)
    queries, batch = batch_of(cases, rows)
    out = ops.paged_attention(queries, arena, 0, batch, cases[0].spec)
    parts = np.split(out, np.cumsum([len(r) for r in rows])[:-1])
    return [p.reshape(-1, *c.queries.shape[1:]) for p, c in zip(parts, cases, strict=True)]


@pytest.mark.parametrize("share", [1, 3, 8])
@pytest.mark.parametrize("shared", [256, 600, 1024])
def test_a_shared_beginning_changes_no_bit(
    ops: NativeAttention, dtype: str, shared: int, share: int
) -> None:
    rng = np.random.default_rng(shared + share)
    cases = family(rng, 7, shared, share)
    order = [cases[i] for i in rng.permutation(len(cases))]
    for case, got in zip(
        order, together(ops, dtype, order, [range(c.rows) for c in order]), strict=True
    ):
        assert same_bits(got, alone(ops, dtype, case))
        apart = case.moved(rng)
        assert same_bits(got, alone(ops, dtype, apart))


def test_rows_of_a_shared_beginning_may_see_it_turned(ops: NativeAttention) -> None:
    """Two sequences see the same blocks at different positions: each against the truth."""
    rng = np.random.default_rng(4)
    cases = family(rng, 2, 512, 2)
    late = replace(cases[1].pieces[0], shift=1000)
    cases[1] = replace(cases[1], pieces=(late,))
    got = together(ops, "float32", cases, [range(c.rows) for c in cases])
    for case, own in zip(cases, got, strict=True):
        np.testing.assert_allclose(own, case.truth(), atol=1e-5, rtol=0)
        assert same_bits(own, alone(ops, "float32", case))


def test_chunks_and_decoding_rows_share_a_step(ops: NativeAttention, dtype: str) -> None:
    rng = np.random.default_rng(0)
    cases = family(rng, 6, 400, 4)
    long = [replace(case, rows=40, queries=rng.standard_normal((40, 8, 32), dtype=np.float32))
            for case in cases[:3]]  # fmt: skip
    mixed = [*long, *cases[3:]]
    got = together(ops, dtype, mixed, [range(c.rows) for c in mixed])
    for case, own in zip(mixed, got, strict=True):
        assert same_bits(own, alone(ops, dtype, case))


# ---- what must not leak ------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["keys", "values"])
def test_what_another_row_sees_does_not_leak(
    ops: NativeAttention, dtype: str, where: str, poison: float
) -> None:
    """A broken key or value half-way in a chunk reaches the rows that see it and no other."""
    case = replace(random_case(11, rows=60), window=None)
    clean = attend(ops, filled(ops, case, dtype), case)
    victim = 25
    broken = replace(case, **{where: getattr(case, where).copy()})
    getattr(broken, where)[len(case.keys) - case.rows + victim] = poison
    mixed = attend(ops, filled(ops, broken, dtype), broken)
    assert same_bits(mixed[:victim], clean[:victim])
    assert np.isnan(mixed[victim:]).all()


def test_a_broken_query_stays_its_own_affair(ops: NativeAttention, dtype: str) -> None:
    case = random_case(12, rows=40)
    arena = filled(ops, case, dtype)
    clean = attend(ops, arena, case)
    queries = case.queries.copy()
    queries[17] = np.nan
    mixed = attend(ops, arena, replace(case, queries=queries))
    assert np.isnan(mixed[17]).all()
    assert same_bits(np.delete(mixed, 17, 0), np.delete(clean, 17, 0))


def test_stale_numbers_in_unseen_slots_do_not_leak(ops: NativeAttention, dtype: str) -> None:
    case = random_case(13)
    clean = case.arena(ops, poison=False, dtype=dtype)
    case.write(ops, clean)
    assert same_bits(attend(ops, filled(ops, case, dtype), case), attend(ops, clean, case))


def test_a_row_that_sees_nothing_gives_zero(ops: NativeAttention, dtype: str) -> None:
    case = random_case(21, rows=64)
    arena = filled(ops, case, dtype)
    queries, batch = batch_of([case], [range(case.rows)])
    blind = batch.windows.reshape(case.rows, len(case.pieces), 3).copy()
    blind[1::2, :, 2] = blind[1::2, :, 1] - 1
    mixed = replace(batch, windows=blind.reshape(-1, 3), memo={})
    out = ops.paged_attention(queries, arena, 0, mixed, case.spec).reshape(case.queries.shape)
    assert same_bits(out[::2], attend(ops, arena, case)[::2])
    assert not out[1::2].any()


# ---- any windows -------------------------------------------------------------------------------


@st.composite
def windowed(draw: st.DrawFn) -> tuple[Case, np.ndarray]:
    """A table, and for each row and segment some slots of it, or none: rows x segments x 3."""
    size = draw(st.sampled_from([1, 2, 4, 8, 16, 32, 64]))
    case = random_case(
        draw(st.integers(0, 10**6)), rows=draw(st.integers(1, 40)), size=size,
        head_dim=draw(st.integers(1, 80)), share=draw(st.integers(1, 9)),
    )  # fmt: skip
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    windows = np.empty((case.rows, len(case.pieces), 3), np.int64)
    for row in range(case.rows):
        for g, p in enumerate(case.pieces):
            first, last = np.sort(rng.integers(p.skip, p.skip + p.length, 2))
            if rng.random() < 0.2:
                first, last = 1, 0
            windows[row, g] = rng.integers(0, 10**6), first, last
    return case, windows


@settings(max_examples=25, deadline=None)
@given(drawn=windowed(), level=st.sampled_from(EXACT), dtype=st.sampled_from(DTYPES))
def test_any_windows(drawn: tuple[Case, np.ndarray], level: str, dtype: str) -> None:
    case, windows = drawn
    native = OPS[level, 2]
    arena = filled(native, case, dtype)
    queries, batch = batch_of([case], [range(case.rows)])
    batch = replace(batch, windows=windows.reshape(-1, 3), memo={})
    got = native.paged_attention(queries, arena, 0, batch, case.spec)
    wanted = REFERENCE.paged_attention(
        queries, filled(REFERENCE, case, dtype), 0, replace(batch, memo={}), case.spec
    )
    np.testing.assert_allclose(got, wanted, atol=tolerance(level, dtype), rtol=0)
    for row in range(case.rows):
        single, own = batch_of([case], [range(row, row + 1)])
        own = replace(own, windows=windows[row], memo={})
        assert same_bits(native.paged_attention(single, arena, 0, own, case.spec)[0], got[row])


# ---- the arena ---------------------------------------------------------------------------------


def stored(arena: Any, dtype: str, spec: KvSpec) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values as [layers, KV, blocks, slots, width], from the layout of kernels.h."""
    width, size = -(-spec.head_dim // 32) * 32, spec.block_size
    lead = (spec.num_layers, spec.num_kv_heads, spec.num_blocks)
    if dtype == "float32":
        keys = arena.keys.reshape(*lead, width, size).swapaxes(-1, -2)
        return keys, arena.values.reshape(*lead, size, width)
    keys = np.moveaxis(arena.keys.reshape(*lead, width // 2, size, 2), -3, -2)
    values = np.moveaxis(arena.values.reshape(*lead, -(-size // 2), width, 2), -1, -2)
    return keys.reshape(*lead, size, width), values.reshape(*lead, -1, width)[..., :size, :]


@pytest.mark.parametrize("size", [1, 2, 16, 64])
@pytest.mark.parametrize("head_dim", [20, 64])
def test_keys_are_written_turned_to_their_home(
    ops: NativeAttention, dtype: str, size: int, head_dim: int
) -> None:
    case = random_case(2, size=size, head_dim=head_dim)
    case = replace(case, spec=replace(case.spec, rope=random_rope(np.random.default_rng(1), 20)))
    spec = KvSpec(1, case.num_blocks, size, case.spec.num_kv_heads, head_dim, dtype)
    keys, values = stored(filled(ops, case, dtype), dtype, spec)
    p = case.pieces[0]
    expected = turn(case.keys[:1], np.array([p.home + p.skip]), case.spec.rope)[0]
    block, slot = p.blocks[p.skip // size], p.skip % size
    got = keys[0, :, block, slot].astype(np.float64)
    np.testing.assert_allclose(got[:, :head_dim], expected, rtol=1e-2, atol=1e-6)
    rounded = case.values[0].astype(values.dtype)
    assert (values[0, :, block, slot, :head_dim] == rounded).all()
    assert not got[:, head_dim:].any()
    assert not values[0, :, block, slot, head_dim:].astype(np.float32).any()


@pytest.mark.parametrize("size", [1, 4, 7])
def test_copy_blocks_copies_a_prefix_in_every_layer_in_order(dtype: str, size: int) -> None:
    spec = KvSpec(3, 5, size, 2, 40, dtype)
    arena = OPS["portable", 1].allocate_kv(spec)
    rng = np.random.default_rng(0)
    arena.keys[:] = rng.standard_normal(arena.keys.shape)
    arena.values[:] = rng.standard_normal(arena.values.shape)
    before = [plane.copy() for plane in stored(arena, dtype, spec)]
    few = max(size - 1, 1)
    arena.memory.copy_blocks([(1, 3, few), (3, 4, size), (0, 2, 0)])
    for plane, old in zip(stored(arena, dtype, spec), before, strict=True):
        expected = old.copy()
        expected[:, :, 3, :few] = old[:, :, 1, :few]
        expected[:, :, 4] = expected[:, :, 3]
        assert same_bits(np.ascontiguousarray(plane), expected)


def test_erase_blocks_leaves_no_byte(dtype: str) -> None:
    spec = KvSpec(2, 4, 7, 2, 8, dtype)
    arena = OPS["portable", 1].allocate_kv(spec)
    arena.keys[:] = 1
    arena.values[:] = 1
    arena.memory.erase_blocks([1, 3])
    for plane in (arena.keys, arena.values):
        assert not plane[:, :, [1, 3]].astype(np.float32).any()
        assert (plane[:, :, [0, 2]] == 1).all()


def test_an_arena_names_what_it_does_not_have(dtype: str) -> None:
    arena = OPS["portable", 1].allocate_kv(KvSpec(1, 4, 8, 1, 8, dtype)).memory
    with pytest.raises(IndexError, match=r"block 4 is outside 0 \.\. 3"):
        arena.erase_blocks([4])
    with pytest.raises(IndexError, match="number of slots 9"):
        arena.copy_blocks([(0, 1, 9)])
    with pytest.raises(IndexError, match="block -1"):
        arena.copy_blocks([(0, -1, 1)])
    with pytest.raises(ValueError, match="float8"):
        NATIVE.Arena("float8", 1, 1, 1, 16, 8)
    with pytest.raises(ValueError, match="size of 0"):
        NATIVE.Arena(dtype, 1, 0, 1, 16, 8)


def test_two_layers_of_an_arena_are_apart(ops: NativeAttention, dtype: str) -> None:
    case = random_case(4)
    spec = case.spec
    arena = ops.allocate_kv(
        KvSpec(2, case.num_blocks, case.block_size, spec.num_kv_heads, spec.head_dim, dtype)
    )
    case.write(ops, arena)
    assert arena.keys[0].astype(np.float32).any()
    assert not arena.keys[1].astype(np.float32).any()
    assert arena.keys.dtype in (np.float32, ml_dtypes.bfloat16)


def test_a_step_without_rows_is_no_step(ops: NativeAttention) -> None:
    case = random_case(5)
    nothing = np.zeros(0, np.int64)
    batch = GroupBatch(nothing, nothing, nothing, nothing, nothing, nothing, case.block_size)
    arena = case.arena(ops)
    queries = np.zeros((0, case.spec.num_heads * case.spec.head_dim), np.float32)
    assert ops.paged_attention(queries, arena, 0, batch, case.spec).shape == queries.shape
