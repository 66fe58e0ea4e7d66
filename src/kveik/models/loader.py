"""`load_model`: folder or hub id -> checked, packed, ready network. The order is cheapest first:
options, config.json, headers of the weights, then the weights themselves."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

from kveik.cache.segments import KvGroup
from kveik.errors import ConfigError
from kveik.kernels.ops import Arena, Array, Batch, Ops
from kveik.models import decoder, gpt2, hub
from kveik.models.architecture import Architecture, read_architecture
from kveik.models.checkpoint import Checkpoint
from kveik.models.decoder import Decoder
from kveik.models.generation import read_generation
from kveik.models.gpt2 import Gpt
from kveik.models.quantized import stored_tensors
from kveik.models.rope import RopeOptions
from kveik.models.weight_cache import SMALLEST, WeightCache
from kveik.models.weights import StoredMatrix, Weights

_log = logging.getLogger(__name__)

Progress = Callable[[str, float], None]
"""progress(stage, share done 0..1)"""

_DTYPES = ("auto", "float32", "bfloat16")
_ITEMSIZES: Mapping[str, int] = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Network:
    """The `Model` that `load_model` makes; the fields are those of the protocol."""

    groups: tuple[KvGroup, ...]
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    can_shift: bool
    fingerprint: bytes
    network: Decoder | Gpt

    def forward(self, batch: Batch, arenas: Sequence[Arena]) -> Array:
        """Logits float32 [R, V] of batch.logit_rows; writes K and V of the batch's rows."""
        return self.network(batch, arenas)

    def hidden(self, batch: Batch, arenas: Sequence[Arena]) -> Array:
        return self.network.hidden(batch, arenas)

    def with_ops(self, ops: Ops) -> Network:
        return replace(self, network=replace(self.network, ops=ops))

    def logits(self, hidden: Array) -> Array:
        return self.network.logits(hidden)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A network and the facts of its folder. parameters: numbers stored, a tied head once;
    layer_parameters: those of the layers' matrices, which every token of a prompt is multiplied
    with (embedding and head are not). attention_width: query heads times their size.

    end_ids: ids that end a text; sampling_defaults: what generation_config.json sets of
    temperature, top_k, top_p, min_p, repetition_penalty; max_model_len: tokens. weights: what the
    matrices are kept as, for people."""

    model: Network
    architecture: str
    parameters: int
    layer_parameters: int
    attention_width: int
    hidden_size: int
    dtype: str
    weights: str
    kv_dtype: str
    folder: Path
    end_ids: tuple[int, ...]
    sampling_defaults: dict[str, float]
    max_model_len: int


def load_model(
    path_or_id: str,
    ops: Ops,
    *,
    dtype: str = "auto",
    kv_dtype: str = "auto",
    block_size: int = 16,
    max_model_len: int | None = None,
    rope_theta: float | None = None,
    rope_scaling: str | None = None,
    hub_token: str | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a Hugging Face checkpoint of the Llama family, GPT-2 or GPT-Neo.

    dtype "bfloat16" rounds weights to bf16 values (the reference kernels still compute in
    float32). rope_scaling: JSON object that replaces the one of config.json. Raises
    ModelLoadError naming file and remedy, ConfigError for an option that cannot be used."""
    dtype = _dtype("dtype", dtype, ops)
    kv_dtype = _dtype("kv_dtype", kv_dtype, ops)
    options = RopeOptions.parse(rope_theta, rope_scaling)
    folder = hub.resolve(path_or_id, hub_token)
    architecture = read_architecture(folder, options)
    limit = _max_model_len(max_model_len, architecture)
    generation = read_generation(folder, architecture.vocab_size)
    checkpoint, shapes, quantized = _open(folder, architecture)
    digest = checkpoint.digest()
    done = _Counter(progress, len(shapes))
    cache = _weight_cache(folder, digest, dtype, ops, shapes)
    weights = Weights(checkpoint, ops, dtype, done, quantized, cache=cache)
    network = _build(architecture, ops, weights)
    if weights.dequantized:
        _log.warning(
            "%s: %d of %d quantised matrices were dequantised at load and take the room of plain "
            "ones: groups out of order (desc_act) or of unequal size, or zero points of 8 bits",
            folder,
            len(weights.dequantized),
            len(quantized),
        )
    model = Network(
        groups=architecture.groups(block_size, _ITEMSIZES[kv_dtype]),
        num_kv_heads=architecture.num_kv_heads,
        head_dim=architecture.head_dim,
        vocab_size=architecture.vocab_size,
        max_position=architecture.max_position,
        can_shift=architecture.can_shift,
        fingerprint=_fingerprint(digest, architecture, dtype),
        network=network,
    )
    return LoadedModel(
        model=model,
        architecture=architecture.model_type,
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        layer_parameters=sum(
            math.prod(shape)
            for name, shape in shapes.items()
            if len(shape) == 2 and name.startswith(_LAYERS)
        ),
        attention_width=architecture.num_heads * architecture.head_dim,
        hidden_size=architecture.hidden_size,
        dtype=dtype,
        weights=_forms(weights.forms),
        kv_dtype=kv_dtype,
        folder=folder,
        end_ids=generation.end_ids,
        sampling_defaults=generation.sampling,
        max_model_len=limit,
    )


