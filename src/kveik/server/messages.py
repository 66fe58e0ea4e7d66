"""Chat messages as they come over the wire, checked one by one so that an error names its place.

What a part says about the cache beside its text is kept apart: the document version that it comes
from, and breakpoints (Anthropic's cache_control, OpenAI's prompt_cache_breakpoint).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from kveik.config import LIMITS, check_limit
from kveik.engine.module_parts import read_use
from kveik.engine.words import document_version, duration
from kveik.errors import InvalidRequest, UnsupportedFeature
from kveik.server.json_body import shown
from kveik.server.retention_fields import Mark

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_UNSERVED_ROLES = ("tool", "function")
_ECHOED = ("refusal", "audio", "tool_calls", "function_call", "annotations", "reasoning_content")
"""Fields of an answer that clients send back; empty, they say nothing."""

_CACHE_CONTROL_SECONDS = {None: 300.0, "5m": 300.0, "1h": 3600.0}

DOCUMENT_SCHEMA = {"type": "string", "pattern": "^[a-z0-9]{1,40}@[a-z0-9]{1,40}$"}
CACHE_CONTROL_SCHEMA = {
    "type": "object",
    "properties": {"type": {"const": "ephemeral"}, "ttl": {"enum": ["5m", "1h"]}},
    "required": ["type"],
    "additionalProperties": False,
}
PROMPT_CACHE_BREAKPOINT_SCHEMA = {
    "type": "object",
    "properties": {"mode": {"const": "explicit"}, "ttl": {"enum": ["30m", "12h"]}},
    "required": ["mode"],
    "additionalProperties": False,
}
_TEXT_PART: dict[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"const": "text"},
        "text": {"type": "string"},
        "document": DOCUMENT_SCHEMA,
        "cache_control": CACHE_CONTROL_SCHEMA,
        "prompt_cache_breakpoint": PROMPT_CACHE_BREAKPOINT_SCHEMA,
    },
    "required": ["type", "text"],
    "additionalProperties": False,
}

_MODULE_TEXT = {
    **_TEXT_PART,
    "properties": {**_TEXT_PART["properties"], "cache": {"enum": ["module", None]}},
}
_MODULE_USE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9._-]{0,127}$"},
        "args": {"type": ["object", "null"], "additionalProperties": {"type": "string"}},
        "uses": {"type": ["array", "null"], "items": {}},
    },
    "required": ["name"],
    "additionalProperties": False,
}
_MODULE_PART = {
    "type": "object",
    "properties": {
        "type": {"const": "module"},
        **_MODULE_USE["properties"],
        "schema": {"type": ["string", "null"], "pattern": "^[A-Za-z_][A-Za-z0-9._-]{0,127}$"},
        "document": DOCUMENT_SCHEMA,
        "cache_control": CACHE_CONTROL_SCHEMA,
        "prompt_cache_breakpoint": PROMPT_CACHE_BREAKPOINT_SCHEMA,
    },
    "required": ["type", "name"],
    "additionalProperties": False,
}

Place = tuple[int, int]
"""(index of the message, index of its part)"""

Value = TypeVar("Value")


@dataclass(slots=True)
class Conversation:
    """messages: role and content; a content is a string, or text parts where one is labelled.

    documents: (place, document, version). marks: breakpoints, in the order of the prompt. modules:
    places of parts that are prompt modules, of a schema or ad hoc."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    documents: list[tuple[Place, str, str]] = field(default_factory=list)
    marks: list[tuple[Place, Mark]] = field(default_factory=list)
    modules: list[Place] = field(default_factory=list)

    @property
    def labels(self) -> int:
        """How many parts are more than text."""
        return len(self.documents) + len(self.marks) + len(self.modules)

    @property
    def characters(self) -> int:
        return text_size(self.messages)

    def behind(self, message: dict[str, Any]) -> Conversation:
        """This conversation with one more message in front."""
        return Conversation(
            [message, *self.messages],
            [((at + 1, part), name, version) for (at, part), name, version in self.documents],
            [((at + 1, part), mark) for (at, part), mark in self.marks],
        )


def text_size(messages: Iterable[Mapping[str, Any]]) -> int:
    """About how many characters there are to encode."""
    return sum(
        len(content)
        if isinstance(content, str)
        else sum(len(part.get("text", "")) for part in content)
        for content in (message["content"] for message in messages)
    )


@contextlib.contextmanager
def told_of(checked: str, sent: str) -> Iterator[None]:
    """Errors about the place `checked` name what the client has sent."""
    try:
        yield
    except InvalidRequest as error:
        message = error.message.replace(checked, sent, 1)
        place = (error.param or "").replace(checked, sent, 1)
        raise type(error)(message, param=place, code=error.code) from None


def _schema(part: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "array",
        "minItems": int(LIMITS["message_count"].low),
        "maxItems": int(LIMITS["message_count"].high),
        "items": {
            "type": "object",
            "properties": {
                "role": {"enum": list(_ROLES)},
                "content": {
                    "anyOf": [
                        {"type": "string"},
                        {"type": "array", "minItems": 1, "items": part},
                    ]
                },
            },
            "required": ["role", "content"],
            "additionalProperties": False,
        },
    }


SCHEMA = _schema(_TEXT_PART)
SCHEMA_WITH_MODULES = _schema({"anyOf": [_MODULE_TEXT, _MODULE_PART]})


