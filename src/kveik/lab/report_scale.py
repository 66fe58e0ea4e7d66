"""What simulations say, as plain rows: for tables, JSON and CSV. Standard library only."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from kveik.lab.service import ServiceTimes
from kveik.lab.simulate import Simulation
from kveik.lab.trace import Trace

Row = dict[str, Any]

PERCENTILES = {"ttft_p50": 0.5, "ttft_p90": 0.9, "ttft_p99": 0.99}

FIELDS = (
    "route",
    "replicas",
    "token_hit_rate",
    *PERCENTILES,
    "queue_share",
    "busy_imbalance",
    "token_imbalance",
    "utilisation",
    "span",
    "refused",
)
"""Of a row, in the order of the columns of a CSV file. Times are seconds."""


def rows(simulations: Sequence[Simulation]) -> list[Row]:
    """One row for each."""
    return [_row(one) for one in simulations]


def _row(one: Simulation) -> Row:
    times = dict(zip(PERCENTILES, one.ttft(*PERCENTILES.values()), strict=True))
    return {name: times[name] if name in times else getattr(one, name) for name in FIELDS}


def as_json(
    trace: Trace, service: ServiceTimes, pool: Row, simulations: Sequence[Simulation]
) -> Row:
    """Everything, with what the trace is and how a replica was made: blocks, policy and speed in
    pool."""
    return {
        "trace": trace.name,
        "block_size": trace.block_size,
        "requests": len(trace.requests),
        "prompt_tokens": trace.prompt_tokens,
        **pool,
        "service": asdict(service),
        "simulations": rows(simulations),
    }


def as_csv(simulations: Sequence[Simulation]) -> str:
    """One line for each simulation."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(simulations))
    return text.getvalue()
