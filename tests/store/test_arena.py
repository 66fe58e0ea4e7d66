"""The store allocates one arena per group, runs moves in order, and knows the size of a block."""

from __future__ import annotations

import numpy as np
import pytest

from kveik.cache.segments import CopyPrefix, Erase, KvGroup
from kveik.errors import ConfigError
from kveik.kernels.ops import KvSpec
from kveik.kernels.reference import reference_ops
from kveik.store.arena import KvStore, blocks_within, bytes_per_block, bytes_per_token

SPECS = (KvSpec(2, 6, 4, 2, 8), KvSpec(1, 3, 4, 2, 8, "bfloat16"))


def filled() -> KvStore:
    store = KvStore(reference_ops(), SPECS)
    for arena in store.arenas:
        arena.values[:] = np.arange(arena.values.shape[2])[None, None, :, None, None]
        arena.keys[:] = np.arange(arena.keys.shape[2])[None, None, :, None, None]
    return store


def test_one_arena_per_group_of_the_stated_size() -> None:
    store = KvStore(reference_ops(), SPECS)
    for spec, arena in zip(SPECS, store.arenas, strict=True):
        held = arena.keys.nbytes + arena.values.nbytes
        assert held == spec.num_blocks * bytes_per_block(spec)


def test_moves_run_in_order_within_their_group() -> None:
    store = filled()
    store.apply([CopyPrefix(0, 5, 1, 4), CopyPrefix(1, 2, 0, 1), CopyPrefix(0, 1, 2, 3)])
    first, second = store.arenas
    for layer in range(2):
        assert first.values[layer, 0, 1, :, 0].tolist() == [5, 5, 5, 5]
        assert first.values[layer, 1, 2, :, 0].tolist() == [5, 5, 5, 2]
        assert first.keys[layer, 1, 2, 3].tolist() == [5, 5, 5, 2]
    assert second.values[0, 0, 0, :, 0].astype(int).tolist() == [2, 0, 0, 0]


@pytest.mark.parametrize(
    "move",
    [
        CopyPrefix(2, 0, 1, 1), CopyPrefix(-1, 0, 1, 1), CopyPrefix(1, 0, 3, 1),
        CopyPrefix(0, -1, 1, 1), CopyPrefix(0, 0, 1, 5), CopyPrefix(0, 0, 1, -1),
    ],
)  # fmt: skip
def test_a_move_that_cannot_be_moves_nothing(move: CopyPrefix) -> None:
    store = filled()
    with pytest.raises(ValueError, match="CopyPrefix"):
        store.apply([CopyPrefix(0, 5, 1, 4), move])
    assert store.arenas[0].values[0, 0, 1, 0, 0] == 1


def test_erased_blocks_are_zero_and_can_be_filled_in_the_same_step() -> None:
    store = filled()
    store.apply([Erase(0, 2), Erase(0, 1), CopyPrefix(0, 5, 1, 2)])
    first = store.arenas[0]
    assert not first.values[:, :, 2].any()
    assert not first.keys[:, :, 2].any()
    assert first.values[1, 1, 1, :, 0].tolist() == [5, 5, 0, 0]
    assert first.values[1, 1, 3, :, 0].tolist() == [3, 3, 3, 3]
    with pytest.raises(ValueError, match="Erase"):
        store.apply([Erase(1, 3)])


def test_sizes() -> None:
    """Llama 3 70B: 80 layers, 8 KV heads of 128; with 64 KV heads 2.62 MB per token in bf16."""
    assert bytes_per_token(80, 8, 128, "bfloat16") == 327_680
    assert bytes_per_token(80, 64, 128, "bfloat16") == 2_621_440
    assert bytes_per_token(80, 8, 128, "float32") == 655_360
    assert bytes_per_block(KvSpec(80, 1, 16, 8, 128, "bfloat16")) == 16 * 327_680


def test_blocks_within_a_budget() -> None:
    groups = [KvGroup((0, 1), bytes_per_block=1000), KvGroup((2,), bytes_per_block=500)]
    assert blocks_within(3_000, groups) == 2
    assert blocks_within(2_999, groups) == 1
    assert blocks_within(1_499, groups) == 0
    assert blocks_within(-5, groups) == 0


def test_a_kv_dtype_that_is_not_offered_is_named() -> None:
    with pytest.raises(ConfigError, match="fp8"):
        bytes_per_token(1, 1, 8, "fp8")