def check_messages(value: object, *, modules: bool = False) -> Conversation:
    """Raises InvalidRequest naming the place. The role developer is the newer name of system.
    modules: parts may be prompt modules."""
    if not isinstance(value, list):
        _refuse("messages", "expected a list of messages")
    check_limit("message_count", len(value), param="messages")
    conversation = Conversation()
    for index, item in enumerate(value):
        conversation.messages.append(_message(item, index, conversation, modules))
    check_limit("document_count", len(conversation.documents), param="messages")
    controls = [mark for _, mark in conversation.marks if mark.field == "cache_control"]
    check_limit("breakpoint_count", len(controls), param="messages")
    return conversation


def _message(item: object, index: int, conversation: Conversation, modules: bool) -> dict[str, Any]:
    place = f"messages[{index}]"
    if not isinstance(item, dict):
        _refuse(place, "expected an object with role and content")
    for name, content in item.items():
        if name in ("role", "content") or (name in _ECHOED and not content):
            continue
        if name in _ECHOED or name in ("name", "tool_call_id", "cache_control"):
            _unsupported(f"{place}.{name}", "is not served; leave it out")
        _refuse(f"{place}.{shown(name)}", "unknown field")
    return {
        "role": _role(item.get("role"), f"{place}.role"),
        "content": _content(item.get("content"), index, conversation, modules),
    }


def _role(role: object, place: str) -> str:
    if role in _UNSERVED_ROLES:
        _unsupported(place, f"{role} messages are not served")
    if not isinstance(role, str) or role not in _ROLES:
        _refuse(place, "expected one of " + ", ".join(_ROLES))
    return _ROLES[role]


def _content(
    content: object, index: int, conversation: Conversation, modules: bool
) -> str | list[dict[str, Any]]:
    """Joined text, or the parts where one is labelled: labels need to know where a part ends."""
    place = f"messages[{index}].content"
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        _refuse(place, "expected a string or a list of text parts")
    labels = conversation.labels
    parts: list[dict[str, Any]] = []
    for number, part in enumerate(content):
        where = f"{place}[{number}]"
        if modules and isinstance(part, dict) and _is_module(part):
            conversation.modules.append((index, number))
            parts.append(_module(part, where))
        else:
            parts.append({"type": "text", "text": _text(part, where)})
        _labels(part, (index, number), where, conversation)
    if labels == conversation.labels:
        return "".join(part["text"] for part in parts)
    return parts


def _is_module(part: dict[str, Any]) -> bool:
    return part.get("type") == "module" or part.get("cache") is not None


def _module(part: dict[str, Any], place: str) -> dict[str, Any]:
    """A module of a schema, or a text that is one, without its labels."""
    own = {name: value for name, value in part.items() if name not in _LABELS}
    if own.get("type") == "module":
        read_use(own, place)
        return own
    if own.pop("cache") != "module":
        _refuse(f"{place}.cache", "expected module, or leave it out")
    return {"type": "text", "text": _text(own, place), "cache": "module"}


def _text(part: object, place: str) -> str:
    if not isinstance(part, dict):
        _refuse(place, "expected an object with type and text")
    kind = part.get("type")
    if not isinstance(kind, str):
        _refuse(f"{place}.type", "expected text")
    if kind != "text":
        _unsupported(place, "only text parts are served by this model")
    for name in part:
        if name not in ("type", "text", *_LABELS):
            _refuse(f"{place}.{shown(name)}", "unknown field")
    text = part.get("text")
    if not isinstance(text, str):
        _refuse(f"{place}.text", "expected a string")
    return text


def _labels(part: dict[str, Any], where: Place, place: str, conversation: Conversation) -> None:
    for name, read in _LABELS.items():
        if part.get(name) is None:
            continue
        found = _checked(read, part[name], f"{place}.{name}")
        if isinstance(found, Mark):
            conversation.marks.append((where, found))
        else:
            conversation.documents.append((where, *found))


def _checked(read: Callable[[object], Value], value: object, place: str) -> Value:
    try:
        return read(value)
    except ValueError as error:
        _refuse(place, str(error))


def cache_control(value: object) -> Mark:
    """Anthropic's breakpoint. ValueError says what is expected."""
    if (
        not isinstance(value, dict)
        or value.get("type") != "ephemeral"
        or not set(value) <= {"type", "ttl"}
        or not isinstance(value.get("ttl"), str | None)
        or value.get("ttl") not in _CACHE_CONTROL_SECONDS
    ):
        raise ValueError('expected {"type": "ephemeral"} with a ttl of "5m" or "1h", or without')
    return Mark("cache_control", _CACHE_CONTROL_SECONDS[value.get("ttl")])


def cache_breakpoint(value: object) -> Mark:
    """OpenAI's breakpoint. ValueError says what is expected."""
    if (
        not isinstance(value, dict)
        or value.get("mode") != "explicit"
        or not set(value) <= {"mode", "ttl"}
    ):
        raise ValueError('expected {"mode": "explicit"}, with or without a ttl such as "30m"')
    ttl = value.get("ttl")
    return Mark("prompt_cache_breakpoint", None if ttl is None else duration(ttl))


_LABELS: dict[str, Callable[[object], Any]] = {
    "document": document_version,
    "cache_control": cache_control,
    "prompt_cache_breakpoint": cache_breakpoint,
}


def _refuse(place: str, why: str) -> NoReturn:
    raise InvalidRequest(f"{place}: {why}", param=place)


def _unsupported(place: str, why: str) -> NoReturn:
    raise UnsupportedFeature(f"{place}: {why}", param=place)
