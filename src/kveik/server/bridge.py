"""Between the event loop and the engine's threads.

    handler -- open(requests) --> Engine.submit          (event loop -> any-thread door)
    handler <-- batch() -- Feed <-- mailbox <-- sink     (thread of the texts -> event loop)

The sink appends to one mailbox and wakes the loop at most once until it has been emptied, so a step
with many tokens costs one wake-up. A Feed holds what its handler has not taken yet, in bounded
bytes: a reader that is too slow loses its request, and nobody else waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence

from kveik.engine.engine import Engine
from kveik.engine.request import (
    ChoiceDelta,
    Event,
    EventSink,
    Request,
    RequestAborted,
    RequestFailed,
    RequestFinished,
)
from kveik.errors import Unavailable
from kveik.server.metrics import Metrics

Tagged = tuple[int, Event]
"""(index of the request within its feed, event)"""

_EVENT_BYTES = 256  # of an event beside its text: object headers, ids
_LOGPROB_BYTES = 160  # of one reported alternative


class ClientGoneError(Exception):
    """The client closed its connection."""


class SlowReaderError(Exception):
    """The client does not read what it asked for."""


class Feed:
    """The events of the engine requests that one HTTP request became. Event loop only."""

    def __init__(self, abort: Callable[[int], None], metrics: Metrics, limit: int | None) -> None:
        self._abort = abort
        self._metrics = metrics
        self._limit = limit  # bytes; None: the handler takes everything at once
        self._handles: dict[int, int] = {}  # of requests that have not ended
        self._events: deque[Tagged] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self._error: Exception | None = None
        self._started = time.monotonic()
        self._last_token: dict[tuple[int, int], float] = {}
        self.on_overflow: Callable[[], None] = lambda: None

    @property
    def done(self) -> bool:
        """Every request has ended and every event was taken."""
        return not self._handles and not self._events and self._error is None

    def add(self, tag: int, handle: int) -> None:
        self._handles[tag] = handle

    def put(self, tag: int, event: Event) -> None:
        if self._error is not None or tag not in self._handles:
            return
        self._measure(tag, event)
        if isinstance(event, RequestFinished | RequestFailed | RequestAborted):
            del self._handles[tag]
        if isinstance(event, RequestFailed):
            self.fail(event.error)
        elif isinstance(event, RequestAborted):
            self.fail(Unavailable("the request was ended because the server stops"))
        else:
            self._events.append((tag, event))
            self._bytes += _cost(event)
            self._changed.set()
            if self._limit is not None and self._bytes > self._limit:
                self.fail(SlowReaderError())
                self.on_overflow()

    async def batch(self, timeout: float | None = None) -> list[Tagged]:
        """Everything that has come, at least one event; [] after `timeout` seconds without any.

        Raises what ended the feed: a KveikError, ClientGoneError or SlowReaderError."""
        if not self._events and self._error is None:
            await self._wait(timeout)
        self._changed.clear()
        if self._error is not None:
            raise self._error
        events = list(self._events)
        self._events.clear()
        self._bytes = 0
        return events

    async def _wait(self, timeout: float | None) -> None:
        """For a change or for so long; one timer, where asyncio.timeout would be three objects."""
        if timeout is None:
            await self._changed.wait()
            return
        timer = asyncio.get_running_loop().call_later(timeout, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            timer.cancel()

    def fail(self, error: Exception) -> None:
        """End the feed with an error; what was not taken is dropped, what runs is aborted."""
        if self._error is None and not (isinstance(error, ClientGoneError) and not self._handles):
            self._error = error
            self._events.clear()
            self._changed.set()
        self.close()

    def close(self) -> None:
        """Abort what has not ended. The computed prefixes stay cached."""
        for handle in self._handles.values():
            self._abort(handle)
        self._handles.clear()

    def _measure(self, tag: int, event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, ChoiceDelta):
            before = self._last_token.get((tag, event.choice))
            if before is None:
                self._metrics.first_token(now - self._started)
            else:
                self._metrics.next_token(now - before)
            self._last_token[tag, event.choice] = now
        elif isinstance(event, RequestFinished):
            self._metrics.finished(now - self._started)


class Bridge:
    """Submits requests and carries their events to the event loop that made the bridge."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._mailbox: deque[tuple[Feed, int, Event]] = deque()
        self._woken = False
        self._feeds: set[Feed] = set()

    def open(self, requests: Sequence[Request], limit: int | None) -> Feed:
        """Submit all requests or none. limit: bytes that may wait for a reader.

        Raises what `Engine.submit` raises."""
        feed = Feed(self._engine.abort, self._metrics, limit)
        try:
            for tag, request in enumerate(requests):
                feed.add(tag, self._engine.submit(request, self._sink(feed, tag)))
        except Exception:
            feed.close()
            raise
        self._feeds.add(feed)
        return feed

    def close(self, feed: Feed) -> None:
        """The handler is done with the feed, for whatever reason."""
        feed.close()
        self._feeds.discard(feed)

    def fail_all(self, error: Exception) -> None:
        """End every open feed with an error (the drain is over)."""
        for feed in tuple(self._feeds):
            feed.fail(error)

    def _sink(self, feed: Feed, tag: int) -> EventSink:
        def sink(event: Event) -> None:
            self._mailbox.append((feed, tag, event))
            if not self._woken:
                self._woken = True
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                    self._loop.call_soon_threadsafe(self._deliver)

        return sink

    def _deliver(self) -> None:
        self._woken = False  # first: an event that comes now must wake the loop again
        while self._mailbox:
            feed, tag, event = self._mailbox.popleft()
            feed.put(tag, event)


def _cost(event: Event) -> int:
    """About the bytes that an event occupies while it waits."""
    if not isinstance(event, ChoiceDelta):
        return _EVENT_BYTES
    logprobs = sum(1 + len(one.top) for one in event.logprobs)
    return _EVENT_BYTES + 4 * len(event.text) + _LOGPROB_BYTES * logprobs
