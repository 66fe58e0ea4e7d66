"""Does a chat template keep the beginning of a conversation? What a named cache may hold of it.

K/V of cached messages are of use only where their rendering is the beginning of every rendering
that goes on from them, today and tomorrow. Templates that write the date, strip the thinking of
earlier turns or move things about are found out here, before anything is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any, Protocol

from kveik.errors import InvalidRequest

Message = Mapping[str, Any]

_QUESTION: Message = {"role": "user", "content": "Why?"}
_REPLY: Message = {"role": "assistant", "content": "Well."}
_LATER = timedelta(days=463, hours=5, minutes=7, seconds=11)  # another year, month, weekday, hour


class ChatEncoder(Protocol):
    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        moment: datetime | None = None,
    ) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...


def chat_prefix(tokenizer: ChatEncoder, messages: Sequence[Message]) -> tuple[int, ...]:
    """The ids with which every conversation begins that goes on from these messages.

    At the very end a token may also cover what comes next; such a token is left out. Raises
    InvalidRequest (code unstable_template), naming the first token that differs, where the template
    does not keep the beginning."""
    now = datetime.now()
    alone = tokenizer.encode_chat(messages, add_generation_prompt=False, moment=now)
    for moment, why in (
        (now, "once another message follows"),
        (now + _LATER, "at another time: it writes the date"),
    ):
        whole = _continued(tokenizer, messages, moment)
        kept = _shared(alone, whole)
        if not _is_prefix(tokenizer, alone, whole, kept):
            raise _changed(tokenizer, alone, whole, kept, why)
        alone = alone[:kept]
    return tuple(alone)


def _continued(tokenizer: ChatEncoder, messages: Sequence[Message], moment: datetime) -> list[int]:
    """The conversation with a further user message; some templates want the roles to alternate."""
    try:
        return tokenizer.encode_chat([*messages, _QUESTION], moment=moment)
    except InvalidRequest:
        return tokenizer.encode_chat([*messages, _REPLY, _QUESTION], moment=moment)


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = zip(left, right, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _is_prefix(
    tokenizer: ChatEncoder, alone: Sequence[int], whole: Sequence[int], kept: int
) -> bool:
    """Is the text kept? A last token that merges with what follows changes ids and no text."""
    rest = tokenizer.decode(alone[kept:], skip_special_tokens=False)
    following = tokenizer.decode(whole[kept:], skip_special_tokens=False)
    return following.startswith(rest)


def _changed(
    tokenizer: ChatEncoder, alone: Sequence[int], whole: Sequence[int], at: int, why: str
) -> InvalidRequest:
    before, after = (
        repr(tokenizer.decode(ids[at : at + 1], skip_special_tokens=False))
        if at < len(ids)
        else "the end"
        for ids in (alone, whole)
    )
    return InvalidRequest(
        f"messages: the chat template changes what it wrote {why}: token {at} was {before} and "
        f"becomes {after}, so K/V behind it would never be used again. Cache the messages before "
        "it, or start with another --chat-template",
        param="messages",
        code="unstable_template",
    )
