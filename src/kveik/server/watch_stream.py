"""GET /v1/cache/watch: the dashboard's server-sent events.

    event: about      first of all              event: blocks     what changed on the map
    event: now        once per second           event: requests   those that ended since the last
    event: history    every ten seconds         event: lists      every three seconds: named caches,
    event: curve      every ten seconds                           sessions, streams

`now` is the history of one step. The curve is for operators, as the pool is.

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

from kveik.server import watch_json
from kveik.server.auth import Caller
from kveik.server.bridge import ClientGoneError, SlowReaderError
from kveik.server.cache_handlers import cache_object
from kveik.server.past_handlers import curve_object, history_object, pool_object, request_object
from kveik.server.service import Service
from kveik.server.sse import HEADERS, frame

NOW, LISTS, HISTORY = 1.0, 3.0, 10.0
"""Seconds between two events of a kind."""

RATE, SHARE = 5.0, 0.0025
"""Where nobody asks for a rate: updates per second at most, and the share of the time that making
them may take."""

_NOTICED = 0.5
"""Seconds within which the stream sees that the server drains."""

_SESSIONS = 200  # told at most, those used last

Json = dict[str, Any]


class View:
    """What one onlooker has been told. Not on the event loop."""

    def __init__(self, service: Service, caller: Caller, namespace: str | None) -> None:
        self._service, self._caller, self._namespace = service, caller, namespace
        self._engine = service.serving.engine
        everything = caller.operator and service.keys.alone  # what is counted includes the pool
        self._changes = self._engine.watching.block_map(namespace, whole=everything)
        self._totals_of = None if everything else namespace
        self._last_request = 0
        self._due: dict[str, float] = {}

    def frames(self) -> bytes:
        """Everything that is due."""
        engine = self._engine
        told = [] if self._due else [frame(self._about(), "about")]
        told += [self._blocks(), self._requests()]
        if self._is_due("now", NOW):
            told.append(frame(self._now(), "now"))
        if self._is_due("lists", LISTS):
            told.append(frame(self._lists(), "lists"))
        if self._is_due("history", HISTORY):
            told.append(frame(history_object(engine, self._totals_of), "history"))
            if self._caller.operator:
                told.append(frame(curve_object(engine), "curve"))
        return b"".join(told)

    def _is_due(self, name: str, seconds: float) -> bool:
        now = time.monotonic()
        due = now >= self._due.get(name, 0.0)
        if due:
            self._due[name] = now + seconds
        return due

    def _now(self) -> Json:
        now = history_object(self._engine, self._totals_of, 1)
        return now | {"now": pool_object(self._engine)} if self._caller.operator else now

    def _about(self) -> Json:
        return watch_json.about(self._service, self._caller, self._namespace)

    def _blocks(self) -> bytes:
        changes = self._changes()
        if not changes.rows and not changes.owners and self._due:
            return b""
        return frame(watch_json.blocks(self._service, changes, self._namespace), "blocks")

    def _requests(self) -> bytes:
        """The newest last."""
        found = self._engine.past_requests(self._namespace)
        if found and found[0].number < self._last_request:  # the book began anew
            self._last_request = 0
        fresh = [one for one in found if one.number > self._last_request]
        if not fresh:
            return b""
        self._last_request = fresh[0].number
        shown = self._namespace is None
        told = [request_object(self._service, one, shown=shown) for one in reversed(fresh)]
        return frame({"requests": told}, "requests")

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
            "streams": [one._asdict() for one in engine.watching.streams(namespace)],
        }


class WatchStream(Response):
    """rate: updates per second; None: as many as are cheap. close is called in the end, whatever
    happens."""

    def __init__(
        self, service: Service, view: View, rate: float | None, close: Callable[[], None]
    ) -> None:
        super().__init__()
        self._service, self._view, self._rate = service, view, rate
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
        spoke = due = loop.time()
        opening = True
        while self._service.phase == "ready":
            body, cost = await asyncio.to_thread(self._timed)
            if not body and loop.time() - spoke > self._service.ping_seconds:
                body = b": ping\n\n"
            if body:
                spoke = loop.time()
                await self._send(send, body, more=True)
            pause = 1 / RATE if self._rate is None else 1 / self._rate
            if self._rate is None and not opening:  # the whole pool is told once
                pause = max(pause, cost / SHARE)
            opening = False
            due = max(due + pause, loop.time())  # what was missed is not made up for
            await self._rest(watcher, due)
        await self._send(send, b"", more=False)

    async def _rest(self, watcher: asyncio.Task[None], due: float) -> None:
        """Until it is due or the server drains."""
        loop = asyncio.get_running_loop()
        while True:
            left = max(0.0, due - loop.time())
            done, _ = await asyncio.wait({watcher}, timeout=min(left, _NOTICED))
            if done:
                raise ClientGoneError
            if left <= _NOTICED or self._service.phase != "ready":
                return

    def _timed(self) -> tuple[bytes, float]:
        """The frames, and the processor time of this thread that they took."""
        before = time.thread_time()
        return self._view.frames(), time.thread_time() - before

    async def _send(self, send: Send, body: bytes, *, more: bool) -> None:
        async with asyncio.timeout(self._service.config.slow_reader_seconds):
            await send({"type": "http.response.body", "body": body, "more_body": more})


async def _gone(receive: Receive) -> None:
    """Returns when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
