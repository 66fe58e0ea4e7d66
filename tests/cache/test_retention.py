"""Claims, deadlines, selectors, names, pins and contexts, one case at a time."""

from __future__ import annotations

import pytest
from books import FULL, Books

from kveik.cache.directive import (
    PLAIN,
    Directive,
    DocumentSpan,
    Receipt,
    Selector,
    Ttl,
    TtlSpan,
)
from kveik.cache.manager import NoRoom, Opened
from kveik.cache.segments import Erase, KvGroup
from kveik.errors import PinBudgetExceeded

PROMPT = list(range(40))  # ten blocks of four
OTHER = list(range(100, 140))


def small(blocks: int = 64, *more: KvGroup, **options: object) -> Books:
    return Books(blocks, 4, (FULL, *more), **options)


def session(name: str, **more: object) -> Directive:
    return Directive(session=name, **more)  # type: ignore[arg-type]


# --- sessions


def test_the_end_of_a_session_takes_what_it_alone_computed() -> None:
    books = small()
    books.pass_through(PROMPT[:16])
    books.pass_through(PROMPT, directive=session("s"))
    receipt = books.end_session("", "s")
    books.check()
    assert receipt is not None
    assert (receipt.blocks, receipt.tokens, receipt.deferred) == (6, 24, 0)
    assert books.cached([*PROMPT, 1]) == 16
    assert books.why([*PROMPT, 1]) == (16, "invalidated")
    assert books.end_session("", "s") is None


def test_what_another_session_shares_stays_until_that_ends_too() -> None:
    books = small()
    books.pass_through(PROMPT, directive=session("a"))
    books.pass_through(PROMPT, directive=session("b"))
    books.end_session("", "a")
    assert books.cached([*PROMPT, 1]) == 40
    books.end_session("", "b")
    books.check()
    assert books.cached([*PROMPT, 1]) == 0


def test_a_prefix_that_others_continue_stays_as_plain_use() -> None:
    books = small()
    books.pass_through(PROMPT, directive=session("a"))
    books.pass_through([*PROMPT[:16], *OTHER[:8]], directive=session("b"))
    books.end_session("", "a")
    books.check()
    assert books.cached([*PROMPT, 1]) == 16
    assert books.cached([*PROMPT[:16], *OTHER[:8], 1]) == 24
    books.end_session("", "b")
    assert books.cached([*PROMPT[:16], *OTHER[:8], 1]) == 16


def test_plain_use_of_a_session_keeps_it() -> None:
    books = small()
    books.pass_through(PROMPT, directive=session("a"))
    books.pass_through([*PROMPT, 7])
    books.end_session("", "a")
    assert books.cached([*PROMPT, 1]) == 40


def test_an_aborted_turn_never_enters_its_session() -> None:
    books = small()
    books.pass_through(PROMPT[:8], directive=session("s"))
    lease = books.run(PROMPT[:23], directive=session("s"))
    books.end(lease, finished=False)
    assert books.sessions()[0][:2] == ("", "s")
    books.end_session("", "s")
    # What the first turn computed is gone, and with it what hung below it.
    assert books.cached([*PROMPT, 1]) == 0
    lease = books.run(OTHER[:23], directive=session("t"))
    books.end(lease, finished=False)
    assert books.sessions() == []
    assert books.end_session("", "t") is None
    assert books.cached([*OTHER, 1]) == 23


def test_an_interrupted_turn_goes_on_and_belongs_to_its_session() -> None:
    books = small()
    directive = session("s")
    books.end(books.run(PROMPT[:20], directive=directive), finished=None)
    books.pass_through(PROMPT, directive=directive)
    assert books.end_session("", "s").blocks == 10
    assert books.cached([*PROMPT, 1]) == 0


def test_an_interrupted_turn_that_is_aborted_later_is_plain_use() -> None:
    books = small()
    books.end(books.run(PROMPT[:20], directive=session("s")), finished=None)
    books.end(books.run(PROMPT, directive=session("s")), finished=False)
    assert books.end_session("", "s") is None
    assert books.cached([*PROMPT, 1]) == 40


def test_an_interrupted_turn_goes_with_its_session() -> None:
    books = small()
    books.end(books.run(PROMPT[:20], directive=session("s")), finished=None)
    assert books.end_session("", "s").blocks == 5


def test_the_end_of_a_session_stops_its_turns_in_flight() -> None:
    books = small()
    lease = books.start(PROMPT, directive=session("s"))
    books.commit(lease, PROMPT[:20])
    books.end_session("", "s")
    books.check()
    books.commit(lease, PROMPT)
    books.end(lease)
    assert books.cached([*PROMPT, 1]) == 0
    assert books.sessions() == []


