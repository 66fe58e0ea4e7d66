"""The one table of callables between kveik and arithmetic: `Ops`.

Models, the runner and the store touch arrays only through it; arrays, packed weights and arenas
are opaque to them (`Array`, `Weight`, `Arena`). A backend is one frozen `Ops`. Nothing here
imports numpy or torch. Shapes: T rows (tokens of this step), R rows of logits, H hidden size,
Q heads, KV heads, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

Array: TypeAlias = Any
Weight: TypeAlias = Any
Arena: TypeAlias = Any
WeightKind: TypeAlias = Literal["linear", "column", "row", "head", "embedding", "expert", "vector"]


@dataclass(frozen=True, slots=True)
class KvSpec:
    """The arena of one KvGroup: `num_blocks` blocks of `block_size` slots for `num_layers` layers.

    dtype: "float32" or "bfloat16". The layout inside is the backend's."""

    num_layers: int
    num_blocks: int
    block_size: int
    num_kv_heads: int
    head_dim: int
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding in the half-split layout of the Llama family.

    inverse_frequencies: rotary_dim / 2 floats (float64), scaling already applied;
    magnitude: factor on cos and sin (yarn's attention factor), 1.0 otherwise.
    Dimensions beyond 2 * len(inverse_frequencies) pass unrotated (partial rotary).
    Positions are int64; angles are formed in float64 and reduced before the cast to float32.
    """

    inverse_frequencies: tuple[float, ...]
    magnitude: float = 1.0


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec | None = (
        None  # None: positions live in the hidden state; the query is not turned
    )


@dataclass(slots=True)
class GroupBatch:
    """Attention metadata of one KvGroup for one step; flat int64 arrays (uploaded).

    slots[T]          flat slot `block * block_size + offset` where the row's K and V are written
    key_positions[T]  home position of that slot: the angle with which the key is rotated
    spans[S, 4]       first row, number of rows, first segment, number of segments
    segments[G, 3]    first index into `blocks`, number of blocks, home position of slot 0
    blocks[B]         block ids, segment after segment
    windows[W, 3]     (query_position, first_slot, last_slot), for span s, row r, segment g in
                      this nesting order: the query of the row is rotated to `query_position`
                      (= seen position - shift) and sees slots first..last *inclusive*, counted
                      from slot 0 of the segment's first block; last < first: sees nothing of it
    A row's windows never name a slot that has not been written by then (its own key included).

    memo belongs to the backend: what it derives from these arrays once and uses in every layer.
    A GroupBatch is therefore made anew for every step and its arrays do not change meanwhile.
    """

    slots: Array
    key_positions: Array
    spans: Array
    segments: Array
    blocks: Array
    windows: Array
    block_size: int
    memo: dict[object, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(slots=True)
class Batch:
    """One step's rows, all sequences together. Buffers belong to the runner and are reused."""

    token_ids: Array  # int64 [T]
    positions: Array  # int64 [T] seen positions (for learned absolute positions)
    logit_rows: Array  # int64 [R] rows whose logits are wanted
    groups: tuple[GroupBatch, ...]
    adapters: Array | None = None


class SampleRow(NamedTuple):
    """How to read one row of the logits [R, V].

    target >= 0: draw nothing, report the log-probability of `target`.
    uniform: the random number in [0, 1) for inverse-CDF sampling; temperature 0 is greedy
    (first of equal maxima). Order of steps: logit_bias, repetition / presence / frequency
    penalties, banned ids, temperature, top_k, top_p, min_p, draw. Log-probabilities are of the
    raw logits."""

    row: int
    uniform: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    banned: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_ids: tuple[int, ...] = ()
    output_ids: tuple[int, ...] = ()
    target: int = -1


class Sampled(NamedTuple):
    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


class NormOp(Protocol):
    """normed, new_residual = op(x, weight, bias, eps, residual); new_residual = residual + x.

    x, residual: [T, H]. Without residual, new_residual is x. rms_norm ignores bias (None)."""

    def __call__(
        self, x: Array, weight: Weight, bias: Weight | None, eps: float, residual: Array | None
    ) -> tuple[Array, Array]: ...


@dataclass(frozen=True, slots=True)
class QuantizedArray:
    """A matrix [out, in] as a checkpoint stores it quantised; numpy arrays on the host.

    weight[o, i] = scales[o, i // group] * (values[o, i] - zeros[o, i // group])

    values: int8 [out, in], signed for 8 bits, 0 .. 15 for 4 bits. scales: float32 [out, in /
    group]. zeros: uint8 [out, in / group] of 0 .. 15 for 4 bits, or None: 8 everywhere; 8 bits
    have no zeros. group: inputs that share one scale; it divides `in`, and is `in` for one scale
    a row."""

    values: Array
    scales: Array
    zeros: Array | None
    bits: Literal[4, 8]
    group: int


@dataclass(frozen=True, slots=True)
class PackedForm:
    """How packed matrices are kept in a file, where reading them is quicker than packing again.

    version: a word that changes with the layout and the rule of quantising. parts: sizes (numbers)
    and buffers of a matrix. checksum: of such a buffer. read: (file descriptor, sizes, offsets of
    the parts) -> (matrix, checksums); ValueError or RuntimeError for what is no such matrix."""

    version: str
    parts: Callable[[Weight], tuple[Sequence[int], Sequence[Any]]]
    checksum: Callable[[Any], int]
    read: Callable[[int, Sequence[int], Sequence[int]], tuple[Weight, list[int]]]


@dataclass(frozen=True, slots=True)
class Ops:
    """A backend. Every callable is pure but for the arena it is handed."""

    name: str  # "reference"
    level: str  # human-readable dispatch level, shown by `kveik info`
    numerics_version: str  # part of the engine fingerprint: changes when any bit may change
    dtype: str  # what weights and K/V are kept in unless asked otherwise: "float32" or "bfloat16"

    # memory: zeroed arrays; int64 buffers up (array.array('q') or a sequence of ints, with a
    # shape), nested Python lists down
    allocate: Callable[[tuple[int, ...], str], Array]
    allocate_kv: Callable[[KvSpec], Arena]
    upload: Callable[[Any, tuple[int, ...]], Array]
    download: Callable[[Array], Any]
    # host array (numpy, in the dtype of the file, perhaps read-only) or QuantizedArray -> packed;
    # linear kinds take [out, in] and an optional bias [out]; "embedding" [V, H]; "vector" [n]
    pack_weight: Callable[[Array | QuantizedArray, WeightKind, Array | None], Weight]
    # what a packed matrix is kept as: "float32", "bf16", "int8" or "int4"
    kept_as: Callable[[Weight], str]

    embed: Callable[[Weight, Array], Array]  # (table, ids[T]) -> [T, H]
    embed_add: Callable[
        [Array, Weight, Array], Array
    ]  # (x, table, positions[T]) -> x + table[positions]
    rms_norm: NormOp
    layer_norm: NormOp
    linear: Callable[
        [Array, Weight, Array | None], Array
    ]  # (x[T, in], weight, adapters) -> [T, out]
    qk_norm: Callable[
        [Array, Weight, int, float], Array
    ]  # (x[T, heads * D], weight[D], heads, eps)
    # (k[T, KV * D], v[T, KV * D], arena, layer in group, group batch, attention spec)
    rope_write_kv: Callable[[Array, Array, Arena, int, GroupBatch, AttentionSpec], None]
    # (unrotated q[T, Q * D], arena, layer in group, group batch, attention spec) -> [T, Q * D]
    paged_attention: Callable[[Array, Arena, int, GroupBatch, AttentionSpec], Array]
    silu_mul: Callable[[Array, Array], Array]  # (gate, up) -> silu(gate) * up
    gelu: Callable[[Array, Literal["tanh", "erf"]], Array]
    add: Callable[[Array, Array], Array]
    take_rows: Callable[[Array, Array], Array]  # (x[T, H], rows[R]) -> [R, H]
    # (x[R, H], head[V, H] packed as "linear") -> float32 [R, V]
    logits: Callable[[Array, Weight], Array]
    sample: Callable[[Array, Sequence[SampleRow]], list[Sampled]]
    # (x[R, H], [(first, count), ...]) -> for each range of rows its sum, H integers in units of
    # 2^-30: whole numbers add up to the same in any order, so that sums of parts are the sum
    sum_rows: Callable[[Array, Sequence[tuple[int, int]]], list[list[int]]]
    # (arena, [(src, dst, slots), ...]): copies slots 0..n of block src to block dst in every layer
    copy_blocks: Callable[[Arena, Sequence[tuple[int, int, int]]], None]
    # (arena, blocks): overwrites every byte of these blocks (what was deleted must be gone)
    erase_blocks: Callable[[Arena, Sequence[int]], None]
    # the one seam for replaying a step shape (CUDA graphs, native op lists); identity here
    capture: Callable[[Callable[..., Array], int], Callable[..., Array]]
    # None where packing takes no longer than reading
    packed_form: PackedForm | None = None
