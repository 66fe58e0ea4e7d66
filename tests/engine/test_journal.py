"""What the cache did lately: rings of steps and days beside a naive log of everything."""

from __future__ import annotations

from collections import Counter
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kveik.engine.journal import KEPT_REQUESTS, MOST_NAMESPACES, Journal
from kveik.engine.request import MissReason, Request, SamplingParams, Savings, Usage
from kveik.engine.series import KEPT_DAYS, KEPT_STEPS, STEP, Counts, Days, Series

WAITS = st.sampled_from([0.0, 0.5, 9.0, 10.0, 11.0, 95.0, 3600.0, 30000.0, -5.0, -40.0])


@given(st.lists(st.tuples(WAITS, st.integers(0, 5)), min_size=1, max_size=40), st.integers(1, 3000))
@settings(max_examples=150, deadline=None)
def test_a_series_is_the_log_by_steps(events: list[tuple[float, int]], steps: int) -> None:
    series = Series(("tokens",), ("used",))
    log: Counter[int] = Counter()
    held: dict[int, float] = {}
    now, newest, first = 1e6, 0, None
    for wait, tokens in events:
        now += wait
        newest = max(newest, int(now // STEP))  # a clock that was set back stays in the newest
        first = newest if first is None else first
        log[newest] += tokens
        held[newest] = tokens
        series.add(now, tokens=tokens)
        series.hold(now, used=tokens)
    start, columns = series.last(steps, now)
    begin = max(first, newest - min(steps, KEPT_STEPS) + 1)
    assert start == begin * STEP
    assert columns["tokens"] == [log[step] for step in range(begin, newest + 1)]
    last = 0.0
    for step in range(first, newest + 1):
        last = held.get(step, last)
        if step >= begin:
            assert columns["used"][step - begin] == last


def test_a_series_that_rested_for_days_is_empty() -> None:
    series = Series(("tokens",), ("used",))
    series.add(50.0, tokens=3)
    series.hold(50.0, used=7)
    start, columns = series.last(KEPT_STEPS, 50.0 + 9 * 86400)
    assert len(columns["tokens"]) == KEPT_STEPS
    assert sum(columns["tokens"]) == 0
    assert set(columns["used"]) == {7}
    assert start == (int((50 + 9 * 86400) // STEP) - KEPT_STEPS + 1) * STEP


def test_days_are_of_the_calendar_and_few() -> None:
    days, noon = Days(), 43200.0 + 86400 * 20000
    for day in range(KEPT_DAYS + 4):
        days.add(noon + 86400 * day, Counts(requests=1, prompt_tokens=day))
    days.add(noon + 86400 * (KEPT_DAYS + 3) + 60, Counts(requests=1))
    days.add(noon, Counts(requests=1))  # the clock was set back
    now = noon + 86400 * (KEPT_DAYS + 3)
    found = days.all(now)
    assert len(found) == KEPT_DAYS
    assert found[-1] == (
        date.fromtimestamp(now),
        Counts(requests=3, prompt_tokens=KEPT_DAYS + 3),
    )
    assert [counts.prompt_tokens for _, counts in found] == list(range(4, KEPT_DAYS + 4))
    assert days.all(now + 86400)[-1] == (date.fromtimestamp(now + 86400), Counts())


class Told:
    """A journal whose clock the test moves."""

    def __init__(self) -> None:
        self.now, self.memory = 1e6, (0, 0)
        self.journal = Journal(lambda: self.now, lambda: self.memory)

    def serve(self, namespace: str, prompt: int, cached: int, generated: int = 1) -> None:
        request = Request((1,) * prompt, SamplingParams(), namespace=namespace, request_id="r")
        usage = Usage(prompt, 0, cached, savings=Savings(0.5, 0, 0, 0, 0))
        self.journal.computed(request, usage)
        usage = Usage(prompt, generated, cached, 0, prompt - cached)
        self.journal.ended(request, usage, MissReason(cached, "new"), "finished", 2.0)


def test_every_namespace_has_a_book_and_all_together_one() -> None:
    told = Told()
    told.serve("ada", 10, 0)
    told.memory = (3, 4)
    told.serve("bo", 20, 15, generated=7)
    for namespace, requests, prompt, cached, generated in (
        ("ada", 1, 10, 0, 1),
        ("bo", 1, 20, 15, 7),
        (None, 2, 30, 15, 8),
        ("eve", 0, 0, 0, 0),
    ):
        past = told.journal.past(namespace, 5)
        (_, today) = past.days[-1]
        assert (today.requests, today.hit_requests) == (requests, int(cached > 0)), namespace
        assert (today.prompt_tokens, today.cached_tokens) == (prompt, cached)
        assert today.generated_tokens == generated
        assert sum(past.columns["prompt_tokens"]) == prompt
        assert today.seconds_saved == 0.5 * requests
        assert ("used_bytes" in past.columns) == (namespace is None)
    assert told.journal.past(None, 1).columns["used_bytes"] == [3]
    assert told.journal.past(None, 1).columns["cached_bytes"] == [4]
    told.memory = (0, 5)  # a request let its blocks go, and nothing else happened
    assert told.journal.past(None, 1).columns["cached_bytes"] == [5]
    assert [one.namespace for one in told.journal.requests(None, 9)] == ["bo", "ada"]
    (one,) = told.journal.requests("bo", 9)
    assert (one.number, one.computed_tokens, one.miss) == (1, 5, MissReason(15, "new"))
    assert told.journal.requests("eve", 9) == []


def test_books_and_requests_are_bounded() -> None:
    told = Told()
    for number in range(MOST_NAMESPACES + 3):
        told.serve(f"n{number}", 1, 0)
    told.serve("n3", 1, 0)
    told.serve("one more", 1, 0)
    assert len(told.journal._books) == MOST_NAMESPACES
    assert told.journal.requests("n3", 9)
    assert not told.journal.requests("n4", 9)
    for _ in range(KEPT_REQUESTS + 10):
        told.serve("ada", 1, 0)
    kept = told.journal.requests("ada", 10**6)
    assert len(kept) == KEPT_REQUESTS
    assert kept[0].number == kept[-1].number + KEPT_REQUESTS - 1


@pytest.mark.parametrize("outcome", ["aborted", "failed"])
def test_a_request_that_was_never_computed_is_listed_and_not_counted(outcome: str) -> None:
    told = Told()
    request = Request((1, 2, 3), SamplingParams())
    told.journal.ended(request, Usage(3), None, outcome, 0.1)  # type: ignore[arg-type]
    (one,) = told.journal.requests("", 9)
    assert (one.outcome, one.miss) == (outcome, None)
    assert told.journal.past("", 1).days[-1][1] == Counts()
