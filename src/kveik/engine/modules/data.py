"""Schemas as JSON or YAML, and back.

    name: travel
    placement: packed
    body:
      - role: user
        body:
          - module: plan
            body: ["Plan a trip of ", {parameter: duration, length: 4}, "."]
          - union:
              - {module: miami, body: [...]}
              - {include: tokyo}
    definitions:
      - {module: tokyo, body: [...]}
    scaffolds: [[plan, miami]]

An element is a text or an object that is named by its first word. `include` puts a definition where
it stands, so that long texts need not be nested. Errors name the element.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import yaml

from kveik.config import LIMITS, check_limit
from kveik.engine.modules.schema import (
    Item,
    Module,
    Parameter,
    Placement,
    Role,
    Schema,
    Union,
    refuse,
)
from kveik.engine.strict_data import StrictLoader, distinct


def schema_from_yaml(text: str) -> Schema:
    """Plain data only: no tags, no aliases, no field twice. Raises InvalidRequest."""
    check_limit("schema_characters", len(text), param="schema")
    try:
        value = yaml.load(text, Loader=StrictLoader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        refuse("schema", f"{line}{error.problem}")
    except (ValueError, yaml.YAMLError, RecursionError):
        refuse("schema", "cannot be read as YAML")
    return schema_from_data(value)


def schema_from_json(text: str) -> Schema:
    """Raises InvalidRequest."""
    check_limit("schema_characters", len(text), param="schema")
    try:
        value = json.loads(text, object_pairs_hook=distinct)
    except (ValueError, RecursionError):
        refuse("schema", "cannot be read as JSON, or names a field twice")
    return schema_from_data(value)


def schema_from_data(value: object) -> Schema:
    """From what JSON or YAML holds. Raises InvalidRequest naming the element."""
    fields = _object(value, "schema", ("name", "body"), ("placement", "definitions", "scaffolds"))
    name = fields["name"]
    definitions: dict[str, object] = {}
    for index, one in enumerate(_list(fields.get("definitions", []), "schema.definitions")):
        place = f"schema.definitions[{index}]"
        if not isinstance(one, Mapping) or not isinstance(one.get("module"), str):
            refuse(place, "expected a module, such as {module: NAME, body: [...]}")
        if one["module"] in definitions:
            refuse(f"module {one['module']}", "is defined twice")
        definitions[one["module"]] = one
    reader = _Reader(definitions)
    body = reader.items(fields["body"], "schema.body")
    groups: list[Sequence[str]] = []
    for group in _list(fields.get("scaffolds", []), "schema.scaffolds"):
        names = _list(group, "schema.scaffolds")
        if not all(isinstance(one, str) for one in names):
            refuse("schema.scaffolds", "expected lists of names of modules")
        groups.append(cast(Sequence[str], names))
    placement = fields.get("placement", "packed")
    return Schema(cast(str, name), *body, placement=cast(Placement, placement), scaffolds=groups)


def schema_to_data(schema: Schema) -> dict[str, Any]:
    """What `schema_from_data` reads; definitions stand where they are included."""
    data: dict[str, Any] = {"name": schema.name, "placement": schema.placement}
    data["body"] = [_to_data(item) for item in schema.body]
    if schema.scaffolds:
        data["scaffolds"] = [list(group) for group in schema.scaffolds]
    return data


def _to_data(item: Item) -> Any:
    if isinstance(item, Module):
        uncached = {} if item.cache else {"cache": False}
        return {"module": item.name, **uncached, "body": [_to_data(one) for one in item.body]}
    if isinstance(item, Union):
        return {"union": [_to_data(one) for one in item.members]}
    if isinstance(item, Role):
        return {"role": item.role, "body": [_to_data(one) for one in item.body]}
    if isinstance(item, Parameter):
        scaffold = {"scaffold": item.scaffold} if item.scaffold else {}
        return {"parameter": item.name, "length": item.length, **scaffold}
    return item


class _Reader:
    """definitions: what `include` may name. It remembers which are open, so that none can include
    itself."""

    def __init__(self, definitions: Mapping[str, object]) -> None:
        self._definitions = definitions
        self._open: list[str] = []
        self._elements = 0
        self._depth = 0

    def items(self, value: object, place: str) -> list[Item]:
        if isinstance(value, str):
            return [value]
        self._depth += 1
        if self._depth > LIMITS["schema_depth"].high:
            refuse(place, f"is nested deeper than {LIMITS['schema_depth'].high:.0f} elements")
        found = [
            self._item(one, f"{place}[{index}]") for index, one in enumerate(_list(value, place))
        ]
        self._depth -= 1
        return found

    def _item(self, value: object, place: str) -> Item:
        self._elements += 1
        if self._elements > LIMITS["schema_elements"].high:
            refuse(place, f"the schema has over {LIMITS['schema_elements'].high:.0f} elements")
        if isinstance(value, str):
            return value
        if not isinstance(value, Mapping):
            refuse(place, "expected a text or an object")
        read = next((read for word, read in _KINDS.items() if word in value), None)
        if read is None:
            refuse(place, f"expected an object with one of {', '.join(_KINDS)}")
        return read(self, value, place)

    def _module(self, value: object, place: str) -> Item:
        fields = _object(value, place, ("module",), ("body", "cache"))
        name, cache = fields["module"], fields.get("cache", True)
        if not isinstance(name, str):
            refuse(f"{place}.module", "expected a name")
        if not isinstance(cache, bool):
            refuse(f"module {name}.cache", "expected true or false")
        return Module(name, *self.items(fields.get("body", []), f"module {name}"), cache=cache)

    def _include(self, value: object, place: str) -> Item:
        name = _object(value, place, ("include",))["include"]
        if not isinstance(name, str) or name not in self._definitions:
            refuse(place, f"there is no definition of the module {str(name)[:60]!r}")
        if name in self._open:
            way = " -> ".join((*self._open[self._open.index(name) :], name))
            refuse(f"module {name}", f"is nested in itself ({way}); break the cycle")
        self._open.append(name)
        found = self._item(self._definitions[name], f"module {name}")
        self._open.pop()
        return found

    def _union(self, value: object, place: str) -> Item:
        members = self.items(_object(value, place, ("union",))["union"], f"{place}.union")
        modules = [one for one in members if isinstance(one, Module)]
        if len(modules) < len(members):
            refuse(f"{place}.union", "a member of a union is a module")
        return Union(*modules)

    def _parameter(self, value: object, place: str) -> Item:
        fields = _object(value, place, ("parameter", "length"), ("scaffold",))
        return Parameter(
            cast(str, fields["parameter"]),
            cast(int, fields["length"]),
            cast(str, fields.get("scaffold", "")),
        )

    def _role(self, value: object, place: str) -> Item:
        fields = _object(value, place, ("role",), ("body",))
        role = fields["role"]
        if not isinstance(role, str):
            refuse(f"{place}.role", "expected system, user or assistant")
        return Role(role, *self.items(fields.get("body", []), f"{place}.body"))


_Read: TypeAlias = Callable[[_Reader, object, str], Item]
_KINDS: Mapping[str, _Read] = {
    "module": _Reader._module,
    "include": _Reader._include,
    "union": _Reader._union,
    "parameter": _Reader._parameter,
    "role": _Reader._role,
}


def _object(
    value: object, place: str, needed: tuple[str, ...], others: tuple[str, ...] = ()
) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        refuse(place, "expected an object")
    for name in needed:
        if name not in value:
            refuse(place, f"needs the field {name}")
    for name in value:
        if name not in needed and name not in others:
            known = ", ".join((*needed, *others))
            refuse(place, f"unknown field {str(name)[:60]!r}; known are {known}")
    return value


def _list(value: object, place: str) -> Sequence[object]:
    if not isinstance(value, list | tuple):
        refuse(place, "expected a list")
    return value
