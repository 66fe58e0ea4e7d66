"""What the dashboard is told, as JSON: who looks at what, the tree, the block map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kveik.cache.directive import PUBLIC
from kveik.engine.watching import MapChanges, TreeRow
from kveik.server.auth import Caller
from kveik.server.keys_file import PUBLIC_NAME
from kveik.server.service import Service

Json = dict[str, Any]


def about(service: Service, caller: Caller, namespace: str | None) -> Json:
    """What does not change while somebody looks. The size of the pool is for operators; tenants:
    whom an operator can look at."""
    info = service.serving.engine.info
    return {
        "model": info.model_id,
        "scope": "all" if namespace is None else "own",
        "operator": caller.operator,
        "tenants": service.keys.names() if caller.operator else [],
        "block_tokens": info.block_size,
        "block_bytes": sum(info.block_bytes),
        "pool_blocks": info.pool_blocks[0] if caller.operator else None,
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


def blocks(service: Service, changes: MapChanges, namespace: str | None) -> Json:
    """Columns: `at` are places on the map, the others what is there now. Times are tenths of
    seconds, as `now`."""
    rows = changes.rows.values()
    owners = changes.owners
    if namespace is None:
        owners = {number: shown_namespace(service, name) for number, name in owners.items()}
    elif PUBLIC in owners.values():  # the only other one on the map of one namespace
        owners = {n: PUBLIC_NAME if name == PUBLIC else name for n, name in owners.items()}
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
