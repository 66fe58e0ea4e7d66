"""What a session forgets of its finished turns, and the request that goes on without it.

    {"turns": [2, 3]}, {"turns": "2-5"}   by number, counted from 1
    {"tag": "draft"}                      every turn whose request carried the tag
    {"document": "handbook@2"}            the content parts that came from it

Turns keep their numbers. What stands before the first message of the user (the system prompt) is
part of none and stays; so do the first tokens of the prompt, which every later one attends to.
This is no deletion: keys and values of what stays were computed with what was forgotten
(invariant 17). Knows no blocks; the tokenizer is handed in.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import NamedTuple, NoReturn, TypeAlias

from kveik.cache.directive import Directive, DocumentSpan
from kveik.config import LIMITS
from kveik.engine.documents import DocumentPart, document_parts, document_spans
from kveik.engine.gaps import Laid, aligned, closed, followed, through
from kveik.engine.history import Sessions
from kveik.engine.module_parts import has_modules
from kveik.engine.past import Kept, Message, Past
from kveik.engine.token_memory import Encoded
from kveik.engine.words import document_id, identifier
from kveik.errors import InvalidRequest

Encode: TypeAlias = Callable[[Sequence[Message], Sequence[tuple[int, int]]], Encoded]
"""Ids of a conversation, and the tokens of the parts (message, part) that were asked for."""

_RANGE = re.compile(r"([0-9]{1,9})-([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Forget:
    """Exactly one of: turns by their numbers, first .. last inclusive or one by one; a tag; a
    document, of one version or (None) of any."""

    turns: tuple[int, ...] = ()
    last: int | None = None  # turns is one number, the first of a range
    tag: str | None = None
    document: str | None = None
    version: str | None = None


def forget_words(value: object) -> Forget:
    """From what a caller writes; ValueError, beginning with the field where it is one of these."""
    if isinstance(value, Forget):
        return value
    said = dict(value) if isinstance(value, Mapping) else {}
    if len(said) != 1 or not said.keys() <= {"turns", "tag", "document"}:
        raise ValueError('expected one of turns, tag and document, such as {"turns": [2, 3]}')
    [(name, wanted)] = said.items()
    try:
        if name == "tag":
            return Forget(tag=identifier(wanted))
        if name == "turns":
            return _turns(wanted)
        document, at, version = wanted.partition("@") if isinstance(wanted, str) else ("", "", "")
        return Forget(document=document_id(document), version=identifier(version) if at else None)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _turns(value: object) -> Forget:
    if isinstance(value, str) and (both := _RANGE.fullmatch(value)):
        first, last = map(int, both.groups())
        if 1 <= first <= last:
            return Forget((first,), last)
    most = int(LIMITS["forget_count"].high)
    listed = value if isinstance(value, list | tuple) else ()
    if 1 <= len(listed) <= most and all(type(one) is int and one >= 1 for one in listed):
        return Forget(tuple(sorted(set(listed))))
    raise ValueError(
        f"expected numbers of turns from 1 on, as a list such as [2, 3] of at most {most}, or as a "
        'range such as "2-5"'
    )


class Gone(NamedTuple):
    """What is taken out: whole messages, and parts (message, part) of others."""

    messages: frozenset[int] = frozenset()
    parts: frozenset[tuple[int, int]] = frozenset()

    def __or__(self, other: object) -> Gone:
        assert isinstance(other, Gone)
        return Gone(self.messages | other.messages, self.parts | other.parts)

    def of(self, messages: Sequence[Message]) -> list[Message]:
        """The messages without it."""
        kept = []
        for place, message in enumerate(messages):
            if place in self.messages:
                continue
            mine = {part for index, part in self.parts if index == place}
            if mine:
                content = [one for part, one in enumerate(message["content"]) if part not in mine]
                message = {**message, "content": content}
            kept.append(message)
        return kept


@dataclass(frozen=True)
class GoingOn:
    """A conversation that goes on without what is forgotten now or was before. past: of its
    session; new: the messages behind it; gaps: what goes, one gap after the other, each together
    with those before it."""

    past: Past
    new: tuple[Message, ...]
    gaps: tuple[Gone, ...] = ()

    @property
    def changes(self) -> bool:
        """Does the session forget something, or did it before?"""
        return bool(self.gaps or self.past.forgotten) or self.past.joined is not None

    @property
    def messages(self) -> list[Message]:
        """Of the prompt that is computed."""
        return [*self._gone.of(self.past.messages), *self.new]

    @property
    def _gone(self) -> Gone:
        return self.gaps[-1] if self.gaps else Gone()

    def kept(self, encode: Encode, token_ids: Sequence[int], directive: Directive) -> Kept:
        """How the prompt is joined, and what the session knows of it. token_ids: of `messages`;
        directive: what the request asks of the cache."""
        whole, settled, documents = self._before(encode)
        prompts = [whole.tokens]
        for gone in self.gaps[:-1]:
            prompts.append(encode([*gone.of(self.past.messages), *self.new], ()).token_ids)
        prompts.append(token_ids)
        pieces = aligned(prompts[0], prompts[1])
        for longer, shorter in pairwise(prompts[1:]):
            pieces = through(pieces, aligned(longer, shorter))
        joined = closed(whole, pieces, settled, _of_units(directive, documents))
        marks = tuple(
            mark for place, mark in enumerate(self.past.marks) if place not in self._gone.messages
        )
        forgotten = self.past.forgotten + max(len(whole.tokens) - len(token_ids), 0)
        return Kept(marks, self.past.turns, joined, forgotten)

    def _before(self, encode: Encode) -> tuple[Laid, int, tuple[DocumentSpan, ...]]:
        """The prompt if nothing were forgotten now; of how many of its tokens keys and values
        exist; the documents in those."""
        said = self.past.messages
        labelled, end = document_parts(said), _last_text(said)
        places = [one.place for one in labelled] + ([end] if end is not None else [])
        encoded = encode([*said, *self.new], places)
        # Of an answer that was cut by its length the last token was never computed.
        settled = encoded.spans[-1][1] - 1 if end is not None else 0
        documents = document_spans(labelled, encoded.spans[: len(labelled)])
        whole = Laid.plain(encoded.token_ids)
        if self.past.joined is not None:
            before = Laid(self.past.prompt, self.past.joined.stretches, self.past.joined.units)
            whole = followed(before, encoded.token_ids)
        return whole, settled, documents


def of_session(
    history: Sessions,
    key: tuple[str, str],  # (namespace, session)
    messages: Sequence[Message],
    forget: Forget | None,
    *,
    continues: bool,
    field: str = "forget",
) -> GoingOn:
    """`going_on` of a session. continues: messages come behind what is kept of it, or else they are
    the whole conversation. Raises Conflict like Sessions.past."""
    past = history.past(*key) if continues else history.retold(*key, messages)
    new = messages if continues else messages[len(past.messages) :]
    return going_on(past, new, forget, field)


def going_on(past: Past, new: Sequence[Message], forget: Forget | None, field: str) -> GoingOn:
    """What `forget` means for a session. field: how the caller's request calls it. Raises
    InvalidRequest that names what there is not, or what cannot go."""
    changes = forget is not None or GoingOn(past, ()).changes
    if changes and has_modules((*past.messages, *new)):
        _refuse(
            "cache" if forget is None else field,
            "a session that forgets takes no prompt modules, which are forgotten by leaving them "
            "out of messages; send plain text",
        )
    if forget is None:
        return GoingOn(past, tuple(new))
    if not past.turns:
        _refuse(field, "there is no finished turn yet")
    if forget.document is not None:
        gaps = _of_document(past, forget, f"{field}.document")
    elif forget.tag is not None:
        turns = {mark.turn for mark in past.marks if forget.tag in mark.tags} - {0}
        if not turns:
            _refuse(f"{field}.tag", f"no turn of the session has the tag {forget.tag}")
        gaps = _of_turns(past, turns)
    else:
        gaps = _of_turns(past, _numbers(past, forget, f"{field}.turns"))
    most = int(LIMITS["forget_gaps"].high)
    if len(gaps) > most:
        _refuse(field, f"would leave {len(gaps)} gaps, and {most} can be closed at once")
    return GoingOn(past, tuple(new), tuple(accumulate(gaps, operator.or_)))


def _numbers(past: Past, forget: Forget, field: str) -> set[int]:
    """The turns that are named by number; every one must be there."""
    last = forget.turns[-1] if forget.last is None else forget.last
    if last > past.turns:
        _refuse(field, f"there is no turn {last}: the session has finished {past.turns}")
    named = set(forget.turns) if forget.last is None else {*range(forget.turns[0], last + 1)}
    gone = named - {mark.turn for mark in past.marks}
    if gone:
        _refuse(field, f"turn {min(gone)} was forgotten before")
    return named


def _of_turns(past: Past, turns: Set[int]) -> list[Gone]:
    """One gap for messages that follow one another."""
    gaps: list[list[int]] = []
    for place, mark in enumerate(past.marks):
        if mark.turn in turns:
            if not gaps or gaps[-1][-1] != place - 1:
                gaps.append([])
            gaps[-1].append(place)
    return [Gone(frozenset(gap)) for gap in gaps]


def _of_document(past: Past, forget: Forget, field: str) -> list[Gone]:
    """The labelled parts; where a message of a turn is nothing else, the whole turn."""
    parts = [one for one in document_parts(past.messages) if _is_of(one, forget)]
    if not parts:
        _refuse(field, f"no part of the session's turns is labelled {_label(forget)}")
    places: dict[int, set[int]] = {}
    for one in parts:
        places.setdefault(one.message, set()).add(one.part)
    whole = {
        message
        for message, found in places.items()
        if all(part in found for part in range(len(past.messages[message]["content"])))
    }
    turns = {past.marks[message].turn for message in whole}
    if 0 in turns:
        _refuse(field, "the system prompt consists of it, and stays; open another session")
    gaps = _of_turns(past, turns)
    gaps += [
        Gone(parts=frozenset({one.place}))
        for one in parts
        if past.marks[one.message].turn not in turns
    ]
    return gaps


def _is_of(part: DocumentPart, forget: Forget) -> bool:
    return part.document == forget.document and forget.version in (None, part.version)


def _label(forget: Forget) -> str:
    return f"{forget.document}" + ("" if forget.version is None else f"@{forget.version}")


def _last_text(messages: Sequence[Message]) -> tuple[int, int] | None:
    """(message, part) of the last text that is not blank."""
    for message in range(len(messages) - 1, -1, -1):
        content = messages[message].get("content")
        texts = [content] if isinstance(content, str) else [one["text"] for one in content or ()]
        for part in range(len(texts) - 1, -1, -1):
            if texts[part].strip():
                return message, part
    return None


def _of_units(directive: Directive, documents: tuple[DocumentSpan, ...]) -> Directive:
    """What the request asks, of the conversation as it was: it belongs to no name, and of several
    times to live it has the shortest."""
    times = [span.ttl for span in directive.spans] + ([directive.ttl] if directive.ttl else [])
    return replace(
        directive,
        documents=documents,
        ttl=min(times, key=lambda ttl: ttl.seconds, default=None),
        spans=(),
        name=None,
        pin=False,
        write_until=None,
    )


def _refuse(field: str, why: str) -> NoReturn:
    raise InvalidRequest(f"{field}: {why}", param=field)
