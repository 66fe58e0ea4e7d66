"""Sessions followed by topic: what is new in a prompt, and what becomes of the blocks left behind.

A stand-in tracker reads the topic from the last new token, so that every case is plain.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from books import FULL, Books

from kveik.cache.directive import Directive, Selector
from kveik.cache.followed import MOST_ENDS
from kveik.cache.prefix import pack_tokens
from kveik.cache.relevance import Features, TopicSpace, TopicTracker, Turn
from kveik.cache.sessions import Session, Space
from kveik.cache.topics import MOST_SESSIONS, MOST_SPACES, Topics

SYSTEM = [1, 2, 3, 4]
A, B = list(range(100, 140)), list(range(200, 240))
SPACE = ("", "")


class ByHundreds:
    """Token 1xx: topic 1, 2xx: topic 2. Writes down what it was told."""

    told: list[tuple[str, list[int]]]

    def __init__(self, features: Features, space: TopicSpace) -> None:
        self.space = space
        ByHundreds.told = []

    def turn(self, tokens: Sequence[int]) -> Turn:
        ByHundreds.told.append(("turn", list(tokens)))
        return Turn(tokens[-1] // 100)

    def answer(self, tokens: Sequence[int]) -> None:
        ByHundreds.told.append(("answer", list(tokens)))


def small(blocks: int = 64, **options: object) -> Books:
    return Books(blocks, 4, (FULL,), tracker=ByHundreds, **options)  # type: ignore[arg-type]


def chat(**more: object) -> Directive:
    return Directive(session="s", **more)  # type: ignore[arg-type]


def demoted(books: Books) -> int:
    return sum(view.demoted for view in books.listing(top=100))


# --- the three cases


def test_branch_the_files_that_left_the_prompt_are_demoted() -> None:
    books = small()
    books.pass_through([*SYSTEM, *A], directive=chat())
    assert demoted(books) == 0
    books.pass_through([*SYSTEM, *B], directive=chat())
    books.sweep()
    assert demoted(books) == 10
    assert books.cached([*SYSTEM, *A, 1]) == 44


def test_a_topic_that_is_left_is_never_deleted() -> None:
    """Where contexts are to be deleted, those announced are, and those found are demoted."""
    books = small()
    for tokens in ([*SYSTEM, *A], [*SYSTEM, *B]):
        books.pass_through(tokens, directive=chat(relevance="delete"))
    books.sweep()
    assert demoted(books) == 10
    assert books.cached([*SYSTEM, *A, 1]) == 44
    assert books.cached([*SYSTEM, *B, 1]) == 44


@pytest.mark.parametrize("mode", ["demote", "delete"])
def test_resent_history_is_never_dropped(mode: str) -> None:
    books = small(relevance=mode)
    books.pass_through(A, directive=chat())
    books.pass_through([*A, *B], directive=chat())
    books.sweep()
    assert books.cached([*A, *B, 1]) == 80
    assert demoted(books) == 0


def test_return_what_is_there_is_used_again_and_no_longer_demoted() -> None:
    books = small()
    one, two = [*SYSTEM, *A], [*SYSTEM, *B]
    books.pass_through(one, directive=chat())
    books.pass_through(two, directive=chat())
    lease = books.run([*one, 150], directive=chat())
    assert lease.cached_tokens == 44
    books.end(lease)
    books.sweep()
    assert demoted(books) == 10  # those of the other topic
    assert not any(view.demoted for view in books.listing(top=100) if view.depth > 44)


@pytest.mark.parametrize(
    "directives",
    [
        (Directive(), Directive()),
        (chat(relevance="off"), chat(relevance="off")),
        (chat(context="a"), chat(context="a")),
        (chat(context="a"), chat()),
    ],
)
def test_without_a_session_or_with_an_announced_context_nobody_looks_for_topics(
    directives: Sequence[Directive],
) -> None:
    books = small()
    for tokens, directive in zip(([*SYSTEM, *A], [*SYSTEM, *B]), directives, strict=True):
        books.pass_through(tokens, directive=directive)
    books.sweep()
    assert demoted(books) == 0


def test_the_topic_is_the_context_of_what_was_written() -> None:
    books = small()
    books.pass_through(A, directive=chat())
    (context,) = {
        claim for view in books.listing(top=100) for claim in view.claims if "context" in claim
    }
    assert context.startswith("context:#")
    books.invalidate(Selector(context=context.removeprefix("context:")))
    assert books.cached([*A, 1]) == 0


# --- what is new


def test_only_what_lies_behind_the_last_conversation_is_new() -> None:
    books = small()
    lease = books.start(A, 60, directive=chat())
    books.commit(lease, [*A, 7, 8, 9])
    books.end(lease)
    books.pass_through([*A, 7, 8, 9, 150, 151], directive=chat())
    books.pass_through([*A, 7, 8, 9, 150, 152], directive=chat())  # another answer to the same
    assert ByHundreds.told == [
        ("turn", A),
        ("answer", [7, 8, 9]),
        ("turn", [150, 151]),
        ("answer", []),
        ("turn", [150, 152]),
        ("answer", []),
    ]


def test_a_turn_that_goes_on_after_it_was_preempted_is_told_once() -> None:
    books = small()
    lease = books.run(A, directive=chat())
    books.end(lease, finished=None)
    lease = books.start([*A, 7, 8], 60, directive=chat())
    books.commit(lease, [*A, 7, 8, 9])
    books.end(lease, finished=True)
    assert ByHundreds.told == [("turn", A), ("answer", [7, 8, 9])]


def test_an_aborted_answer_tells_nothing() -> None:
    books = small()
    lease = books.start(A, 60, directive=chat())
    books.commit(lease, [*A, 7, 8, 9])
    books.end(lease, finished=False)
    assert ByHundreds.told == [("turn", A)]


# --- bounded, apart, gone with the session


def test_what_is_known_of_a_session_ends_with_it() -> None:
    books = small()
    books.pass_through(A, directive=chat())
    entry = books.table.get("", "s")
    assert entry is not None
    assert entry.followed is not None
    books.end_session("", "s")
    assert entry.followed is None


def test_namespaces_and_salts_share_nothing() -> None:
    topics, spaces = Topics(ByHundreds), []
    for space in (("a", ""), ("b", ""), ("a", "x")):
        session = Session(0.0, Space())
        topics.context(session, space, pack_tokens(A))
        assert session.followed is not None
        spaces.append(session.followed.tracker.space)  # type: ignore[attr-defined]
    assert len({id(space) for space in spaces}) == 3


def test_a_reset_forgets_the_namespace() -> None:
    books = small()
    books.pass_through(A, directive=chat())
    assert books.topics is not None
    assert books.topics._spaces
    assert books.reset()
    assert not books.topics._spaces


def test_what_is_followed_is_bounded() -> None:
    topics = Topics(ByHundreds)
    sessions = [Session(0.0, Space()) for _ in range(MOST_SESSIONS + 5)]
    for number, session in enumerate(sessions):
        topics.context(session, (str(number), ""), pack_tokens(A))
    assert [session.followed is None for session in sessions] == [True] * 5 + [False] * (
        MOST_SESSIONS
    )
    assert len(topics._spaces) == MOST_SPACES
    last = sessions[-1]
    for length in range(2 * MOST_ENDS):
        topics.context(last, (str(MOST_SESSIONS + 4), ""), pack_tokens([length, 100]))
        topics.answered(last, pack_tokens([length, 100, *A[:length]]))
    assert last.followed is not None
    assert len(last.followed.ends) <= MOST_ENDS


def test_no_token_can_be_read_back() -> None:
    words = [77_000_001, 77_000_002, 77_000_003] * 4
    topics, session = Topics(TopicTracker), Session(0.0, Space())
    topics.context(session, SPACE, pack_tokens(words))
    assert session.followed is not None
    for _ in range(4):
        topics.answered(session, pack_tokens(words))
        words += words[:3]
        topics.context(session, SPACE, pack_tokens(words))
    tracker = session.followed.tracker
    assert isinstance(tracker, TopicTracker)
    assert tracker._topics
    for profile in tracker._topics.values():
        cells = bytes(profile._cells)
        for word in set(words):
            assert word.to_bytes(4, "little") not in cells
            assert word.to_bytes(4, "big") not in cells
