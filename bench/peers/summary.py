"""From rounds to figures: ratios taken inside each round, quartiles over the rounds, tables.

A round is {"bandwidth": GB/s, "peers": {"vllm-bf16": {column: {"value": number, ...}}}}. A ratio
above 1 always means that kveik is better. Pure; standard library.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from workload import COLUMNS

Rounds = Sequence[dict[str, Any]]
OURS = "kveik"
SLOWER_IS_MORE = {"s", "MB"}


@dataclass(frozen=True)
class Spread:
    """Of one figure over the rounds."""

    lowest: float
    lower: float  # quartile
    median: float
    upper: float  # quartile
    highest: float
    rounds: int


def spread(values: Sequence[float]) -> Spread:
    """Quartiles with linear interpolation; of one value, that value."""
    if len(values) == 1:
        return Spread(*[values[0]] * 5, 1)
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(min(values), lower, median, upper, max(values), len(values))


def unit(column: str) -> str:
    return COLUMNS[column].unit if column in COLUMNS else "MB"


def title(column: str) -> str:
    return COLUMNS[column].title if column in COLUMNS else TITLES[column]


TITLES = {"memory": "private peak memory", "installed": "installed size"}


def value(one: dict[str, Any], peer: str, column: str) -> float | None:
    found = one["peers"].get(peer, {}).get(column, {}).get("value")
    return None if found is None else float(found)


def values(rounds: Rounds, peer: str, column: str) -> list[float]:
    return [found for one in rounds if (found := value(one, peer, column)) is not None]


def advantage(ours: float, other: float, column: str) -> float:
    return other / ours if unit(column) in SLOWER_IS_MORE else ours / other


def ratios(rounds: Rounds, ours: str, other: str, column: str) -> list[float]:
    """kveik against one peer, a ratio per round that has both."""
    pairs = [(value(one, ours, column), value(one, other, column)) for one in rounds]
    return [advantage(a, b, column) for a, b in pairs if a is not None and b is not None]


def ratios_to_best(rounds: Rounds, ours: str, others: Iterable[str], column: str) -> list[float]:
    """kveik against the best of the peers, chosen anew in each round."""
    listed = list(others)
    found = []
    for one in rounds:
        mine = value(one, ours, column)
        theirs = [v for other in listed if (v := value(one, other, column)) is not None]
        if mine is not None and theirs:
            found.append(min(advantage(mine, v, column) for v in theirs))
    return found


def peers_in(rounds: Rounds) -> list[str]:
    """In the order in which they ran."""
    return list(dict.fromkeys(peer for one in rounds for peer in one["peers"]))


def width(peer: str) -> str:
    return peer.rpartition("-")[2]


def rivals(rounds: Rounds, wanted: str) -> list[str]:
    """The peers of that width."""
    return [p for p in peers_in(rounds) if not p.startswith(OURS) and width(p) == wanted]


def columns_in(rounds: Rounds) -> list[str]:
    names = [*COLUMNS, *TITLES]
    return [c for c in names if any(values(rounds, peer, c) for peer in peers_in(rounds))]


def number(found: float) -> str:
    if found >= 100:
        return f"{found:,.0f}"
    return f"{found:.3g}" if found >= 10 else f"{found:.2f}" if found >= 1 else f"{found:.3f}"


def _cell(found: Sequence[float], show: Callable[[Spread], str]) -> str:
    return show(spread(found)) if found else "-"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def medians_table(rounds: Rounds, titles: dict[str, str]) -> str:
    """A row per peer, a column per column: the median over the rounds, the best in bold."""
    columns, peers = columns_in(rounds), peers_in(rounds)
    best = {c: _best(rounds, peers, c) for c in columns}
    rows = []
    for peer in peers:
        row = [titles.get(peer, peer)]
        for column in columns:
            text = _cell(values(rounds, peer, column), lambda found: number(found.median))
            row.append(f"**{text}**" if peer == best[column] else text)
        rows.append(row)
    return _table(["engine", *(f"{title(c)}, {unit(c)}" for c in columns)], rows)


def _best(rounds: Rounds, peers: Sequence[str], column: str) -> str | None:
    found = {p: spread(v).median for p in peers if (v := values(rounds, p, column))}
    choose = min if unit(column) in SLOWER_IS_MORE else max
    return choose(found, key=lambda peer: found[peer]) if found else None


def ratios_table(rounds: Rounds, titles: dict[str, str]) -> str:
    """kveik against each peer of its width: lower quartile of the ratios per round (all of them
    between the brackets)."""
    columns = columns_in(rounds)
    rows = []
    for ours in (peer for peer in peers_in(rounds) if peer.startswith(OURS)):
        for other in rivals(rounds, width(ours)):
            cells = [
                _cell(
                    ratios(rounds, ours, other, column),
                    lambda s: f"{number(s.lower)} ({number(s.lowest)}-{number(s.highest)})",
                )
                for column in columns
            ]
            rows.append([f"{titles.get(ours, ours)} / {titles.get(other, other)}", *cells])
    return _table(["ratio", *(title(c) for c in columns)], rows)


def exact_table(exact: dict[str, Any], titles: dict[str, str]) -> str:
    """Answers that changed, as `any bit / any token`."""

    def cell(found: dict[str, int | None] | None) -> str:
        if found is None:
            return "-"
        bits = "?" if found["bits"] is None else found["bits"]
        return f"{bits} / {found['tokens']}"

    rows = []
    for peer, result in exact.items():
        changed = result.get("changed")
        cells = (
            [cell(changed.get(name)) for name in ("cold", "cached", "batch")]
            if changed
            else [str(result.get("failed")), "", ""]
        )
        rows.append([titles.get(peer, peer), *cells])
    head = ["engine", "cold twice", "cold, then cached", "alone, then in a batch of 32"]
    return _table(head, rows)


def same_model(rounds: Rounds, reference: str, peer: str) -> tuple[int, int]:
    """First tokens of the same prompts that agree, and how many were compared: a peer that loaded
    other weights agrees on none."""
    agree = compared = 0
    for one in rounds:
        for column in COLUMNS:
            ours = one["peers"].get(reference, {}).get(column, {}).get("tokens")
            theirs = one["peers"].get(peer, {}).get(column, {}).get("tokens")
            if ours and theirs:
                agree, compared = agree + (ours[0] == theirs[0]), compared + 1
    return agree, compared
