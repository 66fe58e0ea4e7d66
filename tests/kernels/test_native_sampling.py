"""Native sampling against the numpy version, which is its specification."""

from __future__ import annotations

import threading
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kveik.kernels import reference_sampling
from kveik.kernels.extension import native_extension
from kveik.kernels.native_sampling import sample
from kveik.kernels.ops import Sampled, SampleRow

NATIVE, MISSING = native_extension()
pytestmark = pytest.mark.skipif(NATIVE is None, reason=f"native kernels {MISSING}")
LEVELS = NATIVE.levels() if NATIVE else []
FUSED = [level for level in LEVELS if level.startswith(("amx", "avx"))]

SIZES = st.one_of(st.integers(1, 200), st.sampled_from([4095, 4096, 4097, 4160, 8192, 9001]))
LARGEST_UNIFORM = float(np.nextafter(1.0, 0.0))


def spread(kind: str, size: int, seed: int) -> NDArray[np.float32]:
    """[size] logits of one kind; "holes" has tokens of logit -inf."""
    rng = np.random.default_rng(seed)
    raw = 3 * rng.standard_normal(size, dtype=np.float32)
    match kind:
        case "ties":
            raw = np.round(raw)
        case "equal":
            raw[:] = raw[0]
        case "zeros":
            raw = np.where(rng.random(size) < 0.5, np.float32(0.0), np.float32(-0.0))
        case "peaked":
            raw *= 20
        case "flat":
            raw *= np.float32(0.01)
        case "tiny":  # differ by less than a double near 1 can hold
            raw *= np.float32(1e-30)
        case "huge":
            raw = np.clip(raw, -3, 3) * np.float32(1e38)
        case "holes":
            raw[rng.random(size) < 0.7] = -np.inf
            raw[int(rng.integers(size))] = 1.0
    return raw.astype(np.float32)


KINDS = ("normal", "ties", "equal", "zeros", "peaked", "flat", "tiny", "huge", "holes")


def maybe(strategy: st.SearchStrategy, off: object) -> st.SearchStrategy:
    return st.one_of(st.just(off), strategy)


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.float32], SampleRow]:
    size = draw(SIZES)
    raw = spread(draw(st.sampled_from(KINDS)), size, draw(st.integers(0, 2**32)))
    ids = st.lists(st.integers(0, size - 1), max_size=12).map(tuple)
    bias = st.tuples(st.integers(0, size - 1), st.floats(-100, 100))
    row = SampleRow(
        row=0,
        uniform=draw(st.one_of(st.floats(0, 1, exclude_max=True), st.just(LARGEST_UNIFORM))),
        temperature=draw(
            st.one_of(
                st.just(0.0), st.floats(0.05, 3), st.sampled_from([1e-30, 1e-3, 1.0, 100.0, 1e6])
            )
        ),
        top_k=draw(maybe(st.one_of(st.integers(1, size + 2), st.integers(1, 60)), 0)),
        top_p=draw(maybe(st.one_of(st.floats(1e-12, 0.999), st.just(1e-300)), 1.0)),
        min_p=draw(maybe(st.one_of(st.floats(1e-9, 1), st.just(1e-300)), 0.0)),
        repetition_penalty=draw(maybe(st.sampled_from([0.001, 0.7, 1.3, 1e30]), 1.0)),
        presence_penalty=draw(maybe(st.sampled_from([-2.0, 0.5, 1e30]), 0.0)),
        frequency_penalty=draw(maybe(st.sampled_from([-1.0, 0.25, 1e30]), 0.0)),
        logit_bias=draw(maybe(st.lists(bias, max_size=6).map(tuple), ())),
        banned=draw(maybe(st.one_of(ids, st.just(tuple(range(size)))), ())),
        logprobs=draw(maybe(st.one_of(st.integers(0, 20), st.just(size + 3)), None)),
        prompt_ids=draw(ids),
        output_ids=draw(ids),
        target=draw(maybe(st.integers(0, size - 1), -1)),
    )
    return raw, row


def outcome(
    sampler: object, raw: NDArray[np.float32], row: SampleRow, *level: str
) -> Sampled | str:
    try:
        return sampler(raw[None], [row], *level)[0]  # type: ignore[operator, no-any-return]
    except FloatingPointError as error:
        return str(error)


def on_a_border(raw: NDArray[np.float32], row: SampleRow, token: int) -> bool:
    """Whether the reference draws `token` when its numbers move by their last digits: sums in
    another order are rounded otherwise. Tokens are drawn in the order of their ids."""
    for b, c in product((-1e-11, 0.0, 1e-11), repeat=2):
        moved = row._replace(top_p=row.top_p * (1 + b), min_p=row.min_p * (1 + c))
        ends = (max(0.0, row.uniform - 1e-11), min(row.uniform + 1e-11, LARGEST_UNIFORM))
        rows = [moved._replace(uniform=uniform) for uniform in ends]
        first, last = (s.token_id for s in reference_sampling.sample(raw[None], rows))
        if first <= token and (token <= last or ends[1] == LARGEST_UNIFORM):
            return True
    return False


