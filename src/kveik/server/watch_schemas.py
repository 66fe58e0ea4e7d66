"""JSON Schemas of the routes behind the dashboard, for the OpenAPI document."""

from __future__ import annotations

from kveik.config import LIMITS
from kveik.server.schemas import (
    BOOLEAN,
    INTEGER,
    NULL_NUMBER,
    NUMBER,
    PAST_REQUESTS,
    SCOPE,
    STRING,
    TENANT,
    Schema,
    list_of,
    object_of,
)

_PAST = PAST_REQUESTS["properties"]["data"]["items"]
EXPLAINED = object_of(
    {**_PAST["properties"], "in_words": BOOLEAN, "explanation": {"type": ["object", "null"]}},
    optional=("namespace",),
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
    _parameter(
        "rate",
        _bounds("dashboard_rate", "number"),
        "updates per second; without it five at most, and fewer where they are dear",
    ),
]
TREE_QUERY: list[Schema] = [
    *TENANT,
    _parameter("node", STRING, "the place below which to look; none: where prompts begin"),
    _parameter("rows", _bounds("tree_rows", "integer"), "how many, the one used last first"),
]
