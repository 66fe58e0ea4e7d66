"""What a prompt takes from a schema: modules with their arguments, and text of its own.

    <prompt schema="travel"><plan duration="3 days"/><miami/>Where can I surf?</prompt>

Here a prompt is checked against its schema: the result is which modules stand in it, with which
arguments. Errors name the element. Knows no tokenizer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from kveik.engine.modules.schema import Module, Parameter, Schema, Union, refuse

Arguments: TypeAlias = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Use:
    """One module of the prompt. uses: those of the modules nested in it that it takes."""

    name: str
    args: Arguments = field(default_factory=dict)
    uses: tuple[Use, ...] = ()


@dataclass(frozen=True, slots=True)
class SchemaPrompt:
    """schema: its name. text: what stands behind everything of the schema."""

    schema: str
    uses: tuple[Use, ...] = ()
    text: str = ""


def chosen(schema: Schema, uses: tuple[Use, ...]) -> dict[str, Arguments]:
    """The modules that stand in the prompt, with their arguments. Raises InvalidRequest for an
    unknown module or argument, one used twice or without its parent, two members of a union."""
    known = {module.name: module for module in schema.modules()}
    found: dict[str, Arguments] = {}
    _take(schema, known, uses, None, found)
    check_unions(schema, found)
    return found


def check_unions(schema: Schema, names: Collection[str]) -> None:
    """InvalidRequest where two of these modules are members of one union."""
    for union in schema.unions():
        both = [member.name for member in union.members if member.name in names]
        if len(both) > 1:
            refuse(
                f"module {both[1]}",
                f"stands in one union with {both[0]}; a prompt uses one of the two",
            )


def written(schema: Schema, use: Use) -> str:
    """The text of a module with its arguments and the modules in it that are used."""
    modules = chosen(schema, (use,))
    known = {module.name: module for module in schema.modules()}
    return "".join(_texts(known[use.name], modules))


def _texts(module: Module, modules: Mapping[str, Arguments]) -> Iterator[str]:
    for item in module.body:
        if isinstance(item, str):
            yield item
        elif isinstance(item, Parameter):
            yield modules[module.name].get(item.name, item.scaffold)
        else:
            inner = item.members if isinstance(item, Union) else (item,)
            for one in inner:
                if isinstance(one, Module) and one.name in modules:
                    yield from _texts(one, modules)


def _take(
    schema: Schema,
    known: Mapping[str, Module],
    uses: tuple[Use, ...],
    parent: Module | None,
    found: dict[str, Arguments],
) -> None:
    for use in uses:
        where = f"module {use.name}"
        module = known.get(use.name)
        if module is None:
            names = ", ".join(list(known)[:16]) or "none"
            refuse(where, f"the schema {schema.name} has no such module; its modules are {names}")
        if use.name in found:
            refuse(where, "stands twice in the prompt")
        above = _parent(known, module)
        if above is not parent:
            home = f"inside the module {above.name}" if above else "outside of other modules"
            refuse(where, f"belongs {home}; put it there")
        _check_arguments(module, use.args)
        found[use.name] = use.args
        _take(schema, known, use.uses, module, found)


def _parent(known: Mapping[str, Module], child: Module) -> Module | None:
    for module in known.values():
        for item in module.body:
            if item is child or (isinstance(item, Union) and child in item.members):
                return module
    return None


def _check_arguments(module: Module, args: Arguments) -> None:
    names = [item.name for item in module.body if isinstance(item, Parameter)]
    for name, value in args.items():
        where = f"module {module.name}.{name}"
        if name not in names:
            known = ", ".join(names) or "none"
            refuse(where, f"the module has no such parameter; its parameters are {known}")
        if not isinstance(value, str):
            refuse(where, f"expected a text, got {type(value).__name__}")
