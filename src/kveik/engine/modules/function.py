"""A Python function as a module: its arguments are the parameters.

    @prompt_module(duration=4)
    def plan(duration):
        return f"Plan a trip of {duration}."

    Schema("travel", plan, ...)        # plan is a Module now

The function is called once, with a mark for every argument; its text must hold each mark once.
"""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Callable

from kveik.engine.modules.schema import Item, Module, Parameter, refuse


def prompt_module(
    *, name: str | None = None, cache: bool = True, **lengths: int
) -> Callable[[Callable[..., str]], Module]:
    """lengths: token slots of every argument of the function. name: of the module; None: the
    function's. A default value is the scaffold of its parameter."""

    def made(function: Callable[..., str]) -> Module:
        called = name or function.__name__
        parameters = inspect.signature(function).parameters
        if set(parameters) != set(lengths):
            refuse(
                f"module {called}",
                f"the function takes {', '.join(parameters) or 'nothing'}, and lengths are given "
                f"for {', '.join(lengths) or 'nothing'}; give one for every argument",
            )
        marks = {each: f"\0{secrets.token_hex(8)}\0" for each in parameters}
        text = function(**marks)
        if not isinstance(text, str):
            refuse(f"module {called}", f"the function returns {type(text).__name__}, not a text")
        slots = {
            marks[each]: Parameter(each, lengths[each], _scaffold(parameter))
            for each, parameter in parameters.items()
        }
        return Module(called, *_cut(text, slots, called), cache=cache)

    return made


def _scaffold(parameter: inspect.Parameter) -> str:
    return "" if parameter.default is inspect.Parameter.empty else str(parameter.default)


def _cut(text: str, slots: dict[str, Parameter], called: str) -> list[Item]:
    """The text with its marks taken out and parameters in their places."""
    for mark, slot in slots.items():
        if text.count(mark) != 1:
            refuse(
                f"module {called}.{slot.name}",
                "must stand in the text exactly once, unchanged: a module's text is fixed but for "
                "its slots",
            )
    body: list[Item] = []
    for mark, slot in sorted(slots.items(), key=lambda entry: text.index(entry[0])):
        before, text = text.split(mark)
        body += [before] if before else []
        body.append(slot)
    return [*body, text] if text else body
