"""uvicorn's HTTP/1.1 protocol and server, with our errors, our limits and our way to stop."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from kveik.errors import HeadersTooLarge, InvalidRequest, KveikError
from kveik.server.gate import Gate
from kveik.server.service import Service

_KEEP_ALIVE_SECONDS = 75
_HEAD_SLACK = 16 * 1024  # the gate counts headers exactly; h11 stops what is far beyond


class Protocol(H11Protocol):
    """What is no HTTP gets an OpenAI error too; handlers can cut their connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}

    def send_400_response(self, msg: str) -> None:
        hint = getattr(sys.exc_info()[1], "error_status_hint", 400)
        error: KveikError
        if hint == 431:
            error = HeadersTooLarge("the request line and headers are too large")
        else:
            error = InvalidRequest("this is not a valid HTTP request", code="invalid_http")
        body = json.dumps(error.body()).encode()
        head = (
            f"HTTP/1.1 {error.status} Refused\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self.transport.write(head.encode() + body)
        self.transport.close()


class HttpServer(uvicorn.Server):
    """The first signal drains, the second stops now."""

    def __init__(self, service: Service) -> None:
        config = uvicorn.Config(
            Gate(service),
            http=Protocol,
            ws="none",
            loop="asyncio",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=service.config.max_header_bytes + _HEAD_SLACK,
        )
        super().__init__(config)
        self._service = service
        self._signals = 0
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run_until_stopped(
        self, listener: socket.socket, on_listening: Callable[[], None] = lambda: None
    ) -> None:
        """Serve on a bound socket until `stop` or a second signal."""
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(on_listening)
        await self.serve(sockets=[listener])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1 or self._loop is None:
            self.should_exit = self.force_exit = True
        else:
            self._loop.call_soon_threadsafe(self.stop)

    def stop(self) -> None:
        """Drain, then end. Call on the event loop."""
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            await self._service.drain()
        finally:
            self.should_exit = True
