"""The window rule against a slow one that asks every slot whether it is seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kveik.cache.segments import BlockTable, KvGroup, Segment
from kveik.cache.window import merge, span_view

FULL = KvGroup((0,))
SIZE = 4


def sliding(window: int) -> KvGroup:
    return KvGroup((0,), "window", window)


def seen_slots(group: KvGroup, table: BlockTable, position: int) -> list[set[int]]:
    """Per segment, the slots a row at `position` sees; written down from the definition."""
    result = []
    for index, segment in enumerate(table):
        slots = set()
        for slot in range(len(segment.blocks) * SIZE):
            seen_at = segment.home + slot + segment.shift
            inside = segment.skip <= slot < segment.skip + segment.length
            appended = index == len(table) - 1 and slot >= segment.skip + segment.length
            near = group.kind == "full" or seen_at > position - (group.window or 0)
            if (inside or appended) and seen_at <= position and near:
                slots.add(slot)
        result.append(slots)
    return result


def own_slot(table: BlockTable, position: int) -> tuple[int, int]:
    """Flat slot and home position of a row's own key."""
    for index, segment in enumerate(table):
        last = index == len(table) - 1
        if segment.seen_start <= position and (position < segment.seen_end or last):
            slot = position - segment.home - segment.shift
            return segment.blocks[slot // SIZE] * SIZE + slot % SIZE, segment.home + slot
    raise AssertionError("no segment holds the row")


def agrees(group: KvGroup, table: BlockTable, first: int, count: int) -> None:
    view = span_view(group, table, first, count, SIZE)
    assert len(view.windows) == 3 * count * len(table)
    numbers = iter(view.windows)
    for row in range(count):
        position = first + row
        for segment, slots in zip(table, seen_slots(group, table, position), strict=True):
            query, first_slot, last_slot = next(numbers), next(numbers), next(numbers)
            assert query == position - segment.shift
            assert set(range(first_slot, last_slot + 1)) == slots
        slot, home = own_slot(table, position)
        assert (view.slots[row], view.key_positions[row]) == (slot, home)


@st.composite
def tables(draw: st.DrawFn) -> tuple[BlockTable, int]:
    """A table of one to four segments without gaps, and the seen position behind it."""
    segments, seen, block = [], draw(st.integers(0, 3)) * SIZE, 10
    for _ in range(draw(st.integers(1, 4))):
        blocks = draw(st.integers(1, 3))
        skip = draw(st.integers(0, SIZE - 1))
        length = draw(st.integers(0, blocks * SIZE - skip))
        home = draw(st.integers(0, 20)) * SIZE
        names = tuple(range(block + blocks - 1, block - 1, -1))
        segments.append(Segment(names, home, skip, length, seen - home - skip))
        seen, block = seen + length, block + blocks
    return tuple(segments), seen


@given(tables(), st.one_of(st.just(FULL), st.integers(1, 12).map(sliding)), st.data())
def test_rows_see_what_the_definition_says(
    drawn: tuple[BlockTable, int], group: KvGroup, data: st.DataObject
) -> None:
    table, _seen = drawn
    last = table[-1]
    room = last.home + last.shift + len(last.blocks) * SIZE
    begin = table[0].seen_start
    if room > begin:
        first = data.draw(st.integers(begin, room - 1))
        count = data.draw(st.integers(1, room - first))
        agrees(group, table, first, count)


@pytest.mark.parametrize("count", [1, 7])
def test_causal_rows_of_one_segment(count: int) -> None:
    table = (Segment((5, 2, 9), 0, 0, 3, 0),)
    view = span_view(FULL, table, 3, count, SIZE)
    assert view.windows[:3] == [3, 0, 3]
    assert view.windows[-3:] == [2 + count, 0, 2 + count]
    assert view.slots == [23, 8, 9, 10, 11, 36, 37][:count]
    assert view.key_positions == list(range(3, 3 + count))


def test_every_row_of_a_chunk_has_its_own_sliding_window() -> None:
    table = (Segment((5, 2, 9), 4, 0, 4, 0),)  # positions 4 .. 7; block 0 has left the window
    view = span_view(sliding(3), table, 8, 3, SIZE)
    assert view.windows == [8, 2, 4, 9, 3, 5, 10, 4, 6]


def test_a_token_behind_a_shifted_partial_block_is_written_in_its_frame() -> None:
    module = Segment((7,), 64, 0, 2, -60)  # computed at home 64 .. 65, seen at 4 .. 5
    table = (Segment((3,), 0, 0, 4, 0), module)
    view = span_view(FULL, table, 6, 1, SIZE)
    assert view == ([6, 0, 3, 66, 0, 2], [7 * SIZE + 2], [66])


def test_scattered_rows_write_in_the_segment_that_holds_them() -> None:
    table = (Segment((3,), 0, 0, 4, 0), Segment((7, 8), 64, 1, 6, -61))
    view = span_view(FULL, table, 3, 2, SIZE)  # the last of the first, the first of the second
    assert view.slots == [15, 29]
    assert view.key_positions == [3, 65]
    assert view.windows == [3, 0, 3, 64, 1, 0, 4, 0, 3, 65, 1, 1]


def test_merge_joins_side_by_side_blocks_of_equal_shift() -> None:
    left, right = Segment((1, 2), 0, 1, 7, 0), Segment((6,), 8, 0, 3, 0)
    assert merge((left, right), SIZE) == (Segment((1, 2, 6), 0, 1, 10, 0),)
    assert merge((left,), SIZE) == (left,)


@pytest.mark.parametrize(
    "right",
    [
        Segment((6,), 8, 1, 2, 0),  # begins inside a block
        Segment((6,), 12, 0, 3, 0),  # another home
        Segment((6,), 8, 0, 3, -1),  # another shift
    ],
)
def test_merge_leaves_everything_else(right: Segment) -> None:
    left = Segment((1, 2), 0, 1, 7, 0)
    assert merge((left, right), SIZE) == (left, right)
    partial = Segment((1, 2), 0, 1, 6, 0)
    assert merge((partial, Segment((6,), 8, 0, 3, 0)), SIZE)[0] == partial


@given(tables(), st.integers(1, 12))
def test_merging_changes_nothing_that_is_seen(drawn: tuple[BlockTable, int], window: int) -> None:
    table, _ = drawn
    last = table[-1]
    position = last.home + last.shift + len(last.blocks) * SIZE - 1
    if position < table[0].seen_start:
        return

    def keys(given_table: BlockTable) -> list[tuple[int, int]]:
        view = span_view(sliding(window), given_table, position, 1, SIZE)
        seen = []
        for segment, start in zip(given_table, range(0, len(view.windows), 3), strict=True):
            for slot in range(view.windows[start + 1], view.windows[start + 2] + 1):
                seen.append((segment.blocks[slot // SIZE], slot % SIZE))
        return seen

    assert keys(merge(table, SIZE)) == keys(table)


@pytest.mark.parametrize("count", [1, 3])
def test_a_row_without_a_slot_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="extend the lease"):
        span_view(FULL, (Segment((5,), 0, 0, 4, 0),), 4, count, SIZE)


@pytest.mark.parametrize(("table", "count"), [((), 1), ((Segment((5,), 0, 0, 4, 0),), 0)])
def test_an_empty_span_is_refused(table: BlockTable, count: int) -> None:
    with pytest.raises(ValueError, match="span"):
        span_view(FULL, table, 0, count, SIZE)
