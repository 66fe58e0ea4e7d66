"""What the dashboard is told, as JSON: summary, curves, requests, tree, block map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kveik.engine.engine import Engine
from kveik.engine.journal import Entry, Point
from kveik.engine.resting import StreamView
from kveik.engine.watching import MapChanges, TreeRow
from kveik.server.service import Service

Json = dict[str, Any]


def summary(service: Service, namespace: str | None, *, operator: bool) -> Json:
    """namespace None: of everybody. What concerns others too (the pool, the queue) is for
    operators."""
    engine = service.serving.engine
    since, sums = engine.journal.today(namespace)
    return {
        "object": "cache.summary",
        "model": engine.info.model_id,
        "scope": "all" if namespace is None else "own",
        "operator": operator,
        "tenants": service.keys.names() if operator else [],
        "today": {
            "since": round(since, 3),
            "requests": sums.requests,
            "prompt_tokens": sums.prompt,
            "cached_tokens": sums.cached,
            "approximate_tokens": sums.approximate,
            "computed_tokens": sums.computed,
            "generated_tokens": sums.generated,
            "seconds_saved": round(sums.seconds, 3),
        },
        "pool": _pool(engine) if operator else None,
        "block_tokens": engine.info.block_size,
        "block_bytes": sum(engine.info.block_bytes),
    }


def _pool(engine: Engine) -> Json:
    view, stats = engine.watching.pool(), engine.stats()
    return {
        "blocks": view.blocks,
        "free": view.free,
        "held": view.held,
        "idle": view.idle,
        "pinned": view.pinned,
        "demoted": view.demoted,
        "pin_room": view.pin_room,
        "running": stats.running,
        "waiting": stats.waiting,
        "evicted": stats.cache.evicted_blocks,
    }


def curves(engine: Engine, namespace: str | None) -> Json:
    """Points are [start, prompt, cached, approximate, seconds saved, held, idle] where something
    happened; held and idle blocks are null where nobody measured them."""
    hour, day = engine.journal.curves(namespace)
    return {
        "hour": {"seconds": 10, "points": list(map(_point, hour))},
        "day": {"seconds": 300, "points": list(map(_point, day))},
    }


def _point(point: Point) -> list[float | None]:
    sums, memory = point.sums, point.memory
    return [
        point.start,
        sums.prompt,
        sums.cached,
        sums.approximate,
        round(sums.seconds, 4),
        None if memory is None else memory.held,
        None if memory is None else memory.idle,
    ]


def requests(service: Service, entries: Sequence[Entry], *, all_scope: bool) -> list[Json]:
    return [_request(service, entry, all_scope=all_scope) for entry in entries]


def _request(service: Service, entry: Entry, *, all_scope: bool) -> Json:
    shown = shown_namespace(service, entry.namespace) if all_scope else None
    return {
        "number": entry.number,
        "at": round(entry.at, 3),
        "took": round(entry.took, 4),
        "ended": entry.ended,
        "prompt_tokens": entry.prompt,
        "cached_tokens": entry.cached,
        "approximate_tokens": entry.approximate,
        "computed_tokens": entry.computed,
        "generated_tokens": entry.generated,
        "seconds_saved": round(entry.seconds_saved, 4),
        "session": entry.session,
        "name": entry.name,
        "stream": entry.stream,
        "namespace": shown,
        "miss": None
        if entry.miss is None
        else {"position": entry.miss.position, "reason": entry.miss.reason},
    }


def shown_namespace(service: Service, namespace: str) -> str:
    """A tenant by its name; a namespace that has none by its digest; that of an open server."""
    return service.keys.name_of(namespace) or namespace or "everybody"


def tree(rows: Sequence[TreeRow], count: int) -> Json:
    return {"object": "cache.tree", "count": count, "rows": list(map(_row, rows))}


def _row(one: TreeRow) -> Json:
    row = one.row
    return {
        "node": one.place,
        "text": one.text,
        "cut": one.cut,
        "start": row.start,
        "tokens": one.tokens,
        "blocks": row.blocks,
        "bytes": row.bytes,
        "hits": row.hits,
        "age": round(row.age, 3),
        "idle": round(max(row.idle, 0.0), 3),
        "time_left": None if row.time_left is None else round(row.time_left, 3),
        "priority": row.priority,
        "demoted": row.demoted,
        "pinned": row.pinned,
        "pinned_by_hand": row.by_hand,
        "readers": row.readers,
        "claims": list(row.claims),
        "children": row.children,
        "blocks_below": row.below,
        "more_below": row.more_below,
        "approximate": row.approximate,
        "salted": row.salted,
        "after_public": row.after_public,
    }


def streams(views: Sequence[StreamView]) -> list[Json]:
    return [view._asdict() for view in views]


def blocks(service: Service, changes: MapChanges, *, all_scope: bool) -> Json:
    """Columns: `at` are places on the map, the others what is there now. Times are tenths of
    seconds, as `now`."""
    rows = changes.rows.values()
    owners = changes.owners
    if all_scope:
        owners = {number: shown_namespace(service, name) for number, name in owners.items()}
    return {
        "size": changes.size,
        "now": changes.now,
        "owners": owners,
        "at": list(changes.rows),
        "kind": [row.kind for row in rows],
        "owner": [row.owner for row in rows],
        "created": [row.created for row in rows],
        "used": [row.used for row in rows],
        "hits": [row.hits for row in rows],
    }
