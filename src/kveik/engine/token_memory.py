"""Tokenised texts, remembered: the first of the three levels at which a prompt is reused.

A text is looked up by all of its bytes, never by a short hash, so ids cannot be wrong. A rendered
chat is remembered in pieces where the vocabulary guarantees that pieces are encoded alone
(`cuts.py`): a history that is sent again with one more turn encodes that turn. Elsewhere only
whole texts are remembered.

Each namespace sees its own texts only, so that the time a prompt takes tells nothing about
another's. The memory is bounded in bytes; what goes first is the least recently used text of the
namespace that holds most, so nobody is pushed below an equal share. Texts of requests that do not
write, or whose blocks are deleted at a deadline, are not remembered (`remember=False`), and
`forget` empties a namespace when something in it was invalidated. Any thread; nothing is encoded
while the lock is held.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kveik.engine.cuts import MIN_PIECE
from kveik.engine.tokenizer import Tokenizer

MEMORY_BYTES = 64 * 1024 * 1024
IDLE_SECONDS = 1800.0

_ENTRY_BYTES = 300  # of a dictionary entry, its key and its array, beside their contents

_Key = tuple[str, str, bytes]  # salt, kind of text, UTF-8


@dataclass(frozen=True, slots=True)
class Encoded:
    """The ids of a prompt, and how many of them were remembered instead of encoded."""

    token_ids: tuple[int, ...]
    remembered: int


@dataclass(slots=True)
class _Text:
    token_ids: array[int]
    used: float  # seconds of the clock


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
        self._max_bytes = max_bytes
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._namespaces: dict[str, _Texts] = {}
        self._size = 0
        self.remembered_tokens = 0  # since start
        self._forgotten = 0  # counts `forget`: what was encoded before one is not remembered

    def encode(
        self,
        text: str,
        *,
        namespace: str = "",
        salt: str = "",
        remember: bool = True,
        add_special_tokens: bool = True,
    ) -> Encoded:
        """`Tokenizer.encode`, remembered whole. Raises InvalidRequest as it does."""
        return self._encoded(
            [text],
            lambda piece: self._tokenizer.encode(piece, add_special_tokens=add_special_tokens),
            (namespace, salt, "text" if add_special_tokens else "bare"),
            remember,
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        namespace: str = "",
        salt: str = "",
        remember: bool = True,
        add_generation_prompt: bool = True,
    ) -> Encoded:
        """`Tokenizer.encode_chat`, remembered by pieces. Raises InvalidRequest as it does."""
        pieces = self._tokenizer.chat_pieces(messages, add_generation_prompt=add_generation_prompt)
        return self._encoded(
            pieces, self._tokenizer.encode_piece, (namespace, salt, "chat"), remember
        )

    def forget(self, namespace: str | None = None) -> None:
        """Forget all texts of a namespace (None: of all), those being encoded now included."""
        with self._lock:
            self._forgotten += 1
            for name in [*self._namespaces] if namespace is None else [namespace]:
                texts = self._namespaces.pop(name, None)
                self._size -= texts.size if texts is not None else 0

    def prune(self) -> None:
        """Drop what was not used for `idle_seconds`."""
        with self._lock:
            self._drop_idle(self._clock())

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._size

    def _encoded(
        self,
        pieces: Sequence[str],
        encode: Callable[[str], Sequence[int]],
        scope: tuple[str, str, str],
        remember: bool,
    ) -> Encoded:
        namespace, salt, kind = scope
        keys = [_key(salt, kind, piece) for piece in pieces]
        with self._lock:
            forgotten = self._forgotten
            self._drop_idle(self._clock())
            known = self._known(namespace, keys)
        token_ids = array("I")
        remembered = 0
        fresh: dict[_Key, array[int]] = {}
        for piece, key in zip(pieces, keys, strict=True):
            ids = known.get(key) if key is not None else None
            if ids is not None:
                remembered += len(ids)
            else:
                ids = array("I", encode(piece))
                if key is not None:
                    fresh[key] = ids
            token_ids.extend(ids)
        with self._lock:
            self.remembered_tokens += remembered
            if remember and forgotten == self._forgotten:
                self._remember(namespace, fresh)
        return Encoded(tuple(token_ids), remembered)

    # ---- under the lock

    def _known(self, namespace: str, keys: Iterable[_Key | None]) -> dict[_Key, array[int]]:
        texts = self._namespaces.get(namespace)
        if texts is None:
            return {}
        found = {}
        for key in keys:
            text = texts.known.get(key) if key is not None else None
            if key is not None and text is not None:
                text.used = self._clock()
                texts.known.move_to_end(key)
                found[key] = text.token_ids
        return found

    def _remember(self, namespace: str, fresh: Mapping[_Key, array[int]]) -> None:
        for key, token_ids in fresh.items():
            cost = _cost(key, token_ids)
            if cost > self._max_bytes:
                continue
            texts = self._namespaces.setdefault(namespace, _Texts())
            if key in texts.known:  # another thread was as quick
                continue
            texts.known[key] = _Text(token_ids, self._clock())
            texts.size += cost
            self._size += cost
            while self._size > self._max_bytes:
                self._drop_oldest(max(self._namespaces, key=self._size_of))

    def _size_of(self, namespace: str) -> int:
        return self._namespaces[namespace].size

    def _drop_oldest(self, namespace: str) -> None:
        texts = self._namespaces[namespace]
        key, text = texts.known.popitem(last=False)
        cost = _cost(key, text.token_ids)
        texts.size -= cost
        self._size -= cost
        if not texts.known:
            del self._namespaces[namespace]

    def _drop_idle(self, now: float) -> None:
        for namespace, texts in [*self._namespaces.items()]:
            while texts.known and next(iter(texts.known.values())).used < now - self._idle_seconds:
                self._drop_oldest(namespace)


def _key(salt: str, kind: str, text: str) -> _Key | None:
    """None: the text is too short to be worth it, or not valid Unicode (encoding it will say)."""
    if len(text) < MIN_PIECE:
        return None
    try:
        return salt, kind, text.encode()
    except UnicodeEncodeError:
        return None


def _cost(key: _Key, token_ids: array[int]) -> int:
    return len(key[2]) + token_ids.itemsize * len(token_ids) + _ENTRY_BYTES
