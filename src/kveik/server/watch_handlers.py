"""The routes behind the dashboard: summary, requests, the prefix tree, and the stream of changes.

A key sees its own namespace. `?scope=all` (operators) is everybody in sizes and times, without
labels and without words; `?namespace=NAME` (operators) is one tenant as it sees itself.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from starlette.requests import Request
from starlette.responses import Response

from kveik.config import LIMITS, check_limit
from kveik.errors import InvalidRequest, NotFound, Overloaded
from kveik.server import watch_json
from kveik.server.cache_bodies import ActOnTree
from kveik.server.cache_handlers import namespace_of, receipt_object
from kveik.server.handlers import caller_of, json_response, read_body
from kveik.server.service import Service
from kveik.server.watch_stream import View, WatchStream

_ROWS = 50
_RATE = 5.0  # updates per second


async def summary(service: Service, request: Request) -> Response:
    """What the cache saved today, and what the pool holds."""
    operator = caller_of(request).operator
    namespace = _watched(service, request)
    return json_response(watch_json.summary(service, namespace, operator=operator))


async def curves(service: Service, request: Request) -> Response:
    """Hits and memory of the last hour and the last day."""
    engine = service.serving.engine
    return json_response(watch_json.curves(engine, _watched(service, request)))


async def requests(service: Service, request: Request) -> Response:
    """The last requests that ended."""
    engine = service.serving.engine
    namespace = _watched(service, request)
    entries = engine.journal.last(namespace)
    told = watch_json.requests(service, entries, all_scope=namespace is None)
    return json_response({"object": "list", "data": told})


async def one_request(service: Service, request: Request) -> Response:
    """Why not more of one of the last requests came from the cache. In words where somebody was
    watching when it ran."""
    engine = service.serving.engine
    number = _number(request.path_params["number"])
    entries = engine.journal.last(namespace_of(service, request))
    entry = next((one for one in entries if one.number == number), None)
    if entry is None:
        raise NotFound(
            "number: this request is not among the last ones; GET /v1/cache/requests lists them",
            param="number",
        )
    found = await asyncio.to_thread(engine.watching.explanation, entry)
    return json_response(
        {
            **watch_json.requests(service, [entry], all_scope=False)[0],
            "in_words": entry.explained is not None,
            "explanation": None if found is None else found.as_json(),
        }
    )


async def tree(service: Service, request: Request) -> Response:
    """The prefix tree of a namespace, one level: below `node`, or where prompts begin."""
    engine = service.serving.engine
    namespace, node = namespace_of(service, request), request.query_params.get("node")
    most = _rows(request)
    rows, count = await asyncio.to_thread(engine.watching.tree, namespace, node, most)
    return json_response(watch_json.tree(rows, count))


async def act_on_tree(service: Service, request: Request) -> Response:
    """Pin, unpin, expire or evict a place of the tree."""
    engine = service.serving.engine
    body = await read_body(service, request, ActOnTree)
    namespace = namespace_of(service, request)
    receipt = await asyncio.to_thread(engine.watching.act, namespace, body.node, body.action)
    return json_response(receipt_object(receipt))


async def watch(service: Service, request: Request) -> Response:
    """A stream of changes, until the client leaves."""
    engine = service.serving.engine
    namespace = _watched(service, request)
    rate = _asked_rate(request)
    if service.watchers >= int(LIMITS["dashboards"].high):
        raise Overloaded(
            f"{service.watchers} dashboards are open already; close one", retry_after=10
        )
    stack = ExitStack()
    stack.enter_context(engine.journal.watching(namespace))
    service.watchers += 1

    def close() -> None:
        service.watchers -= 1
        stack.close()

    view = View(service, caller_of(request), namespace)
    return WatchStream(service, view, 1.0 / rate, close)


def _watched(service: Service, request: Request) -> str | None:
    """The namespace that is looked at; None: of everybody."""
    scope = request.query_params.get("scope", "own")
    if scope not in ("own", "all"):
        raise InvalidRequest("scope: expected own or all", param="scope")
    if scope == "own":
        return namespace_of(service, request)
    caller_of(request).require_operator()
    return None


def _asked_rate(request: Request) -> float:
    text = request.query_params.get("rate", str(_RATE))
    try:
        rate = float(text)
    except ValueError:
        raise InvalidRequest("rate: expected updates per second", param="rate") from None
    check_limit("dashboard_rate", rate, param="rate")
    return rate


def _rows(request: Request) -> int:
    text = request.query_params.get("rows", str(_ROWS))
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        low, high = LIMITS["tree_rows"].low, LIMITS["tree_rows"].high
        raise InvalidRequest(f"rows: expected a number from {low} to {high}", param="rows")
    check_limit("tree_rows", int(text), param="rows")
    return int(text)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise InvalidRequest("number: expected that of a request", param="number")
    return int(text)
