"""What a session knows of its turns: plain records, and how turns are counted. Standard library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from kveik.cache.join import JoinedPrompt

Message: TypeAlias = Mapping[str, Any]


class Mark(NamedTuple):
    """Of a message: the number of its turn and the tags of the request that brought it. Turns are
    counted from 1, each from a message of the user on; what stands before the first is turn 0."""

    turn: int
    tags: tuple[str, ...] = ()


class Past(NamedTuple):
    """What a session goes on from. marks: of every message; turns: how many there were. prompt,
    joined: how the prompt of the last turn was put together, where something before it was
    forgotten (joined None: nothing was); forgotten: tokens of prompts that were, so far."""

    messages: tuple[Message, ...]
    marks: tuple[Mark, ...]
    turns: int
    prompt: tuple[int, ...] = ()
    joined: JoinedPrompt | None = None
    forgotten: int = 0


class Kept(NamedTuple):
    """Of a request that goes on from a session that has forgotten something. marks: of its leading
    messages, which the session had; the rest as in `Past`."""

    marks: tuple[Mark, ...]
    turns: int
    joined: JoinedPrompt | None
    forgotten: int


def marked(
    messages: Sequence[Message], known: tuple[Mark, ...], turns: int, tags: tuple[str, ...]
) -> tuple[tuple[Mark, ...], int]:
    """The marks of all messages, and how many turns there are now. known: of the first of them;
    turns: how many there were, with those that were forgotten; tags: of the rest."""
    marks = list(known[: len(messages)])
    for place in range(len(marks), len(messages)):
        asks = messages[place].get("role") == "user"
        turns += asks and not (place and messages[place - 1].get("role") == "user")
        marks.append(Mark(turns, tags))
    return tuple(marks), turns
