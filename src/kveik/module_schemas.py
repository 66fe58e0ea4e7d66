"""`llm.schemas`: the schemas of prompt modules that an LLM knows."""

from __future__ import annotations

from kveik.engine.engine import Engine
from kveik.engine.modules.data import schema_from_data, schema_from_json, schema_from_yaml
from kveik.engine.modules.pml import read_schema
from kveik.engine.modules.schema import Schema


class ModuleSchemas:
    """Prompts that take modules from a schema compute each of them once:

    llm.schemas.add(Schema("cities", Module("miami", ...), Module("tokyo", ...)))
    llm.generate({"prompt_markup": '<prompt schema="cities"><miami/>Where to surf?</prompt>'})
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, schema: Schema | str | dict[str, object], *, namespace: str = "") -> Schema:
        """Register a schema, in place of one of its name. A text is markup (`<schema ...>`), JSON
        (`{...}`) or YAML. Raises InvalidRequest naming the element that is wrong."""
        read = _read(schema)
        self._engine.schemas.add(namespace, read)
        return read

    def get(self, name: str, *, namespace: str = "") -> Schema:
        """Raises NotFound."""
        return self._engine.schemas.get(namespace, name)[0]

    def list(self, *, namespace: str = "") -> list[Schema]:
        return [schema for schema, _ in self._engine.schemas.list(namespace)]

    def delete(self, name: str, *, namespace: str = "") -> None:
        """Raises NotFound. What is cached of its modules stays as what any prompt leaves."""
        self._engine.schemas.delete(namespace, name)


def _read(schema: Schema | str | dict[str, object]) -> Schema:
    if isinstance(schema, Schema):
        return schema
    if not isinstance(schema, str):
        return schema_from_data(schema)
    start = schema.lstrip()[:1]
    if start == "<":
        return read_schema(schema)
    return schema_from_json(schema) if start == "{" else schema_from_yaml(schema)
