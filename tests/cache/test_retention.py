"""Priority, what is written, what is shown and counted."""

from __future__ import annotations

import pytest
from books import OTHER, PROMPT, session, small

from kveik.cache.directive import (
    PLAIN,
    Directive,
    Selector,
    Ttl,
)


def test_low_priority_goes_before_normal_and_high_goes_last() -> None:
    books = small(30)
    books.pass_through(PROMPT, directive=Directive(priority="high"))
    books.pass_through(OTHER)
    books.pass_through(range(200, 240), directive=Directive(write="low"))
    books.pass_through(range(300, 320))
    assert books.cached([*range(200, 240), 1]) == 20
    books.pass_through(range(400, 440))
    assert books.cached([*range(200, 240), 1]) == 0
    assert books.cached([*PROMPT, 1]) == 40


def test_write_none_reads_only() -> None:
    books = small()
    books.pass_through(PROMPT[:20])
    books.pass_through(PROMPT, directive=Directive(write="none"))
    assert books.cached([*PROMPT, 1]) == 20


@pytest.mark.parametrize(("until", "left"), [(20, 20), (22, 20), (40, 40), (0, 0)])
def test_what_is_behind_write_until_is_not_stored(until: int, left: int) -> None:
    books = small()
    books.pass_through(PROMPT, directive=Directive(write_until=until))
    assert books.cached([*PROMPT, 1]) == left


# --- views


def test_a_listing_shows_what_holds_a_block() -> None:
    books = small()
    directive = session("s", tags=("t",), ttl=Ttl(60), priority="high")
    books.pass_through(PROMPT[:8], directive=directive, now=100.0)
    books.pass_through(OTHER[:4], namespace="n", now=101.0)
    (first, second) = books.listing("", 110.0, with_path=True)
    assert first.path == tuple(PROMPT[:4])
    assert second.path == tuple(PROMPT[:8])
    assert (second.depth, second.tokens, second.age, second.idle) == (8, 4, 10.0, 10.0)
    assert (second.time_left, second.priority, second.demoted) == (50.0, "high", False)
    assert second.claims == ("session:s", "tag:t")
    assert [view.namespace for view in books.listing("n", 110.0)] == ["n"]
    assert len(books.listing(None, 110.0, top=2)) == 2


def test_divergence_shows_both_continuations() -> None:
    books = small()
    books.pass_through(PROMPT)
    found = books.divergence([*PROMPT[:18], *OTHER])
    assert (found.position, found.reason) == (18, "diverged")
    assert found.cached[:4] == (18, 19, 20, 21)
    assert found.wanted[:2] == (100, 101)
    assert books.divergence(OTHER).cached == ()


def test_plain_use_pays_for_no_column() -> None:
    books = small()
    books.pass_through(PROMPT, directive=PLAIN)
    assert not books.retention.active
    assert len(books.retention.claims.set_of) == 0


def test_counters_of_what_went_and_why() -> None:
    books = small(20)
    books.pass_through(PROMPT, directive=Directive(tags=("t",), ttl=Ttl(60)), now=100.0)
    books.pass_through(OTHER, directive=Directive(write="low", tags=("u",)), now=103.0)
    books.name("", "faq", PROMPT[:8], pin=True)
    assert books.stats().low_blocks == (10,)
    books.pass_through(range(500, 520), now=105.0)
    books.invalidate(Selector(tag="u"))
    books.sweep(200.0)
    books.pass_through([*PROMPT, 1], now=201.0)
    stats = books.stats()
    assert stats.evictions == {"capacity": 5, "expired": 10, "invalidated": 5}
    assert stats.misses["expired"] == 1
    assert (stats.erased_blocks, stats.pinned_blocks) == (15, (0,))
    assert stats.block_ages.counts[1] == 1
    books.pass_through([*PROMPT, 2], now=206.0)
    assert books.stats().reuse_gaps.counts[1] == 1
