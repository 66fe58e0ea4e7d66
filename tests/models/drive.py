"""Drives a model by hand: one sequence, one block table per group, chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kveik.cache.segments import Segment
from kveik.cache.window import span_view
from kveik.kernels.ops import Batch, GroupBatch, KvSpec, Ops
from kveik.models import Model


class Sequencer:
    """`feed` computes tokens at the end of one sequence; blocks are scattered on purpose."""

    def __init__(self, model: Model, ops: Ops, capacity: int, block_size: int = 16) -> None:
        self._model, self._ops, self._block_size = model, ops, block_size
        count = -(-capacity // block_size)
        order = np.random.default_rng(0).permutation(count)
        self._blocks = tuple(int(block) for block in order)
        self._arenas = [
            ops.allocate_kv(
                KvSpec(len(group.layers), count, block_size, model.num_kv_heads, model.head_dim)
            )
            for group in model.groups
        ]
        self._length = 0

    def feed(self, tokens: Sequence[int], rows: Sequence[int] | None = None) -> np.ndarray:
        """Logits [R, V] of `rows` (default: one per token)."""
        first, count = self._length, len(tokens)
        self._length += count
        wanted = list(range(count) if rows is None else rows)
        upload = self._ops.upload
        batch = Batch(
            token_ids=upload(list(tokens), (count,)),
            positions=upload(list(range(first, first + count)), (count,)),
            logit_rows=upload(wanted, (len(wanted),)),
            groups=tuple(self._group(index, first, count) for index in range(len(self._arenas))),
        )
        return np.asarray(self._ops.download(self._model.forward(batch, self._arenas)), np.float32)

    def _group(self, index: int, first: int, count: int) -> GroupBatch:
        table = (Segment(self._blocks, home=0, skip=0, length=first, shift=0),)
        view = span_view(self._model.groups[index], table, first, count, self._block_size)
        upload = self._ops.upload
        return GroupBatch(
            slots=upload(view.slots, (count,)),
            key_positions=upload(view.key_positions, (count,)),
            spans=upload([0, count, 0, 1], (1, 4)),
            segments=upload([0, len(self._blocks), 0], (1, 3)),
            blocks=upload(self._blocks, (len(self._blocks),)),
            windows=upload(view.windows, (count, 3)),
            block_size=self._block_size,
        )
