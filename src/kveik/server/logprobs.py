"""Log-probabilities in the shapes of OpenAI's two APIs and of vLLM's prompt_logprobs.

Text that may begin a stop string is held back by the engine, and so are the log-probabilities of
its tokens: what a stop string or an end token cuts off the text is cut off here too, so that the
joined tokens are the text.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence
from typing import Any

from kveik.engine.plan import TokenLogprobs
from kveik.engine.request import ChoiceDelta, ChoiceFinished
from kveik.engine.tokenizer import Tokenizer

FLOOR = -9999.0
"""Stands for minus infinity, which JSON cannot carry."""


class HeldLogprobs:
    """The log-probabilities of one choice, released together with their text."""

    def __init__(self, end_ids: Collection[int]) -> None:
        self._end_ids = end_ids
        self._held: list[TokenLogprobs] = []

    def add(self, delta: ChoiceDelta) -> list[TokenLogprobs]:
        """Those whose text is out now."""
        self._held += [one for one in delta.logprobs if one.token_id not in self._end_ids]
        return self._release() if delta.text else []

    def finish(self, event: ChoiceFinished) -> list[TokenLogprobs]:
        """The rest: nothing after a stop string, which took its tokens along."""
        return [] if isinstance(event.stop_reason, str) else self._release()

    def _release(self) -> list[TokenLogprobs]:
        released, self._held = self._held, []
        return released


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """{"content": [{token, logprob, bytes, top_logprobs}]}"""
    return {
        "content": [
            {
                **_chat_token(tokenizer, entry.token_id, entry.logprob),
                "top_logprobs": [_chat_token(tokenizer, *one) for one in entry.top],
            }
            for entry in entries
        ],
        "refusal": None,
    }


def _chat_token(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(token_id),
        "logprob": finite(logprob),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }


class CompletionLogprobs:
    """{tokens, token_logprobs, top_logprobs, text_offset} of one choice, piece by piece.

    text_offset counts characters of the choice's text (which begins with the prompt if echoed).
    unseen: ids without text."""

    def __init__(self, tokenizer: Tokenizer, unseen: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._unseen = unseen
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def piece(self, entries: Sequence[TokenLogprobs | int]) -> dict[str, list[Any]]:
        """An int is a token without log-probability: the first of an echoed prompt."""
        block: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for entry in entries:
            token_id = entry if isinstance(entry, int) else entry.token_id
            block["tokens"].append(token_label(self._tokenizer, token_id))
            block["text_offset"].append(self._offset)
            if token_id not in self._unseen:
                self._offset += len(self._decoder.decode(self._tokenizer.token_bytes(token_id)))
            if isinstance(entry, int):
                block["token_logprobs"].append(None)
                block["top_logprobs"].append(None)
            else:
                block["token_logprobs"].append(finite(entry.logprob))
                block["top_logprobs"].append(self._top(entry))
        return block

    def _top(self, entry: TokenLogprobs) -> dict[str, float]:
        """The alternatives, and the token itself where it is none of them."""
        pairs = (*entry.top, (entry.token_id, entry.logprob))
        top: dict[str, float] = {}
        for token_id, logprob in pairs:
            top.setdefault(token_label(self._tokenizer, token_id), finite(logprob))
        return top


def joined(blocks: Sequence[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """Pieces of one choice as one block."""
    return {name: [item for block in blocks for item in block[name]] for name in blocks[0]}


def prompt_logprobs(
    tokenizer: Tokenizer, rows: Sequence[TokenLogprobs | None]
) -> list[dict[str, dict[str, Any]] | None]:
    """vLLM's shape: per token {token id: {logprob, rank, decoded_token}}; null for the first."""
    return [None if row is None else _prompt_row(tokenizer, row) for row in rows]


def _prompt_row(tokenizer: Tokenizer, row: TokenLogprobs) -> dict[str, dict[str, Any]]:
    ranked = [(row.token_id, row.logprob, row.rank)]
    ranked += [(token_id, logprob, 1 + i) for i, (token_id, logprob) in enumerate(row.top)]
    return {
        str(token_id): {
            "logprob": finite(logprob),
            "rank": rank,
            "decoded_token": tokenizer.token_text(token_id),
        }
        for token_id, logprob, rank in reversed(ranked)
    }


def token_label(tokenizer: Tokenizer, token_id: int) -> str:
    """The text of a token, or `bytes:\\xNN...` where it is not whole characters."""
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(logprob: float) -> float:
    return max(min(logprob, 0.0), FLOOR)
