"""What the cache did lately, for the dashboard and `kveik cache top`: history, requests, curve.

A key sees its own namespace. What all of them did together (?scope=all) and the curve, which says
how the pool would do at other sizes, are for operators.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kveik.engine.engine import Engine
from kveik.engine.explain import brief
from kveik.engine.journal import PastRequest
from kveik.engine.series import Counts
from kveik.errors import InvalidRequest
from kveik.server.cache_handlers import namespace_of, number_of
from kveik.server.handlers import caller_of, json_response
from kveik.server.service import Service

Json = dict[str, Any]

_DEFAULT_STEPS = 360  # an hour
_DEFAULT_REQUESTS = 50


async def history(service: Service, request: Request) -> Response:
    """Hit rate, tokens and memory over the last hours, by day, and the state now."""
    engine, namespace = service.serving.engine, watched_namespace(service, request)
    steps = number_of(request, "steps", "history_steps", _DEFAULT_STEPS)
    return json_response(history_object(engine, namespace, steps))


def history_object(engine: Engine, namespace: str | None, steps: int = _DEFAULT_STEPS) -> Json:
    """namespace None: of all together."""
    past = engine.past(namespace, steps=steps)
    days = [{"date": day.isoformat(), **_counts(counts)} for day, counts in past.days]
    series = {name: _rounded(values) for name, values in past.columns.items()}
    return {
        "object": "cache.history",
        "scope": "own" if namespace is not None else "all",
        "start": past.start,
        "step": past.step,
        "series": series,
        "today": days[-1],
        "days": days,
        "now": pool_object(engine) if namespace is None else None,
    }


async def requests(service: Service, request: Request) -> Response:
    """The last requests that ended, the newest first."""
    engine, namespace = service.serving.engine, watched_namespace(service, request)
    top = number_of(request, "top", "listing_count", _DEFAULT_REQUESTS)
    found = engine.past_requests(namespace, top=top)
    data = [request_object(service, one, shown=namespace is None) for one in found]
    return json_response({"object": "cache.requests", "data": data})


async def curve(service: Service, request: Request) -> Response:
    """Hit rate against memory: what pools of other sizes would have served."""
    caller_of(request).require_operator()
    return json_response(curve_object(service.serving.engine))


def curve_object(engine: Engine) -> Json:
    found = engine.curve()
    times = {"half": found.at(0.5), "this": found.at(1), "twice": found.at(2)}
    return {"object": "cache.curve", **asdict(found), **times}


def watched_namespace(service: Service, request: Request) -> str | None:
    """The namespace that is asked about; None: all together, for operators."""
    scope = request.query_params.get("scope", "own")
    if scope not in ("own", "all"):
        raise InvalidRequest("scope: expected own or all", param="scope")
    if scope == "own":
        return namespace_of(service, request)
    caller_of(request).require_operator()
    return None


def _counts(counts: Counts) -> Json:
    """share: of the prompt tokens that came from the cache."""
    reused = counts.cached_tokens + counts.approximate_tokens
    share = reused / counts.prompt_tokens if counts.prompt_tokens else 0.0
    whole = {name: _rounded([value])[0] for name, value in asdict(counts).items()}
    return {**whole, "share": round(share, 6)}


def _rounded(values: list[float]) -> list[float]:
    """Whole numbers without a point, seconds to the microsecond."""
    return [int(value) if value == int(value) else round(value, 6) for value in values]


def pool_object(engine: Engine) -> Json:
    """The pool, in bytes, and what is under way."""
    stats, (used, cached, total) = engine.stats(), engine.cache_memory()
    blocks = zip(stats.cache.pinned_blocks, engine.info.block_bytes, strict=False)
    return {
        "used_bytes": used,
        "cached_bytes": cached,
        "pinned_bytes": sum(count * size for count, size in blocks),
        "total_bytes": total,
        "running": stats.running,
        "waiting": stats.waiting,
        "sessions": stats.cache.sessions,
        "open_streams": stats.open_streams,
        "named_caches": stats.named_caches,
    }


def request_object(service: Service, one: PastRequest, *, shown: bool) -> Json:
    """explanation: null for a request that was not computed. shown: with its namespace."""
    body = asdict(one)
    body["id"] = body.pop("request_id")
    namespace, miss = body.pop("namespace"), body.pop("miss")
    if shown:
        body["namespace"] = service.keys.name_of(namespace) or namespace
    body["explanation"] = None if miss is None else {**miss, **brief(miss["reason"])}
    return body
