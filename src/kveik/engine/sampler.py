"""From sampling plans to rows for `Ops.sample`, and back. Standard library; no array is touched.

The random number of a token is a pure function of (seed, choice, position): BLAKE2b of the three
as 64-bit integers, its first 53 bits as a fraction. So preemption, forks, chunking and neighbours
never change a text (counter-based generation: Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011).
"""

from __future__ import annotations

import struct
from hashlib import blake2b

from kveik.engine.plan import SampledToken, SamplingPlan, TokenLogprobs
from kveik.kernels.ops import Sampled, SampleRow

_KEY = struct.Struct("<qqq")


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in [0, 1), equally spread, for one token of one choice. seed: signed 64 bits."""
    digest = blake2b(_KEY.pack(seed, choice, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def draw_row(row: int, plan: SamplingPlan) -> SampleRow:
    """Draw one token from row `row` of the logits."""
    return SampleRow(
        row=row,
        uniform=uniform(plan.seed, plan.choice, plan.position) if plan.temperature > 0 else 0.0,
        temperature=plan.temperature,
        top_k=plan.top_k,
        top_p=plan.top_p,
        min_p=plan.min_p,
        repetition_penalty=plan.repetition_penalty,
        presence_penalty=plan.presence_penalty,
        frequency_penalty=plan.frequency_penalty,
        logit_bias=plan.logit_bias,
        banned=plan.banned,
        logprobs=plan.logprobs,
        prompt_ids=plan.prompt_ids,
        output_ids=plan.output_ids,
    )


def target_row(row: int, target: int, logprobs: int) -> SampleRow:
    """Report the log-probability of `target` in row `row`, with `logprobs` alternatives."""
    return SampleRow(row=row, target=target, logprobs=logprobs)


def token_logprobs(sampled: Sampled) -> TokenLogprobs:
    return TokenLogprobs(sampled.token_id, sampled.logprob, sampled.rank, tuple(sampled.top))


def sampled_token(sampled: Sampled, plan: SamplingPlan) -> SampledToken:
    """The accepted token; its log-probabilities only when asked for."""
    return SampledToken(
        sampled.token_id, None if plan.logprobs is None else token_logprobs(sampled)
    )
