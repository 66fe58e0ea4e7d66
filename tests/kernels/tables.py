"""Random block tables, and attention over them by definition: dense, float64, one row at a time.

The truth knows nothing of homes or splits: every key is turned to the position at which the row
sees it. A Case lays the same keys into an arena for the backend under test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kveik.kernels.ops import AttentionSpec, GroupBatch, KvSpec, Ops, RopeSpec


@dataclass(frozen=True)
class Piece:
    """A segment: slots skip .. skip + length, seen `shift` after home. blocks: block ids."""

    blocks: tuple[int, ...]
    home: int
    skip: int
    length: int
    shift: int

    @property
    def frame(self) -> int:
        """Seen position of slot 0."""
        return self.home + self.shift


@dataclass
class Case:
    """One sequence: its pieces in order; the last `rows` seen positions are the queries.

    keys, values: raw (unrotated) [KV, D] per seen token, in order: float32 [N, KV, D];
    queries: float32 [rows, Q, D]."""

    spec: AttentionSpec
    block_size: int
    pieces: tuple[Piece, ...]
    rows: int
    window: int | None
    keys: np.ndarray
    values: np.ndarray
    queries: np.ndarray
    num_blocks: int
    seen: np.ndarray = field(init=False)  # seen position of every token

    def __post_init__(self) -> None:
        parts = [np.arange(p.length) + p.frame + p.skip for p in self.pieces]
        self.seen = np.concatenate(parts)

    def truth(self) -> np.ndarray:
        """[rows, Q, D] in float64."""
        out = []
        share = self.spec.num_heads // self.spec.num_kv_heads
        for row, position in enumerate(self.seen[-self.rows :]):
            visible = self.seen <= position
            if self.window is not None:
                visible &= self.seen > position - self.window
            keys = turn(self.keys[visible], self.seen[visible], self.spec.rope)
            query = turn(self.queries[row][None], np.array([position]), self.spec.rope)[0]
            scores = np.einsum("hd,nhd->hn", query, keys.repeat(share, axis=1)) * self.spec.scale
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            values = self.values[visible].astype(np.float64).repeat(share, axis=1)
            out.append(np.einsum("hn,nhd->hd", weights, values))
        return np.array(out)

    def windows(self, rows: range) -> list[tuple[int, int, int]]:
        found = []
        for position in self.seen[len(self.seen) - self.rows :][rows.start : rows.stop]:
            for p in self.pieces:
                lowest = p.skip
                if self.window is not None:
                    lowest = max(lowest, position - self.window + 1 - p.frame)
                last = min(p.skip + p.length - 1, position - p.frame)
                found.append((position - p.shift, lowest, last))
        return found

    def write(self, ops: Ops, arena: Any, tokens: Sequence[int] | None = None) -> None:
        """Writes the keys and values of the given tokens (all of them) at their homes."""
        slots, homes = [], []
        for p in self.pieces:
            for slot in range(p.skip, p.skip + p.length):
                block = p.blocks[slot // self.block_size]
                slots.append(block * self.block_size + slot % self.block_size)
                homes.append(p.home + slot)
        chosen = np.arange(len(slots)) if tokens is None else np.array(tokens)
        empty = np.zeros((0, 3), np.int64)
        batch = GroupBatch(
            np.array(slots)[chosen], np.array(homes)[chosen], empty, empty, empty, empty,
            self.block_size,
        )  # fmt: skip
        flat = (len(chosen), -1)
        keys, values = self.keys[chosen].reshape(flat), self.values[chosen].reshape(flat)
        ops.rope_write_kv(keys, values, arena, 0, batch, self.spec)

    def arena(self, ops: Ops, *, poison: bool = True, dtype: str = "float32") -> Any:
        spec = self.spec
        arena = ops.allocate_kv(
            KvSpec(1, self.num_blocks, self.block_size, spec.num_kv_heads, spec.head_dim, dtype)
        )
        if poison:
            arena.keys[:] = np.nan
            arena.values[:] = np.nan
        return arena

    def moved(self, rng: np.random.Generator) -> Case:
        """The same sequence in other blocks."""
        order = rng.permutation(self.num_blocks)
        pieces = [replace(p, blocks=tuple(int(order[b]) for b in p.blocks)) for p in self.pieces]
        return replace(self, pieces=tuple(pieces))


def turn(x: np.ndarray, positions: np.ndarray, rope: RopeSpec | None) -> np.ndarray:
    """x [N, heads, D] rotated to positions [N], by complex multiplication in float64."""
    wide = x.astype(np.float64)
    if rope is None:
        return wide
    half = len(rope.inverse_frequencies)
    angles = np.array(
        [[math.fmod(int(p) * f, 2 * math.pi) for f in rope.inverse_frequencies] for p in positions]
    )
    z = (wide[..., :half] + 1j * wide[..., half : 2 * half]) * np.exp(1j * angles)[:, None]
    z = z * rope.magnitude
    return np.concatenate((z.real, z.imag, wide[..., 2 * half :]), axis=-1)


def batch_of(cases: Sequence[Case], rows: Sequence[range]) -> tuple[np.ndarray, GroupBatch]:
    """Queries [T, Q * D] and the metadata of several sequences in one step, for attention only."""
    spans, segments, blocks, windows, queries = [], [], [], [], []
    first = 0
    for case, chosen in zip(cases, rows, strict=True):
        spans.append((first, len(chosen), len(segments), len(case.pieces)))
        for p in case.pieces:
            segments.append((len(blocks), len(p.blocks), p.home))
            blocks.extend(p.blocks)
        windows += case.windows(chosen)
        queries.append(case.queries[chosen.start : chosen.stop])
        first += len(chosen)
    empty = np.zeros(0, np.int64)
    batch = GroupBatch(
        empty, empty, np.array(spans), np.array(segments), np.array(blocks), np.array(windows),
        cases[0].block_size,
    )  # fmt: skip
    return np.concatenate(queries).reshape(first, -1), batch


def attend(ops: Ops, arena: Any, case: Case, chunk: int | None = None) -> np.ndarray:
    """All query rows of the case, `chunk` rows at a time: [rows, Q, D]."""
    step = chunk or case.rows
    out = []
    for start in range(0, case.rows, step):
        queries, batch = batch_of([case], [range(start, min(start + step, case.rows))])
        out.append(ops.paged_attention(queries, arena, 0, batch, case.spec))
    return np.concatenate(out).reshape(case.queries.shape)


def random_rope(rng: np.random.Generator, head_dim: int) -> RopeSpec | None:
    kind = rng.integers(4)
    if kind == 0:
        return None
    half = head_dim // 2 if kind < 3 else head_dim // 4
    frequencies = tuple(float(10000.0 ** (-i / half)) for i in range(half))
    return RopeSpec(frequencies, 1.0 if kind == 1 else 1.2)


def random_case(
    seed: int,
    *,
    base: int = 0,
    rows: int | None = None,
    size: int | None = None,
    head_dim: int | None = None,
    share: int | None = None,
) -> Case:
    """Pieces with shifts, skips and cuts; partial tails; scattered blocks; sometimes a window,
    homes beside the block grid, block sizes that do not divide a split. size: of a block; share:
    query heads per KV head."""
    rng = np.random.default_rng(seed)
    kv_heads = int(rng.integers(1, 4))
    drawn = int(rng.integers(1, 6)), int(rng.choice([8, 16, 32, 64]))
    heads = kv_heads * (share or drawn[0])
    head_dim = head_dim or drawn[1]
    drawn_size = int(rng.choice([4, 16, 16, 24, 64]))
    size = size or drawn_size
    pieces: list[Piece] = []
    position = base + int(rng.integers(0, 50))
    num_blocks = max(400, 2200 // size)
    free = [int(block) for block in rng.permutation(num_blocks)]
    off_grid = rng.random() < 0.25
    if rng.random() < 0.3:  # a prompt as most are: it begins with the first slot of a split
        length = int(rng.integers(200, 700))
        blocks = tuple(free.pop() for _ in range(-(-length // size)))
        pieces.append(Piece(blocks, 256 * int(rng.integers(0, 3)), 0, length, position))
        position += pieces[0].home + length
    for _ in range(int(rng.integers(0 if pieces else 1, 5))):
        skip = int(rng.integers(0, size))
        length = int(rng.integers(1, 330))
        home = base + size * int(rng.integers(0, 40)) + (int(rng.integers(size)) if off_grid else 0)
        count = -(-(skip + length) // size)
        blocks = tuple(free.pop() for _ in range(count))
        pieces.append(Piece(blocks, home, skip, length, position - home - skip))
        position += length
    total = sum(p.length for p in pieces)
    window = int(rng.integers(1, 400)) if rng.random() < 0.4 else None
    count = rows or int(rng.integers(1, min(total, 90) + 1))
    return Case(
        spec=AttentionSpec(
            heads, kv_heads, head_dim, head_dim**-0.5, random_rope(rng, head_dim)
        ),
        block_size=size,
        pieces=tuple(pieces),
        rows=min(count, total),
        window=window,
        keys=rng.standard_normal((total, kv_heads, head_dim), dtype=np.float32),
        values=rng.standard_normal((total, kv_heads, head_dim), dtype=np.float32),
        queries=rng.standard_normal((min(count, total), heads, head_dim), dtype=np.float32),
        num_blocks=num_blocks,
    )  # fmt: skip
