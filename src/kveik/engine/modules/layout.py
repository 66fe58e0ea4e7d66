"""From a schema and a prompt of it to a layout: which tokens stand where, and what computes them.

    seen position   0 ....... lead ......................................................
    pieces          | lead | module "plan" | argument | module "plan" | module "miami" | text |
    units                  | plan: its text, fillers in its slots  |  | miami |

A *unit* is what is computed together, as one sequence directly behind the lead, and kept: the text
of a module (or of the modules of a scaffold), a filler in every slot. A *piece* is what a prompt
sees of it: a run of tokens, and where. Arguments, the prompt's own text and what the template puts
between roles belong to no unit; they are computed in the prompt.

packed: pieces are seen one behind the other. fixed: at the positions that they have in the schema,
where a union is as long as its longest member and a parameter as long as its slot.

The tokenizer is handed in as two functions; every text is encoded for itself, so that its ids do
not depend on what stands around it. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal, NamedTuple, TypeAlias

from kveik.engine.modules.prompt import Arguments, SchemaPrompt, Use, chosen
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
from kveik.errors import ContextLengthExceeded

Ids: TypeAlias = tuple[int, ...]
Encode: TypeAlias = Callable[[str], Sequence[int]]
"""The ids of a text that stands somewhere in a prompt: nothing is put before or behind it."""

Template: TypeAlias = Callable[[tuple[str, ...]], Sequence[Sequence[int]]]
"""For a chat of these roles, what the model's template puts before the first content, between
every two, and behind the last (with the beginning of the answer); for no roles, what opens plain
text, and nothing behind it."""

Kind: TypeAlias = Literal["frame", "text", "argument", "module"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that are seen from position `seen` on. owner: the module they belong to. unit: the
    one that holds them, behind `offset` tokens of its own; -1: they are computed in the prompt."""

    kind: Kind
    token_ids: Ids
    seen: int
    owner: str = ""
    unit: int = -1
    offset: int = 0

    @property
    def end(self) -> int:
        return self.seen + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Unit:
    """modules: whose text it is; none: text of the schema outside of modules. token_ids: without
    the lead behind which they are computed."""

    modules: tuple[str, ...]
    token_ids: Ids


@dataclass(frozen=True, slots=True)
class Layout:
    """pieces: by seen position, without overlap; the first is the lead, where there is one."""

    lead: Ids
    pieces: tuple[Piece, ...]
    units: tuple[Unit, ...] = ()

    @property
    def token_ids(self) -> Ids:
        """All tokens of the prompt in the order in which they are seen."""
        return tuple(chain.from_iterable(piece.token_ids for piece in self.pieces))

    @property
    def end(self) -> int:
        """The seen position behind the last token."""
        return self.pieces[-1].end if self.pieces else 0


class _Atom(NamedTuple):
    """A piece before it is known where it is seen. at: its position in the schema; group: whose
    unit it belongs to (None: nobody's), offset: where in it."""

    kind: Kind
    token_ids: Ids
    at: int
    owner: str = ""
    group: object = None
    offset: int = 0