def test_idle_sessions_end_and_busy_ones_do_not() -> None:
    books = small(session_idle=60.0)
    books.pass_through(PROMPT, directive=session("idle"), now=10.0)
    lease = books.run(OTHER, directive=session("busy"), now=11.0)
    assert books.next_deadline() == 70.0
    books.tick(69.0)
    assert {row[1] for row in books.sessions(None, 69.0)} == {"idle"}
    books.sweep(72.0)
    assert books.sessions() == []
    assert books.cached([*PROMPT, 1]) == 0
    assert books.why([*PROMPT, 1]) == (0, "expired")
    books.end(lease, now=73.0)
    assert books.cached([*OTHER, 1]) == 40
    assert [row[1] for row in books.sessions(None, 74.0)] == ["busy"]


def test_sessions_are_listed_with_idle_time_and_size() -> None:
    books = small()
    books.pass_through(PROMPT, directive=session("a"), now=5.0)
    books.pass_through(OTHER, directive=session("b"), namespace="n", now=6.0)
    assert books.sessions(None, 9.0) == [("n", "b", 3.0, 10, 40), ("", "a", 4.0, 10, 40)]
    assert books.sessions("n", 9.0) == [("n", "b", 3.0, 10, 40)]


# --- deadlines


@pytest.mark.parametrize("clock", ["first_use", "last_use"])
def test_a_deleted_deadline_is_a_miss_at_once_and_bytes_are_overwritten(clock: str) -> None:
    books = small()
    books.pass_through(PROMPT, directive=Directive(ttl=Ttl(60, clock)), now=100.0)
    books.take_erasures()
    assert books.explain([*PROMPT, 1], now=159.9).cached_tokens == 40
    match = books.explain([*PROMPT, 1], now=160.0)
    assert (match.cached_tokens, match.miss.reason) == (0, "expired")
    assert books.next_deadline() == 160.0
    books.sweep(160.25)
    assert set(books.take_erasures()) == {Erase(0, block) for block in range(10)}
    assert books.stats().free_blocks == (64,)
    assert books.why([*PROMPT, 1]) == (0, "expired")
    assert bytes(books.tree._tokens).strip(b"\0") == b""


def test_a_use_puts_off_only_the_clock_of_the_last_use() -> None:
    books = small()
    books.pass_through(PROMPT, directive=Directive(ttl=Ttl(60, "last_use")), now=100.0)
    books.pass_through(OTHER, directive=Directive(ttl=Ttl(60, "first_use")), now=100.0)
    for tokens in (PROMPT, OTHER):
        books.pass_through([*tokens, 1], now=150.0)
    books.sweep(161.0)
    assert books.cached([*PROMPT, 1]) == 40
    assert books.cached([*OTHER, 1]) == 0
    books.sweep(211.0)
    assert books.cached([*PROMPT, 1]) == 0


def test_time_since_the_last_use_does_not_run_while_a_lease_reads() -> None:
    books = small()
    books.pass_through(PROMPT, directive=Directive(ttl=Ttl(60)), now=100.0)
    lease = books.start([*PROMPT, 1, 2], now=101.0)
    books.tick(300.0)
    assert books.cached([*PROMPT, 1]) == 40
    books.end(lease, now=310.0)
    books.tick(369.0)
    assert books.cached([*PROMPT, 1]) == 40
    books.sweep(371.0)
    assert books.cached([*PROMPT, 1]) == 0


def test_of_two_deadlines_the_earlier_one_holds() -> None:
    books = small()
    for seconds in (500, 60, 700):
        books.pass_through(PROMPT, directive=Directive(ttl=Ttl(seconds)), now=100.0)
    books.sweep(161.0)
    assert books.cached([*PROMPT, 1]) == 0


def test_a_deadline_takes_what_hangs_below_it() -> None:
    books = small()
    books.pass_through(PROMPT[:8], directive=Directive(ttl=Ttl(60, "first_use")), now=100.0)
    books.pass_through(PROMPT, directive=session("s"), now=101.0)
    books.sweep(161.0)
    assert books.cached([*PROMPT, 1]) == 0
    assert books.stats().free_blocks == (64,)


def test_demoted_blocks_are_usable_and_go_first() -> None:
    books = small(20)
    books.pass_through(PROMPT, now=100.0)
    books.pass_through(OTHER, directive=Directive(ttl=Ttl(60, mode="demote")), now=100.0)
    books.tick(161.0)
    assert books.cached([*OTHER, 1]) == 40
    books.end(books.run(range(500, 520), now=162.0))
    assert books.cached([*PROMPT, 1]) == 40
    assert books.cached([*OTHER, 1]) == 20


def test_a_use_ends_being_demoted_by_the_clock_of_the_last_use() -> None:
    books = small(20)
    books.pass_through(OTHER, directive=Directive(ttl=Ttl(60, mode="demote")), now=100.0)
    books.tick(161.0)
    books.pass_through(PROMPT[:36], now=162.0)
    books.pass_through([*OTHER, 1], now=163.0)
    books.end(books.run(range(500, 520), now=164.0))
    assert books.cached([*OTHER, 1]) == 40
    assert books.cached([*PROMPT, 1]) < 36


