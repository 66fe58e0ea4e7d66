"""Open streams between two requests of their sessions. Standard library.

A stream cannot be computed again, so what its session will go on from is kept: the lease on its
window, which holds promised room, and the token ids in it. It ends with its session, when another
stream takes its place, or when a request needs the room that could otherwise never run.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import NamedTuple

from kveik.cache.manager import CacheManager, Lease
from kveik.cache.window import StreamWindow
from kveik.engine.request import Request
from kveik.engine.sequence import RestingStream, Sequence

Key = tuple[str, str]
"""(namespace, session)"""


def key_of(request: Request) -> Key:
    """The session of a request ("": of none)."""
    return request.namespace, request.directive.session or ""


class StreamView(NamedTuple):
    """An open stream. tokens: in its window; evicted: forgotten so far; running: a request works on
    it; else it waits for the next turn of its session (None: it is of one request alone)."""

    session: str | None
    sinks: int
    window: int
    tokens: int
    evicted: int
    running: bool


def running_streams(sequences: Iterable[Sequence], namespace: str) -> list[StreamView]:
    """Those among the running sequences."""
    return [
        _view(one.work.request.directive.session, one.work.stream, one.lease, running=True)
        for one in sequences
        if one.work.stream is not None
        and one.lease is not None
        and one.work.request.namespace == namespace
    ]


def _view(session: str | None, stream: StreamWindow, lease: Lease, *, running: bool) -> StreamView:
    evicted = lease.evicted
    tokens = min(lease.committed, stream.size)
    return StreamView(session, stream.sinks, stream.window, tokens, evicted, running)


class RestingStreams:
    """ended: called whenever a stream ended, which may make room for somebody."""

    def __init__(self, cache: CacheManager, ended: Callable[[], None]) -> None:
        self._cache = cache
        self._ended = ended
        self._streams: dict[Key, RestingStream] = {}  # the one that rests for longest first

    def __len__(self) -> int:
        return len(self._streams)

    def has(self, key: Key) -> bool:
        resting = self._streams.get(key)
        return resting is not None and not self._cache.is_over(resting.lease)

    def views(self, namespace: str) -> list[StreamView]:
        """The open ones of a namespace."""
        return [
            _view(session, one.stream, one.lease, running=False)
            for (space, session), one in self._streams.items()
            if space == namespace
        ]

    def take(self, key: Key) -> RestingStream | None:
        """For the request that goes on from it; None: there is none, or a request works on it."""
        return self._streams.pop(key) if self.has(key) else None

    def put_back(self, key: Key, resting: RestingStream, now: float) -> None:
        """The request that took it will not go on."""
        if key in self._streams:  # the session began another one meanwhile
            self._release(resting, now)
        else:
            self._streams[key] = resting

    def rest(self, sequence: Sequence, now: float) -> bool:
        """The answer is complete: a stream of a session stays open. False: this is none."""
        work, lease = sequence.work, sequence.lease
        if work.stream is None or work.request.directive.session is None or lease is None:
            return False
        key = key_of(work.request)
        self.end((key,), now)
        self._cache.rest(lease, now)
        self._streams[key] = RestingStream(
            lease,
            work.stream,
            sequence.tokens,
            sequence.computed,
            sequence.start,
            work.request.salt,
        )
        return True

    def end(self, gone: Container[Key], now: float) -> None:
        """End those of these sessions."""
        for key in [key for key in self._streams if key in gone]:
            self._release(self._streams.pop(key), now)

    def end_of(self, namespace: str | None, now: float) -> None:
        """End those of a namespace; None: all."""
        self.end([key for key in self._streams if namespace in (None, key[0])], now)

    def end_over(self, now: float) -> None:
        """End those whose session has ended."""
        over = [key for key, one in self._streams.items() if self._cache.is_over(one.lease)]
        if over:
            self.end(over, now)

    def end_oldest(self, now: float) -> bool:
        """Nothing runs and what is asked for has no room: a stream goes, as pins do. False: there
        is none."""
        oldest = next(iter(self._streams), None)
        if oldest is not None:
            self.end((oldest,), now)
        return oldest is not None

    def _release(self, resting: RestingStream, now: float) -> None:
        self._cache.release(resting.lease, keep=False, finished=None, now=now)
        self._ended()
