"""JSON Schemas of the routes behind the dashboard, for the OpenAPI document."""

from __future__ import annotations

from kveik.config import LIMITS
from kveik.server.schemas import (
    BOOLEAN,
    INTEGER,
    NULL_NUMBER,
    NULL_STRING,
    NUMBER,
    SCOPE,
    STRING,
    TENANT,
    Schema,
    list_of,
    object_of,
)

_POOL = (
    *("blocks", "free", "held", "idle", "pinned", "demoted", "pin_room"),
    *("running", "waiting", "evicted"),
)
SUMMARY = object_of(
    {
        "object": {"const": "cache.summary"},
        "model": STRING,
        "scope": {"enum": ["own", "all"]},
        "operator": BOOLEAN,
        "tenants": list_of(STRING),
        "today": object_of(
            {
                "since": NUMBER,
                "requests": INTEGER,
                "prompt_tokens": INTEGER,
                "cached_tokens": INTEGER,
                "approximate_tokens": INTEGER,
                "computed_tokens": INTEGER,
                "generated_tokens": INTEGER,
                "seconds_saved": NUMBER,
            }
        ),
        "pool": {
            "type": ["object", "null"],
            "properties": dict.fromkeys(_POOL, INTEGER),
        },
        "block_tokens": INTEGER,
        "block_bytes": INTEGER,
    }
)

_CURVE = object_of(
    {
        "seconds": INTEGER,
        "points": list_of({"type": "array", "items": NULL_NUMBER, "minItems": 7, "maxItems": 7}),
    }
)
CURVES = object_of({"hour": _CURVE, "day": _CURVE})

_REQUEST: Schema = {
    "number": INTEGER,
    "at": NUMBER,
    "took": NUMBER,
    "ended": {"enum": ["stop", "length", "abort", "error"]},
    "prompt_tokens": INTEGER,
    "cached_tokens": INTEGER,
    "approximate_tokens": INTEGER,
    "computed_tokens": INTEGER,
    "generated_tokens": INTEGER,
    "seconds_saved": NUMBER,
    "session": NULL_STRING,
    "name": NULL_STRING,
    "stream": BOOLEAN,
    "namespace": NULL_STRING,
    "miss": {"type": ["object", "null"]},
}
REQUESTS = object_of({"object": {"const": "list"}, "data": list_of(object_of(_REQUEST))})
EXPLAINED = object_of(
    {**_REQUEST, "in_words": BOOLEAN, "explanation": {"type": ["object", "null"]}}
)

TREE = object_of(
    {
        "object": {"const": "cache.tree"},
        "count": INTEGER,
        "rows": list_of(
            object_of(
                {
                    "node": STRING,
                    "text": STRING,
                    "cut": BOOLEAN,
                    "start": INTEGER,
                    "tokens": INTEGER,
                    "blocks": INTEGER,
                    "bytes": INTEGER,
                    "hits": INTEGER,
                    "age": NUMBER,
                    "idle": NUMBER,
                    "time_left": NULL_NUMBER,
                    "priority": STRING,
                    "demoted": BOOLEAN,
                    "pinned": BOOLEAN,
                    "pinned_by_hand": BOOLEAN,
                    "readers": INTEGER,
                    "claims": list_of(STRING),
                    "children": INTEGER,
                    "blocks_below": INTEGER,
                    "more_below": BOOLEAN,
                    "approximate": BOOLEAN,
                    "salted": BOOLEAN,
                    "after_public": BOOLEAN,
                }
            )
        ),
    }
)
EVENTS: Schema = {"type": "string", "contentMediaType": "text/event-stream"}


def _parameter(name: str, schema: Schema, description: str) -> Schema:
    return {
        "name": name,
        "in": "query",
        "required": False,
        "schema": schema,
        "description": description,
    }


def _bounds(limit: str, kind: str) -> Schema:
    return {"type": kind, "minimum": LIMITS[limit].low, "maximum": LIMITS[limit].high}


WHOSE: list[Schema] = [*SCOPE, *TENANT]
WATCH_QUERY: list[Schema] = [
    *WHOSE,
    _parameter("rate", _bounds("dashboard_rate", "number"), "updates per second"),
]
TREE_QUERY: list[Schema] = [
    *TENANT,
    _parameter("node", STRING, "the place below which to look; none: where prompts begin"),
    _parameter("rows", _bounds("tree_rows", "integer"), "how many, the one used last first"),
]