def assert_close(got: Sampled, expected: Sampled) -> None:
    assert type(got) is Sampled
    assert (got.token_id, got.rank) == (expected.token_id, expected.rank)
    assert got.logprob == pytest.approx(expected.logprob, abs=1e-9, rel=1e-12)
    assert [token for token, _ in got.top] == [token for token, _ in expected.top]
    values = [value for _, value in expected.top]
    assert [value for _, value in got.top] == pytest.approx(values, abs=1e-9, rel=1e-12)


def assert_same(raw: NDArray[np.float32], row: SampleRow, level: str) -> None:
    expected = outcome(reference_sampling.sample, raw, row)
    got = outcome(sample, raw, row, level)
    if isinstance(expected, str) or isinstance(got, str):
        assert got == expected
    elif got.token_id != expected.token_id:
        assert row.temperature > 0
        assert got.token_id not in row.banned
        assert np.isfinite(raw[got.token_id])
        assert on_a_border(raw, row, got.token_id)
    else:
        assert_close(got, expected)


@settings(max_examples=400, deadline=None)
@given(case=cases())
def test_every_row_is_read_as_numpy_reads_it(case: tuple[NDArray[np.float32], SampleRow]) -> None:
    for level in LEVELS:
        assert_same(*case, level)


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_levels_with_a_fused_multiply_add_agree_bit_for_bit(
    case: tuple[NDArray[np.float32], SampleRow],
) -> None:
    assert len({repr(outcome(sample, *case, level)) for level in FUSED}) <= 1


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_top_k(kind: str, level: str) -> None:
    raw = spread(kind, 130, 1)
    for top_k in range(1, 132):
        for uniform in (0.01, 0.6, LARGEST_UNIFORM):
            assert_same(raw, SampleRow(0, uniform, 0.9, top_k=top_k), level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("top_p", [1e-9, 0.05, 0.5, 0.95, 0.999999, 1.0])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 30.0])
def test_large_vocabularies(temperature: float, top_p: float, level: str) -> None:
    raw = spread("normal", 152_064, 2)
    for uniform in (0.0, 0.25, 0.7, 0.999, LARGEST_UNIFORM):
        row = SampleRow(0, uniform, temperature, top_p=top_p, logprobs=20, banned=(7, 100_000))
        assert_same(raw, row, level)
        assert_same(raw, row._replace(top_k=3000), level)


@pytest.mark.parametrize("level", LEVELS)
def test_uniforms_sweep_every_token_of_a_row(level: str) -> None:
    """Also across the chunks that a row is added up in, with changed tokens in each."""
    raw = spread("flat", 9000, 3)
    bias = tuple((token, 4.0) for token in (0, 4095, 4096, 8191, 8192, 8999))
    for uniform in np.linspace(0, LARGEST_UNIFORM, 400):
        assert_same(raw, SampleRow(0, float(uniform), 1.0, logit_bias=bias), level)


@pytest.mark.parametrize("level", LEVELS)
def test_a_draw_on_a_border_takes_the_next_token(level: str) -> None:
    even = np.zeros((1, 8192), np.float32)
    for token in (1, 4095, 4096, 8191):
        (got,) = sample(even, [SampleRow(0, token / 8192, 1.0)], level)
        assert got.token_id == token


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["normal", "ties", "peaked", "holes"])
@pytest.mark.parametrize(
    "fields", [{"top_k": 9}, {"top_p": 0.6}, {"min_p": 0.2}, {"banned": tuple(range(3, 4990))}]
)
def test_the_largest_uniform_draws_the_last_token_that_is_left(
    fields: dict[str, object], kind: str, level: str
) -> None:
    raw = spread(kind, 5000, 11)
    raw[0] = 0
    row = SampleRow(0, LARGEST_UNIFORM, 1.3, **fields)  # type: ignore[arg-type]
    expected = reference_sampling.sample(raw[None], [row])
    assert sample(raw[None], [row], level) == expected


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("logit", "min_p", "drawn"),
    [(-730, 0.0, 0), (-730, 1e-320, 0), (-740, 0.0, 0), (-740, 1e-320, 1), (-800, 0.0, 1)],
)
def test_weights_below_the_normal_range_count(
    logit: float, min_p: float, drawn: int, level: str
) -> None:
    """exp(-730) is 9e-318, exp(-740) is 4e-322, exp(-800) is nothing."""
    row = SampleRow(0, 0.0, 1.0, min_p=min_p)
    (got,) = sample(np.array([[logit, 0]], np.float32), [row], level)
    assert got.token_id == drawn


def test_the_exponential_is_right_to_the_last_digit() -> None:
    """Two tokens: the log-probability of the lesser is -x - log(1 + exp(-x))."""
    for x in np.linspace(0, 40, 999).astype(np.float32):
        (got,) = sample(np.array([[0, -x]], np.float32), [SampleRow(0, target=0, logprobs=0)])
        assert got.logprob == pytest.approx(-np.log(1 + np.exp(-float(x))), abs=4.5e-16)


