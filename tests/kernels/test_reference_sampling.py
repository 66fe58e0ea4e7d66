"""Sampling against naive loops over Python floats, and against torch's log_softmax."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kveik.kernels.ops import SampleRow
from kveik.kernels.reference import reference_ops

OPS = reference_ops()


def logits(rows: int = 1, size: int = 40, seed: int = 0) -> np.ndarray:
    return 3 * np.random.default_rng(seed).standard_normal((rows, size), dtype=np.float32)


def draw(raw: np.ndarray, **fields: object) -> int:
    return OPS.sample(raw, [SampleRow(0, **fields)])[0].token_id  # type: ignore[arg-type]


def naive_adjust(raw: np.ndarray, row: SampleRow) -> list[float]:
    scores = [float(x) for x in raw]
    for token, bias in row.logit_bias:
        scores[token] += bias
    for token in set(row.prompt_ids) | set(row.output_ids):
        penalty = row.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    for token in set(row.output_ids):
        scores[token] -= row.presence_penalty
        scores[token] -= row.frequency_penalty * row.output_ids.count(token)
    for token in row.banned:
        scores[token] = -math.inf
    return scores


def naive_draw(raw: np.ndarray, row: SampleRow) -> int:
    """The documented order of steps, literally."""
    scores = naive_adjust(raw, row)
    if row.temperature == 0:
        return scores.index(max(scores))
    scaled = [s / row.temperature for s in scores]
    left = [t for t, s in enumerate(scaled) if s > -math.inf]
    if row.top_k:
        left = sorted(left, key=lambda t: (-scaled[t], t))[: row.top_k]
    if row.top_p < 1:
        left = sorted(left, key=lambda t: (-scaled[t], t))
        weights = [math.exp(scaled[t] - max(scaled)) for t in left]
        total, reached, kept = sum(weights), 0.0, []
        for token, weight in zip(left, weights, strict=True):
            kept.append(token)
            reached += weight / total
            if reached >= row.top_p:
                break
        left = kept
    best = max(scaled[t] for t in left)
    left = sorted(t for t in left if math.exp(scaled[t] - best) >= row.min_p)
    weights = [math.exp(scaled[t] - best) for t in left]
    reached, aim = 0.0, row.uniform * sum(weights)
    for token, weight in zip(left, weights, strict=True):
        reached += weight
        if reached > aim:
            return token
    return left[-1]


@pytest.mark.parametrize("seed", range(300))
def test_draws_agree_with_the_naive_reading(seed: int) -> None:
    rng = np.random.default_rng(seed)
    raw = logits(1, int(rng.integers(2, 60)), seed)
    if seed % 3 == 0:
        raw = np.round(raw)  # many ties
    size = raw.shape[1]
    ids = [int(t) for t in rng.integers(0, size, 12)]

    def maybe(value: object, off: object) -> object:
        return value if rng.random() < 0.5 else off

    row = SampleRow(
        row=0,
        uniform=float(rng.random()),
        temperature=float(maybe(rng.uniform(0.05, 2), 1.0)),  # type: ignore[arg-type]
        top_k=maybe(int(rng.integers(1, size + 3)), 0),  # type: ignore[arg-type]
        top_p=maybe(float(rng.uniform(0.01, 1)), 1.0),  # type: ignore[arg-type]
        min_p=maybe(float(rng.uniform(0, 0.5)), 0.0),  # type: ignore[arg-type]
        repetition_penalty=maybe(1.3, 1.0),  # type: ignore[arg-type]
        presence_penalty=maybe(0.5, 0.0),  # type: ignore[arg-type]
        frequency_penalty=maybe(0.25, 0.0),  # type: ignore[arg-type]
        logit_bias=maybe(((ids[0], 2.5), (ids[1], -100.0)), ()),  # type: ignore[arg-type]
        banned=maybe((ids[2],), ()),  # type: ignore[arg-type]
        prompt_ids=tuple(ids[3:7]),
        output_ids=tuple(ids[7:] + ids[7:9]),
    )
    assert OPS.sample(raw, [row])[0].token_id == naive_draw(raw[0], row)
    greedy = row._replace(temperature=0.0)
    assert OPS.sample(raw, [greedy])[0].token_id == naive_draw(raw[0], greedy)


@pytest.mark.parametrize("spread", [0.1, 3.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.97])
def test_a_nucleus_of_few_or_many_tokens(spread: float, top_p: float) -> None:
    """A flat row keeps more tokens than are sorted at first, a peaked one fewer."""
    raw = logits(1, 1500, 4) * np.float32(spread)
    for uniform in (0.0, 0.3, 0.9999):
        row = SampleRow(0, uniform, 1.0, top_p=top_p)
        assert OPS.sample(raw, [row])[0].token_id == naive_draw(raw[0], row)


def test_frequencies_follow_the_softmax() -> None:
    raw = logits(1, 12, 5)
    expected = torch.softmax(torch.from_numpy(raw[0]).double() / 0.8, 0).numpy()
    grid = (np.arange(20000) + 0.5) / 20000
    drawn = OPS.sample(raw, [SampleRow(0, float(u), 0.8) for u in grid])
    counts = np.bincount([s.token_id for s in drawn], minlength=12) / 20000
    np.testing.assert_allclose(counts, expected, atol=1e-4)


def test_the_repetition_penalty_pushes_negative_scores_down_too() -> None:
    raw = np.array([[-1.0, -1.2]], np.float32)
    assert draw(raw, repetition_penalty=2.0, prompt_ids=(0,)) == 1
    assert draw(-raw, repetition_penalty=2.0, output_ids=(1, 1)) == 0


def test_presence_counts_once_and_frequency_every_time() -> None:
    raw = np.array([[2.0, 1.6, 0.9]], np.float32)
    assert draw(raw, presence_penalty=0.3, output_ids=(0, 0, 0)) == 0
    assert draw(raw, frequency_penalty=0.3, output_ids=(0, 0, 0)) == 1
    assert draw(raw, frequency_penalty=0.3, prompt_ids=(0, 0, 0)) == 0


def test_of_equals_the_first_ids_are_kept() -> None:
    raw = np.array([[0.0, 1.0, 1.0, 1.0]], np.float32)
    assert draw(raw, temperature=1.0, top_k=2, uniform=0.99) == 2


def test_a_draw_on_a_border_takes_the_next_token() -> None:
    even = np.zeros((1, 2), np.float32)
    assert draw(even, temperature=1.0, uniform=0.5) == 1
    never = np.array([[-2000.0, 0.0]], np.float32)
    assert draw(never, temperature=1.0, uniform=0.0) == 1


def test_greedy_takes_the_first_of_equals() -> None:
    assert draw(np.array([[1, 7, 3, 7, 7]], np.float32)) == 1


def test_top_p_keeps_the_token_that_crosses() -> None:
    raw = np.log(np.array([[0.5, 0.3, 0.2]], np.float32))
    assert draw(raw, temperature=1.0, top_p=0.6, uniform=0.99) == 1
    assert draw(raw, temperature=1.0, top_p=0.4, uniform=0.99) == 0
    assert draw(raw, temperature=1.0, top_p=1e-9, uniform=0.99) == 0


def test_a_cold_temperature_is_greedy_and_does_not_overflow() -> None:
    assert draw(logits(), temperature=1e-30, uniform=0.9) == int(logits()[0].argmax())


def test_the_largest_uniform_never_draws_an_excluded_token() -> None:
    raw = np.array([[0.0, 0.0, 0.0, -np.inf]], np.float32)
    assert draw(raw, temperature=1.0, uniform=np.nextafter(1.0, 0.0)) == 2
    assert draw(raw, temperature=1.0, uniform=np.nextafter(1.0, 0.0), banned=(2,)) == 1


def test_log_probabilities_are_of_the_raw_logits() -> None:
    raw = logits(3, 50)
    expected = torch.log_softmax(torch.from_numpy(raw).double(), dim=-1).numpy()
    rows = [SampleRow(2, 0.3, 5.0, logprobs=4, logit_bias=((7, 100.0),)), SampleRow(1, logprobs=0)]
    warm, greedy = OPS.sample(raw, rows)
    assert warm.token_id == 7
    assert warm.logprob == pytest.approx(expected[2, 7], abs=1e-12)
    assert warm.rank == 1 + int((raw[2] > raw[2, 7]).sum())
    order = np.lexsort((np.arange(50), -expected[2]))[:4]
    assert [token for token, _ in warm.top] == order.tolist()
    np.testing.assert_allclose([value for _, value in warm.top], expected[2, order], atol=1e-12)
    assert (greedy.rank, greedy.top) == (1, ())


def test_a_target_is_reported_and_nothing_is_drawn() -> None:
    raw = np.array([[1.0, 5.0, 5.0, 0.0]], np.float32)
    (got,) = OPS.sample(raw, [SampleRow(0, target=2, logprobs=3, temperature=1.0)])
    assert (got.token_id, got.rank) == (2, 1)
    assert [token for token, _ in got.top] == [1, 2, 0]
    assert OPS.sample(raw, [SampleRow(0, target=3)])[0].rank == 4


def test_without_log_probabilities_none_are_computed() -> None:
    assert OPS.sample(logits(), [SampleRow(0)])[0][1:] == (0.0, 0, ())


def test_more_alternatives_than_tokens_are_all_tokens() -> None:
    (got,) = OPS.sample(logits(1, 3), [SampleRow(0, logprobs=20)])
    assert len(got.top) == 3


def test_rows_are_read_in_the_order_asked_and_may_repeat() -> None:
    raw = logits(3)
    rows = [SampleRow(2), SampleRow(0), SampleRow(2, 0.5, 1.0)]
    expected = [raw[2].argmax(), raw[0].argmax()]
    assert [s.token_id for s in OPS.sample(raw, rows)[:2]] == expected


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("fields", [{}, {"temperature": 1.0}, {"target": 0}])
def test_logits_that_are_not_numbers_name_the_row(broken: float, fields: dict[str, float]) -> None:
    raw = logits(3)
    raw[1, 7] = broken
    with pytest.raises(FloatingPointError, match="row 1"):
        OPS.sample(raw, [SampleRow(1, **fields)])  # type: ignore[arg-type]
    assert OPS.sample(raw, [SampleRow(0), SampleRow(2)])


def test_banning_every_token_is_an_error() -> None:
    with pytest.raises(FloatingPointError, match="banned"):
        draw(logits(1, 3), banned=(0, 1, 2))
