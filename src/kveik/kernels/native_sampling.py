"""Sampling by the native passes over rows of logits; reference_sampling.py says what it means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kveik.kernels.extension import native_extension
from kveik.kernels.ops import Sampled, SampleRow


def sample(
    logits: NDArray[np.float32],
    rows: Sequence[SampleRow],
    level: str | None = None,
    pool: Any | None = None,
) -> list[Sampled]:
    """One Sampled per SampleRow from logits [R, V], as reference_sampling.sample gives them.

    level: whose passes run, one of the extension's levels(); None: the best of this machine.
    pool: the extension's Pool, whose threads share the rows; None: the calling thread reads them.
    Raises FloatingPointError, naming the row, when its logits are not numbers or when every
    token is banned; IndexError for a row or a token id that is not there."""
    native = native_extension().module
    assert native is not None, "the native kernels are not built"
    sampled: list[Sampled] = native.sample_rows(logits, rows, Sampled, level, pool)
    return sampled
