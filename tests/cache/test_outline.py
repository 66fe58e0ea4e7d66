"""The outline against the prompts that were cached, and what may be done to a place of it."""

from __future__ import annotations

import pytest
from books import Books, small
from hypothesis import given, settings
from hypothesis import strategies as st

from kveik.cache import by_hand
from kveik.cache.directive import Directive, Selector, Ttl
from kveik.cache.outline import OutlineRow
from kveik.cache.prefix import unpack_tokens
from kveik.cache.segments import KvGroup
from kveik.cache.window import StreamWindow
from kveik.errors import PinBudgetExceeded

Path = tuple[int, ...]


def paths(books: Books, namespace: str = "", now: float = 0.0) -> dict[Path, OutlineRow]:
    """Every row of the whole outline by the tokens that lead to its end."""
    found: dict[Path, OutlineRow] = {}

    def descend(rows: list[OutlineRow], before: Path) -> None:
        for row in rows:
            assert row.start == len(before)
            path = before + unpack_tokens(row.tokens)
            found[path] = row
            below, count = books.outline().below(row.last, 1000)
            assert len(below) <= count == row.children
            descend(below, path)

    rows, _ = books.outline(now).tops(namespace, 1000)
    descend(rows, ())
    return found


def row_of(books: Books, tokens: range | Path, now: float = 0.0) -> OutlineRow:
    """The row in which these tokens end."""
    found = paths(books, now=now)
    ends = [path for path in found if path[: len(tokens)] == tuple(tokens)]
    return found[min(ends, key=len)]


@given(
    prompts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=40), min_size=1, max_size=12)
)
@settings(max_examples=80, deadline=None)
def test_rows_are_the_cached_prompts_and_nothing_else(prompts: list[list[int]]) -> None:
    books = small(256)
    for now, prompt in enumerate(prompts):
        books.pass_through(prompt, now=1.0 + now)
    found = paths(books)
    whole = {tuple(prompt[: end + 4]) for prompt in prompts for end in range(0, len(prompt) - 3, 4)}
    tails = {tuple(prompt) for prompt in prompts}
    inside = {
        path[: row.start + 4 * (k + 1)] for path, row in found.items() for k in range(row.blocks)
    }
    assert whole <= inside <= whole | tails
    assert sum(row.blocks for row in found.values()) == books.pools[0].num_blocks - len(
        books.pools[0].free
    )
    for path, row in found.items():
        beneath = [
            other for other in found if len(other) > len(path) and other[: len(path)] == path
        ]
        assert row.below == sum(found[other].blocks for other in beneath)
        assert not row.more_below


