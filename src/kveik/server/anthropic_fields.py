"""Bodies of POST /v1/messages and /v1/messages/count_tokens: text in, text out.

The prompt is system, then messages (there are no tools). The blocks of a turn are joined as they
are; turns of one role that follow each other become one, with an empty line between them. A
breakpoint (cache_control) on a block, or at the top level for the last block, says that the prompt
up to the end of this block is kept for 5 minutes or an hour, counted from its last use: four at
most, the longer-lived ones first. metadata.user_id is accepted and has no effect on the answer.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import Field, PlainValidator, WithJsonSchema

from kveik.config import LIMITS, check_limit
from kveik.server import messages
from kveik.server.fields import Body, Identifier, bounded, refuse
from kveik.server.messages import Conversation, Place, cache_control, check_messages, told_of
from kveik.server.retention_fields import (
    CacheFields,
    Mark,
    Native,
    Retention,
    Salt,
    Window,
    retention,
)

UNSERVED: dict[str, tuple[object, ...]] = {
    "container": (),
    "context_management": (),
    "diagnostics": (),
    "inference_geo": (),
    "mcp_servers": ([],),
    "output_config": ({},),
    "output_format": (),
    "service_tier": ("auto", "standard_only"),
    "speed": ("standard",),
    "thinking": ({"type": "disabled"},),
    "tool_choice": ({"type": "none"},),
    "tools": ([],),
    "user_profile_id": (),
}
"""Fields of Anthropic's API that are a 400 here, unless they ask for what happens anyway."""

_ROLES = ("user", "assistant", "system")
_BETWEEN_TURNS = "\n\n"


def _system(value: object) -> Conversation:
    if value is None or value == "":
        return Conversation()
    with told_of("messages[0].content", "system"):
        return _checked([{"role": "system", "content": value}])


def _turns(value: object) -> Conversation:
    conversation = _checked(value)
    if conversation.messages[-1]["role"] != "user":
        refuse(
            "messages",
            "the last message must have the role user: an answer that goes on from given words "
            "(prefill) is not served",
        )
    return conversation


def _checked(value: object) -> Conversation:
    if isinstance(value, list):
        value = [_without_citations(item) for item in value]
    conversation = check_messages(value)
    for index, message in enumerate(conversation.messages):
        content = message["content"]
        texts = [content] if isinstance(content, str) else [part["text"] for part in content]
        if not all(texts):
            place = f"messages[{index}].content"
            refuse(place, "every text must have at least one character")
    return conversation


