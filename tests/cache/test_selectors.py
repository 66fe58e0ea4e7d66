"""Every selector of an invalidation, what it stops, and the sweep that frees."""

from __future__ import annotations

import pytest
from books import FULL, OTHER, PROMPT, Books, session, small

from kveik.cache.directive import (
    Directive,
    DocumentSpan,
    Selector,
)


def labelled(books: Books) -> None:
    """One prompt with every label, and one beside it with none."""
    span = DocumentSpan("doc", "1", 16, 20)
    directive = Directive(session="s", context="c", tags=("t", "u"), documents=(span,))
    books.pass_through(PROMPT[:8], now=50.0)
    books.pass_through([*PROMPT[:8], *OTHER], now=60.0)
    books.pass_through(PROMPT, directive=directive, now=100.0)


@pytest.mark.parametrize(
    ("selector", "left"),
    [
        (Selector(tag="t"), 8),
        (Selector(tag="x"), 40),
        (Selector(tag="t", namespace="other"), 40),
        (Selector(session="s"), 8),
        (Selector(context="c"), 8),
        (Selector(document="doc"), 16),
        (Selector(document="doc", version="1"), 16),
        (Selector(document="doc", version="2"), 40),
        (Selector(document="doc", not_version="1"), 40),
        (Selector(document="doc", not_version="2"), 16),
        (Selector(tag="t", session="s"), 8),
        (Selector(tag="t", session="r"), 40),
        (Selector(prefix=tuple(PROMPT[:18])), 16),
        (Selector(prefix=tuple(PROMPT[:18]), tag="u"), 16),
        (Selector(prefix=tuple(PROMPT[:2]), tag="u"), 8),
        (Selector(older_than=150.0), 0),
        (Selector(older_than=120.0, tag="t"), 8),
        (Selector(older_than=171.0), 40),
        (Selector(older_than=121.0, tag="t"), 40),
        (Selector(adapter=1), 40),
        (Selector(adapter=0), 0),
        (Selector(adapter=0, tag="t"), 8),
        (Selector(), 0),
    ],
)
def test_every_selector(selector: Selector, left: int) -> None:
    books = small()
    labelled(books)
    if selector.older_than == 150.0:
        books.tick(210.0)
    else:
        books.tick(220.0)
    receipt = books.invalidate(selector)
    books.check()
    # What was there first is older than 150 s as well.
    assert books.cached([*PROMPT, 1]) == left
    books.sweep()
    assert books.cached([*PROMPT, 1]) == left
    assert bool(receipt.blocks) is (left < 40)
    assert books.cached([*PROMPT[:8], *OTHER, 1]) == (0 if left == 0 else 48)


def test_a_new_version_of_a_document_takes_the_old_ones_and_only_those() -> None:
    books = small()
    for number, version in enumerate(("1", "2")):
        tokens = [*range(8), *range(100 * number + 100, 100 * number + 116)]
        spans = (DocumentSpan("d", version, 8, 24),)
        books.pass_through(tokens, directive=Directive(documents=spans))
    receipt = books.announce_document("", "d", "2")
    books.check()
    assert receipt.blocks == 4
    assert books.cached([*range(8), *range(100, 116), 1]) == 8
    assert books.cached([*range(8), *range(200, 216), 1]) == 24


def test_what_is_labelled_after_an_invalidation_is_not_concerned() -> None:
    books = small()
    tagged = Directive(tags=("t",))
    books.pass_through(PROMPT, directive=tagged)
    books.invalidate(Selector(tag="t"))
    books.pass_through(PROMPT, directive=tagged)
    assert books.cached([*PROMPT, 1]) == 40


@pytest.mark.parametrize(
    "selector",
    [Selector(tag="t"), Selector(session="s"), Selector(context="c"), Selector(older_than=0.0)],
)
def test_a_lease_that_matches_publishes_nothing_more(selector: Selector) -> None:
    books = small()
    lease = books.start(PROMPT, directive=Directive(session="s", context="c", tags=("t",)))
    books.commit(lease, PROMPT[:12])
    books.invalidate(selector)
    books.check()
    books.commit(lease, PROMPT)
    books.end(lease)
    books.sweep()
    assert books.cached([*PROMPT, 1]) == 0
    assert len(books.take_erasures()) == 10