def test_a_row_does_not_depend_on_its_company() -> None:
    raw = np.stack([spread(kind, 5000, 5) for kind in KINDS])
    rows = []
    for number in range(len(KINDS)):
        drawn = SampleRow(number, 0.4, 0.8, logprobs=3)
        penalised = drawn._replace(repetition_penalty=1.5, prompt_ids=(1, number, 4999))
        rows += [drawn, drawn._replace(top_p=0.7), penalised, SampleRow(number, banned=(number,))]
    together = sample(raw, rows)
    alone = [sample(raw[row.row : row.row + 1], [row._replace(row=0)])[0] for row in rows]
    assert repr(together) == repr(alone)
    assert repr(sample(raw, rows[::-1])) == repr(together[::-1])


def test_threads_of_a_pool_share_the_rows() -> None:
    """Same bits as alone; the first row that fails is the one that is named."""
    assert NATIVE is not None
    raw = np.stack([spread("normal", 30_000, seed) for seed in range(24)])
    rows = [SampleRow(n, n / 24, 0.8, top_p=0.9, banned=(n,), logprobs=3) for n in range(24)]
    pool = NATIVE.Pool(3)
    for _ in range(20):
        assert repr(sample(raw, rows, pool=pool)) == repr(sample(raw, rows))
    raw[[5, 20]] = np.nan
    with pytest.raises(FloatingPointError, match="row 5: "):
        sample(raw, rows, pool=pool)


def test_the_logits_are_only_read() -> None:
    raw = spread("normal", 300, 6)[None]
    raw.flags.writeable = False
    before = raw.tobytes()
    sample(raw, [SampleRow(0, 0.5, 1.0, top_p=0.9, banned=(1, 2), logprobs=5)])
    assert raw.tobytes() == before


def test_threads_do_not_share_their_working_memory() -> None:
    raw = spread("normal", 20_000, 7)[None]
    rows = [SampleRow(0, u / 50, 1.0, top_p=0.9, banned=(u,), logprobs=5) for u in range(50)]
    expected, results = repr(sample(raw, rows)), []
    threads = [
        threading.Thread(target=lambda: results.append(repr(sample(raw, rows)))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 63, 64, 4095, 4096, 4999])
@pytest.mark.parametrize("fields", [{}, {"temperature": 1.0}, {"target": 0}, {"banned": (0,)}])
def test_the_row_that_is_not_finite_is_named(
    fields: dict[str, object], place: int, broken: float, level: str
) -> None:
    raw = np.stack([spread("normal", 5000, seed) for seed in range(3)])
    raw[1, place] = broken
    rows = [SampleRow(0), SampleRow(1, **fields), SampleRow(2)]  # type: ignore[arg-type]
    with pytest.raises(FloatingPointError, match="row 1: the logits are not finite numbers"):
        sample(raw, rows, level)
    assert len(sample(raw, rows[::2], level)) == 2


def test_logits_that_are_all_minus_infinity_are_an_error() -> None:
    with pytest.raises(FloatingPointError, match="row 0: the logits are not finite"):
        sample(np.full((1, 9), -np.inf, np.float32), [SampleRow(0)])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_banning_everything_names_the_row(temperature: float) -> None:
    raw = np.stack([spread("normal", 70, 0)] * 2)
    with pytest.raises(FloatingPointError, match="row 1: no token may be drawn, all are banned"):
        sample(raw, [SampleRow(1, 0.5, temperature, banned=tuple(range(70)))])


@pytest.mark.parametrize(
    "fields",
    [
        {"row": 1},
        {"row": -1},
        {"target": 40},
        {"banned": (40,)},
        {"banned": (-1,)},
        {"logit_bias": ((40, 1.0),)},
        {"repetition_penalty": 2.0, "prompt_ids": (3, 40)},
        {"frequency_penalty": 2.0, "output_ids": (3, 10**12)},
    ],
)
def test_what_is_not_there_is_an_index_error(fields: dict[str, object]) -> None:
    raw = spread("normal", 40, 0)[None]
    with pytest.raises(IndexError, match=r"row -?[01]: "):
        sample(raw, [SampleRow(**{"row": 0, **fields})])  # type: ignore[arg-type]
    whole = [SampleRow(0, 0.5, 1.0, repetition_penalty=2.0, prompt_ids=(3,))]
    assert sample(raw, whole) == reference_sampling.sample(raw, whole)  # nothing is left behind


def test_an_infinite_score_is_an_error() -> None:
    raw = np.array([[3e38, 1.0]], np.float32)
    row = SampleRow(0, 0.5, 1.0, repetition_penalty=1e-300, prompt_ids=(0,))
    with pytest.raises(FloatingPointError, match="row 0: bias or penalties make a score infinite"):
        sample(raw, [row])


def test_a_level_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="no kernels of level mmx"):
        sample(spread("normal", 40, 0)[None], [SampleRow(0)], "mmx")
