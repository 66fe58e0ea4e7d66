"""What kveik promises against its peers, judged on the rounds. Pure.

A ratio's figure is the lower quartile of the ratios of the rounds: what holds in three rounds out
of four.
"""

from __future__ import annotations

from typing import Any

import checkpoints
import summary
from report import Report
from summary import Rounds, Spread, ratios, ratios_to_best, spread

BEST = "best"
RATIOS: tuple[tuple[str, str, str, float], ...] = (  # column, kveik's width, against, bar
    ("decode", "bf16", BEST, 1.0),
    ("decode", "int8", BEST, 1.6),
    ("decode", "int4", BEST, 1.5),
    ("prefill_1024", "bf16", "vllm-bf16", 1.3),
    ("prefill_1024", "int8", "vllm-bf16", 1.8),
    ("batch_16", "bf16", "vllm-bf16", 1.3),
    ("batch_16", "int8", "vllm-bf16", 1.3),
    ("shared_16", "bf16", "vllm-bf16", 1.4),
    ("repeat_1024", "bf16", BEST, 1.0),
    ("repeat_1024", "int8", BEST, 1.0),
    ("repeat_1024", "int4", BEST, 1.0),
    ("ttft_16", "bf16", BEST, 1.0),
    ("ttft_16", "int8", BEST, 1.0),
    ("ttft_16", "int4", BEST, 1.0),
    ("decode_8k", "bf16", BEST, 1.0),
    ("decode_8k_8", "bf16", BEST, 1.0),
)
START_SECONDS = 1.5
REPEAT_STEPS = 1.3
BANDWIDTH_SHARE = 0.88
OVERHEAD_BYTES = 300e6  # of memory, beside weights and KV pool
VALUE_BITS = {"bf16": 16, "int8": 8, "int4": 4}


def judge(report: Report, rounds: Rounds, config: dict[str, Any], kv_bytes: int) -> None:
    """A figure in `report` for every bar whose columns were measured."""
    for column, width, against, bar in RATIOS:
        ours = f"kveik-{width}"
        if against == BEST:
            found = ratios_to_best(rounds, ours, summary.rivals(rounds, width), column)
        else:
            found = ratios(rounds, ours, against, column)
        other = f"the best {width} peer" if against == BEST else against
        if found:
            name = f"{summary.title(column)}: {ours} against {other}"
            _figure(report, name, spread(found), "x", bar)
    for width in VALUE_BITS:
        _alone(report, rounds, width, config, kv_bytes)


def _alone(
    report: Report, rounds: Rounds, width: str, config: dict[str, Any], kv_bytes: int
) -> None:
    """The bars that need no peer."""
    ours = f"kveik-{width}"
    if share := bandwidth_shares(rounds, ours, config):
        bar = BANDWIDTH_SHARE if width == "bf16" else None
        name = f"decode: {ours}, share of the read bandwidth of the same round"
        _figure(report, name, spread(share), "of 1", bar)
    if steps := repeat_steps(rounds, ours):
        name = f"the same prompt again: {ours}, in decode steps"
        _figure(report, name, spread(steps), "steps", REPEAT_STEPS, less=True)
    if starts := summary.values(rounds, ours, "start"):
        name = f"start to first token: {ours}, second start"
        _figure(report, name, spread(starts), "s", START_SECONDS, less=True)
    if memory := summary.values(rounds, ours, "memory"):
        weights = weight_bytes(config, width)
        allowed = (weights + kv_bytes + OVERHEAD_BYTES) / 1e6
        name = f"private peak memory: {ours} (weights + KV pool + 300 MB)"
        _figure(report, name, spread(memory), "MB", round(allowed), less=True)


def _figure(
    report: Report, name: str, found: Spread, unit: str, bar: float | None, less: bool = False
) -> None:
    report.figure(
        name,
        found.upper if less else found.lower,
        unit,
        bar=bar,
        sense="<=" if less else ">=",
        median=found.median,
        lowest=found.lowest,
        highest=found.highest,
        rounds=found.rounds,
    )


def bandwidth_shares(rounds: Rounds, ours: str, config: dict[str, Any]) -> list[float]:
    """Bytes of weight values that decode read per second (scales, keys and values left out),
    against what the probe of the same round read."""
    bits = VALUE_BITS[summary.width(ours)]
    per_token = checkpoints.step_bytes(config) * bits / 16
    pairs = [(summary.value(one, ours, "decode"), one["bandwidth"]) for one in rounds]
    return [rate * per_token / 1e9 / limit for rate, limit in pairs if rate is not None]


def repeat_steps(rounds: Rounds, ours: str) -> list[float]:
    pairs = [
        (summary.value(one, ours, "repeat_1024"), summary.value(one, ours, "decode"))
        for one in rounds
    ]
    return [again * rate for again, rate in pairs if again is not None and rate is not None]


def weight_bytes(config: dict[str, Any], width: str) -> float:
    """Of the whole checkpoint at this width, group scales of 4 bytes per 128 values included."""
    total = checkpoints.total_values(config)
    return total * (VALUE_BITS[width] / 8 + (0 if width == "bf16" else 4 / 128))
