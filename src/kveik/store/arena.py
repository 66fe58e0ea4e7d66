"""The bytes behind block ids: one arena per KvGroup, allocated and moved through Ops.

What a block contains and how it is laid out is the backend's affair; which block belongs to whom
is the cache's. This module only owns the arenas, runs moves, and knows how large a block is.
"""

from __future__ import annotations

from collections.abc import Sequence

from kveik.cache.segments import CopyPrefix, Erase, KvGroup, Move
from kveik.errors import ConfigError
from kveik.kernels.ops import Arena, KvSpec, Ops

BYTES_PER_ELEMENT = {"float32": 4, "bfloat16": 2}


class KvStore:
    """The arenas of one engine, indexed by group."""

    def __init__(self, ops: Ops, specs: Sequence[KvSpec]) -> None:
        self._ops = ops
        self._specs = tuple(specs)
        self.arenas: tuple[Arena, ...] = tuple(ops.allocate_kv(spec) for spec in specs)

    def apply(self, moves: Sequence[Move]) -> None:
        """Runs the moves, erasures first; when it returns they are done.

        Raises ValueError, before anything is moved, when one names a group, block or slot that
        does not exist."""
        for move in moves:
            self._check(move)
        for group, arena in enumerate(self.arenas):
            own = [move for move in moves if move.group == group]
            erased = [move.block for move in own if isinstance(move, Erase)]
            if erased:
                self._ops.erase_blocks(arena, erased)
            copies = [(m.src, m.dst, m.count) for m in own if isinstance(m, CopyPrefix)]
            if copies:
                self._ops.copy_blocks(arena, copies)

    def _check(self, move: Move) -> None:
        if not 0 <= move.group < len(self._specs):
            raise ValueError(f"{move}: there are {len(self._specs)} groups")
        spec = self._specs[move.group]
        if isinstance(move, Erase):
            if not 0 <= move.block < spec.num_blocks:
                raise ValueError(f"{move}: the group has {spec.num_blocks} blocks")
            return
        if not (0 <= move.src < spec.num_blocks and 0 <= move.dst < spec.num_blocks):
            raise ValueError(f"{move}: the group has {spec.num_blocks} blocks")
        if not 0 <= move.count <= spec.block_size:
            raise ValueError(f"{move}: a block has {spec.block_size} slots")


def bytes_per_token(num_layers: int, num_kv_heads: int, head_dim: int, dtype: str) -> int:
    """Keys and values of one token in `num_layers` layers.

    Raises ConfigError for a KV dtype that is not offered."""
    if dtype not in BYTES_PER_ELEMENT:
        offered = ", ".join(sorted(BYTES_PER_ELEMENT))
        raise ConfigError(f"KV dtype {dtype!r} is not offered: use {offered}", param="kv_dtype")
    return 2 * num_layers * num_kv_heads * head_dim * BYTES_PER_ELEMENT[dtype]


def bytes_per_block(spec: KvSpec) -> int:
    """Keys and values of one block in all layers of its group."""
    token = bytes_per_token(spec.num_layers, spec.num_kv_heads, spec.head_dim, spec.dtype)
    return spec.block_size * token


def blocks_within(budget: int, groups: Sequence[KvGroup]) -> int:
    """How many blocks every group may have when together they fill at most `budget` bytes and
    each gets the same number; groups carry their bytes_per_block. 0 when not even one fits."""
    return max(0, budget // sum(group.bytes_per_block for group in groups))
