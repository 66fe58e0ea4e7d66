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
_TEXT_PART = {
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

Place = tuple[int, int]
"""(index of the message, index of its part)"""

Value = TypeVar("Value")


@dataclass(slots=True)
class Conversation:
    """messages: role and content; a content is a string, or text parts where one is labelled.

    documents: (place, document, version). marks: breakpoints, in the order of the prompt."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    documents: list[tuple[Place, str, str]] = field(default_factory=list)
    marks: list[tuple[Place, Mark]] = field(default_factory=list)

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
        len(content) if isinstance(content, str) else sum(len(part["text"]) for part in content)
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


SCHEMA: dict[str, Any] = {
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
                    {"type": "array", "minItems": 1, "items": _TEXT_PART},
                ]
            },
        },
        "required": ["role", "content"],
        "additionalProperties": False,
    },
}


def check_messages(value: object) -> Conversation:
    """Raises InvalidRequest naming the place. The role developer is the newer name of system."""
    if not isinstance(value, list):
        _refuse("messages", "expected a list of messages")
    check_limit("message_count", len(value), param="messages")
    conversation = Conversation()
    for index, item in enumerate(value):
        conversation.messages.append(_message(item, index, conversation))
    check_limit("document_count", len(conversation.documents), param="messages")
    controls = [mark for _, mark in conversation.marks if mark.field == "cache_control"]
    check_limit("breakpoint_count", len(controls), param="messages")
    return conversation


def _message(item: object, index: int, conversation: Conversation) -> dict[str, Any]:
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
        "content": _content(item.get("content"), index, conversation),
    }


def _role(role: object, place: str) -> str:
    if role in _UNSERVED_ROLES:
        _unsupported(place, f"{role} messages are not served")
    if not isinstance(role, str) or role not in _ROLES:
        _refuse(place, "expected one of " + ", ".join(_ROLES))
    return _ROLES[role]


def _content(content: object, index: int, conversation: Conversation) -> str | list[dict[str, str]]:
    """Joined text, or the parts where one is labelled: labels need to know where a part ends."""
    place = f"messages[{index}].content"
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        _refuse(place, "expected a string or a list of text parts")
    labels = len(conversation.documents) + len(conversation.marks)
    texts = []
    for number, part in enumerate(content):
        texts.append(_text(part, f"{place}[{number}]"))
        _labels(part, (index, number), f"{place}[{number}]", conversation)
    if labels == len(conversation.documents) + len(conversation.marks):
        return "".join(texts)
    return [{"type": "text", "text": text} for text in texts]


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
