"""From a StepPlan to its StepResult: moves, one forward pass, samples.

The runner lays the plan out as flat int64 buffers, which it owns and reuses, and touches arrays
only through `Ops`. It keeps nothing of a request between steps. When the batch raises, every
sequence is computed again alone (K/V writes are idempotent), so that only the faulty one fails.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Sequence

from kveik.cache.segments import BlockTable, KvGroup
from kveik.cache.window import StreamWindow, laid_out, span_view
from kveik.engine.plan import (
    SequencePlan,
    SequenceResult,
    StepPlan,
    StepResult,
)
from kveik.engine.sampler import draw_row, sampled_token, target_row, token_logprobs
from kveik.errors import KveikError, fault
from kveik.kernels.ops import Array, Batch, GroupBatch, Ops, Sampled, SampleRow
from kveik.models import Model, refuse_shift
from kveik.store.arena import KvStore

_log = logging.getLogger(__name__)


class _Buffer:
    """An int64 buffer that stays where it is and grows by doubling."""

    def __init__(self) -> None:
        self._view = memoryview(bytearray(8)).cast("q")

    def fill(self, values: list[int]) -> memoryview:
        """The values as a view of the buffer; valid until the next fill. Nothing is allocated
        but the view."""
        count = len(values)
        if count > len(self._view):
            self._view = memoryview(bytearray(8 * max(count, 2 * len(self._view)))).cast("q")
        struct.pack_into(f"{count}q", self._view, 0, *values)
        return self._view[:count]


class _GroupLayout:
    """Collects the fields of one GroupBatch (kernels/ops.py has their meaning)."""

    def __init__(self, group: KvGroup, block_size: int) -> None:
        self._group = group
        self._block_size = block_size
        self._slots: list[int] = []
        self._key_positions: list[int] = []
        self._spans: list[int] = []
        self._segments: list[int] = []
        self._blocks: list[int] = []
        self._windows: list[int] = []

    def add(
        self,
        table: BlockTable,
        spans: tuple[tuple[int, int], ...],
        stream: StreamWindow | None,
    ) -> None:
        table = laid_out(table, sum(spans[-1]), self._block_size, stream)
        first_segment = len(self._segments) // 3
        for segment in table:
            self._segments += (len(self._blocks), len(segment.blocks), segment.home)
            self._blocks += segment.blocks
        for first, count in spans:
            view = span_view(self._group, table, first, count, self._block_size, stream)
            self._spans += (len(self._slots), count, first_segment, len(table))
            self._slots += view.slots
            self._key_positions += view.key_positions
            self._windows += view.windows

    def batch(self, upload: _Uploader) -> GroupBatch:
        return GroupBatch(
            slots=upload(self._slots),
            key_positions=upload(self._key_positions),
            spans=upload(self._spans, 4),
            segments=upload(self._segments, 3),
            blocks=upload(self._blocks),
            windows=upload(self._windows, 3),
            block_size=self._block_size,
        )


class _Uploader:
    """Uploads the lists of one step, each through a buffer of its own (the n-th of every step)."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops
        self._buffers: list[_Buffer] = []
        self._next = 0

    def restart(self) -> None:
        self._next = 0

    def __call__(self, values: list[int], columns: int = 0) -> Array:
        """int64 [n], or [n / columns, columns]."""
        if self._next == len(self._buffers):
            self._buffers.append(_Buffer())
        buffer = self._buffers[self._next]
        self._next += 1
        shape = (len(values) // columns, columns) if columns else (len(values),)
        return self._ops.upload(buffer.fill(values), shape)


class Runner:
    """Computes steps of one model on one backend."""

    def __init__(self, model: Model, ops: Ops, store: KvStore, block_size: int) -> None:
        self._model = model
        self._forward = ops.capture(model.forward, 0)
        self._hidden = ops.capture(model.hidden, 0)
        self._ops = ops
        self._store = store
        self._block_size = block_size
        self._upload = _Uploader(ops)

    def run(self, plan: StepPlan) -> StepResult:
        """Moves first, then all sequences. Never raises for the fault of a sequence."""
        self._store.apply(plan.moves)
        try:
            return StepResult(plan.step_id, self._compute(plan.sequences))
        except Exception as error:
            if len(plan.sequences) > 1:
                _log.error("a step failed; its sequences go one by one: %s", fault(error))
            return StepResult(plan.step_id, tuple(self._alone(one) for one in plan.sequences))

    def _alone(self, sequence: SequencePlan) -> SequenceResult:
        try:
            return self._compute((sequence,))[0]
        except KveikError as error:
            return SequenceResult(sequence.sequence_id, error=error.message)
        except Exception as error:
            _log.error("a request failed in the forward pass or in sampling: %s", fault(error))
            message = f"computing this request failed ({type(error).__name__})"
            return SequenceResult(sequence.sequence_id, error=message)

    def _compute(self, sequences: Sequence[SequencePlan]) -> tuple[SequenceResult, ...]:
        if not sequences:
            return ()
        readouts = _Readouts(sequences)
        batch = self._batch(sequences, readouts.rows + readouts.pooled_rows)
        sums: list[list[int]] = []
        if readouts.pools:
            logits, sums = self._pool(batch, readouts)
        else:
            logits = self._forward(batch, self._store.arenas)
        sampled = self._ops.sample(logits, readouts.sample_rows) if readouts.rows else []
        return readouts.results(sampled, sums)

    def _pool(self, batch: Batch, readouts: _Readouts) -> tuple[Array, list[list[int]]]:
        """Logits [R, V] of the rows that have them (or none), and the sums that are asked for. A
        row's logits are the same bits as without anybody who pools."""
        ops, count = self._ops, len(readouts.rows)
        hidden = self._hidden(batch, self._store.arenas)  # [R + pooled rows, H]
        sums = ops.sum_rows(hidden, [(count + first, rows) for first, rows in readouts.pools])
        if not count:
            return None, sums
        own = ops.take_rows(hidden, self._upload(list(range(count))))  # [R, H]
        return self._model.logits(own), sums

    def _batch(self, sequences: Sequence[SequencePlan], logit_rows: list[int]) -> Batch:
        layouts = [_GroupLayout(group, self._block_size) for group in self._model.groups]
        token_ids: list[int] = []
        positions: list[int] = []
        for sequence in sequences:
            refuse_shift(self._model, sequence.tables)
            token_ids += _known(sequence)
            for first, count in sequence.spans:
                positions += range(first, first + count)
            for layout, table in zip(layouts, sequence.tables, strict=True):
                layout.add(table, sequence.spans, sequence.stream)
        upload = self._upload
        upload.restart()
        return Batch(
            token_ids=upload(token_ids),
            positions=upload(positions),
            logit_rows=upload(logit_rows),
            groups=tuple(layout.batch(upload) for layout in layouts),
        )


def _known(sequence: SequencePlan) -> list[int]:
    """The token ids of a plan; Pending ones are resolved by a runner that lags, not by this one."""
    ids = [token for token in sequence.token_ids if isinstance(token, int)]
    if len(ids) != len(sequence.token_ids):
        raise ValueError("the plan names tokens that are not sampled yet")
    return ids


class _Readouts:
    """Which rows of the step need logits, and what is read from each.

    rows: rows of the batch, ascending; sample_rows: what `Ops.sample` reads, by index into rows.
    pooled_rows: rows whose hidden states are added up; pools: (first, count) of each sequence that
    asks for it, by index into pooled_rows.
    """

    def __init__(self, sequences: Sequence[SequencePlan]) -> None:
        self._sequences = sequences
        self._counts: list[int] = []  # targets per sequence; its samples follow them
        self.rows: list[int] = []
        self.sample_rows: list[SampleRow] = []
        self.pooled_rows: list[int] = []
        self.pools: list[tuple[int, int]] = []
        start = 0
        for sequence in sequences:
            self._add(sequence, start)
            start += len(sequence.token_ids)

    def _add(self, sequence: SequencePlan, start: int) -> None:
        targets = [(row, token) for row, token in enumerate(sequence.targets) if token >= 0]
        self._counts.append(len(targets))
        for row, token in targets:
            index = self._want(start + row)
            self.sample_rows.append(target_row(index, token, sequence.prompt_logprobs or 0))
        if sequence.samples:
            index = self._want(start + len(sequence.token_ids) - 1)
            self.sample_rows.extend(draw_row(index, plan) for plan in sequence.samples)
        if sequence.pools:
            count = len(sequence.token_ids)
            self.pools.append((len(self.pooled_rows), count))
            self.pooled_rows += range(start, start + count)

    def _want(self, row: int) -> int:
        self.rows.append(row)
        return len(self.rows) - 1

    def results(
        self, sampled: Sequence[Sampled], sums: Sequence[Sequence[int]]
    ) -> tuple[SequenceResult, ...]:
        found, pooled, results = iter(sampled), iter(sums), []
        for sequence, targets in zip(self._sequences, self._counts, strict=True):
            rows = tuple(token_logprobs(next(found)) for _ in range(targets))
            tokens = tuple(sampled_token(next(found), plan) for plan in sequence.samples)
            pool = tuple(next(pooled)) if sequence.pools else ()
            results.append(SequenceResult(sequence.sequence_id, tokens, rows, pool))
        return tuple(results)


def failed_result(plan: StepPlan, message: str) -> StepResult:
    """The result of a step that could not be computed at all."""
    return StepResult(
        plan.step_id,
        tuple(SequenceResult(one.sequence_id, error=message) for one in plan.sequences),
    )
