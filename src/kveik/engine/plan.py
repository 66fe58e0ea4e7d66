"""The two records between scheduler and runner: StepPlan goes down, StepResult comes back.

Plain integers, bytes and tuples: serialisable, without references to leases or requests, so that
a plan can be recorded, replayed, or sent to another process. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from kveik.cache.segments import BlockTable, Move
from kveik.cache.window import StreamWindow


class Pending(NamedTuple):
    """Stands for the token that `sequence_id` samples in the step before (apply lags one step)."""

    sequence_id: int


Token: TypeAlias = int | Pending


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """How to draw one token from one row of logits.

    The random number is a pure function of (seed, choice, position), so preemption, forks and
    neighbours never change a text. `position` is the index of the drawn token in the sequence.
    `prompt_ids` and `output_ids` are empty unless a penalty needs them.
    """

    seed: int
    choice: int
    position: int
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    banned: tuple[int, ...] = ()  # ids that may not be drawn (ends before min_tokens)
    logprobs: int | None = None  # how many alternatives to report; None: no log-probabilities
    prompt_ids: tuple[int, ...] = ()
    output_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """What one sequence computes in this step.

    spans: ((first, count), ...) of seen positions; token_ids: the tokens of all spans in order.
    tables: one per KvGroup, covering everything visible plus the slots to be written.
    samples: one per choice, drawn from the last row (several only when a prompt forks: n > 1);
    empty while the prompt is not finished. prompt_logprobs: alternatives to report for every row
    of this step whose successor is in `targets` (aligned with token_ids; -1: no target), or None.
    stream: the window by which every row of the spans forgets, or None. pools: the hidden states of
    all rows are asked for, as their sum.
    """

    sequence_id: int
    spans: tuple[tuple[int, int], ...]
    token_ids: tuple[Token, ...]
    tables: tuple[BlockTable, ...]
    samples: tuple[SamplingPlan, ...] = ()
    prompt_logprobs: int | None = None
    targets: tuple[int, ...] = ()
    adapter: int = 0
    stream: StreamWindow | None = None
    pools: bool = False


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: moves first, then every sequence's spans in one batch."""

    step_id: int
    sequences: tuple[SequencePlan, ...]
    moves: tuple[Move, ...] = ()


class TokenLogprobs(NamedTuple):
    """Log-probabilities (natural logarithm, of the raw logits) at one place."""

    token_id: int
    logprob: float
    rank: int  # 1: the most probable token
    top: tuple[tuple[int, float], ...] = ()  # alternatives, most probable first


class SampledToken(NamedTuple):
    token_id: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """What came of one SequencePlan. tokens: one per choice in `samples`. pooled: where the plan
    pools, the sum of the last hidden states of its rows, H integers (`Ops.sum_rows`).

    `error` is set when this sequence failed alone; its neighbours are unharmed."""

    sequence_id: int
    tokens: tuple[SampledToken, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    pooled: tuple[int, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """Acknowledges the step: its moves are done and the blocks it named may be reused."""

    step_id: int
    sequences: tuple[SequenceResult, ...]
