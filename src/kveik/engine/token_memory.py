"""Tokenised texts, remembered: the first of the three levels at which a prompt is reused.

A text is looked up by all of its bytes, never by a short hash, so ids cannot be wrong. A rendered
chat is remembered in pieces where the vocabulary guarantees that pieces are encoded alone
(`cuts.py`): a history that is sent again with one more turn encodes that turn. Elsewhere only
whole texts are remembered.

Each namespace sees its own texts only, so that the time a prompt takes tells nothing about
another's. The memory is bounded in bytes; what goes first is the least recently used text of the
namespace that holds most, so nobody is pushed below an equal share. `keep` says for how many
seconds a text may be remembered, however often it is used: a request whose blocks are deleted at a
deadline leaves its text no longer than that, one that does not write (0) leaves none, and of two
the shorter time holds. `forget` empties a namespace when something in it was invalidated. Any
thread; nothing is encoded while the lock is held.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kveik.engine.cuts import MIN_PIECE
from kveik.engine.part_spans import Range, cuts_of, spans_of
from kveik.engine.tokenizer import Tokenizer

MEMORY_BYTES = 64 * 1024 * 1024
IDLE_SECONDS = 1800.0

_ENTRY_BYTES = 300  # of a dictionary entry, its key and its tuple, beside their contents
_ID_BYTES = 8  # of a pointer to a shared number
_GRAIN = 0.25  # seconds between two searches for texts that may be kept no longer
_CUT_BYTES = 40  # of a number in a key

_Key = tuple[str, str, tuple[int, ...], bytes]  # salt, kind of text, cuts, UTF-8


@dataclass(frozen=True, slots=True)
class Encoded:
    """The ids of a prompt, and how many of them were remembered instead of encoded. spans: the
    tokens `start .. end` of each part that was asked for."""

    token_ids: tuple[int, ...]
    remembered: int
    spans: tuple[Range, ...] = ()


class _Piece(NamedTuple):
    """A text that is encoded alone. cuts: characters of it where a wanted part begins or ends."""

    text: str
    cuts: tuple[int, ...] = ()


@dataclass(slots=True)
class _Text:
    content: tuple[int, ...]  # for every cut the two counts of `tokens_around`; then the ids
    used: float  # seconds of the clock
    until: float


@dataclass(slots=True)
class _Texts:
    """The texts of one namespace, least recently used first."""

    known: OrderedDict[_Key, _Text] = field(default_factory=OrderedDict)
    size: int = 0  # bytes


class TokenMemory:
    """See the module. A text that was not used for `idle_seconds` goes, as an idle session does."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_bytes: int = MEMORY_BYTES,
        idle_seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokenizer = tokenizer
        # All texts share one number for each id: an id of a text costs a pointer, and joining
        # texts makes no new numbers (which was half of the time of a repeated chat).
        self._numbers: dict[int, int] = {}
        self._max_bytes = max_bytes
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._namespaces: dict[str, _Texts] = {}
        self._size = 0
        self._due = math.inf  # no text has to go before
        self.remembered_tokens = 0  # since start
        self._forgotten = 0  # counts `forget`: what was encoded before one is not remembered

    def encode(
        self,
        text: str,
        *,
        namespace: str = "",
        salt: str = "",
        keep: float = math.inf,
        add_special_tokens: bool = True,
    ) -> Encoded:
        """`Tokenizer.encode`, remembered whole. Raises InvalidRequest as it does."""
        token_ids, remembered, _ = self._encoded(
            [_Piece(text)],
            lambda one: self._tokenizer.encode(one.text, add_special_tokens=add_special_tokens),
            (namespace, salt, "text" if add_special_tokens else "bare"),
            keep,
        )
        return Encoded(token_ids, remembered)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        parts: Sequence[tuple[int, int]] = (),
        *,
        namespace: str = "",
        salt: str = "",
        keep: float = math.inf,
        add_generation_prompt: bool = True,
    ) -> Encoded:
        """`Tokenizer.encode_chat_with_spans`, remembered by pieces; a piece that holds an end of a
        part is remembered together with where that is. Raises InvalidRequest as it does."""
        texts, ranges = self._tokenizer.chat_pieces(
            messages, parts, add_generation_prompt=add_generation_prompt
        )
        cuts = cuts_of(ranges)
        token_ids, remembered, places = self._encoded(
            _cut(texts, cuts), self._encode_piece, (namespace, salt, "chat"), keep
        )
        return Encoded(token_ids, remembered, tuple(spans_of(ranges, cuts, places)))

    def encode_piece(
        self, text: str, *, namespace: str = "", salt: str = "", keep: float = math.inf
    ) -> Encoded:
        """`Tokenizer.encode_piece`, remembered whole: of a chat that the caller cuts himself."""
        token_ids, remembered, _ = self._encoded(
            [_Piece(text)], self._encode_piece, (namespace, salt, "chat"), keep
        )
        return Encoded(token_ids, remembered)

    def _encode_piece(self, piece: _Piece) -> Sequence[int]:
        if not piece.cuts:
            return self._tokenizer.encode_piece(piece.text)
        ids, places = self._tokenizer.encode_cut_piece(*piece)
        return [count for both in places for count in both] + ids

    def forget(self, namespace: str | None = None) -> None:
        """Forget all texts of a namespace (None: of all), those being encoded now included."""
        with self._lock:
            self._forgotten += 1
            for name in [*self._namespaces] if namespace is None else [namespace]:
                texts = self._namespaces.pop(name, None)
                self._size -= texts.size if texts is not None else 0

    def prune(self) -> None:
        """Drop what was not used for `idle_seconds`, and what may be kept no longer."""
        with self._lock:
            now = self._clock()
            self._drop_idle(now)
            if now >= self._due:
                self._drop_due(now)

    def next_deadline(self) -> float | None:
        """When `prune` has something to do at the latest, but for what is idle."""
        return None if self._due == math.inf else self._due

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._size

    def _encoded(
        self,
        pieces: Sequence[_Piece],
        encode: Callable[[_Piece], Sequence[int]],
        scope: tuple[str, str, str],
        keep: float,
    ) -> tuple[tuple[int, ...], int, list[Range]]:
        """The ids of all pieces, how many were remembered, and what is around every cut."""
        namespace, salt, kind = scope
        keys = [_key(salt, kind, piece) for piece in pieces]
        with self._lock:
            forgotten = self._forgotten
            now = self._clock()
            self._drop_idle(now)
            if now >= self._due:
                self._drop_due(now)
            known = self._known(namespace, keys, keep, now)
        token_ids: list[int] = []
        remembered = 0
        places: list[Range] = []
        fresh: dict[_Key, tuple[int, ...]] = {}
        for piece, key in zip(pieces, keys, strict=True):
            content, at, first = known.get(key), len(token_ids), 2 * len(piece.cuts)
            if content is not None:
                remembered += len(content) - first
            else:
                numbers = encode(piece)
                content = tuple(map(self._numbers.setdefault, numbers, numbers))
                if key is not None:
                    fresh[key] = content
            places += [(at + content[i], at + content[i + 1]) for i in range(0, first, 2)]
            token_ids += content[first:]
        with self._lock:
            self.remembered_tokens += remembered
            if keep > 0 and forgotten == self._forgotten:
                self._remember(namespace, fresh, self._clock() + keep)
        return tuple(token_ids), remembered, places

    # ---- under the lock

    def _known(
        self, namespace: str, keys: Iterable[_Key | None], keep: float, now: float
    ) -> dict[_Key | None, tuple[int, ...]]:
        texts = self._namespaces.get(namespace)
        if texts is None:
            return {}
        found: dict[_Key | None, tuple[int, ...]] = {}
        for key in keys:
            text = texts.known.get(key) if key is not None else None
            if key is not None and text is not None and text.until > now:
                text.used = now
                if keep > 0:
                    text.until = min(text.until, now + keep)
                    self._due = min(self._due, text.until)
                texts.known.move_to_end(key)
                found[key] = text.content
        return found

    def _remember(
        self, namespace: str, fresh: Mapping[_Key, tuple[int, ...]], until: float
    ) -> None:
        for key, content in fresh.items():
            cost = _cost(key, content)
            if cost > self._max_bytes:
                continue
            texts = self._namespaces.setdefault(namespace, _Texts())
            if key in texts.known:  # another thread was as quick
                continue
            texts.known[key] = _Text(content, self._clock(), until)
            self._due = min(self._due, until)
            texts.size += cost
            self._size += cost
            while self._size > self._max_bytes:
                self._drop_oldest(max(self._namespaces, key=self._size_of))

    def _size_of(self, namespace: str) -> int:
        return self._namespaces[namespace].size

    def _drop_oldest(self, namespace: str) -> None:
        texts = self._namespaces[namespace]
        key, text = texts.known.popitem(last=False)
        cost = _cost(key, text.content)
        texts.size -= cost
        self._size -= cost
        if not texts.known:
            del self._namespaces[namespace]

    def _drop_due(self, now: float) -> None:
        """Looks at every text, and so not more than a few times in a second: until then, what is
        due lies a moment longer."""
        self._due = math.inf
        for namespace, texts in [*self._namespaces.items()]:
            for key in [key for key, text in texts.known.items() if text.until <= now]:
                texts.known.move_to_end(key, last=False)
                self._drop_oldest(namespace)
            for text in texts.known.values():
                self._due = min(self._due, max(text.until, now + _GRAIN))

    def _drop_idle(self, now: float) -> None:
        for namespace, texts in [*self._namespaces.items()]:
            while texts.known and next(iter(texts.known.values())).used < now - self._idle_seconds:
                self._drop_oldest(namespace)


def _cut(texts: Sequence[str], cuts: Sequence[int]) -> list[_Piece]:
    """Each text with the cuts that lie in it. cuts: characters of all texts together, in order."""
    pieces, start = [], 0
    for number, text in enumerate(texts):
        end = start + len(text)
        behind = len(cuts) if number == len(texts) - 1 else bisect_left(cuts, end)
        inside = cuts[bisect_left(cuts, start) : behind]
        pieces.append(_Piece(text, tuple(cut - start for cut in inside)))
        start = end
    return pieces


def _key(salt: str, kind: str, piece: _Piece) -> _Key | None:
    """None: the text is too short to be worth it, or not valid Unicode (encoding it will say)."""
    if len(piece.text) < MIN_PIECE:
        return None
    try:
        return salt, kind, piece.cuts, piece.text.encode()
    except UnicodeEncodeError:
        return None


def _cost(key: _Key, content: Sequence[int]) -> int:
    cuts, text = key[2:]
    return len(text) + _CUT_BYTES * len(cuts) + _ID_BYTES * len(content) + _ENTRY_BYTES
