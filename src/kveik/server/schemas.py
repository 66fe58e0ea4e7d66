"""JSON Schemas of what the server answers, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from kveik.config import LIMITS

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer", "minimum": 0}
NULL_STRING: Schema = {"type": ["string", "null"]}


def object_of(properties: Schema, *, optional: tuple[str, ...] = ()) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def list_of(items: Schema) -> Schema:
    return {"type": "array", "items": items}


ANY: Schema = {"type": "object"}
HTML: Schema = {"type": "string", "contentMediaType": "text/html"}
TEXT: Schema = {"type": "string", "contentMediaType": "text/plain"}
STATUS = object_of({"status": STRING})
READY = object_of({"status": STRING, "warm": ANY}, optional=("warm",))
VERSION = object_of({"version": STRING})
RESET = object_of({"reset": {"type": "boolean"}, "scope": STRING})
PROMPT = object_of({"prompt": STRING})
TOKENS = object_of(
    {
        "count": INTEGER,
        "max_model_len": INTEGER,
        "tokens": list_of(INTEGER),
        "token_strs": {"type": ["array", "null"], "items": STRING},
    }
)
MODEL = object_of(
    {
        "id": STRING,
        "object": {"const": "model"},
        "created": INTEGER,
        "owned_by": STRING,
        "max_model_len": INTEGER,
    }
)
EMBEDDINGS = object_of(
    {
        "object": {"const": "list"},
        "data": list_of(
            object_of(
                {
                    "object": {"const": "embedding"},
                    "index": INTEGER,
                    "embedding": {"anyOf": [list_of({"type": "number"}), STRING]},
                }
            )
        ),
        "model": STRING,
        "usage": object_of({"prompt_tokens": INTEGER, "total_tokens": INTEGER}),
    }
)
MODELS = object_of({"object": {"const": "list"}, "data": list_of(MODEL)})

NUMBER: Schema = {"type": "number", "minimum": 0}
NULL_NUMBER: Schema = {"type": ["number", "null"]}
BOOLEAN: Schema = {"type": "boolean"}
RECEIPT = object_of(
    {
        "blocks": INTEGER,
        "tokens": INTEGER,
        "bytes": {"type": "object", "additionalProperties": INTEGER},
        "deferred": INTEGER,
    }
)
CACHE = object_of(
    {
        "object": {"const": "cache"},
        "name": STRING,
        "status": {"enum": ["computing", "ready", "evicted", "failed"]},
        "kind": {"enum": ["messages", "prompt", "tokens"]},
        "tokens": INTEGER,
        "bytes": INTEGER,
        "seconds": NULL_NUMBER,
        "hits": {"type": ["integer", "null"], "minimum": 0},
        "created": NUMBER,
        "last_use": NULL_NUMBER,
        "time_left": NULL_NUMBER,
        "tags": list_of(STRING),
        "priority": STRING,
        "pinned": BOOLEAN,
        "public": BOOLEAN,
        "error": NULL_STRING,
    }
)
MODULE_SCHEMA = object_of(
    {
        "object": {"const": "schema"},
        "name": STRING,
        "placement": {"enum": ["packed", "fixed"]},
        "created": INTEGER,
        "modules": list_of(
            object_of(
                {
                    "name": STRING,
                    "cache": {"type": "boolean"},
                    "parameters": list_of(object_of({"name": STRING, "length": INTEGER})),
                }
            )
        ),
        "schema": ANY,
    }
)
MODULE_SCHEMAS = object_of({"object": {"const": "list"}, "data": list_of(MODULE_SCHEMA)})
DELETED = object_of({"object": STRING, "name": STRING, "deleted": {"const": True}})
CACHES = object_of({"object": {"const": "list"}, "data": list_of(CACHE)})
MANIFEST = object_of({"entries": list_of(ANY)})
SESSIONS = object_of(
    {
        "object": {"const": "list"},
        "data": list_of(
            object_of({"session": STRING, "idle": NUMBER, "blocks": INTEGER, "tokens": INTEGER})
        ),
    }
)
LISTING = object_of(
    {
        "object": {"const": "cache.listing"},
        "data": list_of(
            object_of(
                {
                    "namespace": STRING,
                    "tokens": INTEGER,
                    "depth": INTEGER,
                    "hits": INTEGER,
                    "age": NUMBER,
                    "idle": NUMBER,
                    "time_left": NULL_NUMBER,
                    "priority": STRING,
                    "demoted": BOOLEAN,
                    "pinned": BOOLEAN,
                    "readers": INTEGER,
                    "claims": list_of(STRING),
                },
                optional=("namespace", "claims"),
            )
        ),
    }
)

_COUNTS: Schema = {
    "requests": NUMBER,
    "hit_requests": NUMBER,
    "prompt_tokens": NUMBER,
    "cached_tokens": NUMBER,
    "approximate_tokens": NUMBER,
    "generated_tokens": NUMBER,
    "seconds_saved": NUMBER,
}
_DAY = object_of({"date": STRING, **_COUNTS, "share": NUMBER})
HISTORY = object_of(
    {
        "object": {"const": "cache.history"},
        "scope": {"enum": ["own", "all"]},
        "start": INTEGER,
        "step": INTEGER,
        "series": object_of(
            {
                **{name: list_of(NUMBER) for name in _COUNTS},
                "used_bytes": list_of(NUMBER),
                "cached_bytes": list_of(NUMBER),
            },
            optional=("used_bytes", "cached_bytes"),
        ),
        "today": _DAY,
        "days": list_of(_DAY),
        "now": {
            "anyOf": [
                {"type": "null"},
                object_of(
                    dict.fromkeys(
                        (
                            "used_bytes",
                            "cached_bytes",
                            "pinned_bytes",
                            "total_bytes",
                            "running",
                            "waiting",
                            "sessions",
                            "open_streams",
                            "named_caches",
                        ),
                        INTEGER,
                    )
                ),
            ]
        },
    }
)
PAST_REQUESTS = object_of(
    {
        "object": {"const": "cache.requests"},
        "data": list_of(
            object_of(
                {
                    "number": INTEGER,
                    "id": STRING,
                    "namespace": STRING,
                    "ended": NUMBER,
                    "seconds": NUMBER,
                    "outcome": {"enum": ["finished", "aborted", "failed"]},
                    "background": BOOLEAN,
                    "prompt_tokens": INTEGER,
                    "cached_tokens": INTEGER,
                    "approximate_tokens": INTEGER,
                    "computed_tokens": INTEGER,
                    "generated_tokens": INTEGER,
                    "seconds_saved": NUMBER,
                    "explanation": {
                        "anyOf": [
                            {"type": "null"},
                            object_of(
                                {
                                    "position": INTEGER,
                                    "reason": STRING,
                                    "cause": STRING,
                                    "advice": STRING,
                                }
                            ),
                        ]
                    },
                },
                optional=("namespace",),
            )
        ),
    }
)
CURVE = object_of(
    {
        "object": {"const": "cache.curve"},
        "now": INTEGER,
        "block_size": INTEGER,
        "sizes": list_of(INTEGER),
        "hit_rates": list_of(NUMBER),
        "half": NUMBER,
        "this": NUMBER,
        "twice": NUMBER,
        "tokens": INTEGER,
        "served": NUMBER,
        "share": NUMBER,
    }
)

ERROR = object_of(
    {
        "error": object_of(
            {"message": STRING, "type": STRING, "param": NULL_STRING, "code": NULL_STRING}
        )
    }
)

_FINISH: Schema = {"enum": ["stop", "length"]}
_USAGE = object_of(
    {
        "prompt_tokens": INTEGER,
        "completion_tokens": INTEGER,
        "total_tokens": INTEGER,
        "prompt_tokens_details": object_of(
            {
                "cached_tokens": INTEGER,
                "approximate_cached_tokens": INTEGER,
                "miss": object_of({"position": INTEGER, "reason": STRING}),
            },
            optional=("approximate_cached_tokens", "miss"),
        ),
        "kveik": object_of(
            {
                "seconds_saved": NUMBER,
                "flops_saved": NUMBER,
                "token_pairs": object_of(
                    {"old_old": INTEGER, "new_old": INTEGER, "new_new": INTEGER}
                ),
                "stored_tokens": INTEGER,
                "approximate_cached_tokens": INTEGER,
                "evicted_tokens": INTEGER,
                "forgotten_tokens": INTEGER,
                "explanation": ANY,
            },
            optional=(
                "approximate_cached_tokens",
                "evicted_tokens",
                "forgotten_tokens",
                "explanation",
            ),
        ),
    }
)


def _completion(kind: str, choice: Schema) -> Schema:
    return object_of(
        {
            "id": STRING,
            "object": {"const": kind},
            "created": INTEGER,
            "model": STRING,
            "choices": list_of(choice),
            "usage": _USAGE,
        }
    )


CHAT = _completion(
    "chat.completion",
    object_of(
        {
            "index": INTEGER,
            "message": object_of({"role": {"const": "assistant"}, "content": STRING}),
            "logprobs": {"type": ["object", "null"]},
            "finish_reason": _FINISH,
        }
    ),
)
COMPLETION = _completion(
    "text_completion",
    object_of(
        {
            "index": INTEGER,
            "text": STRING,
            "logprobs": {"type": ["object", "null"]},
            "finish_reason": _FINISH,
        }
    ),
)

ANTHROPIC_ERROR = object_of(
    {
        "type": {"const": "error"},
        "error": object_of(
            {
                "type": STRING,
                "message": STRING,
                "details": object_of(
                    {"error_code": STRING, "param": STRING}, optional=("error_code", "param")
                ),
            },
            optional=("details",),
        ),
        "request_id": STRING,
    }
)
MESSAGE = object_of(
    {
        "id": STRING,
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": STRING,
        "content": list_of(object_of({"type": {"const": "text"}, "text": STRING})),
        "stop_reason": {
            "enum": ["end_turn", "max_tokens", "stop_sequence", "model_context_window_exceeded"]
        },
        "stop_sequence": NULL_STRING,
        "usage": object_of(
            {
                "input_tokens": INTEGER,
                "cache_creation_input_tokens": INTEGER,
                "cache_read_input_tokens": INTEGER,
                "cache_creation": object_of(
                    {"ephemeral_5m_input_tokens": INTEGER, "ephemeral_1h_input_tokens": INTEGER}
                ),
                "output_tokens": INTEGER,
            }
        ),
    }
)
TOKEN_COUNT = object_of({"input_tokens": INTEGER})
RESPONSE = object_of(
    {
        "id": STRING,
        "object": {"const": "response"},
        "created_at": INTEGER,
        "status": {"enum": ["completed", "incomplete"]},
        "incomplete_details": {"type": ["object", "null"]},
        "model": STRING,
        "output": list_of(
            object_of(
                {
                    "id": STRING,
                    "type": {"const": "message"},
                    "role": {"const": "assistant"},
                    "status": STRING,
                    "content": list_of(
                        object_of({"type": {"const": "output_text"}, "text": STRING})
                    ),
                }
            )
        ),
        "usage": object_of(
            {
                "input_tokens": INTEGER,
                "input_tokens_details": object_of(
                    {
                        "cached_tokens": INTEGER,
                        "cache_write_tokens": INTEGER,
                        "approximate_cached_tokens": INTEGER,
                    },
                    optional=("approximate_cached_tokens",),
                ),
                "output_tokens": INTEGER,
                "total_tokens": INTEGER,
            }
        ),
    }
)

SCOPE: list[Schema] = [
    {
        "name": "scope",
        "in": "query",
        "required": False,
        "schema": {"enum": ["own", "all"]},
        "description": "own: of this key; all: of every key (operators only)",
    }
]

TENANT: list[Schema] = [
    {
        "name": "namespace",
        "in": "query",
        "required": False,
        "schema": STRING,
        "description": "name of a tenant in the keys file instead of the own namespace (operators)",
    }
]
_TOP: Schema = {
    "name": "top",
    "in": "query",
    "required": False,
    "schema": {
        "type": "integer",
        "minimum": LIMITS["listing_count"].low,
        "maximum": LIMITS["listing_count"].high,
    },
    "description": "how many, the hottest first",
}
LISTING_QUERY: list[Schema] = [*SCOPE, *TENANT, _TOP]
HISTORY_QUERY: list[Schema] = [
    *SCOPE,
    *TENANT,
    {
        "name": "steps",
        "in": "query",
        "required": False,
        "schema": {
            "type": "integer",
            "minimum": LIMITS["history_steps"].low,
            "maximum": LIMITS["history_steps"].high,
        },
        "description": "how many of the last steps of ten seconds",
    },
]
WARM: list[Schema] = [
    {
        "name": "warm",
        "in": "query",
        "required": False,
        "schema": {"enum": ["0", "1"]},
        "description": "1: ready when the warm start is done too",
    }
]
MANIFEST_QUERY: list[Schema] = [*TENANT, _TOP]