_LAYERS = ("model.layers.", "h.")
"""What the tensors of layers begin with: the Llama family, GPT."""

_GPT = ("gpt2", "gpt_neo")


Shapes = dict[str, tuple[int, ...]]


def _open(
    folder: Path, architecture: Architecture
) -> tuple[Checkpoint, Shapes, dict[str, StoredMatrix]]:
    """The checked checkpoint, the shapes of its tensors as if none were quantised, and those
    matrices that are."""
    checkpoint = Checkpoint.open(folder)
    gpt = architecture.model_type in _GPT
    if gpt:
        checkpoint = checkpoint.without_prefix("transformer.")
    family = gpt2 if gpt else decoder
    # A tied head may be stored a second time; the embedding is what counts.
    tied = ("lm_head.weight",) if architecture.tied_head else ()
    ignored = architecture.quantization.ignored if architecture.quantization else ()
    shapes = family.tensor_shapes(architecture)
    quantized = _quantized(architecture, shapes, checkpoint)
    stored = dict(shapes)
    dtypes: dict[str, tuple[str, ...]] = {}
    for name, matrix in quantized.items():
        del stored[name + ".weight"]
        tensors = stored_tensors(matrix.scheme, matrix.rows, matrix.columns)
        for part in matrix.parts:
            stored[f"{name}.{part}"] = tensors[part].shape
            dtypes[f"{name}.{part}"] = tensors[part].dtypes
    checkpoint.check(stored, (*family.IGNORED, *tied, *ignored), dtypes)
    return checkpoint, shapes, quantized


def _quantized(
    architecture: Architecture, shapes: Shapes, checkpoint: Checkpoint
) -> dict[str, StoredMatrix]:
    """The matrices that config.json says are quantised, by name without ".weight"."""
    found: dict[str, StoredMatrix] = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if architecture.quantization is None or len(shape) != 2:
            continue
        scheme = architecture.quantization.scheme(module)
        if scheme is None:
            continue
        rows, columns = shape
        parts = tuple(
            part
            for part, tensor in stored_tensors(scheme, rows, columns).items()
            if not tensor.optional
            or (f"{module}.{part}" in checkpoint and f"{module}.{part}" not in shapes)
        )
        found[module] = StoredMatrix(scheme, rows, columns, parts)
    return found


def _weight_cache(
    folder: Path, digest: bytes, dtype: str, ops: Ops, shapes: Shapes
) -> WeightCache | None:
    """Of the matrices that `ops` packs, where that takes long enough."""
    numbers = sum(math.prod(shape) for shape in shapes.values())
    if ops.packed_form is None or numbers < SMALLEST:
        return None
    return WeightCache(folder, digest + dtype.encode(), ops.packed_form)


def _build(architecture: Architecture, ops: Ops, weights: Weights) -> Decoder | Gpt:
    """The network; its packed matrices are taken from the cache, or kept in it."""
    build = gpt2.build if architecture.model_type in _GPT else decoder.build
    cache = weights.cache
    if cache is None:
        return build(architecture, ops, weights)
    cache.restore(weights.count)
    try:
        network = build(architecture, ops, weights)
    except BaseException:
        cache.abandon()
        raise
    cache.finish()
    return network


def _forms(forms: Counter[str]) -> str:
    """The most frequent form and the exceptions: "int4, int8 in 1 of 155 matrices"."""
    (most, _), *others = forms.most_common()
    exceptions = (f", {form} in {count} of {forms.total()} matrices" for form, count in others)
    return most + "".join(exceptions)


class _Counter:
    """Counts tensors and reports the share done."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._count = progress, total, 0

    def __call__(self) -> None:
        self._count += 1
        if self._progress is not None:
            self._progress("weights", min(1.0, self._count / self._total))


def _dtype(name: str, value: str, ops: Ops) -> str:
    """auto is what the backend computes with: narrower would be widened at every use."""
    if value not in _DTYPES:
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(_DTYPES)}", param=name)
    return ops.dtype if value == "auto" else value


def _max_model_len(asked: int | None, architecture: Architecture) -> int:
    longest = architecture.max_position
    if asked is None:
        return longest
    if 1 <= asked <= longest:
        return asked
    raise ConfigError(
        f"max_model_len: {asked} is outside 1 .. {longest}, the positions this model allows"
        + ("; rope_scaling extends them" if architecture.rope and architecture.can_shift else ""),
        param="max_model_len",
    )


def _fingerprint(digest: bytes, architecture: Architecture, dtype: str) -> bytes:
    # repr of a frozen record of numbers and strings is stable: floats print their exact value.
    state = blake2b(digest, digest_size=32)
    state.update(f"{architecture!r} {dtype}".encode())
    return state.digest()
