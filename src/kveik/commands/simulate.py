"""`kveik cache simulate`: what would this traffic be like on so many replicas, routed like this?"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from kveik.cache.policy import make_policy
from kveik.errors import ConfigError
from kveik.lab.plot import check_plot
from kveik.lab.plot_scale import draw
from kveik.lab.report_scale import Row, as_csv, as_json, rows
from kveik.lab.routes import ROUTES, Fleet
from kveik.lab.service import DEFAULT, ServiceTimes, read_service
from kveik.lab.simulate import Simulation, simulate
from kveik.lab.trace import Trace, read_trace

_PIPE_WIDTH = 200
_MOST_REPLICAS = 1000


@dataclass(frozen=True, slots=True)
class SimulateQuestion:
    """The arguments of the command. replicas, routes: lists with commas; blocks: of each
    replica."""

    trace: Path
    replicas: str
    routes: str
    blocks: int
    policy: str
    service: Sequence[Path]
    speed: float
    load_bound: float
    least_match: float
    seed: int
    block_size: int | None = None
    plot: Path | None = None


def run(question: SimulateQuestion, *, json_wanted: bool, csv_wanted: bool) -> None:
    """Print the answer. ConfigError for what cannot be read, named or drawn."""
    if json_wanted and csv_wanted:
        raise ConfigError("simulate: --json and --csv both want the output; take one")
    if question.plot is not None:
        check_plot()
    _check(question)
    counts = _counts(question.replicas)
    service = read_service(question.service) if question.service else DEFAULT
    trace = read_trace(question.trace, question.block_size).faster(question.speed)
    routes = _routes(question.routes, trace)
    done = list(_simulations(question, trace, routes, counts, service))
    if question.plot is not None:
        draw(trace, done, question.plot)
    if json_wanted:
        pool = {"blocks": question.blocks, "policy": question.policy, "speed": question.speed}
        typer.echo(json.dumps(as_json(trace, service, pool, done), indent=2))
    elif csv_wanted:
        typer.echo(as_csv(done), nl=False)
    else:
        _print(question, trace, rows(done))


def _simulations(
    question: SimulateQuestion,
    trace: Trace,
    routes: Sequence[str],
    counts: Sequence[int],
    service: ServiceTimes,
) -> Iterator[Simulation]:
    """Number after number of replicas; on a terminal it says what it is at."""
    for count in counts:
        fleet = Fleet(
            count, question.blocks, question.seed, question.load_bound, question.least_match
        )
        for route in routes:
            if sys.stderr.isatty():
                typer.echo(f"\r\033[K{route}, {count:,} replicas", err=True, nl=False)
            yield simulate(trace, route, fleet, service, policy=question.policy)
    if sys.stderr.isatty():
        typer.echo("\r\033[K", err=True, nl=False)


def _check(question: SimulateQuestion) -> None:
    make_policy(question.policy)
    if not (question.speed > 0 and math.isfinite(question.speed)):
        raise ConfigError(
            f"--speed: {question.speed} is not a number above 0; 2 is twice as fast", param="speed"
        )
    if not question.load_bound >= 1:
        raise ConfigError(
            f"--load-bound: {question.load_bound} is not a number from 1 on, or inf",
            param="load_bound",
        )
    if not 0 <= question.least_match <= 1:
        raise ConfigError(
            f"--least-match: {question.least_match} is not a share from 0 to 1", param="least_match"
        )


def _routes(names: str, trace: Trace) -> list[str]:
    """all: every one that this trace can be routed by."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    sessions = any(request.session for request in trace.requests)
    every = [name for name in ROUTES if sessions or name != "session"]
    chosen = [one for name in wanted for one in (every if name == "all" else [name])]
    for name in chosen:
        if name not in ROUTES:
            known = ", ".join(ROUTES)
            raise ConfigError(f"--route: {name!r} is not one of {known}, or all", param="route")
    if not chosen:
        raise ConfigError(f"--route: name some of {', '.join(ROUTES)}, or all", param="route")
    if "session" in chosen and not sessions:
        raise ConfigError(
            f"--route: session needs a trace that names sessions, as kveik serve --record writes "
            f"it; {trace.name} names none",
            param="route",
        )
    return list(dict.fromkeys(chosen))


def _counts(text: str) -> list[int]:
    words = [word.strip().replace("_", "") for word in text.split(",") if word.strip()]
    good = all(word.isdecimal() and 0 < int(word) <= _MOST_REPLICAS for word in words)
    if not words or not good:
        raise ConfigError(
            f"--replicas: {text!r} is not a list of numbers from 1 to {_MOST_REPLICAS:,} such as "
            "1,4,16",
            param="replicas",
        )
    return sorted({int(word) for word in words})


Column = tuple[str, Callable[[Row], str]]


def _share(name: str) -> Callable[[Row], str]:
    return lambda row: f"{100 * row[name]:.2f} %"


def _seconds(name: str) -> Callable[[Row], str]:
    return lambda row: "-" if row[name] is None else f"{row[name]:.3f}"


def _times(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row[name]:.2f}"


def _count(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row[name]:,}"


_COLUMNS: tuple[Column, ...] = (
    ("replicas", _count("replicas")),
    ("route", lambda row: str(row["route"])),
    ("tokens hit", _share("token_hit_rate")),
    ("TTFT p50 s", _seconds("ttft_p50")),
    ("p90 s", _seconds("ttft_p90")),
    ("p99 s", _seconds("ttft_p99")),
    ("queueing", _share("queue_share")),
    ("busy max/mean", _times("busy_imbalance")),
    ("tokens max/mean", _times("token_imbalance")),
    ("utilisation", _share("utilisation")),
    ("refused", _count("refused")),
)


def _print(question: SimulateQuestion, trace: Trace, found: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    typer.echo(
        f"{trace.name}: {len(trace.requests):,} requests, {trace.prompt_tokens:,} prompt tokens, "
        f"{question.blocks:,} blocks of {trace.block_size} in each replica, {question.policy}, "
        f"{question.speed:g} x speed"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for label, _ in _COLUMNS:
        table.add_column(label, justify="left" if label == "route" else "right")
    before = None
    for row in found:
        if before not in (None, row["replicas"]):
            table.add_section()
            table.add_row()
        before = row["replicas"]
        table.add_row(*(text(row) for _, text in _COLUMNS))
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False).print(table)
