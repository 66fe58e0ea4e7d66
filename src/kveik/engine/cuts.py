"""Where a text may be cut so that its token ids are those of its pieces, one after the other.

That holds behind an added token of a byte-level BPE without a normaliser: added tokens are taken
out of the raw text first, and what is left between two of them is encoded for itself. It holds
only for added tokens that stand wherever their string stands: no white-space stripping around
them, no condition on neighbouring letters, and no overlap with another added token. Every other
vocabulary is never cut. The proof beside these conditions is a property test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

MIN_PIECE = 256
"""Characters of a piece, at least: shorter ones cost more to remember than to encode."""

_INDEPENDENT = frozenset({"ByteLevel", "Digits", "Split"})


class Cuts:
    """The cuts of one vocabulary, as it is now (stand-ins of special tokens included)."""

    def __init__(self, backend: Backend) -> None:
        added = tuple(backend.get_added_tokens_decoder().values())
        texts = sorted(
            (token.content for token in added if _stands_alone(token, added)), key=len, reverse=True
        )
        possible = texts and _encodes_pieces_alone(backend, added)
        self._pattern = re.compile("|".join(map(re.escape, texts))) if possible else None

    def pieces(self, text: str) -> Iterator[str]:
        """`text` in pieces of at least MIN_PIECE characters (the last may be shorter). Texts with
        a common beginning have their first pieces in common."""
        start = 0
        if self._pattern is not None:
            for match in self._pattern.finditer(text):
                if match.end() - start >= MIN_PIECE:
                    yield text[start : match.end()]
                    start = match.end()
        if start < len(text) or not text:
            yield text[start:]


def _encodes_pieces_alone(backend: Backend, added: tuple[AddedToken, ...]) -> bool:
    splitter = backend.pre_tokenizer
    kinds = set() if splitter is None else set(_kinds(json.loads(splitter.__getstate__())))
    return (
        backend.normalizer is None
        and isinstance(backend.model, BPE)
        and not backend.model.dropout
        and "ByteLevel" in kinds
        and kinds <= _INDEPENDENT
        and not any(token.single_word for token in added)
    )


def _kinds(pre_tokenizer: Mapping[str, Any]) -> Iterator[str]:
    if pre_tokenizer["type"] == "Sequence":
        for inner in pre_tokenizer["pretokenizers"]:
            yield from _kinds(inner)
    else:
        yield pre_tokenizer["type"]


def _stands_alone(token: AddedToken, added: tuple[AddedToken, ...]) -> bool:
    """Wherever the string of `token` stands, it becomes that token, whatever is around it."""
    text = token.content
    plain = not (token.normalized or token.lstrip or token.rstrip)
    return bool(plain and text and text == text.strip()) and not any(
        _overlaps(other.content, text) for other in added
    )


def _overlaps(other: str, text: str) -> bool:
    """`other` may cover a part of `text` where both stand: it holds it, or ends with its start."""
    if other != text and text in other:
        return True
    longest = min(len(other), len(text) - 1)
    return any(other[-size:] == text[:size] for size in range(1, longest + 1))
