"""An embedding model beside the model that is served: texts to vectors, on kernels of its own.

It shares nothing with the engine's steps: no KV pool, no scheduler, no cache. Texts are computed
in batches of bounded size; a vector is the same to the bit in any of them, as everywhere here. Any
thread; one batch is computed at a time.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from kveik.config import EngineConfig
from kveik.engine.pooling import mean_vector, unit_vector
from kveik.engine.tokenizer import Tokenizer
from kveik.errors import ConfigError, ContextLengthExceeded, InvalidRequest
from kveik.kernels.backend import choose_ops
from kveik.kernels.ops import Array, Batch, GroupBatch, KvSpec, Ops
from kveik.models import LoadedEncoder, load_encoder

Ids: TypeAlias = Sequence[int]

_BLOCK = 16
_BATCH_TOKENS = 1024  # texts of so many tokens are computed together, blocks filled up


class Embedder:
    """model_id: how clients name it. dimensions: numbers of a vector. max_tokens: of a text, its
    special tokens among them."""

    def __init__(
        self, loaded: LoadedEncoder, tokenizer: Tokenizer, ops: Ops, model_id: str
    ) -> None:
        setup = loaded.setup
        self.model_id = model_id
        self.dimensions = setup.shape.hidden_size
        self.max_tokens = setup.max_tokens
        self._setup = setup
        self._tokenizer = tokenizer
        self._ops = ops
        self._blocks = max(_BATCH_TOKENS // _BLOCK, _blocks_of(setup.max_tokens))
        shape = setup.shape
        spec = KvSpec(1, self._blocks, _BLOCK, shape.num_heads, shape.head_dim, "float32")
        self._arenas = [ops.allocate_kv(spec)]
        self._hidden = ops.capture(loaded.encoder, 0)
        self._lock = threading.Lock()

    @classmethod
    def load(cls, config: EngineConfig, beside: str) -> Embedder:
        """The embedding model of a configuration. beside: the id of the model that is served.
        Raises ModelLoadError or ConfigError in one line."""
        path = config.embedding_model or ""
        ops = choose_ops(replace(config, weights="auto"))
        loaded = load_encoder(path, ops, config.dtype)
        model_id = Path(path).expanduser().resolve().name
        if model_id == beside:
            raise ConfigError(
                f"embedding_model: clients could not tell {model_id!r} from the model of the same "
                "name; give that one another with served_model_name",
                param="embedding_model",
            )
        return cls(loaded, Tokenizer.from_folder(loaded.setup.folder), ops, model_id)

    def encode(self, text: str) -> list[int]:
        """Ids with the special tokens around them. Raises InvalidRequest for invalid Unicode."""
        return self._tokenizer.encode(text.lower() if self._setup.lowers else text)

    def check(self, token_ids: Ids, field: str) -> None:
        """Raises InvalidRequest or ContextLengthExceeded naming the field."""
        size = self._setup.shape.vocab_size
        if not token_ids:
            raise InvalidRequest(f"{field}: at least one token is needed", param=field)
        if not all(0 <= one < size for one in token_ids):
            raise InvalidRequest(
                f"{field}: a token id is outside the vocabulary 0 .. {size - 1}", param=field
            )
        if len(token_ids) > self.max_tokens:
            raise ContextLengthExceeded(
                f"{field}: has {len(token_ids)} tokens, and {self.model_id} reads "
                f"{self.max_tokens}; cut the text into passages",
                param=field,
            )

    def batches(self, prompts: Sequence[Ids]) -> Iterator[Sequence[Ids]]:
        """Prompts that were checked, in pieces that `vectors` takes."""
        start = used = 0
        for index, ids in enumerate(prompts):
            needed = _blocks_of(len(ids))
            if used + needed > self._blocks:
                yield prompts[start:index]
                start, used = index, 0
            used += needed
        if start < len(prompts):
            yield prompts[start:]

    def vectors(self, prompts: Sequence[Ids]) -> list[array[float]]:
        """float32 [dimensions] of every prompt of one batch."""
        setup = self._setup
        counts = [1 if setup.pooling == "cls" else len(ids) for ids in prompts]
        ranges, first = [], 0
        for count in counts:
            ranges.append((first, count))
            first += count
        with self._lock:
            hidden = self._hidden(self._batch(prompts, counts), self._arenas)
            sums = self._ops.sum_rows(hidden, ranges)
        if setup.normalizes:
            return [unit_vector(one) for one in sums]
        return [mean_vector(one, count) for one, count in zip(sums, counts, strict=True)]

    def _batch(self, prompts: Sequence[Ids], counts: Sequence[int]) -> Batch:
        """counts: rows of each prompt, from its first on, whose hidden states are wanted."""
        first = self._setup.shape.first_position
        rows: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        seen: list[int] = []
        spans: list[int] = []
        segments: list[int] = []
        windows: list[int] = []
        block = start = 0
        for number, (ids, count) in enumerate(zip(prompts, counts, strict=True)):
            length, home = len(ids), block * _BLOCK
            rows += range(start, start + count)
            seen += range(length)
            positions += range(first, first + length)
            slots += range(home, home + length)
            spans += (start, length, number, 1)
            segments += (block, _blocks_of(length), 0)
            for position in range(length):
                windows += (position, 0, length - 1)  # everybody sees everybody
            block += _blocks_of(length)
            start += length
        up = self._ops.upload

        def table(values: list[int], columns: int) -> Array:
            return up(values, (len(values) // columns, columns))

        group = GroupBatch(
            slots=up(slots, (start,)),
            key_positions=up(seen, (start,)),
            spans=table(spans, 4),
            segments=table(segments, 3),
            blocks=up(list(range(block)), (block,)),
            windows=table(windows, 3),
            block_size=_BLOCK,
        )
        tokens = [one for ids in prompts for one in ids]
        return Batch(
            up(tokens, (start,)), up(positions, (start,)), up(rows, (len(rows),)), (group,)
        )


def _blocks_of(tokens: int) -> int:
    return -(-tokens // _BLOCK)
