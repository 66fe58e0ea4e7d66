"""More routes behind the dashboard: one request, the prefix tree, and the stream of changes.

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
from kveik.server.cache_handlers import namespace_of, number_of, receipt_object
from kveik.server.handlers import caller_of, json_response, read_body
from kveik.server.past_handlers import request_object, watched_namespace
from kveik.server.service import Service
from kveik.server.watch_stream import View, WatchStream

_ROWS = 50
_MOST = int(LIMITS["listing_count"].high)


async def one_request(service: Service, request: Request) -> Response:
    """Why not more of one of the last requests came from the cache. In words where somebody was
    watching when it ran."""
    engine = service.serving.engine
    number = _number(request.path_params["number"])
    namespace = namespace_of(service, request)
    found = (one for one in engine.past_requests(namespace, top=_MOST) if one.number == number)
    past = next(found, None)
    if past is None:
        raise NotFound(
            "number: this request is not among the last ones; GET /v1/cache/requests lists them",
            param="number",
        )
    parting = engine.partings.of(namespace, number)
    told = request_object(service, past, shown=False)
    if parting is not None:
        words = await asyncio.to_thread(engine.watching.in_words, past, parting)
        told["explanation"] = words.as_json()
    return json_response({**told, "in_words": parting is not None})


async def tree(service: Service, request: Request) -> Response:
    """The prefix tree of a namespace, one level: below `node`, or where prompts begin."""
    engine = service.serving.engine
    namespace, node = namespace_of(service, request), request.query_params.get("node")
    most = number_of(request, "rows", "tree_rows", _ROWS)
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
    namespace = watched_namespace(service, request)
    rate = _asked_rate(request)
    if service.watchers >= int(LIMITS["dashboards"].high):
        raise Overloaded(
            f"{service.watchers} dashboards are open already; close one", retry_after=10
        )
    stack = ExitStack()
    stack.enter_context(engine.partings.watching(namespace))
    service.watchers += 1

    def close() -> None:
        service.watchers -= 1
        stack.close()

    view = View(service, caller_of(request), namespace)
    return WatchStream(service, view, rate, close)


def _asked_rate(request: Request) -> float | None:
    text = request.query_params.get("rate")
    if text is None:
        return None
    try:
        rate = float(text)
    except ValueError:
        raise InvalidRequest("rate: expected updates per second", param="rate") from None
    check_limit("dashboard_rate", rate, param="rate")
    return rate


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise InvalidRequest("number: expected that of a request", param="number")
    return int(text)
