"""Schemas of prompt modules (Prompt Cache, Gim et al., MLSys 2024): the plain records, and what
makes a schema valid.

A schema says which texts a prompt may be joined from. Text outside of modules always stands in the
prompt; a module stands there when the prompt names it; of a union at most one member does, and all
of them start at the same position; a parameter reserves slots that an argument fills.

    Schema("travel",
        Role("system", "You plan trips."),
        Role("user",
            Module("plan", "Plan a trip of ", Parameter("duration", 4), "."),
            Union(Module("miami", "..."), Module("tokyo", "..."))))

Everything wrong is one InvalidRequest that names the element. Knows no tokenizer and no cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, TypeAlias, get_args

from kveik.config import LIMITS
from kveik.errors import InvalidRequest

Placement: TypeAlias = Literal["packed", "fixed"]
"""packed: what a prompt uses is seen at consecutive positions; fixed: every element has its own
position in the schema, and what is not used leaves a gap."""

ROLES = ("system", "user", "assistant")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,127}")
RESERVED = frozenset(
    (*ROLES, "schema", "prompt", "module", "union", "parameter", "param", "scaffold", "text")
)
"""Words of the prompt markup language, which no module can be called."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """`length` token slots for an argument. scaffold: what stands there while the module is
    computed, and when no argument is given; empty: a filler, which no prompt sees."""

    name: str
    length: int
    scaffold: str = ""


@dataclass(frozen=True, slots=True, init=False)
class Module:
    """A text that is computed once, with parameters and modules inside it. cache False: it is
    computed anew in every prompt."""

    name: str
    body: tuple[Item, ...]
    cache: bool

    def __init__(self, name: str, *body: Item, cache: bool = True) -> None:
        _set(self, name=name, body=body, cache=cache)


@dataclass(frozen=True, slots=True, init=False)
class Union:
    """Modules of which a prompt uses one; they start at the same position."""

    members: tuple[Module, ...]

    def __init__(self, *members: Module) -> None:
        _set(self, members=members)


@dataclass(frozen=True, slots=True, init=False)
class Role:
    """What is said by one side of a chat; the tokens around it are the model's template's."""

    role: str
    body: tuple[Item, ...]

    def __init__(self, role: str, *body: Item) -> None:
        _set(self, role=role, body=body)


Item: TypeAlias = str | Parameter | Module | Union | Role


@dataclass(frozen=True, slots=True, init=False)
class Schema:
    """See the module. scaffolds: groups of modules that are computed together, so that they see
    each other, where a prompt uses all of a group. Raises InvalidRequest naming the element."""

    name: str
    body: tuple[Item, ...]
    placement: Placement
    scaffolds: tuple[tuple[str, ...], ...]

    def __init__(
        self,
        name: str,
        *body: Item,
        placement: Placement = "packed",
        scaffolds: Sequence[Sequence[str]] = (),
    ) -> None:
        groups = tuple(tuple(group) for group in scaffolds)
        _set(self, name=name, body=body, placement=placement, scaffolds=groups)
        _Check(self).run()

    @property
    def roles(self) -> tuple[str, ...]:
        """The sides of the chat in their order; none: a schema of plain text."""
        return tuple(item.role for item in self.body if isinstance(item, Role))

    def modules(self) -> Iterator[Module]:
        """Every module, parents before what is nested in them."""
        return _modules(self.body)

    def unions(self) -> Iterator[Union]:
        for body in (self.body, *(module.body for module in self.modules())):
            for item in body:
                if isinstance(item, Role):
                    yield from (one for one in item.body if isinstance(one, Union))
                elif isinstance(item, Union):
                    yield item


def refuse(element: str, why: str) -> NoReturn:
    """The 400 of everything that is wrong with a schema or a prompt of one."""
    raise InvalidRequest(f"{element}: {why}", param=element)


def _set(record: object, **values: object) -> None:
    for name, value in values.items():
        object.__setattr__(record, name, value)


def _modules(body: Sequence[Item]) -> Iterator[Module]:
    for item in body:
        if isinstance(item, Module):
            yield item
            yield from _modules(item.body)
        elif isinstance(item, Union):
            yield from _modules(item.members)
        elif isinstance(item, Role):
            yield from _modules(item.body)


class _Check:
    """One walk over a new schema."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._where = "schema"
        self._names: set[str] = set()
        self._elements = 0

    def run(self) -> None:
        schema = self._schema
        self._name(schema.name, "schema")
        self._where = f"schema {schema.name}"
        if schema.placement not in get_args(Placement):
            refuse(f"{self._where}.placement", "expected packed or fixed")
        plain = [item for item in schema.body if not isinstance(item, Role)]
        if schema.roles and plain:
            what = "text" if isinstance(plain[0], str) else _label(plain[0])
            refuse(self._where, f"{what} stands outside of the roles; put it into one of them")
        for item in schema.body:
            if isinstance(item, Role):
                self._role(item)
            else:
                self._item(item, self._where, 1)
        if not self._elements:
            refuse(self._where, "is empty")
        for group in schema.scaffolds:
            self._scaffold(group)

    def _role(self, role: Role) -> None:
        where = f"{self._where}.{role.role}"
        if role.role not in ROLES:
            refuse(self._where, f"a role is one of {', '.join(ROLES)}")
        self._count(where)
        for item in role.body:
            if isinstance(item, Role):
                refuse(where, f"the role {item.role} stands inside another one")
            self._item(item, where, 2)

    def _item(self, item: Item, where: str, depth: int) -> None:
        self._count(where)
        if depth > LIMITS["schema_depth"].high:
            refuse(where, f"is nested deeper than {LIMITS['schema_depth'].high:.0f} elements")
        if isinstance(item, Module):
            self._module(item, depth)
        elif isinstance(item, Union):
            if not item.members:
                refuse(f"{where}.union", "has no members")
            for member in item.members:
                if not isinstance(member, Module):
                    refuse(f"{where}.union", "a member of a union is a module")
                self._item(member, where, depth + 1)
        elif isinstance(item, Role):
            refuse(where, f"the role {item.role} stands inside {where}; roles are outermost")
        elif isinstance(item, Parameter):
            refuse(f"{where}.{item.name}", "a parameter stands inside a module")
        elif not isinstance(item, str):
            refuse(where, f"expected text, a module, a union or a role, got {type(item).__name__}")

    def _module(self, module: Module, depth: int) -> None:
        where = f"module {module.name}"
        self._name(module.name, where)
        if module.name in self._names:
            refuse(where, "two modules of the schema have this name")
        self._names.add(module.name)
        parameters: set[str] = set()
        for item in module.body:
            if not isinstance(item, Parameter):
                self._item(item, where, depth + 1)
                continue
            self._count(where)
            place = f"{where}.{item.name}"
            self._name(item.name, place, reserved=False)
            if item.name in parameters:
                refuse(place, "two parameters of the module have this name")
            parameters.add(item.name)
            low, high = LIMITS["parameter_length"].low, LIMITS["parameter_length"].high
            if type(item.length) is not int or not low <= item.length <= high:
                refuse(f"{place}.length", f"expected a number of tokens, {low:.0f} .. {high:.0f}")
            if not isinstance(item.scaffold, str):
                refuse(f"{place}.scaffold", "expected a text")

    def _scaffold(self, group: tuple[str, ...]) -> None:
        where = f"{self._where}.scaffolds"
        cached = {module.name for module in self._schema.modules() if module.cache}
        for name in group:
            if name not in self._names:
                refuse(where, f"there is no module {name!r}")
            if name not in cached:
                refuse(where, f"the module {name!r} is not cached")
        if len(set(group)) != len(group) or len(group) < 2:
            refuse(where, f"a scaffold joins two or more different modules, got {' '.join(group)}")
        for union in self._schema.unions():
            both = [member.name for member in union.members if member.name in group]
            if len(both) > 1:
                refuse(where, f"{both[0]} and {both[1]} are members of one union")

    def _count(self, where: str) -> None:
        self._elements += 1
        if self._elements > LIMITS["schema_elements"].high:
            refuse(where, f"the schema has over {LIMITS['schema_elements'].high:.0f} elements")

    @staticmethod
    def _name(name: object, where: str, *, reserved: bool = True) -> None:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            refuse(where, "a name is 1 .. 128 of A-Z a-z 0-9 . _ - and begins with a letter or _")
        if reserved and name in RESERVED:
            refuse(where, "this word has a meaning in schemas; choose another name")


def _label(item: Item) -> str:
    return f"module {item.name}" if isinstance(item, Module) else type(item).__name__.lower()
