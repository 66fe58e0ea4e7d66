"""The bare model over a text of any length, each row with a window that the bench says.

What an engine would refuse can be computed with it: positions beyond the training length, sinks at
their original positions. Nothing is ever dropped from memory; what a row sees is a matter of the
integers that the kernel is given.

    Rows(folder, tokens).losses(ids, rule)     nats of ids[1:]
    rule(positions) -> [rows, 2, 3]            (query_position, first_slot, last_slot) of two
                                               segments over the same memory: sinks, recent part
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kveik.cache.window import StreamWindow
from kveik.config import EngineConfig
from kveik.kernels.backend import choose_ops
from kveik.kernels.ops import Batch, GroupBatch, KvSpec, Ops
from kveik.models import load_model

BLOCK = 16
CHUNK = 512  # rows that are computed together

Ids = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Rule = Callable[[Ids], Ids]

NOTHING = (0, 0, -1)


def dense(positions: Ids) -> Ids:
    """Everything before, at its position."""
    return _windows(positions, positions * 0, positions * 0, at=positions, sinks=0)


def streaming(window: StreamWindow) -> Rule:
    """As kveik streams: for the sinks the query is turned back by what is gone."""

    def rule(positions: Ids) -> Ids:
        gone = np.array([window.evicted(int(position)) for position in positions])
        first = np.where(gone > 0, window.sinks + gone, 0)
        return _windows(positions, gone, first, at=positions - gone, sinks=window.sinks)

    return rule


def original_positions(window: StreamWindow) -> Rule:
    """The same keys, each at the distance that it has in the text."""

    def rule(positions: Ids) -> Ids:
        gone = np.array([window.evicted(int(position)) for position in positions])
        first = np.where(gone > 0, window.sinks + gone, 0)
        return _windows(positions, gone, first, at=positions, sinks=window.sinks)

    return rule


def _windows(positions: Ids, gone: Ids, first: Ids, *, at: Ids, sinks: int) -> Ids:
    """[rows, 2, 3]; at: where the query stands for the sinks."""
    windows = np.empty((len(positions), 2, 3), np.int64)
    windows[:, 0] = NOTHING
    if sinks:
        windows[:, 0, 0] = at
        windows[:, 0, 2] = np.where(gone > 0, sinks - 1, -1)
    windows[:, 1, 0] = positions
    windows[:, 1, 1] = first
    windows[:, 1, 2] = positions
    return windows


class Rows:
    """A model and memory for so many tokens."""

    def __init__(self, folder: Path, tokens: int, ops: Ops | None = None) -> None:
        self._ops = ops or choose_ops(EngineConfig())
        self.model = load_model(str(folder), self._ops, block_size=BLOCK).model
        (group,) = self.model.groups
        self._blocks = -(-tokens // BLOCK)
        spec = KvSpec(
            len(group.layers),
            self._blocks,
            BLOCK,
            self.model.num_kv_heads,
            self.model.head_dim,
            self._ops.dtype,
        )
        self._arena = self._ops.allocate_kv(spec)
        self._forward = self._ops.capture(self.model.forward, 0)

    def losses(self, ids: Sequence[int], rule: Rule) -> Floats:
        """Nats of every token but the first."""
        found = [
            _nats(self._logits(ids, start, min(CHUNK, len(ids) - start), rule), ids[start + 1 :])
            for start in range(0, len(ids), CHUNK)
        ]
        return np.concatenate(found)

    def last_loss(self, ids: Sequence[int]) -> float:
        """Nats of the last token behind all the others, computed from position 0."""
        logits = self._logits(ids[:-1], 0, len(ids) - 1, dense, last=True)
        return float(_nats(logits, ids[-1:])[0])

    def logits(self, ids: Sequence[int], rule: Rule) -> Any:
        """float32 [len(ids), V] of one chunk from position 0."""
        return self._logits(ids, 0, len(ids), rule)

    def _logits(
        self, ids: Sequence[int], first: int, count: int, rule: Rule, *, last: bool = False
    ) -> Any:
        """Of the rows at positions first .. first + count, or of the last of them."""
        upload, positions = self._ops.upload, np.arange(first, first + count)
        blocks = -(-(first + count) // BLOCK)
        segments = [(0, blocks, 0), (0, blocks, 0)]
        rows = upload(positions, (count,))
        group = GroupBatch(
            slots=rows,
            key_positions=rows,
            spans=upload([0, count, 0, len(segments)], (1, 4)),
            segments=upload(np.array(segments), (len(segments), 3)),
            blocks=upload(range(blocks), (blocks,)),
            windows=upload(rule(positions), (count * len(segments), 3)),
            block_size=BLOCK,
        )
        wanted = [count - 1] if last else range(count)
        batch = Batch(
            token_ids=upload(list(ids[first : first + count]), (count,)),
            positions=rows,
            logit_rows=upload(list(wanted), (len(wanted),)),
            groups=(group,),
        )
        return np.asarray(self._forward(batch, [self._arena]))


def _nats(logits: Any, targets: Sequence[int]) -> Floats:
    """Minus the log-probability of each target, as many as there are."""
    count = min(len(logits), len(targets))
    rows = logits[:count].astype(np.float64)
    rows -= rows.max(1, keepdims=True)
    chosen = rows[np.arange(count), list(targets[:count])]
    result: Floats = np.log(np.exp(rows).sum(1)) - chosen
    return result
