"""The inbox by itself: each request counts once, and each that was accepted is owed an ending."""

from __future__ import annotations

from typing import Any, cast

import pytest

from kveik.config import EngineConfig
from kveik.engine.delivery import Delivery
from kveik.engine.inbox import Abort, Arrival, Inbox, Over
from kveik.engine.request import Request, SamplingParams
from kveik.engine.sequence import Queues
from kveik.errors import Overloaded, Unavailable


class Parcel:
    """A delivery that only knows when it was accepted."""

    def __init__(self, tokens: int, background: bool = False, seed: int | None = None) -> None:
        params = SamplingParams(seed=seed)
        self.request = Request(tuple(range(tokens)), params, background=background)
        self.at: float | None = None

    def accepted(self, now: float) -> None:
        self.at = now


class Desk:
    """An inbox beside a scheduler that queues whatever arrives."""

    def __init__(self, **config: Any) -> None:
        self.waiting = Queues()
        self.asked: list[int] = []  # for how many tokens to wait
        self.box = Inbox(EngineConfig(**config), lambda: 7.0, self.waiting, self.retry_after)
        self.arrived: list[Arrival] = []

    def retry_after(self, tokens: int) -> int:
        self.asked.append(tokens)
        return 9

    def accept(self, parcel: Parcel) -> int:
        return self.box.accept(cast(Delivery, parcel), None)

    def arrive(self, entry: Arrival) -> None:
        self.arrived.append(entry)
        request = entry.delivery.request
        self.waiting.of(request).add(len(request.prompt_token_ids))

    @property
    def counted(self) -> tuple[int, int]:
        queued = self.box.queued
        return queued.requests + self.waiting.requests, queued.tokens + self.waiting.tokens


def test_a_request_is_counted_once_whoever_has_it() -> None:
    desk = Desk()
    first, second = Parcel(5), Parcel(3)
    assert [desk.accept(first), desk.accept(second)] == [0, 1]
    assert first.at == 7.0
    assert desk.counted == (2, 8)
    entries = desk.box.drain(desk.arrive)
    assert entries == desk.arrived
    assert [entry.handle for entry in desk.arrived] == [0, 1]
    assert desk.counted == (2, 8)
    assert desk.box.queued.requests == 0
    assert desk.box.drain(desk.arrive) == []
    assert desk.counted == (2, 8)


def test_what_the_scheduler_has_fills_the_queue_too() -> None:
    desk = Desk(max_queued_requests=2)
    desk.accept(Parcel(5))
    desk.box.drain(desk.arrive)
    desk.accept(Parcel(5))
    with pytest.raises(Overloaded, match="2 requests with 10 prompt tokens") as refused:
        desk.accept(Parcel(4))
    assert refused.value.retry_after == 9
    assert desk.asked == [14]
    assert desk.accept(Parcel(4, background=True)) == 2  # a queue of its own
    assert desk.counted == (3, 14)
    assert sorted(desk.box.deliveries) == [0, 1, 2]


def test_an_empty_queue_takes_a_prompt_of_any_length() -> None:
    desk = Desk(max_queued_tokens=10)
    desk.accept(Parcel(50))
    with pytest.raises(Overloaded):
        desk.accept(Parcel(1))


def test_entries_come_in_order_and_those_of_nobody_do_not() -> None:
    desk = Desk()
    handle = desk.accept(Parcel(5))
    desk.box.abort(handle)
    desk.box.abort(99)
    desk.box.report(Over(handle, 0))
    entries = desk.box.drain(desk.arrive)
    assert entries == [*desk.arrived, Abort(handle), Over(handle, 0)]
    desk.box.ended(handle, "abort")
    desk.box.abort(handle)
    assert desk.box.drain(desk.arrive) == []


def test_an_ending_is_counted_once_under_the_reason_that_holds() -> None:
    desk = Desk()
    one, other = desk.accept(Parcel(5)), desk.accept(Parcel(5))
    desk.box.ended(one, "stop")
    desk.box.ended(one, "length")
    assert desk.box.finished() == {"stop": 1}
    desk.box.ended(one, "error", instead="stop")
    assert desk.box.finished() == {"error": 1}
    assert list(desk.box.deliveries) == [other]


def test_after_a_fault_everybody_is_handed_over_and_nobody_is_accepted() -> None:
    desk = Desk()
    parcels = {desk.accept(one): one for one in (Parcel(5), Parcel(6))}
    known = desk.box.deliveries
    assert desk.box.break_down("planted") == parcels
    assert desk.box.break_down("planted") == {}
    assert desk.box.deliveries is known  # others read it
    assert desk.counted == (0, 0)
    assert desk.box.finished() == {"error": 2}
    desk.box.report(Over(0, None))
    assert desk.box.drain(desk.arrive) == []
    with pytest.raises(Unavailable, match="planted"):
        desk.accept(Parcel(5))


def test_a_closed_inbox_says_when_there_is_no_more() -> None:
    desk = Desk()
    desk.accept(Parcel(5))
    desk.box.close()
    with pytest.raises(Unavailable, match="stopping"):
        desk.accept(Parcel(5))
    desk.box.stop()
    assert desk.box.wait(0.0)  # an arrival is left
    desk.box.drain(desk.arrive)
    assert not desk.box.wait(0.0)


def test_a_disturbed_inbox_does_not_sleep_and_then_does(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    slept: list[float] = []
    monkeypatch.setattr(desk.box._changed, "wait", slept.append)
    desk.box.disturb()
    assert desk.box.wait(7.0)
    assert slept == []
    assert desk.box.wait(8.0)
    assert slept == [8.0]


def test_seeds_follow_from_the_engines_and_the_order() -> None:
    def seeds(engine_seed: int) -> list[int]:
        desk = Desk(seed=engine_seed)
        for parcel in (Parcel(5), Parcel(5), Parcel(5, seed=3)):
            desk.accept(parcel)
        desk.box.drain(desk.arrive)
        return [entry.seed for entry in desk.arrived]

    first = seeds(1)
    assert first == seeds(1)
    assert first[2] == 3
    assert len({*first, *seeds(2)}) == 5
