"""Text to token ids and back: chat templates (sandboxed), incremental detokenisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Tokenizer:
    """A Hugging Face `tokenizer.json` with its chat template."""

    vocab_size: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]  # every id that ends a turn (generation_config included)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Special-token strings inside `text` are data: they never become special ids."""
        raise NotImplementedError

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        raise NotImplementedError

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for (special tokens: their text)."""
        raise NotImplementedError

    def token_text(self, token_id: int) -> str:
        """Display form of one token (invalid UTF-8 replaced)."""
        raise NotImplementedError

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Render the chat template and encode it. InvalidRequest when the template refuses."""
        raise NotImplementedError

    def detokenizer(self, *, skip_special_tokens: bool = True) -> Detokenizer:
        raise NotImplementedError


class Detokenizer:
    """Incremental: the concatenation of all pushes and `finish` equals `decode` of all ids
    (prefix-context free), and no push ever ends inside a UTF-8 character."""

    def push(self, token_id: int) -> str:
        raise NotImplementedError

    def finish(self) -> str:
        raise NotImplementedError