def _without_citations(message: object) -> object:
    """Answers of Anthropic's API carry `citations: null`, and clients send answers back."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    blocks = [
        {name: item for name, item in block.items() if name != "citations" or item}
        if isinstance(block, dict)
        else block
        for block in message["content"]
    ]
    return {**message, "content": blocks}


def _joined(system: Conversation, turns: Conversation) -> Conversation:
    """One conversation in the order of the prompt, turns of one role put together."""
    whole = Conversation()
    for source in (system, turns):
        places: dict[Place, Place] = {}
        for index, message in enumerate(source.messages):
            for old, new in _add(whole, message):
                places[index, old] = new
        whole.documents += [
            (places[place], document, version) for place, document, version in source.documents
        ]
        whole.marks += [(places[place], mark) for place, mark in source.marks]
    return whole


def _add(whole: Conversation, message: dict[str, Any]) -> list[tuple[int, Place]]:
    """Where each part of the message is now."""
    before = whole.messages[-1] if whole.messages else None
    if before is None or before["role"] != message["role"]:
        whole.messages.append(message)
        at = len(whole.messages) - 1
        return [(number, (at, number)) for number in range(len(parts_of(message)))]
    first, *rest = parts_of(message)
    kept = parts_of(before)
    opening = {**first, "text": _BETWEEN_TURNS + first["text"]}
    whole.messages[-1] = {**before, "content": [*kept, opening, *rest]}
    at = len(whole.messages) - 1
    return [(number, (at, len(kept) + number)) for number in range(1 + len(rest))]


def parts_of(message: dict[str, Any]) -> list[dict[str, str]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _mark_the_end(whole: Conversation, mark: Mark) -> None:
    """cache_control at the top level: a breakpoint on the last block."""
    last = whole.messages[-1]
    parts = parts_of(last)
    place = (len(whole.messages) - 1, len(parts) - 1)
    there = [own for at, own in whole.marks if at == place]
    if there and there != [mark]:
        refuse("cache_control", "contradicts the cache_control of the last block; send one of them")
    if not there:
        whole.messages[-1] = {**last, "content": parts}
        whole.marks.append((place, mark))


def _check_marks(marks: list[Mark]) -> None:
    check_limit("breakpoint_count", len(marks), param="cache_control")
    lifetimes = [mark.seconds or 0.0 for mark in marks]
    if lifetimes != sorted(lifetimes, reverse=True):
        refuse(
            "cache_control",
            "a breakpoint with ttl 1h comes after one with 5m; the longer-lived ones come first",
        )


_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
_BLOCKS: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "type": {"const": "text"},
            "text": _TEXT,
            "citations": {"enum": [None, []]},
            "cache_control": messages.CACHE_CONTROL_SCHEMA,
            "document": messages.DOCUMENT_SCHEMA,
        },
        "required": ["type", "text"],
        "additionalProperties": False,
    },
}
_TURNS = {
    "type": "array",
    "minItems": int(LIMITS["message_count"].low),
    "maxItems": int(LIMITS["message_count"].high),
    "items": {
        "type": "object",
        "properties": {"role": {"enum": list(_ROLES)}, "content": {"anyOf": [_TEXT, _BLOCKS]}},
        "required": ["role", "content"],
        "additionalProperties": False,
    },
}

System: TypeAlias = Annotated[
    Conversation,
    PlainValidator(_system),
    WithJsonSchema({"anyOf": [{"type": ["string", "null"]}, _BLOCKS]}),
]
Turns: TypeAlias = Annotated[Conversation, PlainValidator(_turns), WithJsonSchema(_TURNS)]
Breakpoint: TypeAlias = Annotated[
    Mark, PlainValidator(cache_control), WithJsonSchema(messages.CACHE_CONTROL_SCHEMA)
]
StopSequence: TypeAlias = Annotated[
    str,
    Field(
        min_length=int(LIMITS["stop_length"].low),
        max_length=int(LIMITS["stop_length"].high),
    ),
]


class Metadata(Body):
    user_id: Annotated[str, Field(max_length=512)] | None = None


class CountTokens(Body):
    """POST /v1/messages/count_tokens"""

    model: Annotated[str, Field(max_length=512)]
    messages: Turns
    system: System = Field(default_factory=Conversation)
    cache_control: Breakpoint | None = None

    unserved = UNSERVED

    def check(self) -> None:
        _check_marks([mark for _, mark in self.conversation().marks])

    def conversation(self) -> Conversation:
        whole = _joined(self.system, self.messages)
        if self.cache_control is not None:
            _mark_the_end(whole, self.cache_control)
        return whole


class Messages(CountTokens):
    """POST /v1/messages. From kveik on: extensions."""

    max_tokens: Annotated[int, bounded("max_tokens")]
    stream: bool | None = None
    stop_sequences: (
        Annotated[list[StopSequence], Field(max_length=int(LIMITS["stop_count"].high))] | None
    ) = None
    temperature: Annotated[float, Field(strict=True, ge=0.0, le=1.0)] | None = None
    top_p: Annotated[float, bounded("top_p")] | None = None
    top_k: Annotated[int, bounded("top_k")] | None = None
    metadata: Metadata | None = None
    kveik: Native | None = None
    stream_window: Window | None = None
    cached_content: Identifier | None = None
    cache_salt: Salt | None = None

    def check(self) -> None:
        super().check()
        self.retention(self.conversation())

    def retention(self, conversation: Conversation) -> Retention:
        fields = CacheFields.model_construct(
            kveik=self.kveik,
            cached_content=self.cached_content,
            cache_salt=self.cache_salt,
            stream_window=self.stream_window,
        )
        return retention(fields, [mark for _, mark in conversation.marks])
