"""What the cache did lately: the last requests, a series of the last hours, and days.

    computed   a prompt is there: what was found of it, and what that saved
    ended      its request is over, in whatever way

Every namespace has a book of its own, and all together have one; each is of fixed size and holds
numbers and reason codes, no text and no token of anybody. The namespaces that did nothing for
longest lose theirs when there are more than `MOST_NAMESPACES`. Standard library only; used under
the lock of the engine's state.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Literal, TypeAlias

from kveik.engine.request import MissReason, Request, Usage
from kveik.engine.series import COUNTED, STEP, Counts, Days, Series

KEPT_REQUESTS = 256
"""Of every namespace, and of all together."""

MOST_NAMESPACES = 64

Outcome: TypeAlias = Literal["finished", "aborted", "failed"]


@dataclass(frozen=True, slots=True)
class PastRequest:
    """One request that is over. ended: wall clock; seconds: from its acceptance to its end.

    computed_tokens: prompt tokens that were computed for it, again after a preemption too. miss:
    where its prompt stopped being cached, and why; None: it was not computed."""

    number: int  # counts those of the book since start, so that a reader knows what is new
    request_id: str
    namespace: str
    ended: float
    seconds: float
    outcome: Outcome
    background: bool
    prompt_tokens: int
    cached_tokens: int
    approximate_tokens: int
    computed_tokens: int
    generated_tokens: int
    seconds_saved: float
    miss: MissReason | None


@dataclass(frozen=True, slots=True)
class Past:
    """A series of steps of `step` seconds from `start` (wall clock) on, column by column, and days.

    Of all namespaces together there are columns used_bytes and cached_bytes: K/V that leases hold,
    and that is only kept."""

    start: int
    step: int
    columns: dict[str, list[float]]
    days: list[tuple[date, Counts]]


@dataclass(slots=True)
class _Book:
    series: Series
    days: Days = field(default_factory=Days)
    requests: deque[PastRequest] = field(default_factory=lambda: deque(maxlen=KEPT_REQUESTS))
    count: int = 0  # requests that ended


class Journal:
    """See the module. wall: seconds of the wall clock; memory: (used, cached) bytes now."""

    def __init__(self, wall: Callable[[], float], memory: Callable[[], tuple[int, int]]) -> None:
        self._wall, self._memory = wall, memory
        self._all = _Book(Series(COUNTED, ("used_bytes", "cached_bytes")))
        self._books: OrderedDict[str, _Book] = OrderedDict()

    def computed(self, request: Request, usage: Usage) -> None:
        """The whole prompt of the request has K/V."""
        reused = usage.cached_tokens + usage.approximate_cached_tokens
        saved = usage.savings.seconds if usage.savings is not None else 0.0
        self._add(
            request.namespace,
            Counts(
                requests=1,
                hit_requests=int(reused > 0),
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                approximate_tokens=usage.approximate_cached_tokens,
                seconds_saved=saved,
            ),
        )

    def ended(
        self,
        request: Request,
        usage: Usage,
        miss: MissReason | None,
        outcome: Outcome,
        seconds: float,
    ) -> PastRequest:
        """The request is over. Answers with what the book of its namespace has of it: every book
        counts by itself, so that numbers tell nobody of others."""
        past = PastRequest(
            number=0,
            request_id=request.request_id,
            namespace=request.namespace,
            ended=self._wall(),
            seconds=seconds,
            outcome=outcome,
            background=request.background,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            approximate_tokens=usage.approximate_cached_tokens,
            computed_tokens=usage.computed_prompt_tokens,
            generated_tokens=usage.completion_tokens,
            seconds_saved=usage.savings.seconds if usage.savings is not None else 0.0,
            miss=miss,
        )
        for book in self._books_of(request.namespace):
            book.count += 1
            past = replace(past, number=book.count)
            book.requests.append(past)
        self._add(request.namespace, Counts(generated_tokens=usage.completion_tokens))
        return past

    def requests(self, namespace: str | None, most: int) -> list[PastRequest]:
        """The newest first; None: of all namespaces."""
        book = self._all if namespace is None else self._books.get(namespace)
        return [] if book is None else list(reversed(book.requests))[:most]

    def past(self, namespace: str | None, steps: int) -> Past:
        """The last `steps` steps at most; None: of all namespaces together."""
        now = self._wall()
        self._note_memory(now)
        book = self._all if namespace is None else self._books.get(namespace)
        if book is None:
            book = _Book(Series(COUNTED))
        start, columns = book.series.last(steps, now)
        return Past(start, STEP, columns, book.days.all(now))

    def _add(self, namespace: str, counts: Counts) -> None:
        now = self._wall()
        amounts = {name: amount for name in COUNTED if (amount := getattr(counts, name))}
        for book in self._books_of(namespace):
            book.series.add(now, **amounts)
            book.days.add(now, counts)
        self._note_memory(now)

    def _note_memory(self, now: float) -> None:
        used, cached = self._memory()
        self._all.series.hold(now, used_bytes=used, cached_bytes=cached)

    def _books_of(self, namespace: str) -> tuple[_Book, _Book]:
        """Of all, and of the namespace."""
        book = self._books.get(namespace)
        if book is None:
            book = self._books[namespace] = _Book(Series(COUNTED))
            if len(self._books) > MOST_NAMESPACES:
                self._books.popitem(last=False)
        self._books.move_to_end(namespace)
        return self._all, book
