"""What every request passes, before and after its route: the outermost ASGI application.

    request id -> header cap -> Host -> Origin -> CORS preflight -> key -> route -> errors -> log

Access is decided on the path that the router matches, and denied by default. Every error leaves in
OpenAI's shape, or Anthropic's on its paths, with the request id; a fault of ours is a 500 without
a trace. Neither prompt text, keys nor paths as sent are logged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kveik.errors import (
    HeadersTooLarge,
    KveikError,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    PermissionDenied,
    RequestTimeout,
    RequestTooLarge,
    Unauthorized,
    Unavailable,
    fault,
)
from kveik.server import anthropic_errors, origin
from kveik.server.auth import Caller
from kveik.server.bridge import ClientGoneError, SlowReaderError
from kveik.server.routes import PUBLIC_PATHS, build_router
from kveik.server.service import Service

_log = logging.getLogger("kveik.server")
_access = logging.getLogger("kveik.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_GONE = 499  # in logs and metrics only: the client left
_NO_ROUTE = "(none)"
_METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS")

Header = tuple[bytes, bytes]


@dataclass(slots=True)
class Exchange:
    """One request and what has become of it."""

    scope: Scope
    request_id: str
    headers: list[Header]  # added to the answer, whatever it is
    started: float
    status: int | None = None  # None: the answer has not begun

    @property
    def route(self) -> str:
        pattern: str = self.scope.get("pattern", _NO_ROUTE)
        return pattern


class Gate:
    """`Gate(service)` is the ASGI application."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._router: ASGIApp = build_router(service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        scope.setdefault("state", {})
        exchange = self._exchange(scope)
        watched = _watch(exchange, send)
        self._service.active += 1
        try:
            await self._admit_and_route(exchange, receive, watched)
        except KveikError as error:
            await _refuse(exchange, error, watched)
        except HTTPException as error:
            await _refuse(exchange, _routing_error(error), watched, error.headers)
        except (ClientGoneError, ClientDisconnect, SlowReaderError):
            exchange.status = _GONE
        except Exception as error:
            _log_fault(exchange, error)
            fault = KveikError(f"the server failed; request id {exchange.request_id}")
            await _refuse(exchange, fault, watched)
        finally:
            self._service.active -= 1
            self._record(exchange)

    def _exchange(self, scope: Scope) -> Exchange:
        sent = origin.header(scope["headers"], b"x-request-id") or ""
        request_id = sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
        headers = [
            (b"x-request-id", request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
            *origin.cors_headers(scope["headers"], self._service.config.cors_origins),
        ]
        if anthropic_errors.speaks(scope["path"]):
            headers.append((b"request-id", request_id.encode()))
        scope["request_id"] = request_id
        scope["app"] = self
        return Exchange(scope, request_id, headers, time.monotonic())

    async def _admit_and_route(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        scope, config = exchange.scope, self._service.config
        headers: list[Header] = scope["headers"]
        size = sum(len(name) + len(value) + 4 for name, value in headers)
        if size + len(scope["raw_path"]) > config.max_header_bytes:
            raise HeadersTooLarge(f"the headers are larger than {config.max_header_bytes} bytes")
        open_door = self._service.keys.open
        origin.check_host(headers, loopback_only=open_door and origin.is_loopback(config.host))
        if origin.is_preflight(scope["method"], headers):
            await _preflight(headers, config.cors_origins, send)
            return
        origin.check_origin(headers, config.cors_origins, open_door=open_door)
        scope["caller"] = self._caller(scope["path"], headers)
        await self._router(scope, receive, send)

    def _caller(self, path: str, headers: list[Header]) -> Caller:
        if path in PUBLIC_PATHS:
            return Caller("", False)
        return self._service.keys.caller(headers)

    def _record(self, exchange: Exchange) -> None:
        status = exchange.status or _GONE
        self._service.metrics.answered(exchange.route, status)
        method = exchange.scope["method"]
        _access.info(
            "%s %s %d",
            method if method in _METHODS else "(other)",
            exchange.route,
            status,
            extra={
                "fields": {
                    "request_id": exchange.request_id,
                    "client": (exchange.scope.get("client") or ("",))[0],
                    "seconds": round(time.monotonic() - exchange.started, 4),
                }
            },
        )


def _watch(exchange: Exchange, send: Send) -> Send:
    """Add the headers that every answer has, and note its status."""

    async def watched(message: Message) -> None:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *exchange.headers]}
        await send(message)

    return watched


async def _preflight(headers: list[Header], allowed: tuple[str, ...], send: Send) -> None:
    if not origin.is_allowed(origin.header(headers, b"origin") or "", allowed):
        raise PermissionDenied("this origin may not call; start with --cors-origin ORIGIN")
    await send({"type": "http.response.start", "status": 204, "headers": origin.PREFLIGHT_HEADERS})
    await send({"type": "http.response.body", "body": b""})


async def _refuse(exchange: Exchange, error: KveikError, send: Send, extra: object = None) -> None:
    """Answer with the error, or close the connection if another answer has begun."""
    if exchange.status is not None:
        exchange.scope["state"].get("abort", lambda: None)()
        return
    status, told = error.status, error.body()
    if anthropic_errors.speaks(exchange.scope["path"]):
        status = anthropic_errors.status(error)
        told = anthropic_errors.body(error, exchange.request_id)
    body = json.dumps(told, ensure_ascii=False).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *_error_headers(error),
    ]
    if isinstance(extra, dict):
        headers += [(name.lower().encode(), value.encode()) for name, value in extra.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _error_headers(error: KveikError) -> list[Header]:
    if isinstance(error, Overloaded | Unavailable):
        return [(b"retry-after", str(error.retry_after).encode())]
    if isinstance(error, Unauthorized):
        return [(b"www-authenticate", b"Bearer")]
    if isinstance(error, RequestTooLarge | RequestTimeout):
        return [(b"connection", b"close")]
    return []


def _routing_error(error: HTTPException) -> KveikError:
    if error.status_code == 405:
        return MethodNotAllowed("this route does not take this method")
    return NotFound("no such route; GET /openapi.json lists what is served")


def _log_fault(exchange: Exchange, error: Exception) -> None:
    if isinstance(error, asyncio.CancelledError):
        return
    _log.error("request %s failed: %s", exchange.request_id, fault(error))
