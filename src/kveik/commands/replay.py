"""`kveik cache replay`: what would another policy, or more memory, make of this traffic?"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from kveik.cache.policy import SHIPPED, make_policy
from kveik.errors import ConfigError
from kveik.lab.optimum import optimum
from kveik.lab.plot import check_plot, draw
from kveik.lab.replay import Replay, replay
from kveik.lab.report import Row, as_csv, as_json, rows
from kveik.lab.trace import Trace, read_trace

_PIPE_WIDTH = 200


@dataclass(frozen=True, slots=True)
class ReplayQuestion:
    """The arguments of the command. policies, blocks: lists with commas; since: seconds."""

    trace: Path
    policies: str
    blocks: str
    block_size: int | None = None
    since: float = 0.0
    plot: Path | None = None


def run(question: ReplayQuestion, *, json_wanted: bool, csv_wanted: bool) -> None:
    """Print the answer. ConfigError for what cannot be read, named or drawn."""
    if json_wanted and csv_wanted:
        raise ConfigError("replay: --json and --csv both want the output; take one")
    if question.plot is not None:
        check_plot()
    policies, sizes = _policies(question.policies), _sizes(question.blocks)
    trace = read_trace(question.trace, question.block_size)
    replays = list(_replays(trace, policies, sizes, question.since))
    if question.plot is not None:
        draw(trace, replays, question.plot)
    if json_wanted:
        typer.echo(json.dumps(as_json(trace, replays), indent=2))
    elif csv_wanted:
        typer.echo(as_csv(replays), nl=False)
    else:
        _print(trace, rows(replays))


def _replays(
    trace: Trace, policies: Sequence[str], sizes: Sequence[int], since: float
) -> Iterator[Replay]:
    """Size after size; on a terminal it says what it is at."""
    for size in sizes:
        for name in policies:
            if sys.stderr.isatty():
                typer.echo(f"\r\033[K{name}, {size:,} blocks", err=True, nl=False)
            yield replay(trace, name, size, since=since, watch=True)
        yield optimum(trace, size, since=since)
    if sys.stderr.isatty():
        typer.echo("\r\033[K", err=True, nl=False)


def _policies(names: str) -> list[str]:
    """Each is tried before anything is played."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    every = [one for name in wanted for one in (SHIPPED if name == "all" else [name])]
    if not every:
        raise ConfigError("--policy: name policies, or all", param="policy")
    for name in every:
        make_policy(name)
    return list(dict.fromkeys(every))


def _sizes(text: str) -> list[int]:
    sizes = [word.strip().replace("_", "") for word in text.split(",") if word.strip()]
    if not sizes or not all(word.isdecimal() and 0 < int(word) < 2**28 for word in sizes):
        raise ConfigError(
            f"--blocks: {text!r} is not a list of pool sizes such as 1000,4000", param="blocks"
        )
    return sorted({int(word) for word in sizes})


Column = tuple[str, Callable[[Row], str]]


def _share(name: str) -> Callable[[Row], str]:
    return lambda row: "-" if row[name] is None else f"{100 * row[name]:.2f} %"


def _count(name: str) -> Callable[[Row], str]:
    return lambda row: "-" if row[name] is None else f"{row[name]:,}"


_COLUMNS: tuple[Column, ...] = (
    ("blocks", _count("blocks")),
    ("policy", lambda row: str(row["policy"])),
    ("tokens hit", _share("token_hit_rate")),
    ("blocks hit", _share("block_hit_rate")),
    ("of optimum", _share("of_optimum")),
    ("us/eviction", lambda row: "-" if row["eviction_us"] is None else f"{row['eviction_us']:.1f}"),
    ("computed first", _count("computed_first")),
    ("again", _count("computed_again")),
    ("evicted", _count("evicted")),
    ("unused", _count("evicted_unused")),
    ("refused", _count("refused")),
)


def _print(trace: Trace, found: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    typer.echo(
        f"{trace.name}: {len(trace.requests):,} requests, {trace.prompt_tokens:,} prompt tokens in "
        f"{trace.prompt_blocks:,} blocks of {trace.block_size}"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for label, _ in _COLUMNS:
        table.add_column(label, justify="left" if label == "policy" else "right")
    before = None
    for row in found:
        if before not in (None, row["blocks"]):
            table.add_section()
            table.add_row()
        before = row["blocks"]
        table.add_row(*(text(row) for _, text in _COLUMNS))
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False).print(table)
