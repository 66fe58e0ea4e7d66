"""GET /v1/cache/watch: the dashboard's server-sent events.

    event: summary    once per second           event: blocks     what changed on the map
    event: curves     every ten seconds         event: requests   those that ended since the last
    event: lists      every three seconds: named caches, sessions, streams

Everything is put together on a helper thread, and no sooner than the client has taken what was
sent before: who reads slowly gets fewer updates and holds up nobody. The stream ends when the
server drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kveik.engine.journal import Memory
from kveik.engine.watching import KINDS, MapChanges
from kveik.server import watch_json
from kveik.server.auth import Caller
from kveik.server.bridge import ClientGoneError, SlowReaderError
from kveik.server.cache_handlers import cache_object
from kveik.server.service import Service
from kveik.server.sse import HEADERS, frame

SUMMARY, LISTS, CURVES = 1.0, 3.0, 10.0
"""Seconds between two events of a kind."""

_SESSIONS = 200  # told at most, those used last

Json = dict[str, Any]


class View:
    """What one onlooker has been told. Not on the event loop."""

    def __init__(self, service: Service, caller: Caller, namespace: str | None) -> None:
        self._service, self._caller, self._namespace = service, caller, namespace
        self._engine = service.serving.engine
        self._changes = self._engine.watching.block_map(namespace)
        self._last_request = 0
        self._due: dict[str, float] = {}

    def frames(self) -> bytes:
        """Everything that is due."""
        told = [self._blocks(), self._requests()]
        for name, seconds, make in (
            ("summary", SUMMARY, self._summary),
            ("lists", LISTS, self._lists),
            ("curves", CURVES, self._curves),
        ):
            if time.monotonic() >= self._due.get(name, 0.0):
                self._due[name] = time.monotonic() + seconds
                told.append(frame(make(), name))
        return b"".join(told)

    def _blocks(self) -> bytes:
        changes = self._changes()
        if self._namespace is not None:
            self._engine.journal.measure(self._namespace, _memory(changes))
        if not changes.rows and not changes.owners and self._due:
            return b""
        all_scope = self._namespace is None
        return frame(watch_json.blocks(self._service, changes, all_scope=all_scope), "blocks")

    def _requests(self) -> bytes:
        entries = self._engine.journal.last(self._namespace, self._last_request)
        if not entries and self._due:
            return b""
        self._last_request = entries[-1].number if entries else 0
        all_scope = self._namespace is None
        told = watch_json.requests(self._service, entries, all_scope=all_scope)
        return frame({"requests": told}, "requests")

    def _summary(self) -> Json:
        operator = self._caller.operator
        return watch_json.summary(self._service, self._namespace, operator=operator)

    def _curves(self) -> Json:
        return watch_json.curves(self._engine, self._namespace)

    def _lists(self) -> Json:
        """Names and sessions belong to one namespace; of everybody there is no list of them."""
        engine, namespace = self._engine, self._namespace
        if namespace is None:
            return {"caches": [], "sessions": [], "streams": []}
        sessions = engine.sessions(namespace)[:_SESSIONS]
        return {
            "caches": [cache_object(one, self._caller) for one in engine.named.list(namespace)],
            "sessions": [
                {"session": one.session, "idle": one.idle, "blocks": one.blocks} for one in sessions
            ],
            "streams": watch_json.streams(engine.watching.streams(namespace)),
        }


def _memory(changes: MapChanges) -> Memory:
    counts = dict(zip(KINDS, changes.counts, strict=True))
    idle = counts["idle"] + counts["pinned"] + counts["demoted"]
    return Memory(counts["computing"] + counts["read"], idle, counts["pinned"])


class WatchStream(Response):
    """seconds: between two updates. close is called in the end, whatever happens."""

    def __init__(
        self, service: Service, view: View, seconds: float, close: Callable[[], None]
    ) -> None:
        super().__init__()
        self._service, self._view, self._seconds = service, view, seconds
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = asyncio.create_task(_gone(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await self._write(watcher, send)
        except TimeoutError:
            scope["state"].get("abort", lambda: None)()
            raise SlowReaderError from None
        finally:
            self._close()
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    async def _write(self, watcher: asyncio.Task[None], send: Send) -> None:
        loop = asyncio.get_running_loop()
        spoke = loop.time()
        while self._service.phase == "ready":
            begun = loop.time()
            body = await asyncio.to_thread(self._view.frames)
            if not body and begun - spoke > self._service.ping_seconds:
                body = b": ping\n\n"
            if body:
                spoke = begun
                await self._send(send, body, more=True)
            left = max(begun + self._seconds - loop.time(), 0.001)
            done, _ = await asyncio.wait({watcher}, timeout=left)
            if done:
                raise ClientGoneError
        await self._send(send, b"", more=False)

    async def _send(self, send: Send, body: bytes, *, more: bool) -> None:
        async with asyncio.timeout(self._service.config.slow_reader_seconds):
            await send({"type": "http.response.body", "body": body, "more_body": more})


async def _gone(receive: Receive) -> None:
    """Returns when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
