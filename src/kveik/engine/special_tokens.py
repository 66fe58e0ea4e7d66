"""Keep the special tokens of a vocabulary out of reach of user text.

A special-token string that stands in a message or a prompt is data. Before the text is encoded
(or pasted into a chat template) each such string is replaced by a stand-in: a string of private-use
characters with a random part, registered as an added token of its own. After encoding, the id of a
stand-in is replaced by the ids that the special string has as plain text. Text that holds no
special string passes through untouched, so its ids are the ordinary ones.

    "say </s>"  --shield-->  "say \ue8a1..."  --encode-->  [say, S]  --expand-->  [say, <, /, s, >]
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

_PRIVATE_USE = range(0xE000, 0xF8FF)


class SpecialTokens:
    """The special tokens of `backend`; adds the stand-ins to it (ids above every real one)."""

    def __init__(self, backend: Backend, *, unknown: str | None = None) -> None:
        added = backend.get_added_tokens_decoder()
        special = {id_: token.content for id_, token in added.items() if token.special}
        self.ids: frozenset[int] = frozenset(special)
        self._normalizer = backend.normalizer
        texts = sorted({text for text in special.values() if text}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, texts))) if texts else None
        # An unknown character is encoded as the unknown token by every text: nothing to forge.
        harmless = {unknown, getattr(backend.model, "unk_token", None)}
        forbidden = {id_ for id_, text in special.items() if text not in harmless}
        plain = _plain_encodings(backend, texts, forbidden)
        self._stand_ins = dict(zip(texts, _unguessable_names(len(texts)), strict=True))
        self._originals = {name: text for text, name in self._stand_ins.items()}
        backend.add_special_tokens(
            [AddedToken(name, special=True, normalized=False) for name in self._originals]
        )
        self._plain_ids: dict[int, tuple[int, ...]] = {}
        for text, name in self._stand_ins.items():
            id_ = backend.token_to_id(name)
            assert id_ is not None
            self._plain_ids[id_] = plain[text]

    def shield(self, text: str) -> str:
        """`text` with every special-token string replaced by its stand-in."""
        if self._pattern is None:
            return text
        shielded = self._substitute(text)
        if self._normalizer is not None:
            # Full-width or decomposed look-alikes may turn into a special string.
            normalized = self._normalizer.normalize_str(shielded)
            if self._pattern.search(normalized):
                shielded = self._substitute(normalized)
        return shielded

    def shielded_ranges(self, texts: Sequence[str], shielded: str) -> list[tuple[int, int]] | None:
        """Where each of `texts` lies in `shielded`, which is `shield` of all of them joined.

        A special string that two texts make together belongs to both. None: the text had to be
        normalised, and nobody can tell any more."""
        joined = "".join(texts)
        if self._pattern is None or self._substitute(joined) != shielded:
            return None if self._pattern else _ranges(texts)
        swaps = [
            (m.start(), m.end(), len(self._stand_ins[m[0]])) for m in self._pattern.finditer(joined)
        ]
        return [(_moved(start, swaps, 0), _moved(end, swaps, 1)) for start, end in _ranges(texts)]

    def expanded_positions(self, token_ids: Sequence[int]) -> list[int]:
        """Index of each id, and of the end, in what `expand` makes of them."""
        widths = (len(self._plain_ids.get(token_id, (token_id,))) for token_id in token_ids)
        return list(itertools.accumulate(widths, initial=0))

    def expand(self, token_ids: Sequence[int]) -> list[int]:
        """Replace the ids of stand-ins by the plain-text ids of what they stand for."""
        if self._plain_ids.keys().isdisjoint(token_ids):
            return list(token_ids)
        expanded: list[int] = []
        for token_id in token_ids:
            expanded.extend(self._plain_ids.get(token_id, (token_id,)))
        return expanded

    def restore(self, text: str) -> str:
        """Undo `shield`."""
        for name, original in self._originals.items():
            text = text.replace(name, original)
        return text

    def is_stand_in(self, token_id: int) -> bool:
        return token_id in self._plain_ids

    def _substitute(self, text: str) -> str:
        assert self._pattern is not None
        return self._pattern.sub(lambda match: self._stand_ins[match[0]], text)


def _ranges(texts: Sequence[str]) -> list[tuple[int, int]]:
    ends = list(itertools.accumulate(map(len, texts), initial=0))
    return list(itertools.pairwise(ends))


def _moved(at: int, swaps: Sequence[tuple[int, int, int]], side: int) -> int:
    """Position `at` after every (start, end, new length) was swapped; a position inside a swap
    goes to its start (side 0) or its end (side 1)."""
    shift = 0
    for start, end, length in swaps:
        if end <= at:
            shift += length - (end - start)
        elif start < at:
            return start + shift + side * length
    return at + shift


def _unguessable_names(count: int) -> list[str]:
    """Names without case, white space or normal form, so that no template filter changes them.

    75 random bits in six characters: a client cannot write one by chance or by trying."""
    nonce = "".join(chr(secrets.choice(_PRIVATE_USE)) for _ in range(6))
    return [
        nonce + chr(_PRIVATE_USE[index // 64]) + chr(_PRIVATE_USE[index % 64])
        for index in range(count)
    ]


def _plain_encodings(
    backend: Backend, texts: Iterable[str], forbidden: set[int]
) -> dict[str, tuple[int, ...]]:
    """What each special string is encoded as when it is plain text."""
    backend.encode_special_tokens = True
    try:
        return {text: _plain_ids(backend, text, forbidden) for text in texts}
    finally:
        backend.encode_special_tokens = False


def _plain_ids(backend: Backend, text: str, forbidden: set[int]) -> tuple[int, ...]:
    """Some vocabularies merge the characters of a special string back into its id (the Llama 2
    conversion holds such merges): then the first cut that prevents it is used."""
    cuts = [(text,), *((text[:at], text[at:]) for at in range(1, len(text)))]
    for pieces in cuts:
        ids = [token_id for piece in pieces for token_id in _inner_ids(backend, piece)]
        if forbidden.isdisjoint(ids):
            return tuple(ids)
    return ()


def _inner_ids(backend: Backend, text: str) -> list[int]:
    """Ids of `text` inside a word: without the space that some vocabularies put before a text."""
    before = backend.encode("a", add_special_tokens=False).ids
    joined = backend.encode("a" + text, add_special_tokens=False).ids
    if before and joined[: len(before)] == before:
        return list(joined[len(before) :])
    return list(backend.encode(text, add_special_tokens=False).ids)
