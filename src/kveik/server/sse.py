"""One generation as an HTTP answer: in one piece, or as server-sent events.

    wait for the first event     an error until then is an ordinary answer with its own status
    headers, chunks ...          `: ping` when nothing came for a while
    data: [DONE]                 or data: {"error": ...} and a closed connection: never both

A client that leaves ends its requests in either form; one that stops reading loses them after
`slow_reader_seconds`, or as soon as more than `send_buffer_bytes` wait for it. How events look on
the wire is a `Dialect`: OpenAI's chunks here, other APIs in their own files.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kveik.errors import KveikError
from kveik.server.answers import Answer
from kveik.server.bridge import ClientGoneError, Feed, SlowReaderError, Tagged

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Taking(Protocol):
    """What grows from the events of a feed."""

    def take(self, tagged: Tagged) -> object: ...


class Whole(Taking, Protocol):
    """An answer in one piece: `take` of every event, then `whole`."""

    def whole(self) -> dict[str, Any]: ...


class Dialect(Whole, Protocol):
    """One generation in the words of one API: whole, or `frames` and then `ending`; `failure` ends
    a stream instead. `ping` is sent when nothing comes."""

    @property
    def ping(self) -> bytes: ...

    def frames(self, tagged: Tagged) -> bytes: ...

    def ending(self) -> bytes: ...

    def failure(self, error: KveikError) -> bytes: ...


class Chunks:
    """OpenAI's chat and text completions. usage: the client asked for a last chunk with usage."""

    ping = PING

    def __init__(self, answer: Answer, *, usage: bool) -> None:
        self._answer = answer
        self._usage = usage

    def take(self, tagged: Tagged) -> object:
        return self._answer.take(tagged)

    def whole(self) -> dict[str, Any]:
        return self._answer.whole()

    def frames(self, tagged: Tagged) -> bytes:
        return b"".join(
            frame(self._answer.chunk([choice], usage=None, with_usage=self._usage))
            for choice in self._answer.take(tagged)
        )

    def ending(self) -> bytes:
        if not self._usage:
            return DONE
        usage = self._answer.totals.json()
        return frame(self._answer.chunk([], usage=usage, with_usage=True)) + DONE

    def failure(self, error: KveikError) -> bytes:
        return frame(error.body())


@dataclass(frozen=True, slots=True)
class StreamRules:
    """Times in seconds."""

    ping_seconds: float
    slow_reader_seconds: float


async def collect(feed: Feed, answer: Taking, receive: Receive) -> None:
    """Take every event. Raises what ended the feed."""
    async with _leaving(feed, receive):
        while not feed.done:
            for tagged in await feed.batch():
                answer.take(tagged)


class EventStream(Response):
    """Answers with server-sent events. `close` is called in the end, whatever happens."""

    def __init__(
        self, feed: Feed, dialect: Dialect, rules: StreamRules, close: Callable[[], None]
    ) -> None:
        super().__init__()
        self._feed = feed
        self._dialect = dialect
        self._rules = rules
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        abort: Callable[[], None] = scope["state"].get("abort", lambda: None)
        self._feed.on_overflow = abort
        try:
            async with _leaving(self._feed, receive):
                first = await self._feed.batch(self._rules.ping_seconds)
                await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
                await self._write(first, send)
        except TimeoutError:
            abort()
            raise SlowReaderError from None
        except SlowReaderError:
            abort()
            raise
        finally:
            self._close()

    async def _write(self, first: list[Tagged], send: Send) -> None:
        try:
            await self._send(send, self._frames(first))
            while not self._feed.done:
                events = await self._feed.batch(self._rules.ping_seconds)
                await self._send(send, self._frames(events))
            await self._send(send, self._dialect.ending(), more=False)
        except KveikError as error:
            await self._send(send, self._dialect.failure(error), more=False)

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        if body or not more:
            message = {"type": "http.response.body", "body": body, "more_body": more}
            async with asyncio.timeout(self._rules.slow_reader_seconds):
                await send(message)

    def _frames(self, events: list[Tagged]) -> bytes:
        if not events:
            return self._dialect.ping
        return b"".join(self._dialect.frames(tagged) for tagged in events)


def frame(value: dict[str, Any], event: str | None = None) -> bytes:
    """One server-sent event; `event`: its name, where the API names its events."""
    data = _encode(value)
    return (f"event: {event}\ndata: {data}\n\n" if event else f"data: {data}\n\n").encode()


@contextlib.asynccontextmanager
async def _leaving(feed: Feed, receive: Receive) -> AsyncIterator[None]:
    """While inside, a client that closes its connection fails the feed with ClientGoneError."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        feed.fail(ClientGoneError())

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
