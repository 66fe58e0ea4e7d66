"""The routes of prompt modules: schemas are registered, shown and forgotten.

A schema describes texts; what is cached of them is found by their tokens. A key sees the schemas of
its own namespace.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from kveik.engine.engine import Engine
from kveik.engine.modules.data import schema_from_data, schema_from_yaml, schema_to_data
from kveik.engine.modules.pml import read_schema
from kveik.engine.modules.schema import Parameter, Schema
from kveik.engine.words import identifier
from kveik.server.cache_handlers import namespace_of, path_word
from kveik.server.fields import Body, refuse
from kveik.server.handlers import json_response, read_body
from kveik.server.jobs import beside_loop
from kveik.server.service import Service

Json = dict[str, Any]


class CreateSchema(Body):
    """POST /v1/schemas: exactly one of schema (an object), yaml and pml (texts)."""

    definition: Json | None = Field(None, alias="schema")
    yaml: str | None = None
    pml: str | None = None

    def check(self) -> None:
        given = [one for one in (self.definition, self.yaml, self.pml) if one is not None]
        if len(given) != 1:
            refuse("schema", f"send one of schema, yaml and pml, got {len(given)} of them")

    def read(self) -> Schema:
        """Raises InvalidRequest naming the element that is wrong."""
        if self.pml is not None:
            return read_schema(self.pml)
        if self.yaml is not None:
            return schema_from_yaml(self.yaml)
        return schema_from_data(self.definition)


async def create_schema(service: Service, request: Request) -> Response:
    """Register a schema, in place of one of the same name."""
    engine = service.serving.engine
    body = await read_body(service, request, CreateSchema)
    namespace = namespace_of(service, request)
    size = sum(len(one) for one in (body.yaml, body.pml) if one is not None)
    size = size if body.definition is None else 1 << 20
    schema, created = await beside_loop(size, lambda: _added(engine, namespace, body))
    return json_response(_object(schema, created))


def _added(engine: Engine, namespace: str, body: CreateSchema) -> tuple[Schema, float]:
    schema = body.read()
    return schema, engine.schemas.add(namespace, schema)


async def list_schemas(service: Service, request: Request) -> Response:
    found = service.serving.engine.schemas.list(namespace_of(service, request))
    return json_response({"object": "list", "data": [_object(*one) for one in found]})


async def get_schema(service: Service, request: Request) -> Response:
    name = path_word(request, "name", identifier)
    found = service.serving.engine.schemas.get(namespace_of(service, request), name)
    return json_response(_object(*found))


async def delete_schema(service: Service, request: Request) -> Response:
    name = path_word(request, "name", identifier)
    service.serving.engine.schemas.delete(namespace_of(service, request), name)
    return json_response({"object": "schema.deleted", "name": name, "deleted": True})


def _object(schema: Schema, created: float) -> Json:
    return {
        "object": "schema",
        "name": schema.name,
        "placement": schema.placement,
        "created": int(created),
        "modules": [
            {
                "name": module.name,
                "cache": module.cache,
                "parameters": [
                    {"name": item.name, "length": item.length}
                    for item in module.body
                    if isinstance(item, Parameter)
                ],
            }
            for module in schema.modules()
        ],
        "schema": schema_to_data(schema),
    }
