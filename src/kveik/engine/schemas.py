"""The schemas of prompt modules that a namespace has registered, and what the tokenizer makes of
them.

A schema is a description: it holds no blocks. What is cached of its modules is found by the tokens
of their text, so that changing one text costs that text, and two schemas share what they have in
common. Bounded by count and size per namespace. Any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kveik.config import check_limit
from kveik.engine.modules.layout import EncodedSchema, Layout
from kveik.engine.modules.prompt import SchemaPrompt
from kveik.engine.modules.schema import Schema, refuse
from kveik.engine.tokenizer import Tokenizer
from kveik.errors import NotFound

_STAND_IN = "kveik"  # content of a message whose surroundings are wanted


class Frames:
    """What the chat template puts around the contents of a chat: see `layout.Template`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, roles: tuple[str, ...]) -> list[list[int]]:
        if not roles:
            return [self.opening()]
        return [self._tokenizer.encode_piece(text) if text else [] for text in self.texts(roles)]

    def texts(self, roles: Sequence[str]) -> list[str]:
        """The texts before, between and behind the contents."""
        messages = [{"role": role, "content": _STAND_IN} for role in roles]
        places = [(index, 0) for index in range(len(roles))]
        pieces, ranges = self._tokenizer.chat_pieces(messages, places)
        text, at = "".join(pieces), 0
        found = []
        for start, end in ranges:
            if start < at:
                refuse("roles", "the chat template moves messages, so that none can be a module")
            found.append(text[at:start])
            at = end
        return [*found, text[at:]]

    def opening(self) -> list[int]:
        """What opens a plain text, where the vocabulary opens it with bos."""
        bos = self._tokenizer.bos_token_id
        return [bos] if bos is not None and bos in self._tokenizer.encode("") else []


@dataclass(frozen=True, slots=True)
class _Entry:
    encoded: EncodedSchema
    created: float


class Schemas:
    """See the module. clock: seconds of the wall clock, for `created`."""

    def __init__(self, tokenizer: Tokenizer, context: int, wall: Callable[[], float]) -> None:
        self._tokenizer = tokenizer
        self._context = context
        self._wall = wall
        self._lock = threading.Lock()
        self._entries: dict[str, dict[str, _Entry]] = {}
        self.frames = Frames(tokenizer)

    def add(self, namespace: str, schema: Schema) -> float:
        """Register a schema, in place of one of the same name; returns when. Raises InvalidRequest
        or ContextLengthExceeded naming the element that is wrong."""
        filler = (self._encode(" _") or [0])[-1]
        encoded = EncodedSchema(schema, self._encode, filler)
        encoded.check_context(self.frames, self._context)
        entry = _Entry(encoded, self._wall())
        with self._lock:
            known = self._entries.setdefault(namespace, {})
            if schema.name not in known:
                check_limit("schema_count", len(known) + 1, param="schema")
            known[schema.name] = entry
        return entry.created

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def get(self, namespace: str, name: str) -> tuple[Schema, float]:
        """A schema, and when it was registered. Raises NotFound."""
        entry = self._entry(namespace, name)
        return entry.encoded.schema, entry.created

    def list(self, namespace: str) -> list[tuple[Schema, float]]:
        with self._lock:
            entries = list(self._entries.get(namespace, {}).values())
        return [(one.encoded.schema, one.created) for one in entries]

    def delete(self, namespace: str, name: str) -> None:
        """Forget a schema; what is cached of its modules stays as what any prompt leaves. Raises
        NotFound."""
        self._entry(namespace, name)
        with self._lock:
            self._entries[namespace].pop(name, None)

    def layout(self, namespace: str, prompt: SchemaPrompt) -> Layout:
        """Raises NotFound for an unknown schema, InvalidRequest naming the element."""
        return self._entry(namespace, prompt.schema).encoded.layout(prompt, self.frames)

    def of_module(self, namespace: str, name: str, schema: str | None) -> EncodedSchema:
        """The schema of a module; None: the only one that has a module of this name."""
        if schema is not None:
            return self._entry(namespace, schema).encoded
        with self._lock:
            entries = list(self._entries.get(namespace, {}).values())
        having = [
            one.encoded
            for one in entries
            if any(module.name == name for module in one.encoded.schema.modules())
        ]
        if not having:
            refuse(f"module {name}", "no schema has such a module; POST /v1/schemas makes one")
        if len(having) > 1:
            names = ", ".join(one.schema.name for one in having)
            refuse(f"module {name}", f"several schemas have it ({names}); name one as `schema`")
        return having[0]

    def _entry(self, namespace: str, name: str) -> _Entry:
        with self._lock:
            entry = self._entries.get(namespace, {}).get(name)
        if entry is None:
            raise NotFound(f"schema: there is no schema {name!r}", param="schema")
        return entry
