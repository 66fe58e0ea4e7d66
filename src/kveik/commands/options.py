"""Command-line options from the tables of `kveik.config`, so that each is declared once.

`with_options(ENGINE_OPTIONS)` gives a Typer command every option of the table; the command receives
those values as keyword arguments by option name, None where an option was not given.
"""

from __future__ import annotations

import functools
import inspect
import os
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

import typer

from kveik.config import (
    API_KEY_FILE,
    ENGINE_OPTIONS,
    SERVER_OPTIONS,
    EngineConfig,
    Option,
    ServerConfig,
    Settings,
    read_settings,
)
from kveik.engine.request import SamplingParams

SAMPLING_OPTIONS: tuple[Option, ...] = (
    Option("max_tokens", "integer", "Longest answer in tokens"),
    Option("temperature", "number", "0 is greedy; default: the model's"),
    Option("top_k", "integer", "Draw from the k most probable tokens"),
    Option("top_p", "number", "Draw from the most probable tokens with this share"),
    Option("min_p", "number", "Drop tokens below this share of the most probable one"),
    Option("repetition_penalty", "number", "Above 1: tokens that occurred become less probable"),
    Option("presence_penalty", "number", "Lowers tokens that occurred in the answer"),
    Option("frequency_penalty", "number", "Lowers tokens by how often they occurred"),
    Option("stop", "list", "End the answer before this text; repeatable"),
    Option("n", "integer", "Answers per prompt"),
)

_TYPES: Mapping[str, Any] = {
    "text": str | None,
    "integer": int | None,
    "number": float | None,
    "bytes": str | None,
    "duration": str | None,
    "switch": bool | None,
    "list": list[str] | None,
}


def with_options(
    options: Iterable[Option],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command that takes `**given`: adds one Typer option per entry of the table."""
    listed = list(options)

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(function, include_extras=True)
        own = [
            parameter.replace(annotation=hints[name])
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        added = [_parameter(option) for option in listed]

        @functools.wraps(function)
        def command(**arguments: Any) -> None:
            function(**arguments)

        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*own, *added)]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


def read(given: Mapping[str, Any], *, model: str | None = None, file: str | None) -> Settings:
    """Settings of a command: its arguments over the environment over the file."""
    known = {option.name for option in (*ENGINE_OPTIONS, *SERVER_OPTIONS, API_KEY_FILE)}
    values = {name: value for name, value in given.items() if name in known}
    if model is not None:
        values["model"] = model
    return read_settings(values, os.environ, file)


def sampling(given: Mapping[str, Any], defaults: SamplingParams) -> SamplingParams:
    """`defaults` changed by what was given. Raises InvalidRequest for a value out of range."""
    return replace(defaults, **given_sampling(given))


def given_sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling fields among the arguments of a command (--seed serves engine and request)."""
    names = [*(option.name for option in SAMPLING_OPTIONS), "seed"]
    return {name: given[name] for name in names if given.get(name) not in (None, [], ())}


def _parameter(option: Option) -> inspect.Parameter:
    flag = "--" + option.name.replace("_", "-")
    declared = f"{flag}/--no-{flag[2:]}" if option.kind == "switch" else flag
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=typer.Option(None, declared, help=_help(option), show_default=False),
        annotation=_TYPES[option.kind],
    )


def _help(option: Option) -> str:
    text = option.help
    if option.choices:
        text += ": " + " | ".join(option.choices)
    default = None if option in SAMPLING_OPTIONS else _defaults().get(option.attribute)
    return text if default in (None, ()) else f"{text} [default: {default}]"


@functools.cache
def _defaults() -> dict[str, Any]:
    return {one.name: one.default for one in (*fields(EngineConfig), *fields(ServerConfig))}
