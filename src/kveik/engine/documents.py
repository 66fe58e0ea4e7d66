"""Which tokens of a conversation come from which version of a document.

A content part says so itself: {"type": "text", "text": ..., "document": "handbook@3"}. Whoever
continues a conversation sends the parts of earlier turns on, so that their labels go with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kveik.cache.directive import DocumentSpan
from kveik.config import check_limit
from kveik.engine.tokenizer import Tokenizer
from kveik.engine.words import document_version
from kveik.errors import InvalidRequest


class DocumentPart(NamedTuple):
    """A content part that comes from a version of a document."""

    message: int
    part: int
    document: str
    version: str

    @property
    def place(self) -> tuple[int, int]:
        return self.message, self.part


def document_parts(messages: Sequence[Mapping[str, Any]]) -> list[DocumentPart]:
    """The labelled parts, in the order of the prompt. Raises InvalidRequest naming the field."""
    found = []
    for place, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, str) or not isinstance(content, Sequence):
            continue
        for index, part in enumerate(content):
            label = part.get("document") if isinstance(part, Mapping) else None
            if label is not None:
                found.append(DocumentPart(place, index, *_parsed(label, place, index)))
    check_limit("document_count", len(found), param="messages")
    return found


def encode_with_documents(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]
) -> tuple[list[int], tuple[DocumentSpan, ...]]:
    """The ids of `Tokenizer.encode_chat`, and the tokens of every labelled part."""
    parts = document_parts(messages)
    if not parts:
        return tokenizer.encode_chat(messages), ()
    ids, spans = tokenizer.encode_chat_with_spans(messages, [one.place for one in parts])
    return ids, document_spans(parts, spans)


def document_spans(
    parts: Sequence[DocumentPart], spans: Sequence[tuple[int, int]]
) -> tuple[DocumentSpan, ...]:
    """The parts with the tokens `start .. end` of each."""
    return tuple(
        DocumentSpan(one.document, one.version, start, end)
        for one, (start, end) in zip(parts, spans, strict=True)
    )


def _parsed(label: object, message: int, part: int) -> tuple[str, str]:
    try:
        return document_version(label)
    except ValueError as error:
        field = f"messages[{message}].content[{part}].document"
        raise InvalidRequest(f"{field}: {error}", param=field) from None
