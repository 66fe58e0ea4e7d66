"""Named caches and pins: what they hold, and until when."""

from __future__ import annotations

import pytest
from books import OTHER, PROMPT, session, small

from kveik.cache.directive import (
    Directive,
    Selector,
    Ttl,
)
from kveik.cache.manager import NoRoom, Opened
from kveik.errors import PinBudgetExceeded


def test_a_name_keeps_its_whole_path_when_its_session_ends() -> None:
    books = small()
    books.pass_through(PROMPT, directive=session("s"))
    assert books.name("", "faq", PROMPT[:22]) == 20
    books.end_session("", "s")
    assert books.cached([*PROMPT, 1]) == 20
    assert books.unname("", "faq").blocks == 5
    assert books.cached([*PROMPT, 1]) == 0


def test_a_name_holds_its_partial_tail() -> None:
    books = small()
    books.pass_through(PROMPT[:22], directive=Directive(name="faq"))
    assert books.name("", "faq", PROMPT[:22]) == 22
    books.pass_through(PROMPT, directive=session("s"))
    books.end_session("", "s")
    assert books.cached([*PROMPT, 1]) == 22


def test_the_time_of_a_name_is_its_own_and_can_be_changed() -> None:
    books = small()
    books.pass_through(PROMPT, directive=Directive(name="faq", ttl=Ttl(60)), now=100.0)
    books.name("", "faq", PROMPT, ttl=Ttl(60), now=100.0)
    books.pass_through([*PROMPT, 1], now=150.0)
    books.tick(205.0)
    assert books.cached([*PROMPT, 1]) == 40
    books.set_ttl("", "faq", Ttl(1000), now=205.0)
    books.tick(1000.0)
    assert books.cached([*PROMPT, 1]) == 40
    assert books.explain([*PROMPT, 1], now=1206.0).cached_tokens == 0
    books.sweep(1206.0)
    assert books.stats().free_blocks == (64,)
    assert books.why([*PROMPT, 1]) == (0, "expired")


def test_a_name_that_is_demoted_goes_first() -> None:
    books = small(20)
    books.pass_through(OTHER)
    books.pass_through(PROMPT, directive=Directive(name="faq"), now=100.0)
    books.name("", "faq", PROMPT, ttl=Ttl(60, mode="demote"), now=100.0)
    books.sweep(161.0)
    books.end(books.run(range(500, 520)))
    assert books.cached([*OTHER, 1]) == 40
    assert books.cached([*PROMPT, 1]) == 20


def test_pinned_blocks_are_not_evicted() -> None:
    books = small(20)
    books.pass_through(PROMPT)
    books.name("", "faq", PROMPT, pin=True)
    for start in range(1000, 5000, 100):
        books.pass_through(range(start, start + 40))
    assert books.cached([*PROMPT, 1]) == 40
    assert isinstance(books.open(range(9000, 9044), 44), NoRoom)
    books.set_pin("", "faq", False)
    books.sweep()
    assert isinstance(books.open(range(9000, 9044), 44), Opened)


def test_pins_have_a_budget() -> None:
    books = small(20)
    books.pass_through(PROMPT)
    books.pass_through(OTHER)
    books.name("", "faq", PROMPT[:32], pin=True)
    with pytest.raises(PinBudgetExceeded, match=r"10 more blocks .* 2 are left") as raised:
        books.name("", "more", OTHER, pin=True)
    assert (raised.value.status, raised.value.param) == (409, "pin")
    books.name("", "more", PROMPT[:40], pin=True)  # eight of its ten blocks are pinned already
    with pytest.raises(PinBudgetExceeded):
        books.check_pin(4)
    with pytest.raises(PinBudgetExceeded):
        books.open([1, 2, 3], 3, directive=Directive(pin=True))
    books.unname("", "more")
    books.check_pin(8)


def test_a_pin_does_not_outlive_a_deadline_or_an_invalidation() -> None:
    for end in ("invalidate", "deadline"):
        books = small(20)
        books.pass_through(PROMPT, directive=Directive(tags=("t",), ttl=Ttl(60)), now=10.0)
        books.name("", "faq", PROMPT, pin=True, now=10.0)
        if end == "invalidate":
            books.invalidate(Selector(tag="t"))
        else:
            books.tick(100.0)
        books.sweep()
        assert books.stats().free_blocks == (20,)
        books.check_pin(40)


def test_a_request_can_pin_for_its_session() -> None:
    books = small(20)
    books.pass_through(PROMPT, directive=session("s", pin=True))
    for start in range(1000, 3000, 100):
        books.pass_through(range(start, start + 40))
    assert books.cached([*PROMPT, 1]) == 40
    books.end_session("", "s")
    books.sweep()
    assert books.cached([*PROMPT, 1]) == 0
    books.check_pin(40)


def test_tags_of_a_name_can_be_changed() -> None:
    books = small()
    books.pass_through(PROMPT, directive=Directive(name="faq", tags=("old",)))
    books.name("", "faq", PROMPT)
    books.set_tags("", "faq", ("new",))
    assert books.invalidate(Selector(tag="old")).blocks == 0
    assert books.invalidate(Selector(tag="new")).blocks == 10


def test_a_name_that_expires_stops_the_lease_that_computes_it() -> None:
    books = small()
    lease = books.start(PROMPT, directive=Directive(name="faq", ttl=Ttl(60)), now=100.0)
    books.commit(lease, PROMPT[:20], now=110.0)
    books.sweep(161.0)
    books.commit(lease, PROMPT, now=162.0)
    books.end(lease, now=163.0)
    assert books.cached([*PROMPT, 1]) == 0


def test_a_pinned_name_that_is_computed_again_takes_no_budget_that_others_have_now() -> None:
    books = small(pin_share=0.5)
    half = books.stats().total_blocks[0] // 2 * books.block_size
    first, second = [1] * half, [2] * half
    books.pass_through(first, directive=Directive(name="faq", tags=("t",)))
    books.name("", "faq", first, pin=True)
    books.invalidate(Selector(tag="t"))
    books.sweep()
    books.pass_through(second, directive=Directive(name="kit"))
    books.name("", "kit", second, pin=True)
    books.pass_through(first[: half // 2], directive=Directive(name="faq"))
    assert books.stats().pinned_blocks[0] * books.block_size == half
    with pytest.raises(PinBudgetExceeded):
        books.set_pin("", "faq", True)


def test_what_a_pinned_name_adds_behind_a_branch_is_held_with_the_way_to_it() -> None:
    """Otherwise room would be promised that only the pinned blocks could make."""
    books = small(20, pin_share=0.5)
    books.name("", "faq", PROMPT[:1], pin=True)
    for tail in ([5] * 8, [6] * 8):
        books.pass_through(PROMPT[:8] + tail)
    named = PROMPT[:8] + [7] * 8
    books.pass_through(named, directive=Directive(name="faq"))
    assert books.stats().pinned_blocks == (4,)
    assert isinstance(books.open([9] * 80, 80), NoRoom)
    books.pass_through([9] * 64)
    assert books.cached([*named, 1]) == len(named)