def test_a_row_tells_what_is_known_of_its_blocks() -> None:
    books = small(64)
    books.pass_through(range(16), now=10.0, directive=Directive(session="s", ttl=Ttl(60.0)))
    books.pass_through([*range(8), 90, 91, 92, 93], now=20.0)
    top = row_of(books, range(8), 25.0)
    assert (top.blocks, top.children, top.below, len(top.tokens) // 4) == (2, 2, 3, 8)
    assert (top.age, top.idle, top.hits, top.readers) == (15.0, 5.0, 1, 0)
    assert top.claims == ("plain", "session:s")
    assert top.time_left == pytest.approx(55.0)
    rest = row_of(books, range(16))
    assert (rest.claims, rest.time_left) == (("session:s",), pytest.approx(45.0))
    other = row_of(books, (*range(8), 90, 91, 92, 93))
    assert (other.claims, other.time_left) == (("plain",), None)


def test_the_order_is_of_last_use_and_the_number_bounded() -> None:
    books = small(64)
    for k in range(6):
        books.pass_through(range(100 * k, 100 * k + 8), now=10.0 + k)
    books.pass_through(range(200, 208), now=30.0)
    rows, count = books.outline().tops("", 3)
    assert count == 6
    assert [unpack_tokens(row.tokens)[0] for row in rows] == [200, 500, 400]


def test_what_is_dead_is_not_shown() -> None:
    books = small(64)
    books.pass_through(range(16), now=1.0, directive=Directive(ttl=Ttl(5.0)))
    books.pass_through(range(100, 116), now=1.0)
    assert len(paths(books, now=5.0)) == 2
    assert list(paths(books, now=7.0)) == [tuple(range(100, 116))]


def test_a_pin_by_hand_holds_the_path_until_it_is_ended() -> None:
    books = small(16, pin_share=0.5)
    books.pass_through(range(16), now=1.0)
    books.pass_through([*range(8), *range(50, 58)], now=2.0)
    row = row_of(books, range(16))
    assert books.by_hand(3.0).pin("", row.last).blocks == 4
    books.check()
    pinned = row_of(books, range(16))
    assert (pinned.pinned, pinned.by_hand) == (True, True)
    assert not row_of(books, (*range(8), *range(50, 58))).pinned
    for k in range(6):  # a flood larger than the pool
        books.pass_through(range(1000 + 100 * k, 1032 + 100 * k), now=10.0 + k)
    assert books.cached([*range(16), 7]) == 16
    row = row_of(books, range(16))
    books.by_hand(30.0).unpin(row.last)
    books.sweep(31.0)
    assert not row_of(books, range(16)).pinned
    for k in range(6):
        books.pass_through(range(5000 + 100 * k, 5032 + 100 * k), now=40.0 + k)
    assert books.cached([*range(16), 7]) == 0


def test_a_pin_that_does_not_fit_changes_nothing() -> None:
    books = small(16, pin_share=0.2)
    books.pass_through(range(32), now=1.0)
    row = row_of(books, range(32))
    with pytest.raises(PinBudgetExceeded):
        books.by_hand(2.0).pin("", row.last)
    assert not any(row.pinned for row in paths(books).values())
    books.check()


def test_the_last_claim_ends_with_the_pin() -> None:
    books = small(64)
    books.pass_through(range(16), now=1.0, directive=Directive(session="s"))
    books.by_hand(2.0).pin("", row_of(books, range(16)).last)
    books.end_session("", "s", 3.0)
    books.sweep(3.0)
    assert books.cached([*range(16), 7]) == 16
    books.by_hand(4.0).unpin(row_of(books, range(16)).last)
    books.sweep(5.0)
    assert books.cached([*range(16), 7]) == 0


def test_evicting_takes_the_row_and_what_hangs_below_and_nothing_else() -> None:
    books = small(64)
    books.pass_through(range(24), now=1.0)
    books.pass_through([*range(8), *range(50, 58)], now=2.0)
    books.pass_through(range(300, 316), now=3.0)
    below = row_of(books, range(24))
    receipt = books.by_hand(4.0).evict(below.first)
    assert (receipt.blocks, receipt.tokens, receipt.deferred) == (4, 16, 0)
    books.check()
    assert books.cached([*range(24), 7]) == 8
    assert books.why([*range(24), 7]) == (8, "evicted")
    assert books.cached([*range(8), *range(50, 58), 7]) == 16
    top = row_of(books, range(8))
    assert books.by_hand(5.0).evict(top.first).blocks == 4
    books.check()
    assert list(paths(books)) == [tuple(range(300, 316))]


def test_evicting_leaves_what_is_read_pinned_or_before_it() -> None:
    books = small(64)
    books.pass_through(range(24), now=1.0)
    books.pass_through([*range(8), *range(50, 66)], now=2.0)
    books.by_hand(2.5).pin("", row_of(books, (*range(8), *range(50, 66))).last)
    reader = books.start([*range(24), 7, 7], now=3.0)
    top = row_of(books, range(8))
    receipt = books.by_hand(4.0).evict(top.first)
    assert receipt.blocks == 0
    assert receipt.deferred > 0
    books.check()
    books.end(reader, now=5.0)
    books.by_hand(6.0).evict(top.first)
    books.check()
    assert books.cached([*range(24), 7]) == 8
    assert books.cached([*range(8), *range(50, 66), 7]) == 24


def test_evicting_leaves_what_a_request_reads_that_stores_nothing() -> None:
    books = small(64)
    books.pass_through(range(24), now=1.0)
    reader = books.start([*range(24), 7, 7], now=3.0, store=False)
    assert books.by_hand(4.0).evict(row_of(books, range(24)).first).blocks == 0
    books.check()
    books.end(reader, now=5.0)
    assert books.by_hand(6.0).evict(row_of(books, range(24)).first).blocks == 6


def test_evicting_leaves_what_stands_before_a_block_that_a_stream_reads() -> None:
    """A stream lets go of blocks in the middle and goes on reading those behind them."""
    books = small(64)
    tokens = list(range(16))
    lease = books.start(tokens[:1], 1, stream=StreamWindow(sinks=3, window=13))
    while lease.committed < 24:
        assert books.extend(lease, lease.committed + 1)
        books.step()
        if lease.evicted:
            books.append(lease, [50 + lease.committed])
        else:
            books.commit(lease, tokens[: lease.committed + 1])
        books.check()
    top = row_of(books, range(4))
    assert books.stats().idle_blocks == (2,)
    assert books.by_hand(9.0).evict(top.first).blocks == 0
    books.check()
    books.end(lease)


def test_a_large_subtree_takes_several_evictions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_hand, "MOST", 3)
    books = small(64)
    books.pass_through(range(16), now=1.0)
    for k in range(4):
        books.pass_through([*range(16), *range(100 * k + 50, 100 * k + 58)], now=2.0 + k)
    top = row_of(books, range(16)).first
    freed = [books.by_hand(20.0).evict(top).blocks]
    while sum(freed) < 12:
        freed.append(books.by_hand(20.0).evict(top).blocks)
        books.check()
        assert 0 < freed[-1] <= 3
    assert not paths(books)


