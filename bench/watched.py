"""An engine whose logits can be read: of every row of a step, not only of those it samples.

The watch sits where the runner captures the model's forward pass, so scheduler, cache, segments and
kernels are those of any engine. A row's bits do not depend on which other rows have logits.

    llm, watch = watched(kv_memory=...)
    watch.last(64)      logits float64 of the last 64 rows of the last step, as log-probabilities
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kveik import LLM
from kveik.config import EngineConfig
from kveik.engine.engine import Engine
from kveik.engine.parts import load_parts
from kveik.kernels.ops import Arena, Batch, Ops


class Watch:
    """Keeps the logits of the last step, all rows of it."""

    def __init__(self) -> None:
        self._logits: Any = None

    def around(self, ops: Ops) -> Ops:
        def capture(forward: Callable[..., Any], number: int) -> Callable[..., Any]:
            inner = ops.capture(forward, number)

            def step(batch: Batch, arenas: Sequence[Arena]) -> Any:
                wanted = np.asarray(batch.logit_rows)
                rows = np.arange(len(np.asarray(batch.token_ids)))
                every = replace(batch, logit_rows=ops.upload(rows, (len(rows),)))
                self._logits = np.array(np.asarray(inner(every, arenas)), np.float32)
                return self._logits[wanted]

            return step

        return replace(ops, capture=capture)

    def last(self, count: int) -> Any:
        """Log-probabilities float64 [count, V]."""
        if len(self._logits) < count:
            raise ValueError(f"the last step had {len(self._logits)} rows, not {count}")
        rows = self._logits[-count:].astype(np.float64)
        rows -= rows.max(1, keepdims=True)
        return rows - np.log(np.exp(rows).sum(1, keepdims=True))


def watched(**options: Any) -> tuple[LLM, Watch]:
    """options: fields of EngineConfig."""
    watch, parts = Watch(), load_parts(EngineConfig(**options))
    return LLM.from_engine(Engine(replace(parts, ops=watch.around(parts.ops)))), watch
