"""The window of a stream against a cache that is a Python list, and the article's own trace."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kveik.cache.segments import BlockTable, KvGroup, Segment
from kveik.cache.window import StreamWindow, laid_out, span_view

FULL = KvGroup((0,))


def naive_caches(stream: StreamWindow, rows: int) -> list[list[int]]:
    """For every row, the tokens that lie in its cache, in their order: a list that drops `evict`
    tokens behind its sinks whenever one more would be too many."""
    cache: list[int] = []
    caches = []
    for position in range(rows):
        while len(cache) + 1 > stream.size:
            del cache[stream.sinks : stream.sinks + stream.evict]
        cache.append(position)
        caches.append(list(cache))
    return caches


def table_of(stream: StreamWindow, committed: int, end: int, size: int) -> BlockTable:
    """What a lease names after `committed` tokens, with room up to `end`. Block k of the sequence
    has id 1000 + k."""
    start = stream.first_recent(committed) // size
    blocks = tuple(range(1000 + start, 1000 + -(-end // size)))
    gone = stream.evicted(committed)
    if not gone:
        return (Segment(blocks, 0, 0, committed, 0),)
    skip = stream.first_recent(committed) - start * size
    recent = Segment(blocks, start * size, skip, committed - start * size - skip, 0)
    if not stream.sinks:
        return (recent,)
    sinks = tuple(range(1000, 1000 + -(-stream.sinks // size)))
    return Segment(sinks, 0, 0, stream.sinks, gone), recent


@st.composite
def streams(draw: st.DrawFn) -> StreamWindow:
    window = draw(st.integers(1, 12))
    return StreamWindow(draw(st.integers(0, 9)), window, draw(st.integers(1, window)))


def agrees(stream: StreamWindow, first: int, count: int, size: int) -> None:
    """Every row sees the tokens of its naive cache, at the distances that they have in there."""
    table = laid_out(table_of(stream, first, first + count, size), first + count, size, stream)
    view = span_view(FULL, table, first, count, size, stream)
    numbers = iter(view.windows)
    for row, cache in enumerate(naive_caches(stream, first + count)[first:]):
        own, seen = len(cache) - 1, {}
        for segment in table:
            query, low, high = next(numbers), next(numbers), next(numbers)
            for slot in range(low, high + 1):
                token = segment.home + slot
                assert segment.blocks[slot // size] == 1000 + token // size
                assert token not in seen, "a token is seen twice"
                seen[token] = query - token  # the distance that the rotation makes
        assert seen == {token: own - index for index, token in enumerate(cache)}
        position = first + row
        assert view.slots[row] == (1000 + position // size) * size + position % size
        assert view.key_positions[row] == position
        assert stream.visible(position) == len(cache)
    assert next(numbers, None) is None


@given(streams(), st.integers(0, 60), st.integers(1, 30), st.sampled_from((1, 2, 4, 16)))
def test_every_row_sees_what_a_naive_cache_holds(
    stream: StreamWindow, first: int, count: int, size: int
) -> None:
    agrees(stream, first, count, size)


@given(streams(), st.integers(0, 40), st.integers(2, 30), st.sampled_from((1, 4, 16)))
def test_a_row_has_its_window_whatever_chunk_it_comes_in(
    stream: StreamWindow, first: int, count: int, size: int
) -> None:
    table = table_of(stream, first, first + count, size)
    whole = laid_out(table, first + count, size, stream)
    together = span_view(FULL, whole, first, count, size, stream).windows

    def seen(table: BlockTable, windows: list[int]) -> list[tuple[int, int, int]]:
        """(query position, first and last home position) of what is visible."""
        rows = [windows[3 * k : 3 * k + 3] for k in range(len(table))]
        return [
            (query, one.home + low, one.home + high)
            for one, (query, low, high) in zip(table, rows, strict=True)
            if low <= high
        ]

    for row in range(count):
        position = first + row
        own = table_of(stream, position, position + 1, size)
        own = laid_out(own, position + 1, size, stream)
        alone = span_view(FULL, own, position, 1, size, stream).windows
        part = together[3 * len(whole) * row : 3 * len(whole) * (row + 1)]
        assert seen(whole, part) == seen(own, alone)
        # A table of one row says the same without knowing of streams at all.
        plain = span_view(FULL, own, position, 1, size).windows
        assert seen(own, plain) == seen(own, alone)


@given(streams(), st.integers(0, 10_000_000))
def test_the_window_breathes_between_its_bounds(stream: StreamWindow, position: int) -> None:
    gone = stream.evicted(position)
    assert gone % stream.evict == 0
    if gone:
        recent = stream.visible(position) - stream.sinks
        assert stream.window - stream.evict + 1 <= recent <= stream.window
    else:
        assert stream.visible(position) == position + 1 <= stream.size
    assert 0 <= stream.evicted(position + 1) - gone <= stream.evict


def test_the_trace_of_the_article() -> None:
    """4 sinks and a rolling cache of 3, in which the article does not count the token that is
    being computed: our window is 4. (Its own line for token 8 has "1 2 3" as sinks and so loses
    token 0, against its text, "four initial tokens", and against its line for 9's neighbours.)"""
    stream = StreamWindow(sinks=4, window=4)
    before = {position: cache[:-1] for position, cache in enumerate(naive_caches(stream, 10))}
    assert before[6] == [0, 1, 2, 3, 4, 5]
    assert before[7] == [0, 1, 2, 3, 4, 5, 6]
    assert before[8] == [0, 1, 2, 3, 5, 6, 7]
    assert before[9] == [0, 1, 2, 3, 6, 7, 8]
    for first in range(10):
        agrees(stream, first, 10 - first, 4)
        agrees(stream, first, 1, 4)


def test_far_out_the_numbers_are_those_near_the_start() -> None:
    """Windows of positions a million blocks apart differ by nothing but where they lie."""
    stream, size, far = StreamWindow(4, 12), 4, 4_000_000
    rows = {}
    for first in (40, far + 40):
        table = laid_out(table_of(stream, first, first + 3, size), first + 3, size, stream)
        view = span_view(FULL, table, first, 3, size, stream)
        rows[first] = [
            (query - 0 if index % 2 == 0 else query - first, low, high)
            for index, (query, low, high) in enumerate(
                zip(view.windows[::3], view.windows[1::3], view.windows[2::3], strict=True)
            )
        ]
    assert rows[40] == rows[far + 40]
