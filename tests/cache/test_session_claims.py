"""What a session claims, how it ends, and what another context means for it."""

from __future__ import annotations

from books import OTHER, PROMPT, session, small

from kveik.cache.directive import (
    Directive,
    Receipt,
    Selector,
)


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


def test_the_sessions_of_a_namespace_are_forgotten_with_it_and_may_begin_anew() -> None:
    books = small(session_idle=60.0)
    for number in range(100):
        books.pass_through([number], directive=session(f"s{number}"), now=10.0)
    books.pass_through([1, 2, 3], namespace="other", directive=session("s1"), now=10.0)
    books.invalidate(Selector())
    assert books.stats().sessions == 1
    assert books.end_session("", "s1") is None
    books.pass_through(PROMPT, directive=session("s1"), now=20.0)
    listed = [(space, key) for space, key, *_ in books.sessions(now=20.0)]
    assert listed == [("", "s1"), ("other", "s1")]
    books.sweep(75.0)
    assert [key for _, key, *_ in books.sessions(now=75.0)] == ["s1"]
    receipt = books.end_session("", "s1")
    assert receipt is not None
    assert receipt.blocks == 10
    assert (books.stats().sessions, len(books.table._sessions)) == (0, 0)


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
