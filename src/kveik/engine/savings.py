"""What the cache saved a request: seconds, floating-point operations, token pairs.

Pairs are counted as the article on prompt caching counts them, causally and each token with itself:
of a prompt of n tokens, c of them cached,

    old-old  c (c + 1) / 2                skipped: both tokens were cached
    new-old  (n - c) c                    computed
    new-new  (n - c) (n - c + 1) / 2      computed; the three add up to n (n + 1) / 2

Seconds are an estimate from the steps that this engine really ran: a step with `rows` tokens that
attend to `pairs` tokens takes about

    seconds = step + row * rows + pair * pairs        all three >= 0

fitted by least squares on the relative error, so that a step that was disturbed (slow by any
factor) weighs no more than one that was not, with exponential forgetting. A cached prefix saves
its rows and its pairs; the cost per step is left out, which makes the estimate a low one. Nothing
is claimed before a step was measured. The very first one also pays for the first use of memory
(up to four times the usual time was seen): it counts until there is another. Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kveik.engine.request import Savings

MIN_ROWS = 8
"""Prompt tokens in a step from which on it is measured: what is smaller is decoding."""

_DECODE_SHARE = 0.25  # of the prompt rows of a step that is measured, at most
_FORGET = 0.99  # weight of the measurements before, with each new one
_SPREAD = 1.5  # largest over smallest value from which on a term can be told from the others
_PAIRS = 1024.0  # pairs are counted in so many, which keeps the sums of one size


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What computing one prompt token takes, beside the attention: parameters, each one
    multiplication and one addition. layers: how many see how far back (None: everything), such as
    ((18, None), (18, 512)). attention_width: query heads times their size."""

    parameters: int
    attention_width: int
    layers: tuple[tuple[int, int | None], ...]

    def flops(self, tokens: int) -> float:
        """Of the first `tokens` of a prompt: 2 per parameter and token; in each layer 4 per pair
        and unit of width (query-key products, sums of values)."""
        pairs = sum(count * visible_pairs(tokens, window) for count, window in self.layers)
        return 2.0 * self.parameters * tokens + 4.0 * self.attention_width * pairs


def visible_pairs(tokens: int, window: int | None = None) -> int:
    """(query, key) pairs of the first `tokens` of a prompt; a query sees the last `window`."""
    reach = tokens if window is None else min(window, tokens)
    return reach * (reach + 1) // 2 + (tokens - reach) * reach


class SavingsMeter:
    """See the module. Used by the engine's thread; a handful of sums, whatever it has seen."""

    def __init__(self, facts: ModelFacts) -> None:
        self._facts = facts
        self._measured = 0  # steps
        self._start_over()

    def _start_over(self) -> None:
        self._products = [[0.0] * 3 for _ in range(3)]  # sums of term_i * term_j / seconds ^ 2
        self._sides = [0.0] * 3  # sums of term_i / seconds
        self._ranges: list[tuple[float, float]] = []  # of rows, and of pairs per row
        self._fitted: tuple[float, float, float] | None = None

    def observe(self, spans: Sequence[tuple[int, int]], decode_rows: int, seconds: float) -> None:
        """One step. spans: (first position, count) of its prompt rows; decode_rows: the others."""
        rows = sum(count for _, count in spans)
        if rows < MIN_ROWS or decode_rows > rows * _DECODE_SHARE or seconds <= 0:
            return
        if self._measured == 1:
            self._start_over()
        self._measured += 1
        pairs = sum(visible_pairs(first + count) - visible_pairs(first) for first, count in spans)
        terms = (1.0, float(rows + decode_rows), pairs / _PAIRS)
        for i in range(3):
            for j in range(3):
                added = terms[i] * terms[j] / seconds**2
                self._products[i][j] = _FORGET * self._products[i][j] + added
            self._sides[i] = _FORGET * self._sides[i] + terms[i] / seconds
        self._note_ranges((terms[1], pairs / rows))
        self._fitted = None

    def _note_ranges(self, values: tuple[float, float]) -> None:
        """A range widens at once and shrinks as its ends are forgotten."""
        ranges = self._ranges or [(value, value) for value in values]
        fade = 1 - _FORGET
        self._ranges = [
            (min(value, low + fade * (value - low)), max(value, high + fade * (value - high)))
            for (low, high), value in zip(ranges, values, strict=True)
        ]

    def rates(self) -> tuple[float, float, float]:
        """Seconds per step, per row and per pair; zeros before anything was measured."""
        if self._fitted is None:
            self._fitted = self._fit()
        return self._fitted

    def savings(self, prompt_tokens: int, cached_tokens: int) -> Savings:
        """Of a request that found `cached_tokens` of its prompt in the cache."""
        new = prompt_tokens - cached_tokens
        old_old = visible_pairs(cached_tokens)
        _, row, pair = self.rates()
        return Savings(
            seconds=row * cached_tokens + pair * old_old,
            flops=self._facts.flops(cached_tokens),
            old_old=old_old,
            new_old=new * cached_tokens,
            new_new=visible_pairs(new),
        )

    def _fit(self) -> tuple[float, float, float]:
        """The best of the models whose terms can be told apart and that has no negative rate."""
        if not self._ranges:
            return 0.0, 0.0, 0.0
        rows_vary, pairs_vary = (high >= _SPREAD * low for low, high in self._ranges)
        choices = [[1], *([[0, 1]] * rows_vary), *([[1, 2]] * pairs_vary)]
        choices += [[0, 1, 2]] * (rows_vary and pairs_vary)
        best, most = (0.0, 0.0, 0.0), -1.0
        for terms in choices:
            rates = self._solve(terms)
            if rates is None or min(rates) < 0:
                continue
            # What the squared relative error is less than without any model.
            explained = sum(rate * side for rate, side in zip(rates, self._sides, strict=True))
            if explained > most:
                best, most = rates, explained
        return best[0], best[1], best[2] / _PAIRS

    def _solve(self, terms: Sequence[int]) -> tuple[float, float, float] | None:
        """Normal equations of some terms, by elimination; None: they cannot be told apart."""
        matrix = [[self._products[i][j] for j in terms] + [self._sides[i]] for i in terms]
        size = len(terms)
        for k in range(size):
            if matrix[k][k] <= 1e-9 * self._products[terms[k]][terms[k]]:
                return None
            for i in range(k + 1, size):
                factor = matrix[i][k] / matrix[k][k]
                matrix[i] = [a - factor * b for a, b in zip(matrix[i], matrix[k], strict=True)]
        values = [0.0] * size
        for k in reversed(range(size)):
            known = sum(matrix[k][j] * values[j] for j in range(k + 1, size))
            values[k] = (matrix[k][size] - known) / matrix[k][k]
        rates = dict(zip(terms, values, strict=True))
        return rates.get(0, 0.0), rates.get(1, 0.0), rates.get(2, 0.0)