class EncodedSchema:
    """A schema with the ids of its texts, ready for any number of prompts. filler: the id that
    stands in an empty slot while a module is computed."""

    def __init__(self, schema: Schema, encode: Encode, filler: int) -> None:
        self.schema = schema
        self._encode = encode
        self._filler = filler
        self._texts: dict[str, Ids] = {}
        self._slots: dict[tuple[str, str], Ids] = {}
        self._read(schema.body)

    def _read(self, body: Sequence[Item], owner: str = "") -> None:
        for item in body:
            if isinstance(item, str):
                self._texts.setdefault(item, tuple(self._encode(item)))
            elif isinstance(item, Parameter):
                self._slots[owner, item.name] = self._scaffold(owner, item)
            elif isinstance(item, Module):
                self._read(item.body, item.name)
            elif isinstance(item, Union):
                self._read(item.members)
            else:
                self._read(item.body)

    def _scaffold(self, owner: str, slot: Parameter) -> Ids:
        """What is given as a scaffold; a filler follows it to the end of the slot."""
        ids = tuple(self._encode(slot.scaffold)) if slot.scaffold else ()
        if len(ids) > slot.length:
            refuse(
                f"module {owner}.{slot.name}.scaffold",
                f"has {len(ids)} tokens, the slot has {slot.length}: make one of them fit",
            )
        return ids

    def check_context(self, template: Template, context: int) -> None:
        """ContextLengthExceeded naming the first module with which the schema, where it is fixed,
        or the module alone, does not fit so many tokens."""
        frames = template(self.schema.roles)
        lead = len(frames[0])
        for module in self.schema.modules():
            alone = lead + len(self.unit_of(module))
            if alone > context:
                _too_long(f"module {module.name}", alone, context)
        if self.schema.placement == "fixed":
            walk = _Walk(self, {module.name: {} for module in self.schema.modules()})
            walk.run(frames)
            for name, end in walk.ends:
                if end > context:
                    _too_long(name, end, context)

    def layout(self, prompt: SchemaPrompt, template: Template) -> Layout:
        """The layout of one prompt. Raises InvalidRequest naming the element that is wrong."""
        modules = chosen(self.schema, prompt.uses)
        roles = self.schema.roles
        opens_turn = bool(prompt.text and roles and roles[-1] != "user")
        frames = template((*roles, "user") if opens_turn else roles)
        walk = _Walk(self, modules)
        walk.run(frames, tuple(self._encode(prompt.text)) if prompt.text else ())
        return _placed(self.schema, self.schema.placement, walk.atoms, frames[0], walk.units)

    def part(self, use: Use) -> Layout:
        """One module alone, packed from position 0 on, without a lead. Raises InvalidRequest."""
        walk = _Walk(self, chosen(self.schema, (use,)))
        module = next(one for one in self.schema.modules() if one.name == use.name)
        walk.module(module, 0, used=True)
        return _placed(self.schema, "packed", walk.atoms, (), walk.units)

    def text(self, text: str) -> Ids:
        return self._texts[text]

    def slot(self, module: str, parameter: Parameter) -> Ids:
        """The scaffold of a slot, without fillers."""
        return self._slots[module, parameter.name]

    def argument(self, module: str, parameter: Parameter, value: str) -> Ids:
        ids = tuple(self._encode(value)) if value else ()
        if len(ids) > parameter.length:
            refuse(
                f"module {module}.{parameter.name}",
                f"the argument has {len(ids)} tokens, its slot has {parameter.length}: shorten it "
                "or reserve more in the schema",
            )
        return ids

    def own(self, module: Module) -> list[tuple[Ids, int]]:
        """Of every element of a module's body: its ids in the module's unit, a filler in every slot
        (nothing of nested modules), and where they begin there."""
        places: list[tuple[Ids, int]] = []
        offset = 0
        for item in module.body:
            ids: Ids = ()
            if isinstance(item, str):
                ids = self._texts[item]
            elif isinstance(item, Parameter):
                scaffold = self.slot(module.name, item)
                ids = scaffold + (self._filler,) * (item.length - len(scaffold))
            places.append((ids, offset))
            offset += len(ids)
        return places

    def unit_of(self, module: Module) -> Ids:
        """The tokens of a module's own text."""
        return tuple(token for ids, _ in self.own(module) for token in ids)


class _Walk:
    """One walk over a schema from its first position to its last. atoms: what the prompt uses;
    units: the tokens of every group; ends: (element, position behind it)."""

    def __init__(self, encoded: EncodedSchema, modules: Mapping[str, Arguments]) -> None:
        self._encoded = encoded
        self._modules = modules
        self.atoms: list[_Atom] = []
        self.units: dict[object, Unit] = {}
        self.ends: list[tuple[str, int]] = []

    def run(self, frames: Sequence[Sequence[int]], text: Ids = ()) -> None:
        """frames: as the template says; text: what the prompt says itself, behind everything."""
        roles = [item for item in self._encoded.schema.body if isinstance(item, Role)]
        at = self._frame(frames[0], 0)
        if not roles:
            at = self._body(self._encoded.schema.body, at, used=True)
        for number, role in enumerate(roles):
            at = self._frame(frames[number], at) if number else at
            at = self._body(role.body, at, used=True)
        if len(frames) > len(roles) + 1:
            at = self._frame(frames[len(roles)], at)
        if text:
            self.atoms.append(_Atom("text", text, at))
            at += len(text)
        if len(frames) > 1:
            at = self._frame(frames[-1], at)
        self.ends.append((f"schema {self._encoded.schema.name}", at))

    def _frame(self, ids: Sequence[int], at: int) -> int:
        if ids:
            self.atoms.append(_Atom("frame", tuple(ids), at))
        return at + len(ids)

    def _body(self, body: Sequence[Item], at: int, *, used: bool) -> int:
        """Texts here stand outside of modules: each is a unit of its own."""
        for item in body:
            if isinstance(item, str):
                ids = self._encoded.text(item)
                if ids:
                    group = object()
                    self.units[group] = Unit((), ids)
                    self.atoms.append(_Atom("module", ids, at, "", group))
                at += len(ids)
            elif isinstance(item, Module):
                at = self.module(item, at, used=used)
            elif isinstance(item, Union):
                at = max(self.module(member, at, used=used) for member in item.members)
        return at

    def module(self, module: Module, at: int, *, used: bool) -> int:
        """Its atoms, where it is used; returns the position behind it."""
        used = used and module.name in self._modules
        if used and module.cache:
            self.units[module.name] = Unit((module.name,), self._encoded.unit_of(module))
        for item, (ids, offset) in zip(module.body, self._encoded.own(module), strict=True):
            if isinstance(item, Module):
                at = self.module(item, at, used=used)
            elif isinstance(item, Union):
                at = max(self.module(member, at, used=used) for member in item.members)
            else:
                if used and isinstance(item, Parameter):
                    self._slot(module, item, at, offset)
                elif used:
                    self._text(module, ids, at, offset)
                at += len(ids)
        self.ends.append((f"module {module.name}", at))
        return at

    def _text(self, module: Module, ids: Ids, at: int, offset: int) -> None:
        if not ids:
            return
        if module.cache:
            self.atoms.append(_Atom("module", ids, at, module.name, module.name, offset))
        else:
            self.atoms.append(_Atom("text", ids, at, module.name))

    def _slot(self, module: Module, slot: Parameter, at: int, offset: int) -> None:
        """The argument; the scaffold where none is given; nothing where there is none either."""
        value = self._modules[module.name].get(slot.name)
        if value is None:
            self._text(module, self._encoded.slot(module.name, slot), at, offset)
            return
        ids = self._encoded.argument(module.name, slot, value)
        if ids:
            self.atoms.append(_Atom("argument", ids, at, module.name))


