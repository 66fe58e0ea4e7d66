"""Reading rows of logits: penalties, temperature, top-k, top-p, min-p, draw, log-probabilities.

The order of the steps is that of `ops.SampleRow`. Everything after the logits is float64 and
looks at one row only, so a draw is a pure function of (row of logits, SampleRow). Penalties mean
what they mean in transformers (repetition) and in OpenAI's API (presence, frequency).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kveik.kernels.ops import Sampled, SampleRow

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

NUCLEUS_GUESS = 256


def sample(logits: NDArray[np.float32], rows: Sequence[SampleRow]) -> list[Sampled]:
    """One Sampled per SampleRow from logits [R, V].

    Without `logprobs` (and without `target`) the fields logprob and rank are 0 and top is empty.
    Raises FloatingPointError, naming the row, when its logits are not numbers or when every
    token is banned."""
    return [_read(logits[row.row], row) for row in rows]


def _read(raw: NDArray[np.float32], row: SampleRow) -> Sampled:
    """raw: [V]."""
    if not np.isfinite(raw.max()):
        raise FloatingPointError(f"row {row.row}: the logits are not finite numbers")
    if row.target >= 0:
        return _report(raw, row.target, row.logprobs or 0)
    token = _draw(raw, row)
    return Sampled(token, 0.0, 0, ()) if row.logprobs is None else _report(raw, token, row.logprobs)


def _report(raw: NDArray[np.float32], token: int, alternatives: int) -> Sampled:
    """Log-probability and rank (1: the most probable) of `token`, and the best alternatives."""
    values = raw.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    rank = 1 + int((raw > raw[token]).sum())
    best = _best_ids(values, alternatives) if alternatives else ()
    top = tuple((int(index), float(values[index])) for index in best)
    return Sampled(token, float(values[token]), rank, top)


def _draw(raw: NDArray[np.float32], row: SampleRow) -> int:
    scores = _adjusted(raw, row)
    best = int(scores.argmax())
    if np.isneginf(scores[best]):
        raise FloatingPointError(f"row {row.row}: no token may be drawn, all are banned")
    if row.temperature == 0.0:
        return best
    scaled = (scores.astype(np.float64) - float(scores[best])) / row.temperature
    ids = _kept(scaled, row)
    cumulative = np.cumsum(np.exp(scaled[ids]))
    place = int(np.searchsorted(cumulative, row.uniform * cumulative[-1], side="right"))
    return int(ids[min(place, len(ids) - 1)])


def _adjusted(raw: NDArray[np.float32], row: SampleRow) -> NDArray[np.float32] | Floats:
    """Bias, penalties and bans; the row itself when there are none."""
    penalised = row.repetition_penalty != 1.0 or row.presence_penalty or row.frequency_penalty
    if not (penalised or row.logit_bias or row.banned):
        return raw
    scores = raw.astype(np.float64)
    for token, bias in row.logit_bias:
        scores[token] += bias
    if row.repetition_penalty != 1.0:
        seen = np.unique(np.array(row.prompt_ids + row.output_ids, np.int64))
        old = scores[seen]
        penalty = row.repetition_penalty
        scores[seen] = np.where(old > 0, old / penalty, old * penalty)
    if row.presence_penalty or row.frequency_penalty:
        seen, counts = np.unique(np.array(row.output_ids, np.int64), return_counts=True)
        scores[seen] -= row.presence_penalty + row.frequency_penalty * counts
    scores[list(row.banned)] = -np.inf
    return scores


def _kept(scaled: Floats, row: SampleRow) -> Ids:
    """Ids, ascending, that top_k, top_p and min_p leave; scaled: [V], the maximum is 0.

    Each filter renormalises what the one before left, so only ratios to the best token matter."""
    ids: Ids = np.flatnonzero(scaled > -np.inf)
    if 0 < row.top_k < len(ids):
        ids = np.sort(_best_ids(scaled, row.top_k))
    if row.top_p < 1.0:
        ids = np.sort(ids[_nucleus(scaled[ids], row.top_p)])
    if row.min_p > 0.0:
        ids = ids[np.exp(scaled[ids]) >= row.min_p]
    return ids


def _nucleus(scaled: Floats, top_p: float) -> Ids:
    """Indices of the most probable tokens up to and with the one that crosses top_p
    (Holtzman et al. 2020); at least one. Sorts a few hundred, all only where these are not it."""
    bound = top_p * float(np.exp(scaled).sum())
    order = _best_ids(scaled, NUCLEUS_GUESS)
    weights = np.exp(scaled[order])
    if weights.sum() <= bound:
        order = _best_ids(scaled, len(scaled))
        weights = np.exp(scaled[order])
    before = np.cumsum(weights) - weights
    return order[: max(1, int((before < bound).sum()))]


def _best_ids(values: Floats, count: int) -> Ids:
    """The `count` ids with the largest values, sorted by (-value, id)."""
    size = len(values)
    if count < size:
        bound = np.partition(values, size - count)[size - count]
        above = np.flatnonzero(values > bound)
        equal = np.flatnonzero(values == bound)[: count - len(above)]
        candidates = np.sort(np.concatenate((above, equal)))
    else:
        candidates = np.arange(size)
    return candidates[np.argsort(-values[candidates], kind="stable")]
