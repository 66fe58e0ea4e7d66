"""Token ids to text, one token at a time.

The concatenation of all pushes and of `finish` equals the decoder's text of all ids, and no push
ends inside a UTF-8 character. Work and memory per token are constant: byte-level vocabularies feed
an incremental UTF-8 decoder; others decode a window of the last emitted token and the new ones and
emit the difference (the idea of prefix and read offsets of TGI and vLLM).
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

_CONTEXT_TOKENS = 6


class Detokenizer(Protocol):
    """The text of one choice as it grows."""

    def push(self, token_id: int) -> str:
        """The text that became certain by this token; often empty inside a character."""

    def finish(self) -> str:
        """What was held back, incomplete characters as U+FFFD. Nothing is pushed afterwards."""


class ByteDetokenizer:
    """For byte-level vocabularies: every token is bytes and text is their concatenation."""

    def __init__(self, token_bytes: Callable[[int], bytes], skipped: Collection[int]) -> None:
        self._token_bytes = token_bytes
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        return self._decoder.decode(self._token_bytes(token_id))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For decoders that look at neighbours (a leading space, runs of byte tokens).

        ... emitted | context | fresh |        text = decode(context + fresh) - decode(context)

    While the last token is a raw byte (`incomplete`) nothing is emitted: only the end of the run
    decides whether its bytes are characters. `context` may open with the end of a prompt, so that
    the first word keeps the space in front of it.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        has_text: Callable[[int], bool],
        incomplete: Collection[int],
        prompt_token_ids: Sequence[int] = (),
    ) -> None:
        self._decode = decode
        self._has_text = has_text
        self._incomplete = incomplete
        self._context = [
            token_id for token_id in prompt_token_ids[-_CONTEXT_TOKENS:] if has_text(token_id)
        ]
        self._fresh: list[int] = []

    def push(self, token_id: int) -> str:
        if not self._has_text(token_id):
            return ""
        self._fresh.append(token_id)
        return "" if token_id in self._incomplete else self._emit()

    def finish(self) -> str:
        return self._emit()

    def _emit(self) -> str:
        if not self._fresh:
            return ""
        before = self._decode(self._context) if self._context else ""
        text = self._decode([*self._context, *self._fresh])[len(before) :]
        if text:
            self._context, self._fresh = self._fresh[-1:], []
        return text
