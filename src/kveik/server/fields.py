"""What the request records share: strict bodies, bounded numbers, identifiers, durations.

Every bound comes from config.LIMITS and shows in the JSON schema. A value that is refused is told
by a ValueError: who knows the field's path turns it into an InvalidRequest that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, NoReturn, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema

from kveik.config import LIMITS
from kveik.engine.words import DOCUMENT, IDENTIFIER, document_id, duration, identifier, tag_list
from kveik.errors import InvalidRequest


class Body(BaseModel):
    """Every request body: unknown fields and loose types are refused.

    unserved: fields that are known and not served, with the values that are let pass (unserved)."""

    model_config = ConfigDict(extra="forbid", strict=True)
    unserved: ClassVar[Mapping[str, tuple[object, ...]]] = MappingProxyType({})

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


IDENTIFIER_SCHEMA: dict[str, Any] = {"type": "string", "pattern": f"^{IDENTIFIER}$"}
DOCUMENT_SCHEMA: dict[str, Any] = {"type": "string", "pattern": f"^{DOCUMENT}$"}
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
Age: TypeAlias = Annotated[  # seconds, 0 too, or a duration in words
    float,
    BeforeValidator(lambda value: duration(value) if isinstance(value, str) else value),
    bounded("age"),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, *_DURATION_SCHEMA["anyOf"][1:]]}),
]
Tags: TypeAlias = Annotated[tuple[str, ...], PlainValidator(tag_list), WithJsonSchema(_TAGS_SCHEMA)]