def _placed(
    schema: Schema,
    placement: Placement,
    atoms: Sequence[_Atom],
    lead: Sequence[int],
    units: Mapping[object, Unit],
) -> Layout:
    """Give every piece its seen position, and join the units of scaffolds."""
    groups, starts, joined = _scaffolds(schema, atoms, units)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups.values()))}
    pieces: list[Piece] = []
    packed = 0
    for atom in atoms:
        seen = packed if placement == "packed" else atom.at
        packed += len(atom.token_ids)
        unit, offset = -1, 0
        if atom.group is not None:
            unit = numbers[groups[atom.group]]
            offset = starts[atom.group] + atom.offset
        pieces.append(Piece(atom.kind, atom.token_ids, seen, atom.owner, unit, offset))
    return Layout(tuple(lead), _joined(pieces), tuple(joined[group] for group in numbers))


def _scaffolds(
    schema: Schema, atoms: Sequence[_Atom], units: Mapping[object, Unit]
) -> tuple[dict[object, object], dict[object, int], dict[object, Unit]]:
    """For every group of the prompt, in the order of first use: the group whose unit holds it, and
    where it begins there; and those units. Of two scaffolds that share a module the first counts.
    """
    used = list(dict.fromkeys(atom.group for atom in atoms if atom.group is not None))
    into: dict[object, object] = {group: group for group in used}
    starts: dict[object, int] = dict.fromkeys(used, 0)
    joined = {group: units[group] for group in used}
    for names in schema.scaffolds:
        group = [name for name in used if name in names]
        if len(group) < len(names) or any(into[name] != name for name in group):
            continue
        if any(len(joined[name].modules) > 1 for name in group):
            continue
        first, length = group[0], 0
        parts = [joined.pop(name) for name in group]
        for name, part in zip(group, parts, strict=True):
            into[name], starts[name] = first, length
            length += len(part.token_ids)
        joined[first] = Unit(
            tuple(name for part in parts for name in part.modules),
            tuple(token for part in parts for token in part.token_ids),
        )
    return into, starts, joined


def _joined(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Neighbours that go on in one unit are one piece."""
    result: list[Piece] = []
    for piece in pieces:
        last = result[-1] if result else None
        if (
            last is not None
            and piece.unit >= 0
            and (piece.unit, piece.owner, piece.seen) == (last.unit, last.owner, last.end)
            and piece.offset == last.offset + len(last.token_ids)
        ):
            result[-1] = replace(last, token_ids=last.token_ids + piece.token_ids)
        else:
            result.append(piece)
    return tuple(result)


def _too_long(element: str, length: int, context: int) -> None:
    raise ContextLengthExceeded(
        f"{element}: ends at token {length} of the schema, but the context of this model is "
        f"{context} tokens: shorten what comes before it, or place the schema packed",
        param=element,
    )
