"""The reference attention against dense float64 attention, and the bits it must not change."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from tables import Case, Piece, attend, batch_of, random_case, turn

from kveik.kernels.ops import AttentionSpec, GroupBatch, KvSpec, RopeSpec
from kveik.kernels.reference import reference_ops
from kveik.kernels.reference_attention import _merge, _Partial, _plan

OPS = reference_ops()


def filled(case: Case, **arena: object) -> object:
    store = case.arena(OPS, **arena)  # type: ignore[arg-type]
    case.write(OPS, store)
    return store


@pytest.mark.parametrize("seed", range(40))
def test_random_tables_agree_with_dense_attention(seed: int) -> None:
    case = random_case(seed)
    np.testing.assert_allclose(attend(OPS, filled(case), case), case.truth(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [16, 24])
def test_a_plain_prompt_is_causal(size: int) -> None:
    """From position 0 over split borders: the chunk's early rows end before its late ones."""
    rng = np.random.default_rng(1)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    spec = AttentionSpec(4, 2, 16, 0.25, RopeSpec(plain(8)))
    blocks = tuple(range(-(-600 // size)))
    pieces = (Piece(blocks, 0, 0, 600, 0),)
    whole = Case(spec, size, pieces, 600, None, draw(600, 2, 16), draw(600, 2, 16),
                 draw(600, 4, 16), 64)  # fmt: skip
    np.testing.assert_allclose(attend(OPS, filled(whole), whole), whole.truth(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(100, 112))
def test_chunks_blocks_and_later_keys_do_not_change_a_bit(seed: int) -> None:
    case = random_case(seed, rows=75)
    whole = attend(OPS, filled(case), case)
    for chunk in (1, 7, 16, 64):
        np.testing.assert_array_equal(attend(OPS, filled(case), case, chunk), whole)
    moved = case.moved(np.random.default_rng(seed))
    np.testing.assert_array_equal(attend(OPS, filled(moved), moved), whole)
    np.testing.assert_array_equal(attend(OPS, grown(case), case, 1), whole)


def grown(case: Case) -> object:
    """An arena filled token by token instead of at once."""
    arena = case.arena(OPS)
    for token in range(len(case.keys)):
        case.write(OPS, arena, [token])
    return arena


def test_rows_that_decode_see_only_what_is_written_by_then() -> None:
    case = random_case(7, rows=20)
    whole = attend(OPS, filled(case), case)
    arena = case.arena(OPS)  # unwritten slots hold NaN
    prompt = len(case.keys) - case.rows
    case.write(OPS, arena, range(prompt))
    for row in range(case.rows):
        case.write(OPS, arena, [prompt + row])
        queries, batch = batch_of([case], [range(row, row + 1)])
        one = OPS.paged_attention(queries, arena, 0, batch, case.spec)
        assert one.tobytes() == whole[row].tobytes()


@pytest.mark.parametrize("seed", range(6))
def test_neighbours_in_the_batch_do_not_change_a_bit(seed: int) -> None:
    """Prompts and decoding rows of different lengths in one step, each as if alone."""
    rng = np.random.default_rng(seed)
    shared = random_case(seed)
    cases, rows, arena, taken = [], [], shared.arena(OPS), 0
    for other in range(300, 330):
        case = random_case(other)
        if len({b for p in case.pieces for b in p.blocks}) + taken > 400:
            break
        case = relaid(case, shared, rng, taken)
        taken += sum(len(p.blocks) for p in case.pieces)
        if taken > 400:
            break
        case.write(OPS, arena)
        count = case.rows if rng.random() < 0.3 else 1
        start = int(rng.integers(0, case.rows - count + 1))
        cases.append(case)
        rows.append(range(start, start + count))
    assert len(cases) > 3
    queries, batch = batch_of(cases, rows)
    together = OPS.paged_attention(queries, arena, 0, batch, shared.spec)
    first = 0
    for case, chosen in zip(cases, rows, strict=True):
        queries, batch = batch_of([case], [chosen])
        alone = OPS.paged_attention(queries, arena, 0, batch, shared.spec)
        np.testing.assert_array_equal(together[first : first + len(chosen)], alone)
        first += len(chosen)


def relaid(case: Case, like: Case, rng: np.random.Generator, first_block: int) -> Case:
    """A case with the geometry of `like`, in blocks from `first_block` on."""
    size, spec = like.block_size, like.spec
    pieces, position = [], 3
    for p in case.pieces:
        skip, length = p.skip % size, min(p.length, 150)
        count = -(-(skip + length) // size)
        home = p.home - p.home % size
        blocks = tuple(range(first_block, first_block + count))
        pieces.append(Piece(blocks, home, skip, length, position - home - skip))
        position, first_block = position + length, first_block + count
    total = sum(p.length for p in pieces)
    rows = min(case.rows, total)
    shape = (total, spec.num_kv_heads, spec.head_dim)
    return replace(
        case,
        spec=spec,
        block_size=size,
        pieces=tuple(pieces),
        rows=rows,
        keys=rng.standard_normal(shape, dtype=np.float32),
        values=rng.standard_normal(shape, dtype=np.float32),
        queries=rng.standard_normal((rows, spec.num_heads, spec.head_dim), dtype=np.float32),
    )


@pytest.mark.parametrize("where", ["keys", "values"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_another_row_sees_does_not_leak(where: str, poison: float) -> None:
    """A broken key or value half-way in a chunk reaches the rows that see it and no other."""
    case = random_case(11, rows=60)
    case = replace(case, window=None)
    clean = attend(OPS, filled(case), case)
    victim = 25
    broken = replace(case, **{where: getattr(case, where).copy()})
    getattr(broken, where)[len(case.keys) - case.rows + victim] = poison
    mixed = attend(OPS, filled(broken), broken)
    np.testing.assert_array_equal(mixed[:victim], clean[:victim])
    assert np.isnan(mixed[victim:]).all()


@pytest.mark.parametrize("window", [40, None])
def test_a_row_that_sees_nothing_of_a_split_keeps_its_bits(window: int | None) -> None:
    """Rows of one chunk with different windows: each as if it were alone with its own."""
    case = replace(random_case(21, rows=64), window=window)
    arena = filled(case)
    np.testing.assert_array_equal(attend(OPS, arena, case), attend(OPS, arena, case, 1))
    queries, batch = batch_of([case], [range(case.rows)])
    segments = len(case.pieces)
    blind = batch.windows.reshape(case.rows, segments, 3).copy()
    blind[1::2, :, 2] = blind[1::2, :, 1] - 1  # every other row sees nothing at all
    mixed = replace_windows(batch, blind.reshape(-1, 3))
    out = OPS.paged_attention(queries, arena, 0, mixed, case.spec).reshape(case.queries.shape)
    np.testing.assert_array_equal(out[::2], attend(OPS, arena, case)[::2])
    assert not out[1::2].any()


def test_merging_nothing_keeps_even_the_sign_of_zero() -> None:
    state = _Partial(*(np.array([[[[[x]]]]], np.float32) for x in (3.0, 1.0, -0.0)))
    nothing = _Partial(*(np.array([[[[[x]]]]], np.float32) for x in (-np.inf, 0.0, 0.0)))
    everything = slice(None)
    _merge(state, (everything, everything, everything), nothing, everything, blind=True)
    assert (state.maximum.item(), state.total.item()) == (3.0, 1.0)
    assert np.signbit(state.values).all()


def replace_windows(batch: GroupBatch, windows: np.ndarray) -> GroupBatch:
    return replace(batch, windows=windows, memo={})


def llama3_frequencies(half: int) -> tuple[float, ...]:
    """Rope scaling of Llama 3.1: factor 8, low 1, high 4, original length 8192."""
    found = []
    for i in range(half):
        f = 500000.0 ** (-i / half)
        wavelength = 2 * np.pi / f
        smooth = min(max((8192 / wavelength - 1) / 3, 0.0), 1.0)
        found.append((1 - smooth) * f / 8 + smooth * f)
    return tuple(found)


def plain(half: int) -> tuple[float, ...]:
    return tuple(10000.0 ** (-i / half) for i in range(half))


def ramped(half: int) -> tuple[float, ...]:
    """Yarn's ramp between interpolated and original frequencies (Peng et al. 2023), factor 4."""
    ramp = np.clip(np.linspace(-0.5, 1.5, half), 0, 1)
    return tuple(np.array(plain(half)) * (1 - ramp) + np.array(plain(half)) / 4 * ramp)


ROPES = {
    "default": RopeSpec(plain(32)),
    "partial": RopeSpec(plain(8)),
    "yarn": RopeSpec(ramped(32), magnitude=0.1 * np.log(4) + 1),
    "llama3": RopeSpec(llama3_frequencies(32)),
}


@pytest.mark.parametrize("window", [None, 48])
@pytest.mark.parametrize("base", [1_000, 4_000_000])
@pytest.mark.parametrize("rope", ROPES)
def test_a_shifted_cache_equals_one_turned_again(rope: str, base: int, window: int | None) -> None:
    """Sinks at home 0 seen `base` later and a recent window that starts inside a block, against
    keys written anew at the positions at which they are seen; and both against the truth."""
    rng = np.random.default_rng(5)
    spec = AttentionSpec(6, 2, 64, 64**-0.5, ROPES[rope])
    recent = base - base % 16
    shifted = (
        Piece((9, 3), 0, 0, 20, recent - 20 + 5),
        Piece(tuple(range(20, 32)), recent, 5, 150, 0),
    )
    case = Case(
        spec, 16, shifted, 40, window,
        rng.standard_normal((170, 2, 64), dtype=np.float32),
        rng.standard_normal((170, 2, 64), dtype=np.float32),
        rng.standard_normal((40, 6, 64), dtype=np.float32),
        64,
    )  # fmt: skip
    start = recent - 15
    anew = replace(
        case, pieces=(Piece(tuple(range(50, 62)), start - start % 16, start % 16, 170, 0),)
    )
    turned_again = attend(OPS, filled(anew), anew)
    got = attend(OPS, filled(case), case)
    np.testing.assert_allclose(got, turned_again, atol=1e-5, rtol=0)
    np.testing.assert_allclose(got, case.truth(), atol=1e-5, rtol=0)


def test_scores_at_four_million_are_as_good_as_at_zero() -> None:
    """One key, one query, both far out: the score is read off a two-key softmax."""
    errors = []
    for base in (0, 4_000_000):
        case = random_case(31, base=base, rows=30)
        case = replace(case, window=None, spec=replace(case.spec, rope=RopeSpec(plain(
            case.spec.head_dim // 2))))  # fmt: skip
        errors.append(np.abs(attend(OPS, filled(case), case) - case.truth()).max())
    assert errors[1] < 1e-5
    assert errors[1] < 10 * errors[0]


def test_a_sliding_window_reads_only_the_splits_it_reaches() -> None:
    spec = AttentionSpec(4, 2, 16, 0.25, RopeSpec(plain(8)))
    position, window = 4000, 100
    batch = GroupBatch(
        np.array([0]), np.array([0]), np.array([[0, 1, 0, 1]]), np.array([[0, 251, 0]]),
        np.arange(251), np.array([[position, position - window + 1, position]]), 16,
    )  # fmt: skip
    (team,) = _plan(batch, spec).teams
    assert sum(len(wave.gather) for wave in team.waves) == 1


def test_bfloat16_rounds_once_when_written() -> None:
    case = replace(random_case(3, rows=9), window=None)
    arena = filled(case, dtype="bfloat16")
    assert arena.keys.dtype == ml_dtypes.bfloat16  # type: ignore[attr-defined]
    wide = filled(case)
    wide.keys[:] = wide.keys.astype(ml_dtypes.bfloat16)  # type: ignore[attr-defined]
    wide.values[:] = wide.values.astype(ml_dtypes.bfloat16)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(attend(OPS, arena, case), attend(OPS, wide, case))
    np.testing.assert_allclose(attend(OPS, arena, case), case.truth(), atol=0.05)


def test_keys_are_written_turned_to_their_home() -> None:
    case = random_case(2)
    arena = filled(case)
    p = case.pieces[0]
    got = arena.keys[0, :, p.blocks[0], :, p.skip]  # type: ignore[attr-defined]
    expected = turn(case.keys[:1], np.array([p.home + p.skip]), case.spec.rope)[0]
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_copy_blocks_copies_a_prefix_in_every_layer_in_order(dtype: str) -> None:
    arena = OPS.allocate_kv(KvSpec(3, 5, 4, 2, 8, dtype))
    rng = np.random.default_rng(0)
    arena.keys[:] = rng.standard_normal(arena.keys.shape)
    arena.values[:] = rng.standard_normal(arena.values.shape)
    keys, values = arena.keys.copy(), arena.values.copy()
    OPS.copy_blocks(arena, [(1, 3, 3), (3, 4, 4), (0, 2, 0)])
    for layer in range(3):
        for target, slots in ((3, 3), (4, 3)):
            np.testing.assert_array_equal(
                arena.keys[layer, :, target, :, :slots], keys[layer, :, 1, :, :slots]
            )
            np.testing.assert_array_equal(
                arena.values[layer, :, target, :slots], values[layer, :, 1, :slots]
            )
        np.testing.assert_array_equal(arena.keys[layer, :, 3, :, 3], keys[layer, :, 3, :, 3])
        np.testing.assert_array_equal(arena.values[layer, :, 3, 3], values[layer, :, 3, 3])
        np.testing.assert_array_equal(arena.keys[layer, :, :3], keys[layer, :, :3])


def test_two_layers_of_an_arena_are_apart() -> None:
    case = random_case(4)
    spec = case.spec
    arena = OPS.allocate_kv(
        KvSpec(2, 400, case.block_size, spec.num_kv_heads, spec.head_dim, "float32")
    )
    case.write(OPS, arena)
    assert arena.keys[0].any()
    assert not arena.keys[1].any()


def test_a_kv_dtype_that_is_not_offered_is_named() -> None:
    with pytest.raises(ValueError, match="float8"):
        OPS.allocate_kv(KvSpec(1, 1, 16, 1, 8, "float8"))
