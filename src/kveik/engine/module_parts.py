"""Chat messages whose content parts are modules, laid out as one prompt.

    {"type": "module", "name": "miami", "args": {...}}     a module of a schema
    {"type": "text", "text": ..., "cache": "module"}       a text that is a module of its own

The chat template renders the whole conversation as ever; where a module stands in it the text is
cut, and every piece is encoded for itself, so that the ids of a module do not depend on what stands
around it. The lead is what the template puts before the first content. Modules in a chat are
packed, in the order of the messages. Which arguments, documents and breakpoints stand where comes
back in tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

from kveik.cache.directive import Directive, DocumentSpan
from kveik.cache.join import JoinedPrompt
from kveik.config import check_limit
from kveik.engine.modules.joins import DEFAULT, Join, join_layout
from kveik.engine.modules.layout import Layout, Piece, Unit
from kveik.engine.modules.prompt import Use, check_unions, written
from kveik.engine.modules.schema import NAME, refuse
from kveik.engine.schemas import Schemas
from kveik.engine.token_memory import Encoded
from kveik.engine.tokenizer import Tokenizer

Message: TypeAlias = Mapping[str, Any]
Place: TypeAlias = tuple[int, int]
"""(index of the message, index of its part)"""

_FIELDS = ("type", "name", "schema", "args", "uses", "document")


class _Found(NamedTuple):
    """A part that is a module. layout: of the schema's module; None: the text itself is one."""

    place: Place
    layout: Layout | None


@dataclass(frozen=True, slots=True)
class ChatLayout:
    """messages: with the texts of all modules in them. spans: the tokens of each place that was
    asked for. remembered: tokens that were not encoded again."""

    messages: tuple[Message, ...]
    layout: Layout
    spans: tuple[tuple[int, int], ...]
    remembered: int


def has_modules(messages: Sequence[Message]) -> bool:
    """Is a part of these messages a module?"""
    return any(_is_module(part) for _, part in _parts(messages))


def chat_layout(
    tokenizer: Tokenizer,
    schemas: Schemas,
    namespace: str,
    messages: Sequence[Message],
    places: Sequence[Place],
    encode: Callable[[str], Encoded],
) -> ChatLayout:
    """The layout of a chat with modules. encode: `Tokenizer.encode_piece`, remembered. Raises
    InvalidRequest naming part or element."""
    messages, found = _resolved(schemas, namespace, messages)
    asked = list(dict.fromkeys((*(one.place for one in found), *places)))
    pieces, ranges = tokenizer.chat_pieces(messages, asked)
    text = "".join(pieces)
    lead = _lead(schemas, messages, text)
    builder = _Builder(encode, text, lead)
    layouts = {one.place: one for one in found}
    spans: dict[Place, tuple[int, int]] = {}
    for place, (start, end) in sorted(zip(asked, ranges, strict=True), key=lambda one: one[1]):
        field = f"messages[{place[0]}].content[{place[1]}]"
        if start < builder.at:
            refuse(field, "the chat template moves or repeats this part; it cannot be a module")
        builder.text_to(start)
        first = builder.length
        if place in layouts:
            builder.module(end, layouts[place].layout)
        else:
            builder.text_to(end)
        spans[place] = (first, builder.length)
    builder.text_to(len(text))
    told = tuple(spans[one] for one in places)
    return ChatLayout(tuple(messages), builder.layout(), told, builder.remembered)


def join(layout: Layout, how: Join | None, directive: Directive, block_size: int) -> Joining:
    """What the engine is told of a layout. how None: the usual way. directive: what the request
    asks of the cache; documents in it are of the tokens of the layout."""
    how = how or DEFAULT
    if how != "exact" and directive.write_until is not None:
        refuse(
            "join",
            "modules are stored wherever they stand, also behind the last breakpoint; "
            "join them with exact, or leave the breakpoints to choose by out",
        )
    directives = unit_directives(layout, directive)
    return Joining(layout.token_ids, join_layout(layout, how, block_size, directives))


class Joining(NamedTuple):
    """token_ids of the whole prompt; joined: None where it is an ordinary one."""

    token_ids: tuple[int, ...]
    joined: JoinedPrompt | None


def refuse_join(how: Join | None, field: str) -> None:
    """A way of joining where there is nothing to join would be without effect."""
    if how is not None:
        refuse(field, "is about prompt modules, and this prompt has none; leave it out")


def refuse_modules(messages: Sequence[Mapping[str, Any]]) -> None:
    """An open stream goes on with the next tokens of one sequence."""
    if has_modules(messages):
        refuse("cache", "a stream that goes on takes no modules; send plain text with continue")


def unit_directives(layout: Layout, directive: Directive) -> list[Directive]:
    """What becomes of every unit: as the request says of the tokens that it stands for. A module
    belongs to no name, and its prompt's pin is not its own."""
    lead = len(layout.lead)
    found: list[Directive] = []
    for number, unit in enumerate(layout.units):
        ranges = [
            (start, start + len(piece.token_ids))
            for start, piece in _starts(layout)
            if piece.unit == number
        ]
        documents = tuple(
            DocumentSpan(one.document, one.version, lead, lead + len(unit.token_ids))
            for one in directive.documents
            if any(one.start < end and start < one.end for start, end in ranges)
        )
        found.append(
            replace(
                directive,
                documents=documents,
                ttl=directive.ttl_at(ranges[0][0]),
                spans=(),
                name=None,
                pin=False,
                write_until=None,
            )
        )
    return found


