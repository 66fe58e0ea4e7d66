"""What replays say, as plain rows: for tables, JSON and CSV. Standard library only."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from kveik.lab.replay import Replay
from kveik.lab.trace import Trace

Row = dict[str, Any]

FIELDS = (
    "policy",
    "blocks",
    "token_hit_rate",
    "block_hit_rate",
    "hit_blocks",
    "prompt_blocks",
    "of_optimum",
    "eviction_us",
    "evicted",
    "evicted_unused",
    "computed_first",
    "computed_again",
    "refused",
    "seconds",
)
"""Of a row, in the order of the columns of a CSV file."""


def rows(replays: Sequence[Replay]) -> list[Row]:
    """One row for each replay. of_optimum: its share of the token hits that the optimum has in a
    pool of that size; None where that was not played. What an optimum has no reason for is None."""
    best = {one.blocks: one.hit_tokens for one in replays if one.policy == "optimum"}
    return [_row(one, best.get(one.blocks)) for one in replays]


def _row(one: Replay, best: int | None) -> Row:
    played, knows = one.played, one.policy == "optimum"
    reasons = played.reasons
    return {
        "policy": one.policy,
        "blocks": one.blocks,
        "token_hit_rate": one.token_hit_rate,
        "block_hit_rate": one.block_hit_rate,
        "hit_blocks": one.hit_blocks,
        "prompt_blocks": one.prompt_blocks,
        "of_optimum": None if not best else one.hit_tokens / best,
        "eviction_us": one.eviction_us or None,
        "evicted": played.evicted,
        "evicted_unused": None if knows else reasons.evicted_unused,
        "computed_first": None if knows else reasons.computed_first,
        "computed_again": None if knows else reasons.computed_again,
        "refused": played.refused,
        "seconds": played.seconds,
        "queues": None if knows else _queues(one),
    }


def _queues(one: Replay) -> list[Row]:
    """What happened in every queue of the policy that any block was in."""
    reasons = one.played.reasons
    used = sorted({*reasons.admitted, *reasons.rejoined, *reasons.moved, *reasons.evicted})
    return [
        {
            "queue": queue,
            "admitted": reasons.admitted[queue],
            "rejoined": reasons.rejoined[queue],
            "moved": reasons.moved[queue],
            "evicted": reasons.evicted[queue],
        }
        for queue in used
    ]


def as_json(trace: Trace, replays: Sequence[Replay]) -> Row:
    """Everything, with what the trace is."""
    return {
        "trace": trace.name,
        "block_size": trace.block_size,
        "requests": len(trace.requests),
        "prompt_tokens": trace.prompt_tokens,
        "prompt_blocks": trace.prompt_blocks,
        "replays": rows(replays),
    }


def as_csv(replays: Sequence[Replay]) -> str:
    """One line for each replay, without what is told by queue."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(replays))
    return text.getvalue()
