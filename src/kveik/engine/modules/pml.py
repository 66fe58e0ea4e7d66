"""The prompt markup language of the paper, read into schemas and prompts.

    <schema name="travel" placement="fixed">
      <system>You plan trips.</system>
      <user>
        <module name="plan">Plan a trip of <parameter name="duration" length="4"/>.</module>
        <union><module name="miami">...</module><module name="tokyo">...</module></union>
      </user>
    </schema>
    <prompt schema="travel"><plan duration="3 days"/><miami/>Where can I surf?</prompt>

`param` and `len` are read as `parameter` and `length`; `<scaffold modules="a b"/>` names modules
that are computed together. White space with a line break in it, at either end of a text, is layout
and left out.

The reader is expat without anything that reaches outside of the text or grows: a document type, an
entity or a processing instruction ends it with a 400, and so do too many elements.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias, cast
from xml.parsers import expat

from kveik.config import LIMITS, check_limit
from kveik.engine.modules.prompt import SchemaPrompt, Use
from kveik.engine.modules.schema import (
    ROLES,
    Item,
    Module,
    Parameter,
    Placement,
    Role,
    Schema,
    Union,
    refuse,
)

_ENDS = re.compile(r"\A[ \t\r]*\n\s*|\s*\n[ \t\r]*\Z")


@dataclass(slots=True)
class _Node:
    tag: str
    attributes: dict[str, str]
    content: list[_Node | str] = field(default_factory=list)


def read_schema(text: str) -> Schema:
    """A `<schema>`. Raises InvalidRequest naming the element."""
    root = _parse(text, "schema")
    if root.tag != "schema":
        refuse("schema", f"expected <schema name=...>, got <{root.tag}>")
    taken = _attributes(root, ("name",), ("placement",))
    body = [one for one in root.content if isinstance(one, str) or one.tag != "scaffold"]
    scaffolds = [one for one in root.content if not isinstance(one, str) and one.tag == "scaffold"]
    groups = [_attributes(one, ("modules",))["modules"].split() for one in scaffolds]
    return Schema(
        taken["name"],
        *_items(body),
        placement=cast(Placement, taken.get("placement", "packed")),
        scaffolds=groups,
    )


def read_prompt(text: str) -> SchemaPrompt:
    """A `<prompt schema=...>`: modules by their names, arguments as attributes, and text."""
    root = _parse(text, "prompt")
    if root.tag != "prompt":
        refuse("prompt", f"expected <prompt schema=...>, got <{root.tag}>")
    schema = _attributes(root, ("schema",))["schema"]
    uses = tuple(_use(one) for one in root.content if isinstance(one, _Node))
    texts = [one for one in root.content if isinstance(one, str)]
    return SchemaPrompt(schema, uses, "\n".join(texts))


def is_prompt(text: str) -> bool:
    """Does the text mean to be a prompt of a schema?"""
    return re.match(r"\s*<prompt\s+schema\s*=", text) is not None


def _use(node: _Node) -> Use:
    for one in node.content:
        if isinstance(one, str):
            refuse(
                f"module {node.tag}",
                "holds a text; the text of a module is its schema's, arguments are attributes",
            )
    nested = tuple(_use(one) for one in node.content if isinstance(one, _Node))
    return Use(node.tag, node.attributes, nested)


def _items(content: list[_Node | str]) -> list[Item]:
    return [one if isinstance(one, str) else _item(one) for one in content]


def _item(node: _Node) -> Item:
    read = _ELEMENTS.get(node.tag)
    if read is None:
        refuse(f"<{node.tag}>", f"no element of a schema; known are {', '.join(_ELEMENTS)}")
    return read(node)


def _module(node: _Node) -> Module:
    taken = _attributes(node, ("name",), ("cache",))
    if taken.get("cache", "true") not in ("true", "false"):
        refuse(f"module {taken['name']}.cache", "expected true or false")
    body = _items(node.content)
    return Module(taken["name"], *body, cache=taken.get("cache", "true") == "true")


def _union(node: _Node) -> Union:
    _attributes(node)
    members: list[Module] = []
    for one in node.content:
        if isinstance(one, str) or one.tag != "module":
            refuse("<union>", "holds modules and nothing else")
        members.append(_module(one))
    return Union(*members)


def _parameter(node: _Node) -> Parameter:
    short = {"len": "length"}
    node.attributes = {short.get(name, name): value for name, value in node.attributes.items()}
    taken = _attributes(node, ("name", "length"), ("scaffold",))
    if node.content:
        refuse(f"parameter {taken['name']}", "is empty; what stands in its slot is `scaffold`")
    length = taken["length"]
    if not re.fullmatch(r"[0-9]{1,9}", length):
        refuse(f"parameter {taken['name']}.length", "expected a number of tokens")
    return Parameter(taken["name"], int(length), taken.get("scaffold", ""))


def _role(node: _Node) -> Role:
    _attributes(node)
    return Role(node.tag, *_items(node.content))


_Read: TypeAlias = Callable[[_Node], Item]
_ELEMENTS: Mapping[str, _Read] = {
    "module": _module,
    "union": _union,
    "parameter": _parameter,
    "param": _parameter,
    **dict.fromkeys(ROLES, _role),
}


def _attributes(
    node: _Node, needed: tuple[str, ...] = (), others: tuple[str, ...] = ()
) -> dict[str, str]:
    for name in needed:
        if name not in node.attributes:
            refuse(f"<{node.tag}>", f"needs the attribute {name}")
    for name in node.attributes:
        if name not in needed and name not in others:
            known = ", ".join((*needed, *others)) or "none"
            refuse(f"<{node.tag}>", f"has no attribute {name[:60]!r}; known are {known}")
    return node.attributes


def _parse(text: str, where: str) -> _Node:
    """The tree of a text. Raises InvalidRequest for what is not well-formed, or not wanted."""
    check_limit("schema_characters", len(text), param=where)
    reader = _Reader(where)
    parser = expat.ParserCreate()
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.characters
    parser.StartDoctypeDeclHandler = reader.doctype
    parser.EntityDeclHandler = reader.entity
    parser.ExternalEntityRefHandler = reader.external
    parser.ProcessingInstructionHandler = reader.instruction
    try:
        parser.Parse(text.encode("utf-8"), True)
    except expat.ExpatError as error:
        refuse(where, f"is not well-formed: {expat.ErrorString(error.code)}, line {error.lineno}")
    except UnicodeEncodeError:
        refuse(where, "expected valid Unicode, got a lone surrogate")
    assert reader.root is not None
    return reader.root


class _Reader:
    """Collects the tree; expat calls it and lets what it raises through."""

    def __init__(self, where: str) -> None:
        self.root: _Node | None = None
        self._where = where
        self._open: list[_Node] = []
        self._elements = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        if self._elements > LIMITS["schema_elements"].high:
            refuse(self._where, f"has over {LIMITS['schema_elements'].high:.0f} elements")
        if len(self._open) > LIMITS["schema_depth"].high:
            refuse(self._where, f"is nested deeper than {LIMITS['schema_depth'].high:.0f} elements")
        node = _Node(tag, attributes)
        if self._open:
            self._open[-1].content.append(node)
        else:
            self.root = node
        self._open.append(node)

    def end(self, tag: str) -> None:
        node = self._open.pop()
        texts = [_ENDS.sub("", one) if isinstance(one, str) else one for one in node.content]
        node.content = [one for one in texts if one != ""]

    def characters(self, text: str) -> None:
        content = self._open[-1].content
        if content and isinstance(content[-1], str):
            content[-1] += text
        else:
            content.append(text)

    def doctype(self, *_: object) -> NoReturn:
        refuse(self._where, "holds a document type (<!DOCTYPE>), which is not read; leave it out")

    def entity(self, *_: object) -> NoReturn:
        refuse(self._where, "declares an entity, which is not read; write the text itself")

    def external(self, *_: object) -> NoReturn:
        refuse(self._where, "names something outside of it, which is not read")

    def instruction(self, *_: object) -> NoReturn:
        refuse(self._where, "holds a processing instruction (<?...?>); leave it out")
