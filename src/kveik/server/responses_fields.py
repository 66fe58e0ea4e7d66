"""Body of POST /v1/responses: text in, text out.

Nothing is stored beyond the cache: `store` may be left out or false, and what a later request
should go on from is sent again or named by `kveik.session` with `continue`, so that
previous_response_id is a 400. `user` is accepted and has no effect on the answer.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field, PlainValidator, WithJsonSchema

from kveik.config import LIMITS
from kveik.server.fields import bounded, refuse
from kveik.server.messages import (
    DOCUMENT_SCHEMA,
    PROMPT_CACHE_BREAKPOINT_SCHEMA,
    Conversation,
    check_messages,
    told_of,
)
from kveik.server.protocol import StreamOptions
from kveik.server.retention_fields import CacheFields, Retention, retention

UNSERVED: dict[str, tuple[object, ...]] = {
    "access_programs": (),
    "background": (False,),
    "context_management": (),
    "conversation": (),
    "image": (),
    "include": ([],),
    "max_tool_calls": (),
    "moderation": (),
    "parallel_tool_calls": (False,),
    "previous_response_id": (),
    "prompt": (),
    "reasoning": ({},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "text": ({"format": {"type": "text"}}, {}),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}
"""Fields of OpenAI's API that are a 400 here, unless they ask for what happens anyway."""

_ROLES = ["user", "assistant", "system", "developer"]
_PARTS = ("input_text", "output_text")
_OF_ANSWERS = ("id", "status", "phase")
"""What a message that is sent back carries; like empty annotations, it says nothing."""


def _input(value: object) -> Conversation:
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    elif isinstance(value, list):
        value = [_message(item, f"input[{index}]") for index, item in enumerate(value)]
    else:
        refuse("input", "expected a string or a list of messages")
    with told_of("messages", "input"):
        return check_messages(value)


def _message(item: object, place: str) -> object:
    """An item of the input as a chat message."""
    if not isinstance(item, dict):
        return item
    if item.get("type") not in (None, "message"):
        refuse(f"{place}.type", "only messages are served; leave other items out")
    message = {
        name: value
        for name, value in item.items()
        if name != "type" and not (name in _OF_ANSWERS and isinstance(value, str | None))
    }
    content = item.get("content")
    if isinstance(content, list):
        message["content"] = [
            _part(part, f"{place}.content[{index}]") for index, part in enumerate(content)
        ]
    return message


def _part(part: object, place: str) -> object:
    if not isinstance(part, dict):
        return part
    if part.get("type") not in _PARTS:
        refuse(f"{place}.type", "only input_text and output_text are served by this model")
    rest = {
        name: value
        for name, value in part.items()
        if name not in ("annotations", "logprobs") or value
    }
    return {**rest, "type": "text"}


_PART_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"enum": list(_PARTS)},
        "text": {"type": "string"},
        "document": DOCUMENT_SCHEMA,
        "prompt_cache_breakpoint": PROMPT_CACHE_BREAKPOINT_SCHEMA,
        "annotations": {"enum": [[], None]},
        "logprobs": {"enum": [[], None]},
    },
    "required": ["type", "text"],
    "additionalProperties": False,
}
_ITEM_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"const": "message"},
        "role": {"enum": _ROLES},
        "content": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "minItems": 1, "items": _PART_SCHEMA},
            ]
        },
        "id": {"type": "string"},
        "status": {"type": "string"},
        "phase": {"type": ["string", "null"]},
    },
    "required": ["role", "content"],
    "additionalProperties": False,
}
Input: TypeAlias = Annotated[
    Conversation,
    PlainValidator(_input),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "minItems": int(LIMITS["message_count"].low),
                    "maxItems": int(LIMITS["message_count"].high),
                    "items": _ITEM_SCHEMA,
                },
            ]
        }
    ),
]
Text: TypeAlias = Annotated[str, Field(max_length=512)]


class ResponseRequest(CacheFields):
    """POST /v1/responses"""

    unserved = UNSERVED

    model: Text
    input: Input
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: Annotated[int, bounded("max_tokens", low=1)] | None = None
    temperature: Annotated[float, bounded("temperature")] | None = None
    top_p: Annotated[float, bounded("top_p")] | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Text],
            Field(max_length=16),
        ]
        | None
    ) = None
    user: Text | None = None

    def check(self) -> None:
        super().check()
        self.retention(self.conversation())
        if self.stream_options is not None and not self.stream:
            refuse("stream_options", "is allowed only with stream: true")
        if self.stream_options is not None and self.stream_options.include_obfuscation:
            refuse("stream_options.include_obfuscation", "is not served; send false")

    def retention(self, conversation: Conversation) -> Retention:
        return retention(self, [mark for _, mark in conversation.marks])

    def conversation(self) -> Conversation:
        """instructions, then input."""
        if not self.instructions:
            return self.input
        said = {"role": "system", "content": self.instructions}
        return self.input.behind(said)