def test_a_document_limits_a_lease_to_what_comes_before_it() -> None:
    books = small()
    spans = (DocumentSpan("d", "1", 18, 30),)
    lease = books.start(PROMPT, directive=Directive(documents=spans))
    books.commit(lease, PROMPT[:4])
    books.invalidate(Selector(document="d"))
    books.commit(lease, PROMPT)
    books.end(lease)
    assert books.cached([*PROMPT, 1]) == 16


# --- the sweep


def test_a_large_invalidation_is_out_of_reach_at_once_and_freed_in_bounded_steps() -> None:
    books = Books(2000, 4)
    tagged = Directive(tags=("t",))
    for start in range(0, 60_000, 1000):
        books.pass_through([7, 7, 7, 7, *range(start, start + 100)], directive=tagged)
    receipt = books.invalidate(Selector(tag="t"))
    assert receipt.blocks <= 128
    assert receipt.deferred >= 1000
    assert books.cached([7, 7, 7, 7, *range(100)]) == 0
    books.check()
    rounds = 0
    free = books.stats().free_blocks[0]
    while books.tick(0.0, 50):
        rounds += 1
        books.check()
        now = books.stats().free_blocks[0]
        assert now - free <= 50
        free = now
    assert rounds > 20
    assert books.stats().free_blocks == (2000,)
    assert books.take_erasures()


def test_a_new_block_is_never_swapped_for_a_dead_one() -> None:
    books = Books(2000, 4)
    tagged = Directive(tags=("t",))
    for start in range(0, 40_000, 1000):
        books.pass_through([7, 7, 7, 7, *range(start, start + 100)], directive=tagged)
    books.invalidate(Selector(tag="t"))
    prompt = [7, 7, 7, 7, *range(30_000, 30_100)]
    assert books.cached(prompt) == 0
    books.pass_through(prompt)
    assert books.cached([*prompt, 1]) == 104
    books.sweep()
    assert books.cached([*prompt, 1]) == 104
    assert books.stats().idle_blocks == (26,)


def test_many_tops_of_one_prefix_are_a_rule_until_they_are_swept() -> None:
    books = small(400)
    books.invalidation.at_once = 8
    for number in range(100):
        books.pass_through([1, 2, 3, 4, 5, number, 6, 7, 8, 9, 10, 11])
    books.invalidate(Selector(prefix=(1, 2, 3, 4, 5)))
    books.check()
    assert books.cached([1, 2, 3, 4, 5, 99, 6, 7, 8]) == 4
    books.pass_through([1, 2, 3, 4, 5, 99, 6, 7])
    assert books.cached([1, 2, 3, 4, 5, 99, 6, 7, 8]) == 8
    books.sweep()
    assert books.cached([1, 2, 3, 4, 5, 99, 6, 7, 8]) == 8
    assert books.stats().idle_blocks == (2,)


def test_eviction_overwrites_nothing_that_was_not_deleted() -> None:
    books = small(10)
    books.pass_through(PROMPT)
    books.pass_through(OTHER)
    assert books.stats().evicted_blocks == 10
    assert books.take_erasures() == ()


def test_readers_of_a_deleted_block_finish_and_then_it_is_overwritten() -> None:
    books = small()
    books.pass_through(PROMPT, directive=Directive(tags=("t",)))
    lease = books.start([*PROMPT, 1, 2, 3])
    books.invalidate(Selector(tag="t"))
    books.sweep()
    assert books.take_erasures() == ()
    assert books.cached([*PROMPT, 1]) == 0
    books.end(lease, keep=False)
    assert len(books.take_erasures()) == 11  # its own block as well


def test_room_is_made_by_the_sweep_where_only_it_can() -> None:
    books = small(20, FULL)
    books.invalidation.at_once = 0
    books.pass_through(PROMPT[:20])
    books.pass_through(PROMPT, directive=session("s"))
    books.name("", "faq", PROMPT, pin=True)
    books.unname("", "faq")  # its blocks still wait aside, as pinned ones
    books.end(books.run(range(500, 540)))
    lease = books.run(range(600, 640))
    books.end(lease)
    assert books.stats().evicted_blocks
