"""Chat messages as they come over the wire, checked one by one so that an error names its place."""

from __future__ import annotations

from typing import Any, NoReturn

from kveik.config import LIMITS, check_limit
from kveik.errors import InvalidRequest, UnsupportedFeature
from kveik.server.json_body import shown

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_UNSERVED_ROLES = ("tool", "function")
_ECHOED = ("refusal", "audio", "tool_calls", "function_call", "annotations", "reasoning_content")
"""Fields of an answer that clients send back; empty, they say nothing."""

_TEXT_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}

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


def check_messages(value: object) -> list[dict[str, str]]:
    """`[{"role", "content"}, ...]` with the text parts of each content joined.

    The role developer is the newer name of system. Raises InvalidRequest naming the place."""
    if not isinstance(value, list):
        _refuse("messages", "expected a list of messages")
    check_limit("message_count", len(value), param="messages")
    return [_message(item, f"messages[{index}]") for index, item in enumerate(value)]


def _message(item: object, place: str) -> dict[str, str]:
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
        "content": _content(item.get("content"), f"{place}.content"),
    }


def _role(role: object, place: str) -> str:
    if role in _UNSERVED_ROLES:
        _unsupported(place, f"{role} messages are not served")
    if not isinstance(role, str) or role not in _ROLES:
        _refuse(place, "expected one of " + ", ".join(_ROLES))
    return _ROLES[role]


def _content(content: object, place: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        _refuse(place, "expected a string or a list of text parts")
    return "".join(_part(part, f"{place}[{index}]") for index, part in enumerate(content))


def _part(part: object, place: str) -> str:
    if not isinstance(part, dict):
        _refuse(place, "expected an object with type and text")
    kind = part.get("type")
    if not isinstance(kind, str):
        _refuse(f"{place}.type", "expected text")
    if kind != "text":
        _unsupported(place, "only text parts are served by this model")
    for name in part:
        if name == "cache_control":
            _unsupported(f"{place}.{name}", "is not served; leave it out")
        if name not in ("type", "text"):
            _refuse(f"{place}.{shown(name)}", "unknown field")
    text = part.get("text")
    if not isinstance(text, str):
        _refuse(f"{place}.text", "expected a string")
    return text


def _refuse(place: str, why: str) -> NoReturn:
    raise InvalidRequest(f"{place}: {why}", param=place)


def _unsupported(place: str, why: str) -> NoReturn:
    raise UnsupportedFeature(f"{place}: {why}", param=place)
