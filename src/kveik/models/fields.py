"""Typed, bounds-checked reading of JSON objects that a stranger wrote.

A key is read only by asking for it, with its type and its bounds: what nobody asks for has no
effect. null counts as absent. Errors name the place, the key, the value and what was expected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from kveik.errors import KveikError, ModelLoadError

_MAX_JSON_BYTES = 64 * 1024 * 1024


class Fields:
    """The keys of one JSON object. `where` opens every message; `error` is the class raised."""

    def __init__(
        self,
        where: str,
        values: Mapping[str, object],
        error: type[KveikError] = ModelLoadError,
    ) -> None:
        self.where = where
        self._values = values
        self._error = error

    def fail(self, message: str) -> KveikError:
        """The exception to raise for this object."""
        return self._error(f"{self.where}: {message}")

    def get(self, name: str) -> object:
        return self._values.get(name)

    def has(self, name: str) -> bool:
        """Whether the key is present, null included."""
        return name in self._values

    def integer(
        self, name: str, default: int | None = None, *, low: int = 1, high: int = 2**31 - 1
    ) -> int:
        value = self.get(name)
        if value is None:
            if default is None:
                raise self.fail(f"{name} is missing; an integer of {low} .. {high} is needed")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.fail(f"{name} is {value!r}; expected an integer of {low} .. {high}")
        return value

    def number(
        self, name: str, default: float | None = None, *, low: float = 0.0, high: float = 1e12
    ) -> float:
        value = self.get(name)
        if value is None:
            if default is None:
                raise self.fail(f"{name} is missing; a number of {low:g} .. {high:g} is needed")
            return default
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            raise self.fail(f"{name} is {value!r}; expected a number of {low:g} .. {high:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(f"{name} is {value!r}; expected true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.fail(f"{name} is {value!r}; expected a string")
        return value

    def items(self, name: str) -> Sequence[object] | None:
        value = self.get(name)
        if value is None or isinstance(value, list):
            return value
        raise self.fail(f"{name} is {value!r}; expected a list")

    def mapping(self, name: str) -> Mapping[str, object] | None:
        value = self.get(name)
        if value is None or isinstance(value, dict):
            return value
        raise self.fail(f"{name} is {value!r}; expected an object")


def read_json(file: Path) -> dict[str, object]:
    """A JSON object from a file, or ModelLoadError naming the file."""
    value = _read(file)
    if not isinstance(value, dict):
        raise ModelLoadError(f"{file}: expected a JSON object, found {type(value).__name__}")
    return value


def read_json_list(file: Path) -> list[object]:
    """A JSON list from a file, or ModelLoadError naming the file."""
    value = _read(file)
    if not isinstance(value, list):
        raise ModelLoadError(f"{file}: expected a JSON list, found {type(value).__name__}")
    return value


def _read(file: Path) -> object:
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise ModelLoadError(
                f"{file}: larger than {_MAX_JSON_BYTES} bytes; not a settings file"
            )
        return json.loads(file.read_bytes())
    except OSError as error:
        raise ModelLoadError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(
            f"{file}: not valid JSON ({error}); download the file again"
        ) from error
