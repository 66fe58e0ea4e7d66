"""In which window a request streams, and which open stream it goes on from.

Any thread asks; the streams themselves belong to the scheduler and are touched under the lock of
the engine's state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal

from kveik.cache.window import StreamWindow
from kveik.config import parse_stream_window
from kveik.engine.history import Sessions
from kveik.engine.parts import EngineParts
from kveik.engine.request import Request, SamplingParams
from kveik.engine.resting import RestingStreams, key_of
from kveik.engine.sequence import RestingStream
from kveik.errors import ConfigError, Conflict, InvalidRequest

_END_WITHIN = 4
"""Tokens of a new turn among which the end of the answer before is looked for."""


class StreamSessions:
    """See the module. forgotten: (namespace, session) that history let go, by its time to live or
    an invalidation; sees: tokens that the model sees at once. ConfigError where it cannot stream in
    the configured window."""

    def __init__(
        self,
        parts: EngineParts,
        sees: int,
        streams: RestingStreams,
        history: Sessions,
        forgotten: deque[tuple[str, str]],
        lock: AbstractContextManager[Any],
        clock: Callable[[], float],
    ) -> None:
        self._window = _default_window(parts, sees)
        self._sees = sees
        self._end_ids = frozenset(parts.end_ids)
        self._streams = streams
        self._history = history
        self._forgotten = forgotten
        self._lock = lock
        self._clock = clock

    @property
    def longest_window(self) -> StreamWindow:
        """The configured window, or 4 sinks and as much as the model sees at once."""
        return self._window or StreamWindow(4, max(self._sees - 4, 1))

    def window_for(
        self, asked: StreamWindow | Literal[False] | None, params: SamplingParams
    ) -> StreamWindow | None:
        """See Engine.stream_for."""
        if asked is not None:
            return asked or None
        apt = params.n == 1 and params.use_cache and params.max_tokens != 0
        return self._window if apt else None

    def has(self, namespace: str, session: str | None) -> bool:
        """Does the session have an open stream, to be gone on from?"""
        with self._lock:
            self._end_expired()
            return self._streams.has((namespace, session or ""))

    def take(self, request: Request) -> RestingStream:
        """The open stream that the request goes on from; Conflict where there is none."""
        session = request.directive.session
        with self._lock:
            self._end_expired()
            resting = self._streams.take(key_of(request))
            if resting is not None and resting.salt != request.salt:
                self._streams.put_back(key_of(request), resting, self._clock())
                resting = None
        if resting is None:
            raise Conflict(
                f"kveik.continue: the session {session!r} has no open stream: it ended, was cut "
                "in the middle of an answer, or is answering now; begin another one without "
                "continue",
                param="kveik.continue",
            )
        return resting

    def put_back(self, request: Request, resting: RestingStream) -> None:
        """The request that took it will not go on."""
        with self._lock:
            self._streams.put_back(key_of(request), resting, self._clock())

    def behind(self, request: Request, resting: RestingStream) -> Request:
        """The request in the window of the stream that it goes on from. An end of text that the
        model sampled is not said twice. InvalidRequest where it asks for another window."""
        if request.stream not in (None, resting.stream):
            raise InvalidRequest(
                f"stream_window: this stream keeps {resting.stream.sinks}+{resting.stream.window}, "
                f"{resting.stream.evict} at a time; send the same, or none, with continue",
                param="stream_window",
            )
        prompt, last = request.prompt_token_ids, resting.tokens[-1]
        if last in self._end_ids and last in prompt[:_END_WITHIN]:
            prompt = prompt[prompt.index(last) + 1 :] or prompt
        return replace(request, stream=resting.stream, prompt_token_ids=prompt)

    def end_forgotten(self, now: float) -> None:
        """What history let go has no open stream. Hold the lock."""
        gone = set()
        while self._forgotten:
            gone.add(self._forgotten.popleft())
        if gone:
            self._streams.end(gone, now)

    def _end_expired(self) -> None:
        """Streams whose time was up while nobody stepped."""
        self._history.tick()
        self.end_forgotten(self._clock())


def _default_window(parts: EngineParts, sees: int) -> StreamWindow | None:
    """The configured window; ConfigError where a model that sees so much cannot stream in it."""
    if parts.config.stream_window is None:
        return None
    window = StreamWindow(*parse_stream_window(parts.config.stream_window, "stream_window"))
    if not parts.model.can_shift or window.size > sees:
        raise ConfigError(
            f"stream_window: this model cannot stream in {window.sinks}+{window.window} tokens: "
            f"it sees {sees} at once"
            + ("" if parts.model.can_shift else ", and its positions cannot shift"),
            param="stream_window",
        )
    return window
