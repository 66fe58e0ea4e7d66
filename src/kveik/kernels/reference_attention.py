"""Paged attention of the reference backend: rotary angles, arenas, windows, splits, merging.

    home grid     0 .......... 256 .......... 512 ......
    segment             [ slot 0 of its first block = home ............ )
    work          one item = one (span, segment, split of 256 home positions) that some row sees

Per item and row the scores, their maximum, the sum of exponentials and the weighted values are
formed over the whole split, whatever part of it is visible: an item has one shape for decode and
prefill, so one order of summation. Partial results are merged from left to right with running
maxima (Dao 2023; Milakov and Gimelshein 2018). Query rows, `rows x heads per KV head`, go in tiles
of 8, see reference.py. What a row may not see is selected away, never multiplied.

All index arithmetic depends on the GroupBatch alone: `_Plan` is derived once per step and kept in
its memo for every layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from kveik.kernels.ops import AttentionSpec, GroupBatch, KvSpec, RopeSpec

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Bools = NDArray[np.bool_]

TILE_ROWS = 8
SPLIT = 256
WAVE_FLOATS = 1 << 19
"""Keys that are gathered at once for items of one shape: about what a second-level cache holds."""


@dataclass(frozen=True, slots=True)
class PagedKv:
    """keys: [layers, KV, blocks, D, block_size]; values: [layers, KV, blocks, block_size, D].

    A block lies together, so a pool takes memory only as it fills. Within it keys lie transposed:
    that is how the product with the queries reads them."""

    keys: NDArray[Any]
    values: NDArray[Any]


def allocate_kv(spec: KvSpec) -> PagedKv:
    """Zeroed planes for one KvGroup. Raises ValueError for a dtype that is not offered."""
    if spec.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"KV dtype {spec.dtype!r}: use float32 or bfloat16")
    dtype = ml_dtypes.bfloat16 if spec.dtype == "bfloat16" else np.float32
    blocks = (spec.num_layers, spec.num_kv_heads, spec.num_blocks)
    return PagedKv(
        np.zeros((*blocks, spec.head_dim, spec.block_size), dtype),
        np.zeros((*blocks, spec.block_size, spec.head_dim), dtype),
    )


def copy_blocks(arena: PagedKv, moves: Sequence[tuple[int, int, int]]) -> None:
    """For (src, dst, slots), in order: slots 0 .. slots of src to dst, in every layer."""
    for source, target, slots in moves:
        arena.keys[:, :, target, :, :slots] = arena.keys[:, :, source, :, :slots]
        arena.values[:, :, target, :slots] = arena.values[:, :, source, :slots]


def erase_blocks(arena: PagedKv, blocks: Sequence[int]) -> None:
    """Zeros in every slot and layer of these blocks."""
    for block in blocks:
        arena.keys[:, :, block] = 0
        arena.values[:, :, block] = 0


# ---- rotary embedding --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Angles:
    """cos and sin, magnitude included: float32 [..., rotary_dim / 2]."""

    cos: Floats
    sin: Floats

    @staticmethod
    def at(positions: Ids, rope: RopeSpec) -> _Angles:
        """Angles are formed and reduced in float64: a position of 4,000,000 is as good as 0."""
        frequencies = np.array(rope.inverse_frequencies, np.float64)
        angles = np.remainder(positions[..., None] * frequencies, 2 * np.pi)
        cos = (np.cos(angles) * rope.magnitude).astype(np.float32)
        return _Angles(cos, (np.sin(angles) * rope.magnitude).astype(np.float32))

    def rows(self, rows: Ids) -> _Angles:
        """Those of the given rows, from [..., rows, rotary_dim / 2]."""
        return _Angles(self.cos.take(rows, axis=-2), self.sin.take(rows, axis=-2))

    def turn(self, x: Floats) -> Floats:
        """x [..., D] in the half-split layout (Su et al. 2021; Llama's order of dimensions)."""
        half = self.cos.shape[-1]
        turned = x.copy()
        first, second = x[..., :half], x[..., half : 2 * half]
        turned[..., :half] = first * self.cos - second * self.sin
        turned[..., half : 2 * half] = second * self.cos + first * self.sin
        return turned


def turned(x: Floats, positions: Ids, rope: RopeSpec) -> Floats:
    """x [..., T, D] -> rotated to positions [T]."""
    return _Angles.at(positions, rope).turn(x)


def rope_write_kv(
    k: Floats, v: Floats, arena: PagedKv, layer: int, batch: GroupBatch, spec: AttentionSpec
) -> None:
    """Rotates k [T, KV * D] to the key positions; writes k and v [T, KV * D] at the slots.

    A bfloat16 arena rounds here, once."""
    shape = (len(k), spec.num_kv_heads, spec.head_dim)
    keys, values = k.reshape(shape), v.reshape(shape)
    if spec.rope is not None:
        with np.errstate(invalid="ignore"):  # a row that is broken stays its own affair
            keys = _key_angles(batch, spec.rope).turn(keys)
    blocks, offsets = np.divmod(batch.slots, batch.block_size)
    dtype = arena.keys.dtype
    arena.keys[layer][:, blocks, :, offsets] = keys.astype(dtype, copy=False)
    arena.values[layer].swapaxes(0, 1)[blocks, :, offsets] = values.astype(dtype, copy=False)


def _key_angles(batch: GroupBatch, rope: RopeSpec) -> _Angles:
    """[T, 1, rotary_dim / 2], once per step."""
    memo = ("key angles", rope)
    if memo not in batch.memo:
        batch.memo[memo] = _Angles.at(batch.key_positions[:, None], rope)
    angles: _Angles = batch.memo[memo]
    return angles


# ---- what is to be done, once per step ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Item:
    """One split of one segment for one span. tiles: range of the span's query tiles that see any
    of it; first, last: windows per row of these tiles, as slots of the split."""

    pair: int  # which (span, segment) of the team: which rotation of the query
    gather: Ids  # block ids [SPLIT / block_size], or flat slots [SPLIT]
    tiles: tuple[int, int]
    first: Ids  # [tiles * 8]
    last: Ids


@dataclass(frozen=True, slots=True)
class _Wave:
    """Items of one shape that are computed together.

    hidden: True where a row does not see a slot, [I, tiles, 8, SPLIT]; None when all see all.
    blind: some row sees nothing of an item. merges: how partial results go to their spans, in
    order: ((spans of the team, items of the wave), ...), both as slices."""

    gather: Ids  # [I, SPLIT / block_size] or [I, SPLIT]
    pairs: Ids  # [I]; equal arrays of neighbouring waves are the same object
    tiles: slice
    hidden: Bools | None
    blind: bool
    merges: tuple[tuple[slice, slice], ...]


@dataclass(frozen=True, slots=True)
class _Team:
    """Spans of equally many query tiles, those with most items first.

    rows: [spans, rows] of the batch; pair_spans: [pairs]; angles: [pairs, tiles * 8, ...]."""

    rows: Ids
    tiles: int
    pair_spans: Ids
    angles: _Angles | None
    waves: tuple[_Wave, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """by_block: every split begins and ends with a block, so that whole blocks are gathered."""

    by_block: bool
    teams: tuple[_Team, ...]


def _plan(batch: GroupBatch, spec: AttentionSpec) -> _Plan:
    memo = ("plan", spec)
    if memo not in batch.memo:
        batch.memo[memo] = _Planner(batch, spec).plan()
    plan: _Plan = batch.memo[memo]
    return plan


@dataclass(frozen=True, slots=True)
class _Span:
    """One span of the batch with its windows [rows, segments, 3]."""

    first_row: int
    first_segment: int
    windows: Ids


class _Planner:
    """Derives the plan of one GroupBatch for one AttentionSpec."""

    def __init__(self, batch: GroupBatch, spec: AttentionSpec) -> None:
        self._batch = batch
        self._spec = spec
        self._per_kv_head = spec.num_heads // spec.num_kv_heads
        self._segments: list[list[int]] = batch.segments.tolist()
        size = batch.block_size
        on_grid = all(home % size == 0 for _, _, home in self._segments)
        self._by_block = SPLIT % size == 0 and on_grid

    def plan(self) -> _Plan:
        spans = list(self._spans())
        single = [span for span in spans if len(span.windows) == 1]
        teams = [[span] for span in spans if len(span.windows) > 1]
        if single:
            teams.append(single)
        return _Plan(self._by_block, tuple(self._team(team) for team in teams))

    def _spans(self) -> Iterator[_Span]:
        start = 0
        for first_row, rows, first_segment, segments in self._batch.spans.tolist():
            stop = start + rows * segments
            windows = self._batch.windows[start:stop].reshape(rows, segments, 3)
            yield _Span(first_row, first_segment, windows)
            start = stop

    def _team(self, spans: list[_Span]) -> _Team:
        rows = len(spans[0].windows)
        tiles = -(-rows * self._per_kv_head // TILE_ROWS)
        row_of = np.minimum(np.arange(tiles * TILE_ROWS) // self._per_kv_head, rows - 1)
        pair_spans: list[int] = []
        positions: list[Ids] = []
        work: list[tuple[_Span, list[_Item]]] = []
        for span in spans:
            work.append((span, list(self._items(span, row_of, len(positions)))))
            positions.extend(span.windows[:, :, 0].T)
        work.sort(key=lambda entry: -len(entry[1]))
        order = {id(span): index for index, (span, _) in enumerate(work)}
        for span in spans:
            pair_spans += [order[id(span)]] * span.windows.shape[1]
        rope = self._spec.rope
        return _Team(
            rows=np.array([[span.first_row] for span, _ in work]) + np.arange(rows),
            tiles=tiles,
            pair_spans=np.array(pair_spans),
            angles=None if rope is None else _Angles.at(np.array(positions), rope).rows(row_of),
            waves=tuple(self._waves([items for _, items in work])),
        )

    def _items(self, span: _Span, row_of: Ids, first_pair: int) -> Iterator[_Item]:
        """The items of one span from left to right."""
        for index in range(span.windows.shape[1]):
            home = self._segments[span.first_segment + index][2]
            first, last = span.windows[:, index, 1], span.windows[:, index, 2]
            seen = first <= last
            if not seen.any():
                continue
            low, high = home + int(first[seen].min()), home + int(last[seen].max())
            for split in range(low // SPLIT, high // SPLIT + 1):
                start = split * SPLIT - home  # the slot at which the split begins
                rows = np.flatnonzero(seen & (first < start + SPLIT) & (last >= start))
                if not len(rows):
                    continue
                lowest = int(rows[0]) * self._per_kv_head // TILE_ROWS
                highest = -(-(int(rows[-1]) + 1) * self._per_kv_head // TILE_ROWS)
                tile_rows = row_of[lowest * TILE_ROWS : highest * TILE_ROWS]
                yield _Item(
                    pair=first_pair + index,
                    gather=self._gather(span.first_segment + index, start),
                    tiles=(lowest, highest),
                    first=first[tile_rows] - start,
                    last=last[tile_rows] - start,
                )

    def _gather(self, segment: int, start: int) -> Ids:
        """Where slots start .. start + SPLIT of the segment lie; slots that it does not have are
        read from wherever (no window names them)."""
        first, count, _ = self._segments[segment]
        blocks = self._batch.blocks[first : first + count]
        size = self._batch.block_size
        if self._by_block:
            whole: Ids = blocks.take(start // size + np.arange(SPLIT // size), mode="clip")
            return whole
        slots = np.clip(start + np.arange(SPLIT), 0, count * size - 1)
        single: Ids = blocks[slots // size] * size + slots % size
        return single

    def _waves(self, work: list[list[_Item]]) -> Iterator[_Wave]:
        """work: items per span, longest list first. The n-th items of all spans side by side:

        n = 0   a b c d      consecutive rows of this picture make a wave as long as they
        n = 1   a b c        fit and have one shape; row n goes to the first spans
        n = 2   a
        """
        room = max(1, WAVE_FLOATS // (self._spec.num_kv_heads * self._spec.head_dim * SPLIT))
        items: list[_Item] = []
        merges: list[tuple[slice, slice]] = []
        pairs = np.array([-1])
        for turn in range(len(work[0])):
            level = [own[turn] for own in work if turn < len(own)]
            for start in range(0, len(level), room):
                part = level[start : start + room]
                if items and (len(items) + len(part) > room or items[0].tiles != part[0].tiles):
                    yield (wave := _wave(items, merges, pairs))
                    pairs, items, merges = wave.pairs, [], []
                spans = slice(start, start + len(part))
                merges.append((spans, slice(len(items), len(items) + len(part))))
                items += part
        if items:
            yield _wave(items, merges, pairs)


def _wave(items: list[_Item], merges: list[tuple[slice, slice]], before: Ids) -> _Wave:
    """before: the pairs of the wave before this one."""
    first = np.array([item.first for item in items])  # [I, tiles * 8]
    last = np.array([item.last for item in items])
    hidden = None
    if first.max() > 0 or last.min() < SPLIT - 1:
        slots = np.arange(SPLIT)
        hidden = (slots < first[..., None]) | (slots > last[..., None])
        hidden = hidden.reshape(len(items), -1, TILE_ROWS, SPLIT)
    pairs = np.array([item.pair for item in items])
    return _Wave(
        gather=np.array([item.gather for item in items]),
        pairs=before if np.array_equal(before, pairs) else pairs,
        tiles=slice(*items[0].tiles),
        hidden=hidden,
        blind=bool((np.maximum(first, 0) > np.minimum(last, SPLIT - 1)).any()),
        merges=tuple(merges),
    )


# ---- arithmetic, once per layer ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Partial:
    """Softmax over part of the keys: maximum and sum [KV, I, tiles, 8, 1], values
    [KV, I, tiles, 8, D]. A row that saw nothing has maximum -inf, sum 0, values 0."""

    maximum: Floats
    total: Floats
    values: Floats


@dataclass(frozen=True, slots=True)
class _Planes:
    """One layer of an arena. keys [KV, blocks, D, block_size]; values [KV, blocks, block_size, D];
    by_block: whether work names whole blocks or single slots."""

    keys: NDArray[Any]
    values: NDArray[Any]
    by_block: bool

    def gathered(self, where: Ids) -> tuple[Floats, Floats]:
        """where [I, n] -> contiguous keys [KV, I, 1, D, SPLIT], values [KV, I, 1, SPLIT, D]."""
        heads, _, width, size = self.keys.shape
        items, flat = len(where), where.reshape(-1)
        if self.by_block:
            keys = self.keys.take(flat, axis=1).reshape(heads, items, -1, width, size)
            values = self.values.take(flat, axis=1)
        else:
            keys = self.keys[:, flat // size, :, flat % size].transpose(1, 0, 2)
            keys = keys.reshape(heads, items, SPLIT, width, 1)
            values = self.values.reshape(heads, -1, width).take(flat, axis=1)
        keys = np.ascontiguousarray(keys.swapaxes(2, 3)).reshape(heads, items, 1, width, SPLIT)
        return _widened(keys), _widened(values.reshape(heads, items, 1, SPLIT, width))


def paged_attention(
    q: Floats, arena: PagedKv, layer: int, batch: GroupBatch, spec: AttentionSpec
) -> Floats:
    """Unrotated q [T, Q * D] -> [T, Q * D]; a row that sees nothing at all gives 0.

    The scale is applied to the query before it is turned."""
    plan = _plan(batch, spec)
    planes = _Planes(arena.keys[layer], arena.values[layer], plan.by_block)
    scaled = q * np.float32(spec.scale)
    share = spec.num_heads // spec.num_kv_heads
    scaled = scaled.reshape(len(q), spec.num_kv_heads, share, spec.head_dim)
    out = np.zeros_like(scaled)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        for team in plan.teams:
            out[team.rows] = _attend(scaled[team.rows], planes, team)
    return out.reshape(q.shape)


def _attend(q: Floats, planes: _Planes, team: _Team) -> Floats:
    """q [spans, rows, KV, Q / KV, D] -> the same shape."""
    spans, rows, heads, share, width = q.shape
    queries = np.zeros((heads, spans, team.tiles * TILE_ROWS, width), np.float32)
    queries[:, :, : rows * share] = q.transpose(2, 0, 1, 3, 4).reshape(heads, spans, -1, width)
    shape = (heads, spans, team.tiles, TILE_ROWS)
    state = _Partial(
        np.full((*shape, 1), -np.inf, np.float32),
        np.zeros((*shape, 1), np.float32),
        np.zeros((*shape, width), np.float32),
    )
    pairs, turned = np.array([]), queries
    for wave in team.waves:
        if wave.pairs is not pairs:
            pairs, turned = wave.pairs, _turned(queries, team, wave.pairs)
        partial = _partial(turned[:, :, wave.tiles], *planes.gathered(wave.gather), wave)
        for into, items in wave.merges:
            _merge(state, (slice(None), into, wave.tiles), partial, items, wave.blind)
    total: Floats = np.where(state.total == 0, np.float32(1), state.total)
    merged: Floats = state.values / total
    merged = merged.reshape(heads, spans, -1, width)[:, :, : rows * share]
    return merged.reshape(heads, spans, rows, share, width).transpose(1, 2, 0, 3, 4)


def _turned(queries: Floats, team: _Team, pairs: Ids) -> Floats:
    """The queries [KV, spans, rows, D] of each pair in its frame: [KV, pairs, tiles, 8, D]."""
    turned = queries.take(team.pair_spans[pairs], axis=1)
    if team.angles is not None:
        turned = _Angles(team.angles.cos[pairs], team.angles.sin[pairs]).turn(turned)
    return turned.reshape(*turned.shape[:2], team.tiles, TILE_ROWS, -1)


def _widened(x: NDArray[Any]) -> Floats:
    """bfloat16 is the upper half of float32."""
    if x.dtype == np.float32:
        return x
    return (x.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def _partial(q: Floats, k: Floats, v: Floats, wave: _Wave) -> _Partial:
    scores = np.matmul(q, k)  # [KV, I, tiles, 8, SPLIT]
    if wave.hidden is not None:
        np.copyto(scores, -np.inf, where=wave.hidden)
    maximum = scores.max(axis=-1, keepdims=True)
    scores -= _finite(maximum) if wave.blind else maximum
    weights = np.exp(scores, out=scores)
    total = weights.sum(axis=-1, keepdims=True)
    values = np.matmul(weights, v)  # [KV, I, tiles, 8, D]
    if not np.isfinite(values).all():
        values = _guarded(weights, v, wave.hidden)
    return _Partial(maximum, total, values)


def _finite(maximum: Floats) -> Floats:
    """0 for rows that have seen nothing: their exponentials are then 0, not NaN."""
    finite: Floats = np.where(np.isneginf(maximum), np.float32(0), maximum)
    return finite


def _guarded(weights: Floats, v: Floats, hidden: Bools | None) -> Floats:
    """weights @ v where some value is not finite: 0 times NaN would be NaN, so such slots are
    taken out of the product, and only the rows that do see one become NaN."""
    broken: Any = ~np.isfinite(v).all(axis=-1, keepdims=True)  # [KV, I, 1, SPLIT, 1]
    values: Floats = np.matmul(weights, np.where(broken, np.float32(0), v))
    meets = broken.swapaxes(-1, -2)  # [KV, I, 1, 1, SPLIT]
    if hidden is not None:
        meets = meets & ~hidden
    spoiled = np.broadcast_to(meets, weights.shape).any(axis=-1)
    values[spoiled] = np.nan
    return values


def _merge(
    state: _Partial, into: tuple[slice, slice, slice], part: _Partial, items: slice, blind: bool
) -> None:
    """Adds the partial results of `items` to the state of the spans and tiles `into`."""
    before, after = state.maximum[into], part.maximum[:, items]
    maximum = np.maximum(before, after)
    finite = _finite(maximum) if blind else maximum
    old, new = np.exp(before - finite), np.exp(after - finite)
    total = state.total[into] * old + part.total[:, items] * new
    values = state.values[into] * old + part.values[:, items] * new
    if blind:  # a row that saw nothing keeps its bits
        skipped = np.isneginf(after)
        total = np.where(skipped, state.total[into], total)
        values = np.where(skipped, state.values[into], values)
    state.maximum[into], state.total[into], state.values[into] = maximum, total, values
