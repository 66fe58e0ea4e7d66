"""What became of requests: today's totals, an hour and a day as curves, and the last requests.

One ledger per namespace, and one of all. Numbers cost a few microseconds per request and are always
kept. Words are not: where a prompt left the cache (`Divergence`, token ids) is kept only for
namespaces that somebody is looking at, no longer than the text itself may be remembered, and goes
with anything that is forgotten in the namespace. The ledger of all never has words.

Any thread. Standard library only; clocks are handed in.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from kveik.cache.directive import Divergence
from kveik.config import LIMITS
from kveik.engine.explain import BEFORE_TOKENS
from kveik.engine.request import MissReason, PromptReady, Request, Usage

LAST_REQUESTS = 100
"""Requests of one namespace that are kept one by one."""

_MOST = int(LIMITS["journal_namespaces"].high)


@dataclass(slots=True)
class Sums:
    """Of some requests: tokens, and seconds that hits saved (an estimate)."""

    requests: int = 0
    prompt: int = 0
    cached: int = 0
    approximate: int = 0
    computed: int = 0
    generated: int = 0
    seconds: float = 0.0

    def add(self, entry: Entry) -> None:
        self.requests += 1
        self.prompt += entry.prompt
        self.cached += entry.cached
        self.approximate += entry.approximate
        self.computed += entry.computed
        self.generated += entry.generated
        self.seconds += entry.seconds_saved


class Memory(NamedTuple):
    """Blocks of the first group of layers: held by requests; cached and idle; pinned among the
    idle ones."""

    held: int
    idle: int
    pinned: int


@dataclass(slots=True)
class Point:
    """A stretch of time that begins at `start` (wall clock). memory: when it began; None: nobody
    measured it."""

    start: int
    sums: Sums = field(default_factory=Sums)
    memory: Memory | None = None


class Parting(NamedTuple):
    """Where a prompt left the cache, and its tokens before that (the last of them)."""

    before: tuple[int, ...]
    divergence: Divergence


@dataclass(frozen=True, slots=True)
class Entry:
    """One request that ended. at: wall clock; took: seconds from its acceptance; ended: stop,
    length, abort or error. miss: why not more was cached. explained: where it left the cache, until
    `forget_at` (the engine's clock)."""

    number: int
    at: float
    namespace: str
    took: float
    ended: str
    prompt: int
    cached: int
    approximate: int
    computed: int
    generated: int
    seconds_saved: float
    session: str | None
    name: str | None
    stream: bool
    miss: MissReason | None
    explained: Parting | None = None
    forget_at: float = math.inf


class Curve:
    """Points of equal length, the last `count` of them."""

    def __init__(self, seconds: int, count: int) -> None:
        self.seconds = seconds
        self.points: deque[Point] = deque(maxlen=count)

    def at(self, wall: float) -> Point:
        """The point of this moment, made where there is none yet."""
        start = int(wall // self.seconds) * self.seconds
        if not self.points or self.points[-1].start < start:
            self.points.append(Point(start))
        return self.points[-1]

    def copy(self) -> list[Point]:
        return [replace(point, sums=replace(point.sums)) for point in self.points]


class Ledger:
    """Of one namespace, or of all."""

    def __init__(self, wall: float) -> None:
        self.since = wall
        self.today = Sums()
        self.day = _date(wall)
        self.hour_curve, self.day_curve = Curve(10, 360), Curve(300, 288)
        self.last: deque[Entry] = deque(maxlen=LAST_REQUESTS)
        self.forgotten_at = -math.inf  # words of requests accepted before may not be kept

    def turn_page(self, wall: float) -> None:
        """Totals begin anew at midnight."""
        if _date(wall) != self.day:
            self.day, self.today, self.since = _date(wall), Sums(), wall

    def add(self, entry: Entry) -> None:
        self.turn_page(entry.at)
        for sums in (self.today, self.hour_curve.at(entry.at).sums):
            sums.add(entry)
        self.day_curve.at(entry.at).sums.add(entry)
        self.last.append(entry)

    def measure(self, wall: float, memory: Memory) -> None:
        for curve in (self.hour_curve, self.day_curve):
            point = curve.at(wall)
            if point.memory is None:
                point.memory = memory

    def forget_words(self, due: float = -math.inf) -> None:
        """Of every request, or of those whose words may be kept until `due` at most."""
        for index, entry in enumerate(self.last):
            if entry.explained is not None and (due == -math.inf or entry.forget_at <= due):
                self.last[index] = replace(entry, explained=None)


class Journal:
    """See the module. idle_seconds: for which words are kept at most."""

    def __init__(
        self, clock: Callable[[], float], wall: Callable[[], float], idle_seconds: float
    ) -> None:
        self._clock, self._wall, self._idle_seconds = clock, wall, idle_seconds
        self._lock = threading.Lock()
        self._ledgers: OrderedDict[str, Ledger] = OrderedDict()
        self._all = Ledger(wall())
        self._watched: Counter[str] = Counter()
        self._numbers = 0
        self._due = math.inf

    # --- what happens

    def ended(
        self,
        request: Request,
        ended: str,
        usage: Usage | None,
        accepted_at: float,
        ready: PromptReady | None,
    ) -> None:
        """usage None: it failed. accepted_at: by the engine's clock. ready: None: its prompt was
        not computed to its end."""
        with self._lock:
            entry = self._entry(request, ended, usage, accepted_at, ready)
            self._ledger(request.namespace).add(entry)
            self._all.add(replace(entry, explained=None, session=None, name=None))

    def wants_memory(self) -> bool:
        """Is the present point of the curve of all without a measurement?"""
        return self._all.hour_curve.at(self._wall()).memory is None

    def _entry(
        self,
        request: Request,
        ended: str,
        usage: Usage | None,
        accepted_at: float,
        ready: PromptReady | None,
    ) -> Entry:
        now = self._clock()
        self._numbers += 1
        usage = usage or Usage(len(request.prompt_token_ids))
        keep = min(self._idle_seconds, request.directive.text_seconds)
        explained = None
        forgotten = self._ledger(request.namespace).forgotten_at
        wanted = request.namespace in self._watched and accepted_at > forgotten and keep > 0
        if wanted and ready is not None and ready.divergence is not None:
            explained = _parting(request, ready.divergence)
            self._due = min(self._due, now + keep)
        return Entry(
            number=self._numbers,
            at=self._wall(),
            namespace=request.namespace,
            took=now - accepted_at,
            ended=ended,
            prompt=usage.prompt_tokens,
            cached=usage.cached_tokens,
            approximate=usage.approximate_cached_tokens,
            computed=usage.computed_prompt_tokens,
            generated=usage.completion_tokens,
            seconds_saved=usage.savings.seconds if usage.savings is not None else 0.0,
            session=request.directive.session,
            name=request.directive.name,
            stream=request.stream is not None or request.resumes,
            miss=ready.miss if ready is not None else None,
            explained=explained,
            forget_at=now + keep,
        )

    # --- who looks

    @contextmanager
    def watching(self, namespace: str | None) -> Iterator[None]:
        """While somebody looks, requests of the namespace are asked where they leave the cache."""
        if namespace is None:
            yield
            return
        with self._lock:
            self._watched[namespace] += 1
        try:
            yield
        finally:
            with self._lock:
                self._watched[namespace] -= 1
                self._watched += Counter()  # drops what is zero

    def is_watched(self, namespace: str) -> bool:
        return namespace in self._watched

    def today(self, namespace: str | None) -> tuple[float, Sums]:
        """Since when (wall clock), and the totals."""
        with self._lock:
            ledger = self._found(namespace)
            ledger.turn_page(self._wall())
            return ledger.since, replace(ledger.today)

    def curves(self, namespace: str | None) -> tuple[list[Point], list[Point]]:
        """The last hour in steps of 10 s, and the last day in steps of 5 min; a step in which
        nothing happened is left out."""
        with self._lock:
            ledger = self._found(namespace)
            return ledger.hour_curve.copy(), ledger.day_curve.copy()

    def measure(self, namespace: str | None, memory: Memory) -> None:
        """What the pool holds now."""
        with self._lock:
            ledger = self._all if namespace is None else self._ledger(namespace)
            ledger.measure(self._wall(), memory)

    def last(self, namespace: str | None, after: int = 0) -> list[Entry]:
        """Requests with a number above `after`, the latest last."""
        with self._lock:
            self._drop_due()
            return [entry for entry in self._found(namespace).last if entry.number > after]

    # --- forgetting

    def forget(self, namespace: str | None = None) -> None:
        """No words are left of a namespace (None: of any)."""
        with self._lock:
            for name in {*self._ledgers, *self._watched}:
                if namespace in (None, name):
                    ledger = self._ledger(name)
                    ledger.forget_words()
                    ledger.forgotten_at = self._clock()

    def prune(self) -> None:
        """Drop words that may be kept no longer."""
        if self._clock() >= self._due:
            with self._lock:
                self._drop_due()

    def next_deadline(self) -> float | None:
        return None if self._due == math.inf else self._due

    def _drop_due(self) -> None:
        now = self._clock()
        if now < self._due:
            return
        self._due = math.inf
        for ledger in self._ledgers.values():
            ledger.forget_words(now)
            kept = (one.forget_at for one in ledger.last if one.explained is not None)
            self._due = min(self._due, *kept, math.inf)

    # --- ledgers

    def _ledger(self, namespace: str) -> Ledger:
        ledger = self._ledgers.get(namespace)
        if ledger is None:
            ledger = self._ledgers[namespace] = Ledger(self._wall())
            if len(self._ledgers) > _MOST:
                self._ledgers.popitem(last=False)
        self._ledgers.move_to_end(namespace)
        return ledger

    def _found(self, namespace: str | None) -> Ledger:
        if namespace is None:
            return self._all
        return self._ledgers.get(namespace) or Ledger(self._all.since)


def _parting(request: Request, divergence: Divergence) -> Parting:
    end = divergence.position
    return Parting(request.prompt_token_ids[max(0, end - BEFORE_TOKENS) : end], divergence)


def _date(wall: float) -> int:
    """The day of a moment, where this machine stands."""
    return datetime.fromtimestamp(wall).toordinal()