def test_rows_end_where_claims_do() -> None:
    books = small(64)
    books.pass_through(range(8), now=1.0)
    books.name("", "faq", range(8), now=2.0)
    books.pass_through(range(24), now=3.0)
    top, rest = row_of(books, range(8)), row_of(books, range(24))
    assert (len(top.tokens) // 4, len(rest.tokens) // 4) == (8, 16)
    assert "name:faq" in top.claims
    assert "name:faq" not in rest.claims


def test_blocks_that_left_a_window_are_not_counted() -> None:
    books = Books(64, 4, (KvGroup((0,), "window", window=8), KvGroup((1,))))
    books.pass_through(range(40), now=1.0)
    books.pass_through([*range(16), *range(70, 90)], now=2.0)
    books.reclaim.make_room(0, 56)  # blocks of a window go alone, without their nodes
    books.check()
    found = paths(books)
    held = books.pools[0].num_blocks - len(books.pools[0].free)
    assert sum(row.blocks for row in found.values()) == held == 8
    top = found[tuple(range(16))]
    assert top.below == held - top.blocks


def test_a_name_of_a_node_is_good_only_for_that_node() -> None:
    books = small(64)
    books.pass_through(range(16), now=1.0)
    row = row_of(books, range(16))
    tree = books.tree
    name = (row.last, tree.key(row.last), tree.created[row.last])
    assert books.node_of("", *name)
    assert not books.node_of("other", *name)
    books.invalidate(Selector(prefix=tuple(range(16))), 2.0)
    books.sweep(3.0)
    assert not books.node_of("", *name)
    books.pass_through(range(16), now=4.0)  # the same tokens again, perhaps in the same node
    assert not books.node_of("", *name)


def test_a_name_does_not_outlive_an_eviction() -> None:
    books = small(64)
    books.pass_through(range(16), now=1.0)
    row = row_of(books, range(16))
    tree = books.tree
    name = (row.last, tree.key(row.last), tree.created[row.last])
    books.by_hand(2.0).evict(row.first)
    books.pass_through(range(16), now=4.0)
    assert tree.index[name[1]] == row.last  # the very same node, made again
    assert not books.node_of("", *name)