@pytest.mark.parametrize("jump", [86400.0, -86400.0])
def test_a_jump_of_the_clock_does_no_harm(jump: float) -> None:
    books = small()
    start = 200_000.0
    books.tick(start)
    books.tick(start + jump)
    books.pass_through(PROMPT, directive=Directive(ttl=Ttl(60)), now=start + jump)
    books.tick(start + jump + 59)
    assert books.cached([*PROMPT, 1]) == 40
    books.sweep(start + jump + 61)
    assert books.cached([*PROMPT, 1]) == 0


def test_after_a_jump_back_time_goes_on_at_its_own_pace() -> None:
    books = small()
    books.pass_through(PROMPT, directive=Directive(ttl=Ttl(60)), now=200_000.0)
    books.tick(200_030.0)
    books.tick(100_000.0)
    assert books.next_deadline() == pytest.approx(100_030.0)
    books.tick(100_029.0)
    assert books.cached([*PROMPT, 1]) == 40
    books.sweep(100_031.0)
    assert books.cached([*PROMPT, 1]) == 0


def test_parts_of_a_prompt_have_times_of_their_own() -> None:
    books = small()
    spans = (TtlSpan(0, 16, Ttl(3600)), TtlSpan(16, 30, Ttl(300)))
    books.pass_through(PROMPT, directive=Directive(spans=spans, ttl=Ttl(60)), now=100.0)
    for now, left in ((161.0, 32), (401.0, 16), (3701.0, 0)):
        books.sweep(now)
        assert books.cached([*PROMPT, 1]) == left


# --- selectors


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


# --- names and pins


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


# --- priority and writing


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


# --- contexts


def about(context: str, **more: object) -> Directive:
    return session("s", context=context, **more)


def test_what_a_session_left_is_demoted_and_comes_back_when_it_returns() -> None:
    books = small(30)
    system = [1, 2, 3, 4]
    one, two = [*system, *PROMPT], [*system, *OTHER]
    books.pass_through(range(900, 920))
    books.pass_through(one, directive=about("a"))
    books.pass_through(two, directive=about("b"))
    views = books.listing(top=100)
    assert sum(view.demoted for view in views) == 10
    books.pass_through(range(500, 520))
    assert books.cached([*one, 1]) == 40
    assert books.cached([*two, 1]) == 44
    assert books.cached([*range(900, 920), 1]) == 20
    books.pass_through([*one[:12], 5], directive=about("a"))
    assert {view.demoted for view in books.listing(top=100) if "context:a" in view.claims} == {
        False
    }


def test_what_a_session_left_is_deleted_where_that_was_asked() -> None:
    books = small()
    one, two = [1, 2, 3, 4, *PROMPT], [1, 2, 3, 4, *OTHER]
    books.pass_through(one, directive=about("a", relevance="delete"))
    books.pass_through(two, directive=about("b", relevance="delete"))
    books.sweep()
    assert books.cached([*one, 1]) == 4
    assert books.cached([*two, 1]) == 44


def test_what_the_live_prompt_contains_is_kept() -> None:
    books = small()
    books.pass_through(PROMPT, directive=about("a", relevance="delete"))
    books.pass_through([*PROMPT, *OTHER], directive=about("b", relevance="delete"))
    assert books.cached([*PROMPT, *OTHER, 1]) == 80
    books.sweep()
    assert books.cached([*PROMPT, *OTHER, 1]) == 80
    assert {view.demoted for view in books.listing(top=100)} == {False}
    books.invalidate(Selector(context="a"))
    assert books.cached([*PROMPT, *OTHER, 1]) == 80


def test_what_others_hold_is_not_demoted() -> None:
    books = small()
    books.pass_through(PROMPT, directive=about("a"))
    books.pass_through(PROMPT)
    books.pass_through(OTHER, directive=about("b"))
    books.sweep()
    assert not any(view.demoted for view in books.listing(top=100))


def test_relevance_off_changes_nothing() -> None:
    books = small()
    books.pass_through(PROMPT, directive=about("a", relevance="off"))
    books.pass_through(OTHER, directive=about("b", relevance="off"))
    books.sweep()
    assert not any(view.demoted for view in books.listing(top=100))


def test_a_context_can_be_switched_from_outside() -> None:
    books = small()
    books.pass_through(PROMPT, directive=about("a"))
    assert books.switch_context("", "s", "b", "delete", PROMPT[:8]).blocks == 8
    assert books.cached([*PROMPT, 1]) == 8
    assert books.switch_context("", "nobody", "b") == Receipt()


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


def test_a_name_that_expires_stops_the_lease_that_computes_it() -> None:
    books = small()
    lease = books.start(PROMPT, directive=Directive(name="faq", ttl=Ttl(60)), now=100.0)
    books.commit(lease, PROMPT[:20], now=110.0)
    books.sweep(161.0)
    books.commit(lease, PROMPT, now=162.0)
    books.end(lease, now=163.0)
    assert books.cached([*PROMPT, 1]) == 0


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
