"""What one row sees: from a block table and a span of seen positions to the kernel's integers.

Pure functions without state. For every row and segment the kernel gets three integers,
`(query_position, first_slot, last_slot)` as documented at `GroupBatch.windows`; causal masks,
sliding windows and sinks with a recent window differ only in these numbers, so every row of one
chunk may have its own window.

    seen position t of a row           query_position = t - shift
    a segment holds seen positions     seen_start .. seen_end - 1   (the last one: without end)
    a row sees of it                   max(seen_start, lowest(t)) .. min(seen_end - 1, t)
    slot of a seen position p          p - shift - home             (counted from blocks[0])

A stream (Xiao et al. 2023) forgets its middle. The row at position t sees the first `sinks` tokens
and those from `sinks + e` on, e = `StreamWindow.evicted(t)`; its sinks lie e positions nearer:

    home        0 .. sinks | ..... e tokens gone ..... | sinks + e ............ t
    seen at     e .. sinks + e                           sinks + e ............ t
    in cache    0 .. sinks                               sinks ............ t - e

so every distance is that of the positions inside the cache. Before the first eviction the row
sees one segment, as any row does: what it computes is an ordinary prefix, bit for bit.

It must not know what a block contains, nor who holds it. Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kveik.cache.segments import BlockTable, KvGroup, Segment


@dataclass(frozen=True, slots=True)
class StreamWindow:
    """How much of an endless sequence is kept: its first `sinks` tokens, and of the later ones the
    last `window`, the query's own key included. evict: how many tokens go at a time; with more
    than one the recent part breathes between window - evict + 1 and window tokens."""

    sinks: int
    window: int
    evict: int = 1

    @property
    def size(self) -> int:
        """Keys that a row sees at most; positions inside the cache are below it."""
        return self.sinks + self.window

    def evicted(self, position: int) -> int:
        """Tokens that are gone when the row at this position is computed."""
        beyond = position + 1 - self.sinks - self.window
        return -(-beyond // self.evict) * self.evict if beyond > 0 else 0

    def first_recent(self, position: int) -> int:
        """Where the recent part of that row begins; 0: it sees everything."""
        gone = self.evicted(position)
        return self.sinks + gone if gone else 0

    def visible(self, position: int) -> int:
        """Keys that the row at this position sees, its own included."""
        return position + 1 - self.evicted(position)


class SpanView(NamedTuple):
    """What `count` rows of one sequence see in one group, and where they write.

    windows: rows x segments x 3 integers, flat, in this nesting order; `last_slot < first_slot`
    where a row sees nothing of a segment. slots: one flat slot `block * block_size + offset` per
    row. key_positions: home position of that slot, per row. Segments are those of the table that
    was given (merge it first: fewer segments, less work in the kernel).
    """

    windows: list[int]
    slots: list[int]
    key_positions: list[int]


def laid_out(
    table: BlockTable, end: int, block_size: int, stream: StreamWindow | None
) -> BlockTable:
    """The table for rows before seen position `end`: neighbours joined, and the sinks of a stream
    beside what else it holds as soon as one of these rows sees them at another place."""
    if stream is not None and len(table) > 1:
        return table
    table = merge(table, block_size)
    if stream is None or not stream.sinks or not stream.evicted(end - 1):
        return table
    blocks = table[0].blocks[: -(-stream.sinks // block_size)]
    return (Segment(blocks, 0, 0, stream.sinks, 0), table[0])


def merge(table: BlockTable, block_size: int) -> BlockTable:
    """Join neighbouring segments of equal shift whose blocks lie side by side on the home grid.

    The left one must end with its last slot and the right one begin with its first."""
    if len(table) < 2:
        return table
    merged = [table[0]]
    for right in table[1:]:
        left = merged[-1]
        end = len(left.blocks) * block_size
        side_by_side = left.skip + left.length == end and left.home + end == right.home
        if side_by_side and right.skip == 0 and left.shift == right.shift:
            blocks, length = left.blocks + right.blocks, left.length + right.length
            merged[-1] = Segment(blocks, left.home, left.skip, length, left.shift)
        else:
            merged.append(right)
    return tuple(merged)


def span_view(
    group: KvGroup,
    table: BlockTable,
    first: int,
    count: int,
    block_size: int,
    stream: StreamWindow | None = None,
) -> SpanView:
    """Windows and write slots of the rows at seen positions `first .. first + count`.

    Every row sees the positions up to its own (a window group: the last `window` of them; a
    stream, in every group: what its window holds, the table being `laid_out`). A row writes in
    the segment that holds its position; positions behind the table go to the frame of the last
    segment. Raises ValueError when no slot of the table is reserved for a row."""
    if not table or count < 1:
        raise ValueError(f"span ({first}, {count}) needs at least one row and one segment")
    if stream is not None:
        return _stream_view(stream, table, first, count, block_size)
    reach = group.window if group.kind == "window" else None
    if count == 1:
        return _one_row(reach, table, first, block_size)
    stride = 3 * len(table)
    windows = [0] * (count * stride)
    last = len(table) - 1
    for index, segment in enumerate(table):
        column = 3 * index
        frame = segment.home + segment.shift  # seen position of slot 0
        start, end = segment.skip, segment.skip + segment.length
        if index == last:
            end = max(end, first + count - frame)
        turned = first - segment.shift
        windows[column::stride] = range(turned, turned + count)
        if reach is None:
            windows[column + 1 :: stride] = [start] * count
        else:
            lowest = first - reach + 1 - frame
            windows[column + 1 :: stride] = _clipped(lowest, count, start, lowest + count)
        windows[column + 2 :: stride] = _clipped(first - frame, count, start - 1, end - 1)
    slots: list[int] = []
    key_positions: list[int] = []
    for segment, offset, length in _written(table, first, count):
        _append_slots(slots, segment, offset, length, block_size)
        home = segment.home + offset
        key_positions.extend(range(home, home + length))
    return SpanView(windows, slots, key_positions)


def _stream_view(
    stream: StreamWindow, table: BlockTable, first: int, count: int, block_size: int
) -> SpanView:
    """Each row by its own count of evicted tokens."""
    recent = table[-1]
    windows: list[int] = []
    for position in range(first, first + count):
        gone = stream.evicted(position)
        start = stream.sinks + gone if gone else 0
        if len(table) > 1:
            windows += (position - gone, 0, stream.sinks - 1 if gone else -1)
        windows += (position, start - recent.home, position - recent.home)
    if count == 1:
        return SpanView(windows, [_flat_slot(recent, first - recent.home, block_size)], [first])
    slots: list[int] = []
    _append_slots(slots, recent, first - recent.home, count, block_size)
    return SpanView(windows, slots, list(range(first, first + count)))


def _one_row(reach: int | None, table: BlockTable, position: int, block_size: int) -> SpanView:
    """The decode case, without intermediate lists."""
    windows: list[int] = []
    writer = table[-1]
    for segment in table:
        _, home, skip, length, shift = segment
        slot = position - home - shift  # of the row's own position, in this frame
        end = skip + length
        if segment is table[-1]:
            final = slot if slot >= skip else skip - 1
        else:
            if skip <= slot < end:
                writer = segment
            final = min(max(slot, skip - 1), end - 1)
        lowest = skip if reach is None else max(skip, slot - reach + 1)
        windows += (position - shift, lowest, final)
    slot = position - writer.home - writer.shift
    if slot < writer.skip:
        raise _no_slot(writer, position)
    return SpanView(windows, [_flat_slot(writer, slot, block_size)], [writer.home + slot])


def _flat_slot(segment: Segment, slot: int, block_size: int) -> int:
    index, within = divmod(slot, block_size)
    if index >= len(segment.blocks):
        raise _no_slot(segment, segment.home + segment.shift + slot)
    return segment.blocks[index] * block_size + within


def _clipped(first: int, count: int, low: int, high: int) -> Sequence[int]:
    """min(max(v, low), high) for v in first .. first + count."""
    if low <= first and first + count - 1 <= high:
        return range(first, first + count)
    below = min(max(low - first, 0), count)
    above = min(max(first + count - 1 - high, 0), count - below)
    middle = first + below
    return [low] * below + list(range(middle, first + count - above)) + [high] * above


def _written(table: BlockTable, first: int, count: int) -> list[tuple[Segment, int, int]]:
    """The runs (segment, first slot, slots) in which consecutive rows write."""
    runs: list[tuple[Segment, int, int]] = []
    position, stop = first, first + count
    for index, segment in enumerate(table):
        frame = segment.home + segment.shift
        end = segment.seen_end if index < len(table) - 1 else stop
        if segment.seen_start <= position < end:
            length = min(stop, end) - position
            runs.append((segment, position - frame, length))
            position += length
        if position == stop:
            return runs
    raise _no_slot(table[-1], position)


def _append_slots(
    slots: list[int], segment: Segment, offset: int, length: int, block_size: int
) -> None:
    index, within = divmod(offset, block_size)
    while length > 0:
        if index >= len(segment.blocks):
            raise _no_slot(segment, segment.home + segment.shift + offset)
        piece = min(block_size - within, length)
        start = segment.blocks[index] * block_size + within
        slots.extend(range(start, start + piece))
        length -= piece
        offset += piece
        index, within = index + 1, 0


def _no_slot(segment: Segment, position: int) -> ValueError:
    return ValueError(
        f"no slot is reserved for seen position {position}: the segment at home {segment.home} "
        f"has {len(segment.blocks)} blocks; extend the lease before planning the step"
    )
