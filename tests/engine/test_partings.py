"""The words of the last requests: kept while somebody watches, and for as long as they may be."""

from __future__ import annotations

from kveik.cache.directive import Directive, Divergence, Ttl
from kveik.engine.partings import KEPT, PER_SECOND, Partings
from kveik.engine.request import Request, SamplingParams

WHERE = Divergence(3, "diverged", (7, 8), (4, 5))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def request(namespace: str = "a", **directive: object) -> Request:
    return Request(
        (1, 2, 3, 4, 5),
        SamplingParams(),
        namespace,
        directive=Directive(**directive),  # type: ignore[arg-type]
    )


def test_nothing_is_kept_unless_somebody_watches() -> None:
    clock = Clock()
    partings = Partings(clock, 60.0)
    partings.note(1, request(), WHERE, 99.0)
    with partings.watching("a"), partings.watching("a"):
        assert partings.is_watched("a")
        assert not partings.is_watched("b")
        partings.note(2, request(), WHERE, 99.0)
        partings.note(3, request("b"), WHERE, 99.0)
        partings.note(4, request(), None, 99.0)
    assert not partings.is_watched("a")
    partings.note(5, request(), WHERE, 99.0)
    known = [number for number in range(6) if partings.of("a", number) or partings.of("b", number)]
    assert known == [2]
    kept = partings.of("a", 2)
    assert kept is not None
    assert (kept.before, kept.divergence) == ((1, 2, 3), WHERE)


def test_of_everybody_there_are_no_words() -> None:
    partings = Partings(Clock(), 60.0)
    with partings.watching(None):
        partings.note(1, request(), WHERE, 99.0)
        assert not partings.is_watched("a")
    assert partings.of("a", 1) is None


def test_words_go_when_the_text_must() -> None:
    clock = Clock()
    partings = Partings(clock, 60.0)
    with partings.watching("a"):
        partings.note(1, request(), WHERE, 99.0)
        partings.note(2, request(ttl=Ttl(10.0)), WHERE, 99.0)
        partings.note(3, request(write="none"), WHERE, 99.0)
        partings.note(4, request(ttl=Ttl(10.0, mode="demote")), WHERE, 99.0)
        assert partings.next_deadline() == 110.0

        def known() -> list[int]:
            return [number for number in range(5) if partings.of("a", number)]

        assert known() == [1, 2, 4]
        clock.now = 110.0
        partings.prune()
        assert known() == [1, 4]
        assert partings.next_deadline() == 160.0
        clock.now = 160.0
        assert known() == []
        assert partings.next_deadline() is None


def test_forgetting_a_namespace_takes_what_runs_too() -> None:
    clock = Clock()
    partings = Partings(clock, 60.0)
    with partings.watching("a"), partings.watching("b"):
        partings.note(1, request(), WHERE, 99.0)
        partings.note(2, request("b"), WHERE, 99.0)
        clock.now = 105.0
        partings.forget("a")
        partings.note(3, request(), WHERE, 104.0)  # was asked before
        partings.note(4, request(), WHERE, 106.0)
        assert [partings.of("a", number) is not None for number in (1, 3, 4)] == [
            False,
            False,
            True,
        ]
        assert partings.of("b", 2) is not None
        partings.forget()
        partings.note(5, request("b"), WHERE, 104.0)
        assert partings.of("a", 4) is partings.of("b", 2) is partings.of("b", 5) is None


def test_the_number_is_bounded() -> None:
    partings = Partings(Clock(), 60.0)
    with partings.watching("a"):
        for number in range(KEPT + 3):
            partings.note(number, request(), WHERE, 99.0)
    assert partings.of("a", 2) is None
    assert partings.of("a", 3) is not None


def test_a_few_requests_a_second_are_asked_and_only_where_somebody_watches() -> None:
    clock = Clock()
    partings = Partings(clock, 60.0)
    assert not partings.wants("a")
    with partings.watching("a"):
        asked = 0
        for _ in range(1000):
            clock.now += 0.01
            asked += partings.wants("a")
            assert not partings.wants("b")
        assert PER_SECOND * 8 < asked <= PER_SECOND * 10
        clock.now -= 1000.0  # a clock that jumps back
        assert partings.wants("a")
