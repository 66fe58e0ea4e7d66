"""One generation as an HTTP answer: in one piece, or as server-sent events.

    wait for the first event     an error until then is an ordinary answer with its own status
    headers, chunks ...          `: ping` when nothing came for a while
    data: [DONE]                 or data: {"error": ...} and a closed connection: never both

A client that leaves ends its requests in either form; one that stops reading loses them after
`slow_reader_seconds`, or as soon as more than `send_buffer_bytes` wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True)
class StreamRules:
    """usage: the client asked for a last chunk with usage. Times in seconds."""

    usage: bool
    ping_seconds: float
    slow_reader_seconds: float


async def collect(feed: Feed, answer: Answer, receive: Receive) -> dict[str, Any]:
    """Take every event and return the whole answer. Raises what ended the feed."""
    async with _leaving(feed, receive):
        while not feed.done:
            for tagged in await feed.batch():
                answer.take(tagged)
    return answer.whole()


class EventStream(Response):
    """Answers with server-sent events. `close` is called in the end, whatever happens."""

    def __init__(
        self, feed: Feed, answer: Answer, rules: StreamRules, close: Callable[[], None]
    ) -> None:
        super().__init__()
        self._feed = feed
        self._answer = answer
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
            await self._send(send, self._ending(), more=False)
        except KveikError as error:
            await self._send(send, _frame(error.body()), more=False)

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        if body or not more:
            message = {"type": "http.response.body", "body": body, "more_body": more}
            await asyncio.wait_for(send(message), self._rules.slow_reader_seconds)

    def _frames(self, events: list[Tagged]) -> bytes:
        if not events:
            return PING
        frames = []
        for tagged in events:
            for choice in self._answer.take(tagged):
                chunk = self._answer.chunk([choice], usage=None, with_usage=self._rules.usage)
                frames.append(_frame(chunk))
        return b"".join(frames)

    def _ending(self) -> bytes:
        if not self._rules.usage:
            return DONE
        usage = self._answer.totals.json()
        return _frame(self._answer.chunk([], usage=usage, with_usage=True)) + DONE


def _frame(value: dict[str, Any]) -> bytes:
    return (
        b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
    )


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
