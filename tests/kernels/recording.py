"""A backend that records which ops run and hands out tokens instead of arrays.

`recording(ops)` wraps any Ops. Every array, packed weight and arena that leaves it is a `Token`,
which refuses arithmetic, indexing, iteration, length, truth and attributes, so code that touches
arrays other than through Ops fails at the place where it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, NoReturn

from kveik.kernels.ops import GroupBatch, Ops

PLAIN_RESULTS = {
    *("download", "kept_as", "sample", "sum_rows", "rope_write_kv"),
    *("copy_blocks", "erase_blocks", "capture"),
}


class TouchedArrayError(AssertionError):
    """Code outside the backend touched an array."""


class Token:
    """Stands for an array. Only the backend that made it can look inside."""

    __slots__ = ("_hidden",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, hidden: Any) -> None:
        object.__setattr__(self, "_hidden", hidden)

    def __getattr__(self, name: str) -> NoReturn:
        raise TouchedArrayError(f"an array was asked for its attribute {name!r}")

    def __repr__(self) -> str:
        return "<array token>"


def _refusal(name: str) -> Callable[..., NoReturn]:
    def refuse(self: Token, *_: Any) -> NoReturn:
        raise TouchedArrayError(f"{name} of an array outside the backend")

    return refuse


_REFUSED = (
    "add sub mul truediv floordiv mod divmod pow matmul and or xor lshift rshift",
    "radd rsub rmul rtruediv rfloordiv rmod rdivmod rpow rmatmul rand ror rxor rlshift rrshift",
    "iadd isub imul itruediv ifloordiv imod ipow imatmul iand ior ixor ilshift irshift",
    "neg pos abs invert eq ne lt le gt ge bool int float complex index round",
    "len iter next getitem setitem delitem contains call array setattr delattr",
)
for _name in " ".join(_REFUSED).split():
    setattr(Token, f"__{_name}__", _refusal(f"__{_name}__"))


def reveal(value: Any) -> Any:
    """The array behind a token; other values as they are."""
    return object.__getattribute__(value, "_hidden") if isinstance(value, Token) else value


def recording(ops: Ops) -> tuple[Ops, list[str]]:
    """The wrapped backend, and the list to which it appends the name of every op that runs."""
    calls: list[str] = []
    wrapped = {
        field.name: _recorded(field.name, getattr(ops, field.name), calls)
        for field in fields(Ops)
        if callable(getattr(ops, field.name))
    }
    return replace(ops, name=f"recording {ops.name}", **wrapped), calls


def _recorded(name: str, op: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        result = op(*map(_inside, arguments), **{key: _inside(v) for key, v in named.items()})
        if name in PLAIN_RESULTS:
            return result
        return tuple(map(Token, result)) if isinstance(result, tuple) else Token(result)

    return call


def _inside(value: Any) -> Any:
    if isinstance(value, GroupBatch):
        return replace(value, **{f.name: reveal(getattr(value, f.name)) for f in fields(value)})
    return reveal(value)
