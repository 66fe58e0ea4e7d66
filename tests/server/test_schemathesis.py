"""Requests made from our own OpenAPI document, valid and invalid: never a 5xx, always our shapes.

500 examples in all. Valid bodies are pointed at the served model and kept short, so that they reach
the engine instead of ending at "no such model".
"""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from server_harness import MODEL, RunningServer

from kveik.server.routes import openapi_document

SCHEMA = schemathesis.openapi.from_dict(openapi_document())
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE

# path, method, mode, examples
PLAN = [
    ("/v1/chat/completions", "POST", POSITIVE, 90),
    ("/v1/chat/completions", "POST", NEGATIVE, 90),
    ("/v1/completions", "POST", POSITIVE, 90),
    ("/v1/completions", "POST", NEGATIVE, 90),
    ("/v1/embeddings", "POST", POSITIVE, 30),
    ("/v1/embeddings", "POST", NEGATIVE, 30),
    ("/v1/responses", "POST", POSITIVE, 60),
    ("/v1/responses", "POST", NEGATIVE, 60),
    ("/v1/messages", "POST", POSITIVE, 60),
    ("/v1/messages", "POST", NEGATIVE, 60),
    ("/v1/messages/count_tokens", "POST", POSITIVE, 20),
    ("/v1/messages/count_tokens", "POST", NEGATIVE, 20),
    ("/tokenize", "POST", POSITIVE, 30),
    ("/tokenize", "POST", NEGATIVE, 30),
    ("/detokenize", "POST", POSITIVE, 25),
    ("/detokenize", "POST", NEGATIVE, 25),
    ("/v1/models/{model}", "GET", POSITIVE, 10),
    ("/reset_prefix_cache", "POST", POSITIVE, 5),
    ("/reset_prefix_cache", "POST", NEGATIVE, 5),
    ("/v1/caches", "POST", POSITIVE, 30),
    ("/v1/caches", "POST", NEGATIVE, 20),
    ("/v1/caches/{name}", "GET", POSITIVE, 5),
    ("/v1/caches/{name}", "PATCH", POSITIVE, 10),
    ("/v1/caches/{name}", "PATCH", NEGATIVE, 10),
    ("/v1/caches/{name}", "DELETE", POSITIVE, 5),
    ("/v1/schemas", "POST", POSITIVE, 10),
    ("/v1/schemas", "POST", NEGATIVE, 20),
    ("/v1/schemas/{name}", "GET", POSITIVE, 5),
    ("/v1/schemas/{name}", "DELETE", POSITIVE, 5),
    ("/v1/sessions/{session}", "DELETE", POSITIVE, 5),
    ("/v1/documents/{document}", "POST", POSITIVE, 5),
    ("/v1/documents/{document}", "POST", NEGATIVE, 10),
    ("/v1/cache", "GET", POSITIVE, 5),
    ("/v1/cache/invalidate", "POST", POSITIVE, 20),
    ("/v1/cache/invalidate", "POST", NEGATIVE, 20),
    ("/v1/cache/tree", "GET", POSITIVE, 5),
    ("/v1/cache/tree", "POST", POSITIVE, 5),
    ("/v1/cache/tree", "POST", NEGATIVE, 10),
    ("/v1/cache/requests/{number}", "GET", POSITIVE, 5),
    ("/v1/cache/explain", "POST", POSITIVE, 15),
    ("/v1/cache/explain", "POST", NEGATIVE, 10),
    *[
        (path, "GET", POSITIVE, 2)
        for path in ("/v1/caches", "/v1/schemas", "/v1/sessions", "/v1/cache/manifest")
    ],
    *[
        (path, "GET", POSITIVE, 2)
        for path in ("/v1/cache/history", "/v1/cache/requests", "/v1/cache/curve")
    ],
    *[
        (path, "GET", POSITIVE, 2)
        for path in ("/", "/dashboard", "/health", "/ready", "/version", "/metrics", "/v1/models")
    ],
]


ENDLESS = {("/v1/cache/watch", "get")}
"""Tested in test_watch.py."""


def test_the_plan_has_every_operation_and_five_hundred_examples() -> None:
    planned = {(path, method.lower()) for path, method, _, _ in PLAN}
    served = {(path, verb) for path, verbs in openapi_document()["paths"].items() for verb in verbs}
    assert planned == served - ENDLESS - {("/openapi.json", "get")}
    assert sum(count for *_, count in PLAN) >= 500


GENERATES = ("/v1/chat/completions", "/v1/completions", "/v1/messages")


CONTRADICTING = ("kveik", "cached_content", "prompt_cache_options", "prompt_cache_retention")
"""Sent together at random these mostly contradict each other, or name what is not there."""


def serve_here(path: str, body: Any) -> None:
    """Point a valid body at the served model; a few tokens are enough, and one kind of content."""
    if path in ("/v1/caches", "/v1/cache/explain") and isinstance(body, dict):
        body["prompt"] = body.get("prompt") or "Hi"
        body.pop("messages", None)
        body.pop("tokens", None)
    if path == "/v1/schemas" and isinstance(body, dict):
        body.clear()
        body["pml"] = '<schema name="s"><module name="m">text</module></schema>'
    if isinstance(body, dict) and "model" in body:
        body["model"] = MODEL
        for field in CONTRADICTING:
            body.pop(field, None)
        if path in GENERATES:
            body.pop("max_completion_tokens", None)
            body["max_tokens"] = 3
        if path == "/v1/responses":
            body["max_output_tokens"] = 3
        body.pop("dimensions", None)


@pytest.mark.parametrize(
    ("path", "method", "mode", "count"), PLAN, ids=lambda value: getattr(value, "value", value)
)
def test_no_request_breaks_the_server(
    server: RunningServer, path: str, method: str, mode: GenerationMode, count: int
) -> None:
    answered: list[int] = []

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=SCHEMA[path][method].as_strategy(mode))
    def check(case: Any) -> None:
        if mode is POSITIVE and path.startswith("/v1/"):
            serve_here(path, case.body)
        response = case.call(base_url=server.url)
        answered.append(response.status_code)
        rejection = [negative_data_rejection] if mode is NEGATIVE else []
        case.validate_response(response, checks=[*CHECKS, *rejection])

    check()
    assert answered
    if mode is POSITIVE and method == "POST" and path != "/v1/cache/tree":  # nobody guesses a node
        assert 200 in answered
    server.engine.check()
