"""The recording backend computes what it wraps computes, and its tokens refuse to be touched."""

from __future__ import annotations

import operator
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from recording import Token, TouchedArrayError, recording, reveal

from kveik.kernels.ops import AttentionSpec, GroupBatch, KvSpec
from kveik.kernels.reference import reference_ops


def test_it_computes_what_it_wraps() -> None:
    plain = reference_ops()
    ops, calls = recording(plain)
    weight = np.eye(4, dtype=np.float32)
    x = ops.embed(ops.pack_weight(weight, "embedding", None), ops.upload([2, 0], (2,)))
    normed, stream = ops.rms_norm(x, ops.pack_weight(weight[0], "vector", None), None, 1e-5, None)
    assert isinstance(normed, Token)
    np.testing.assert_array_equal(reveal(stream), weight[[2, 0]])
    assert ops.download(stream) == weight[[2, 0]].tolist()
    assert calls == ["pack_weight", "upload", "embed", "pack_weight", "rms_norm", "download"]


def test_attention_goes_through_with_a_batch_of_tokens() -> None:
    ops, calls = recording(reference_ops())
    arena = ops.allocate_kv(KvSpec(1, 2, 4, 1, 4))

    def up(values: list[int], *shape: int) -> Any:
        return ops.upload(array("q", values), shape or (len(values),))

    batch = GroupBatch(
        up([4]), up([0]), up([0, 1, 0, 1], 1, 4), up([0, 1, 0], 1, 3), up([1]),
        up([0, 0, 0], 1, 3), 4,
    )  # fmt: skip
    x = ops.embed(ops.pack_weight(np.ones((1, 4), np.float32), "embedding", None), up([0]))
    spec = AttentionSpec(1, 1, 4, 0.5)
    ops.rope_write_kv(x, x, arena, 0, batch, spec)
    assert ops.download(ops.paged_attention(x, arena, 0, batch, spec)) == [[1.0] * 4]
    assert "paged_attention" in calls
    assert batch.memo


@pytest.mark.parametrize(
    "touch",
    [
        lambda t: t + 1, lambda t: 1 - t, lambda t: t @ t, lambda t: t[0], len, iter, bool, int,
        lambda t: t.shape, lambda t: t == 0, lambda t: -t, lambda t: t > 0, np.asarray,
        lambda t: operator.setitem(t, 0, 1), lambda t: operator.iadd(t, 1), lambda t: t.astype(int),
        lambda t: 3 in t,
    ],
)  # fmt: skip
def test_tokens_refuse_to_be_touched(touch: Callable[[Any], Any]) -> None:
    ops, _ = recording(reference_ops())
    with pytest.raises(TouchedArrayError):
        touch(ops.upload([1, 2], (2,)))
