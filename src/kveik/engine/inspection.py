"""What a prompt looks like inside: its keys, values and attention, layer by layer.

Computed cold and alone, in a pool of its own; neither the cache nor the running requests notice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kveik.cache.segments import Segment
from kveik.engine.parts import EngineInfo, EngineParts, kv_specs
from kveik.engine.plan import SamplingPlan, SequencePlan, StepPlan
from kveik.engine.runner import Runner
from kveik.errors import InvalidRequest, KveikError
from kveik.kernels.inspection import Inspector
from kveik.kernels.ops import Array
from kveik.store.arena import KvStore

MOST_WEIGHTS = 1 << 27
"""Weights of attention that are handed out at once: 512 MiB of float32."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """numpy arrays, one per layer; T tokens.

    keys, values: float32 [KV heads, T, head size], as the cache keeps them: after QK norm, turned
    to their positions, rounded to the KV dtype. attention: float32 [heads, T, T]; row i holds how
    much of each token goes into token i, adds up to 1 and is 0 for what token i does not see."""

    token_ids: tuple[int, ...]
    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    attention: tuple[Array, ...]


def inspect_prompt(parts: EngineParts, info: EngineInfo, token_ids: Sequence[int]) -> Inspection:
    """Raises InvalidRequest for a prompt that is empty or too long to be looked at."""
    _check_length(parts, info, len(token_ids))
    inspector = Inspector(parts.ops, info.kv_dtype)
    blocks = -(-len(token_ids) // info.block_size)
    groups = len(parts.model.groups)
    pool = replace(info, pool_blocks=(blocks,) * groups)
    store = KvStore(inspector.ops, kv_specs(parts.model, pool))
    runner = Runner(parts.model.with_ops(inspector.ops), inspector.ops, store, info.block_size)
    segment = Segment(tuple(range(blocks)), home=0, skip=0, length=0, shift=0)
    plan = SequencePlan(
        sequence_id=0,
        spans=((0, len(token_ids)),),
        token_ids=tuple(token_ids),
        tables=((segment,),) * groups,
        samples=(SamplingPlan(seed=0, choice=0, position=len(token_ids), temperature=0.0),),
    )
    [result] = runner.run(StepPlan(0, (plan,))).sequences
    if result.error is not None:
        raise KveikError(result.error)
    return Inspection(
        tuple(token_ids),
        tuple(inspector.keys),
        tuple(inspector.values),
        tuple(inspector.attention),
    )


def _check_length(parts: EngineParts, info: EngineInfo, tokens: int) -> None:
    heads = max(1, parts.attention_width // parts.model.head_dim)
    layers = sum(len(group.layers) for group in parts.model.groups)
    most = min(info.max_model_len, math.isqrt(MOST_WEIGHTS // (heads * layers)))
    if not 1 <= tokens <= most:
        raise InvalidRequest(
            f"prompt: has {tokens} tokens; of this model prompts of 1 to {most} tokens can be "
            f"inspected ({layers} layers of {heads} heads have as many weights as tokens, squared)",
            param="prompt",
        )
