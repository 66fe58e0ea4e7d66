"""The OpenAPI 3.1 document, made from the table of routes and the request records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic.json_schema import models_json_schema

from kveik import __version__
from kveik.server.fields import DOCUMENT_SCHEMA, IDENTIFIER_SCHEMA, Body
from kveik.server.schemas import ANTHROPIC_ERROR, ERROR, Schema

_REF = "#/components/schemas/{model}"

_ERRORS = {
    "400": "What was sent cannot be used; param names the field",
    "401": "No valid API key",
    "403": "Not with this key, host or origin",
    "404": "No such model or route",
    "405": "Not with this method",
    "408": "The body did not arrive",
    "409": "Not now",
    "413": "The body is too large",
    "415": "Not JSON",
    "429": "The queue is full; see Retry-After",
    "431": "The headers are too large",
    "500": "A fault of the server; quote X-Request-Id",
    "503": "Loading or stopping; see Retry-After",
}


_TEXT: Schema = {"type": "string", "minLength": 1}
_PATH_SCHEMAS: dict[str, Schema] = {
    "name": IDENTIFIER_SCHEMA,
    "session": IDENTIFIER_SCHEMA,
    "document": DOCUMENT_SCHEMA,
}


@dataclass(frozen=True, slots=True)
class Operation:
    """What a route takes and answers. anthropic: its errors are in Anthropic's shape."""

    summary: str
    answer: Schema
    body: type[Body] | None = None
    streams: bool = False
    query: list[Schema] = field(default_factory=list)
    anthropic: bool = False


def document(operations: Sequence[tuple[str, str, Operation]]) -> dict[str, Any]:
    """operations: (method, path, operation)."""
    bodies = [(one.body, "validation") for _, _, one in operations if one.body is not None]
    _, schemas = models_json_schema(bodies, ref_template=_REF)  # type: ignore[arg-type]
    paths: dict[str, Any] = {}
    for method, path, operation in operations:
        plain = path.replace(":path}", "}")
        paths.setdefault(plain, {})[method.lower()] = _operation(plain, operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "kveik", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {
                **schemas.get("$defs", {}),
                "Error": ERROR,
                "AnthropicError": ANTHROPIC_ERROR,
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "responses": {"200": _answer(operation), **_error_answers(operation)},
    }
    parameters = [*operation.query, *_path_parameters(path)]
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        schema = {"$ref": _REF.format(model=operation.body.__name__)}
        content = {"application/json": {"schema": schema}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _answer(operation: Operation) -> dict[str, Any]:
    kind = operation.answer.get("contentMediaType", "application/json")
    content: dict[str, Any] = {kind: {"schema": operation.answer}}
    if operation.streams:
        content["text/event-stream"] = {}  # chunks of the same object; then `data: [DONE]`
    return {"description": operation.summary, "content": content}


def _error_answers(operation: Operation) -> dict[str, Any]:
    name = "AnthropicError" if operation.anthropic else "Error"
    content = {"application/json": {"schema": {"$ref": _REF.format(model=name)}}}
    answers = {code: {"description": text, "content": content} for code, text in _ERRORS.items()}
    if operation.anthropic:
        answers["529"] = answers.pop("503")
    return answers


def _path_parameters(path: str) -> list[Schema]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [
        {"name": name, "in": "path", "required": True, "schema": _PATH_SCHEMAS.get(name, _TEXT)}
        for name in names
    ]
