"""From a folder in Hugging Face format to a network of op calls.

`load_model` is the door. A model touches arrays only through `Ops`; one decoder with flags serves
the Llama family, a further file exists only where the structure differs (GPT-2 / GPT-Neo).
`load_encoder` is the door to embedding models (BERT and its kin).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kveik.cache.segments import BlockTable, KvGroup
from kveik.errors import UnsupportedFeature
from kveik.kernels.ops import Arena, Array, Batch, Ops
from kveik.models.encoder import LoadedEncoder, load_encoder
from kveik.models.loader import LoadedModel, load_model

__all__ = ["LoadedEncoder", "LoadedModel", "Model", "load_encoder", "load_model", "refuse_shift"]


class Model(Protocol):
    """A network bound to its packed weights and its Ops."""

    @property
    def groups(self) -> tuple[KvGroup, ...]:
        """Layers by what they see, with bytes_per_block for the KV dtype and block size."""

    @property
    def num_kv_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_position(self) -> int:
        """Longest sequence in tokens that the positions allow."""

    @property
    def can_shift(self) -> bool:
        """False where positions live in the hidden state: shift != 0 is refused."""

    @property
    def fingerprint(self) -> bytes:
        """Digest of weights, architecture and rope: part of the engine fingerprint."""

    def forward(self, batch: Batch, arenas: Sequence[Arena]) -> Array:
        """One step. arenas: one per group. Returns logits float32 [R, V] of batch.logit_rows."""

    def hidden(self, batch: Batch, arenas: Sequence[Arena]) -> Array:
        """The same step up to the last norm: hidden states float32 [R, H] of batch.logit_rows."""

    def with_ops(self, ops: Ops) -> Model:
        """The same packed weights behind other callables of their backend."""

    def logits(self, hidden: Array) -> Array:
        """What is left of `forward`: [R, H] -> logits float32 [R, V]."""


def refuse_shift(model: Model, tables: Sequence[BlockTable]) -> None:
    """UnsupportedFeature if a segment is shifted and the model cannot see keys elsewhere."""
    if not model.can_shift and any(segment.shift for table in tables for segment in table):
        raise UnsupportedFeature(
            "this model cannot shift positions (they are part of the hidden state, or its rotary "
            "base depends on the length): streams, modules and forgetting need another model"
        )
