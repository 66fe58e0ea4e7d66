"""JSON Schemas of what the server answers, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from kveik.config import LIMITS

Schema = dict[str, Any]

_STRING: Schema = {"type": "string"}
_INTEGER: Schema = {"type": "integer", "minimum": 0}
_NULL_STRING: Schema = {"type": ["string", "null"]}


def _object(properties: Schema, *, optional: tuple[str, ...] = ()) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


ANY: Schema = {"type": "object"}
HTML: Schema = {"type": "string", "contentMediaType": "text/html"}
TEXT: Schema = {"type": "string", "contentMediaType": "text/plain"}
STATUS = _object({"status": _STRING})
READY = _object({"status": _STRING, "warm": ANY}, optional=("warm",))
VERSION = _object({"version": _STRING})
RESET = _object({"reset": {"type": "boolean"}, "scope": _STRING})
PROMPT = _object({"prompt": _STRING})
TOKENS = _object(
    {
        "count": _INTEGER,
        "max_model_len": _INTEGER,
        "tokens": _list(_INTEGER),
        "token_strs": {"type": ["array", "null"], "items": _STRING},
    }
)
MODEL = _object(
    {
        "id": _STRING,
        "object": {"const": "model"},
        "created": _INTEGER,
        "owned_by": _STRING,
        "max_model_len": _INTEGER,
    }
)
EMBEDDINGS = _object(
    {
        "object": {"const": "list"},
        "data": _list(
            _object(
                {
                    "object": {"const": "embedding"},
                    "index": _INTEGER,
                    "embedding": {"anyOf": [_list({"type": "number"}), _STRING]},
                }
            )
        ),
        "model": _STRING,
        "usage": _object({"prompt_tokens": _INTEGER, "total_tokens": _INTEGER}),
    }
)
MODELS = _object({"object": {"const": "list"}, "data": _list(MODEL)})

_NUMBER: Schema = {"type": "number", "minimum": 0}
_NULL_NUMBER: Schema = {"type": ["number", "null"]}
_BOOLEAN: Schema = {"type": "boolean"}
RECEIPT = _object(
    {
        "blocks": _INTEGER,
        "tokens": _INTEGER,
        "bytes": {"type": "object", "additionalProperties": _INTEGER},
        "deferred": _INTEGER,
    }
)
CACHE = _object(
    {
        "object": {"const": "cache"},
        "name": _STRING,
        "status": {"enum": ["computing", "ready", "evicted", "failed"]},
        "kind": {"enum": ["messages", "prompt", "tokens"]},
        "tokens": _INTEGER,
        "bytes": _INTEGER,
        "seconds": _NULL_NUMBER,
        "hits": {"type": ["integer", "null"], "minimum": 0},
        "created": _NUMBER,
        "last_use": _NULL_NUMBER,
        "time_left": _NULL_NUMBER,
        "tags": _list(_STRING),
        "priority": _STRING,
        "pinned": _BOOLEAN,
        "public": _BOOLEAN,
        "error": _NULL_STRING,
    }
)
MODULE_SCHEMA = _object(
    {
        "object": {"const": "schema"},
        "name": _STRING,
        "placement": {"enum": ["packed", "fixed"]},
        "created": _INTEGER,
        "modules": _list(
            _object(
                {
                    "name": _STRING,
                    "cache": {"type": "boolean"},
                    "parameters": _list(_object({"name": _STRING, "length": _INTEGER})),
                }
            )
        ),
        "schema": ANY,
    }
)
MODULE_SCHEMAS = _object({"object": {"const": "list"}, "data": _list(MODULE_SCHEMA)})
DELETED = _object({"object": _STRING, "name": _STRING, "deleted": {"const": True}})
CACHES = _object({"object": {"const": "list"}, "data": _list(CACHE)})
MANIFEST = _object({"entries": _list(ANY)})
SESSIONS = _object(
    {
        "object": {"const": "list"},
        "data": _list(
            _object({"session": _STRING, "idle": _NUMBER, "blocks": _INTEGER, "tokens": _INTEGER})
        ),
    }
)
LISTING = _object(
    {
        "object": {"const": "cache.listing"},
        "data": _list(
            _object(
                {
                    "namespace": _STRING,
                    "tokens": _INTEGER,
                    "depth": _INTEGER,
                    "hits": _INTEGER,
                    "age": _NUMBER,
                    "idle": _NUMBER,
                    "time_left": _NULL_NUMBER,
                    "priority": _STRING,
                    "demoted": _BOOLEAN,
                    "pinned": _BOOLEAN,
                    "readers": _INTEGER,
                    "claims": _list(_STRING),
                },
                optional=("namespace", "claims"),
            )
        ),
    }
)

_COUNTS: Schema = {
    "requests": _NUMBER,
    "hit_requests": _NUMBER,
    "prompt_tokens": _NUMBER,
    "cached_tokens": _NUMBER,
    "approximate_tokens": _NUMBER,
    "generated_tokens": _NUMBER,
    "seconds_saved": _NUMBER,
}
_DAY = _object({"date": _STRING, **_COUNTS, "share": _NUMBER})
HISTORY = _object(
    {
        "object": {"const": "cache.history"},
        "scope": {"enum": ["own", "all"]},
        "start": _INTEGER,
        "step": _INTEGER,
        "series": _object(
            {
                **{name: _list(_NUMBER) for name in _COUNTS},
                "used_bytes": _list(_NUMBER),
                "cached_bytes": _list(_NUMBER),
            },
            optional=("used_bytes", "cached_bytes"),
        ),
        "today": _DAY,
        "days": _list(_DAY),
        "now": {
            "anyOf": [
                {"type": "null"},
                _object(
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
                        _INTEGER,
                    )
                ),
            ]
        },
    }
)
PAST_REQUESTS = _object(
    {
        "object": {"const": "cache.requests"},
        "data": _list(
            _object(
                {
                    "number": _INTEGER,
                    "id": _STRING,
                    "namespace": _STRING,
                    "ended": _NUMBER,
                    "seconds": _NUMBER,
                    "outcome": {"enum": ["finished", "aborted", "failed"]},
                    "background": _BOOLEAN,
                    "prompt_tokens": _INTEGER,
                    "cached_tokens": _INTEGER,
                    "approximate_tokens": _INTEGER,
                    "computed_tokens": _INTEGER,
                    "generated_tokens": _INTEGER,
                    "seconds_saved": _NUMBER,
                    "explanation": {
                        "anyOf": [
                            {"type": "null"},
                            _object(
                                {
                                    "position": _INTEGER,
                                    "reason": _STRING,
                                    "cause": _STRING,
                                    "advice": _STRING,
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
CURVE = _object(
    {
        "object": {"const": "cache.curve"},
        "now": _INTEGER,
        "block_size": _INTEGER,
        "sizes": _list(_INTEGER),
        "hit_rates": _list(_NUMBER),
        "half": _NUMBER,
        "this": _NUMBER,
        "twice": _NUMBER,
        "tokens": _INTEGER,
        "served": _NUMBER,
        "share": _NUMBER,
    }
)

ERROR = _object(
    {
        "error": _object(
            {"message": _STRING, "type": _STRING, "param": _NULL_STRING, "code": _NULL_STRING}
        )
    }
)

_FINISH: Schema = {"enum": ["stop", "length"]}
_USAGE = _object(
    {
        "prompt_tokens": _INTEGER,
        "completion_tokens": _INTEGER,
        "total_tokens": _INTEGER,
        "prompt_tokens_details": _object(
            {
                "cached_tokens": _INTEGER,
                "approximate_cached_tokens": _INTEGER,
                "miss": _object({"position": _INTEGER, "reason": _STRING}),
            },
            optional=("approximate_cached_tokens", "miss"),
        ),
        "kveik": _object(
            {
                "seconds_saved": _NUMBER,
                "flops_saved": _NUMBER,
                "token_pairs": _object(
                    {"old_old": _INTEGER, "new_old": _INTEGER, "new_new": _INTEGER}
                ),
                "stored_tokens": _INTEGER,
                "approximate_cached_tokens": _INTEGER,
                "evicted_tokens": _INTEGER,
                "forgotten_tokens": _INTEGER,
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
    return _object(
        {
            "id": _STRING,
            "object": {"const": kind},
            "created": _INTEGER,
            "model": _STRING,
            "choices": _list(choice),
            "usage": _USAGE,
        }
    )


CHAT = _completion(
    "chat.completion",
    _object(
        {
            "index": _INTEGER,
            "message": _object({"role": {"const": "assistant"}, "content": _STRING}),
            "logprobs": {"type": ["object", "null"]},
            "finish_reason": _FINISH,
        }
    ),
)
COMPLETION = _completion(
    "text_completion",
    _object(
        {
            "index": _INTEGER,
            "text": _STRING,
            "logprobs": {"type": ["object", "null"]},
            "finish_reason": _FINISH,
        }
    ),
)

ANTHROPIC_ERROR = _object(
    {
        "type": {"const": "error"},
        "error": _object(
            {
                "type": _STRING,
                "message": _STRING,
                "details": _object(
                    {"error_code": _STRING, "param": _STRING}, optional=("error_code", "param")
                ),
            },
            optional=("details",),
        ),
        "request_id": _STRING,
    }
)
MESSAGE = _object(
    {
        "id": _STRING,
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": _STRING,
        "content": _list(_object({"type": {"const": "text"}, "text": _STRING})),
        "stop_reason": {
            "enum": ["end_turn", "max_tokens", "stop_sequence", "model_context_window_exceeded"]
        },
        "stop_sequence": _NULL_STRING,
        "usage": _object(
            {
                "input_tokens": _INTEGER,
                "cache_creation_input_tokens": _INTEGER,
                "cache_read_input_tokens": _INTEGER,
                "cache_creation": _object(
                    {"ephemeral_5m_input_tokens": _INTEGER, "ephemeral_1h_input_tokens": _INTEGER}
                ),
                "output_tokens": _INTEGER,
            }
        ),
    }
)
TOKEN_COUNT = _object({"input_tokens": _INTEGER})
RESPONSE = _object(
    {
        "id": _STRING,
        "object": {"const": "response"},
        "created_at": _INTEGER,
        "status": {"enum": ["completed", "incomplete"]},
        "incomplete_details": {"type": ["object", "null"]},
        "model": _STRING,
        "output": _list(
            _object(
                {
                    "id": _STRING,
                    "type": {"const": "message"},
                    "role": {"const": "assistant"},
                    "status": _STRING,
                    "content": _list(_object({"type": {"const": "output_text"}, "text": _STRING})),
                }
            )
        ),
        "usage": _object(
            {
                "input_tokens": _INTEGER,
                "input_tokens_details": _object(
                    {
                        "cached_tokens": _INTEGER,
                        "cache_write_tokens": _INTEGER,
                        "approximate_cached_tokens": _INTEGER,
                    },
                    optional=("approximate_cached_tokens",),
                ),
                "output_tokens": _INTEGER,
                "total_tokens": _INTEGER,
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
        "schema": _STRING,
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
