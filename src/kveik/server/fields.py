"""What the request records share: strict bodies, bounded numbers, identifiers, durations.

Every bound comes from config.LIMITS and shows in the JSON schema. A value that is refused is told
by a ValueError: who knows the field's path turns it into an InvalidRequest that names it. Nothing
that a client sent is repeated.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, NoReturn, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from kveik.config import LIMITS, parse_duration
from kveik.errors import ConfigError, InvalidRequest

_LONGEST = int(LIMITS["identifier_length"].high)
_IDENTIFIER = f"^[A-Za-z0-9._:/@+-]{{1,{_LONGEST}}}$"
_DOCUMENT = f"^[A-Za-z0-9._:/+-]{{1,{_LONGEST}}}$"


class Body(BaseModel):
    """Every request body: unknown fields and loose types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    def check(self) -> None:
        """Rules between fields. Raises InvalidRequest."""


def bounded(name: str, low: int | None = None) -> Any:
    """A pydantic field with the bounds of LIMITS[name]; booleans and strings are no numbers."""
    limit = LIMITS[name]
    kind = int if limit.integer else float
    least = kind(limit.low) if low is None else low
    return Field(strict=True, ge=least, le=kind(limit.high))


def refuse(place: str, why: str) -> NoReturn:
    raise InvalidRequest(f"{place}: {why}", param=place)


def identifier(value: object) -> str:
    """A session, context, tag, version or name of a cache."""
    if not isinstance(value, str) or not re.fullmatch(_IDENTIFIER[1:-1], value):
        raise ValueError(f"expected 1 .. {_LONGEST} characters of A-Z a-z 0-9 . _ : / @ + -")
    return value


def document_id(value: object) -> str:
    """An identifier without "@", which stands between a document and its version."""
    if not isinstance(value, str) or not re.fullmatch(_DOCUMENT[1:-1], value):
        raise ValueError(f"expected 1 .. {_LONGEST} characters of A-Z a-z 0-9 . _ : / + -")
    return value


def document_version(value: object) -> tuple[str, str]:
    """("handbook", "3") from "handbook@3"."""
    name, at, version = value.partition("@") if isinstance(value, str) else ("", "", "")
    if not at:
        raise ValueError("expected a document and its version, such as handbook@3")
    return document_id(name), identifier(version)


def duration(value: object) -> float:
    """Seconds from 300, "300s", "5m", "1h" or "1d", within LIMITS["ttl"]."""
    low, high = LIMITS["ttl"].low, LIMITS["ttl"].high
    try:
        seconds = parse_duration(value, "ttl") if isinstance(value, int | float | str) else math.nan
    except ConfigError:
        seconds = math.nan
    if not low <= seconds <= high:
        raise ValueError(
            f"expected a duration such as 300, 5m, 1h or 1d, from {low:g} s to {high:g} s"
        )
    return seconds


def tag_list(value: object) -> tuple[str, ...]:
    """Distinct tags, in the order in which they were sent."""
    most = int(LIMITS["tag_count"].high)
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"expected a list of at most {most} tags")
    return tuple(dict.fromkeys(identifier(tag) for tag in value))


IDENTIFIER_SCHEMA: dict[str, Any] = {"type": "string", "pattern": _IDENTIFIER}
DOCUMENT_SCHEMA: dict[str, Any] = {"type": "string", "pattern": _DOCUMENT}
_DURATION_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "integer", "minimum": LIMITS["ttl"].low, "maximum": LIMITS["ttl"].high},
        {"type": "string", "pattern": "^[1-9][0-9]{0,2}[smhd]$"},
    ]
}
_TAGS_SCHEMA: dict[str, Any] = {
    "type": "array",
    "items": IDENTIFIER_SCHEMA,
    "maxItems": int(LIMITS["tag_count"].high),
}

Identifier: TypeAlias = Annotated[
    str, PlainValidator(identifier), WithJsonSchema(IDENTIFIER_SCHEMA)
]
DocumentId: TypeAlias = Annotated[str, PlainValidator(document_id), WithJsonSchema(DOCUMENT_SCHEMA)]
Duration: TypeAlias = Annotated[float, PlainValidator(duration), WithJsonSchema(_DURATION_SCHEMA)]
Tags: TypeAlias = Annotated[tuple[str, ...], PlainValidator(tag_list), WithJsonSchema(_TAGS_SCHEMA)]
