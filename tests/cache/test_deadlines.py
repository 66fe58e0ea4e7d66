"""Times to live: both clocks, both modes, jumps of the clock, parts of a prompt."""

from __future__ import annotations

import pytest
from books import OTHER, PROMPT, session, small

from kveik.cache import deadlines
from kveik.cache.directive import (
    Directive,
    Selector,
    Ttl,
    TtlSpan,
)
from kveik.cache.segments import Erase


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


def test_why_a_prompt_is_gone_is_not_forgotten_for_another_namespace() -> None:
    books = small(ghosts=8)
    short = Directive(ttl=Ttl(60, "first_use"))
    books.pass_through(PROMPT, directive=short, now=100.0)
    books.sweep(161.0)
    assert books.why([*PROMPT, 1]) == (0, "expired")
    for number in range(40):  # a flood: each leaves reasons of every kind
        flood = [number, *range(500, 519)]
        books.pass_through(flood, namespace="b", directive=short, now=200.0 + 100 * number)
        books.sweep(300.0 + 100 * number)
    assert books.why([*flood, 1], namespace="b") == (0, "expired")
    assert books.why([0, *range(500, 520)], namespace="b") == (0, "new")
    assert books.why([*PROMPT, 1]) == (0, "expired")


def test_many_deadlines_of_what_is_gone_do_not_hide_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deadlines, "_LOOKED_AT", 3)
    books = small()
    books.pass_through(OTHER, directive=Directive(ttl=Ttl(60)), now=10.0)
    books.pass_through(PROMPT, directive=Directive(ttl=Ttl(60), tags=("t",)), now=10.0)
    books.invalidate(Selector(tag="t"), now=11.0)
    books.sweep(11.0)
    assert books.stats().idle_blocks == (10,)
    books.sweep(71.0)
    assert books.stats().idle_blocks == (0,)