def _starts(layout: Layout) -> Iterator[tuple[int, Piece]]:
    """(number of its first token, piece)"""
    at = 0
    for piece in layout.pieces:
        yield at, piece
        at += len(piece.token_ids)


def read_use(value: object, field: str, *, nested: bool = False) -> tuple[Use, str | None]:
    """A part {"type": "module", ...}, or one of its `uses`; and the schema that it names."""
    if nested and isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        refuse(field, "expected an object with name and args")
    for name in value:
        if name not in (("name", "args", "uses") if nested else _FIELDS):
            refuse(f"{field}.{str(name)[:60]}", "unknown field")
    name, schema = value.get("name"), value.get("schema")
    if isinstance(name, str) and "/" in name and schema is None:
        schema, _, name = name.partition("/")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        refuse(f"{field}.name", "expected the name of a module")
    if schema is not None and (not isinstance(schema, str) or not NAME.fullmatch(schema)):
        refuse(f"{field}.schema", "expected the name of a schema")
    args = {} if value.get("args") is None else value["args"]
    if not isinstance(args, Mapping) or not all(isinstance(one, str) for one in args.values()):
        refuse(f"{field}.args", "expected an object of texts")
    uses = () if value.get("uses") is None else value["uses"]
    if isinstance(uses, str) or not isinstance(uses, Sequence):
        refuse(f"{field}.uses", "expected a list of the modules nested in this one")
    inner = tuple(
        read_use(one, f"{field}.uses[{index}]", nested=True)[0] for index, one in enumerate(uses)
    )
    return Use(name, dict(args), inner), schema


def _resolved(
    schemas: Schemas, namespace: str, messages: Sequence[Message]
) -> tuple[list[Message], list[_Found]]:
    """The messages with the text of every module, and where modules stand."""
    copies = [dict(message) for message in messages]
    found: list[_Found] = []
    names: dict[tuple[int, str], set[str]] = {}  # a later turn may take another member of a union
    for place, part in _parts(messages):
        if not _is_module(part):
            continue
        field = f"messages[{place[0]}].content[{place[1]}]"
        if part.get("type") != "module":
            if part.get("cache") != "module":
                refuse(f"{field}.cache", "expected module, or leave it out")
            found.append(_Found(place, None))
            _replace_part(copies, place, {name: part[name] for name in part if name != "cache"})
            continue
        use, named = read_use(part, field)
        encoded = schemas.of_module(namespace, use.name, named)
        found.append(_Found(place, encoded.part(use)))
        taken = names.setdefault((place[0], encoded.schema.name), set())
        taken.add(use.name)
        check_unions(encoded.schema, taken)
        label = {"document": part["document"]} if part.get("document") is not None else {}
        text = {"type": "text", "text": written(encoded.schema, use), **label}
        _replace_part(copies, place, text)
    check_limit("module_count", len(found), param="messages")
    return list(copies), found


def _replace_part(messages: list[dict[str, Any]], place: Place, part: Message) -> None:
    parts = list(messages[place[0]]["content"])
    parts[place[1]] = part
    messages[place[0]]["content"] = parts


def _parts(messages: Sequence[Message]) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    for index, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, Sequence) and not isinstance(content, str):
            for number, part in enumerate(content):
                if isinstance(part, Mapping):
                    yield (index, number), part


def _is_module(part: Mapping[str, Any]) -> bool:
    return part.get("type") == "module" or part.get("cache") is not None


def _lead(schemas: Schemas, messages: Sequence[Message], text: str) -> str:
    """What the template writes before the first content, and nothing where that cannot be told."""
    lead = schemas.frames.texts([str(message["role"]) for message in messages])[0]
    return lead if text.startswith(lead) else ""


class _Builder:
    """Lays a rendered text out from left to right. at: characters that are laid out; length:
    tokens; remembered: those that were not encoded again."""

    def __init__(self, encode: Callable[[str], Encoded], text: str, lead: str) -> None:
        self._encode = encode
        self._text = text
        self._pieces: list[Piece] = []
        self._units: dict[tuple[int, ...], int] = {}
        self._made: list[Unit] = []
        self.at = self.length = self.remembered = 0
        self.text_to(len(lead))
        self._lead = self._pieces[0].token_ids if self._pieces else ()

    def text_to(self, end: int) -> None:
        """What stands from here to the character `end` is computed in the prompt."""
        if end > self.at:
            self._append(Piece("text", self._encoded(end), self.length))
        self.at = max(self.at, end)

    def module(self, end: int, layout: Layout | None) -> None:
        """The text up to the character `end` is a module: its own, or one of a schema."""
        if layout is None:
            ids = self._encoded(end)
            self._append(Piece("module", ids, self.length, "", self._unit(Unit((), ids)), 0))
        else:
            first = self.length
            units = [self._unit(unit) for unit in layout.units]
            for piece in layout.pieces:
                unit = units[piece.unit] if piece.unit >= 0 else -1
                self._append(replace(piece, seen=first + piece.seen, unit=unit))
        self.at = end

    def layout(self) -> Layout:
        return Layout(self._lead, tuple(self._pieces), tuple(self._made))

    def _encoded(self, end: int) -> tuple[int, ...]:
        encoded = self._encode(self._text[self.at : end])
        self.remembered += encoded.remembered
        return encoded.token_ids

    def _append(self, piece: Piece) -> None:
        if piece.token_ids:
            self._pieces.append(piece)
            self.length += len(piece.token_ids)

    def _unit(self, unit: Unit) -> int:
        """The number of a unit; equal texts are one."""
        number = self._units.setdefault(unit.token_ids, len(self._made))
        if number == len(self._made):
            self._made.append(unit)
        return number
