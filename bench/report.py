"""What every benchmark prints: machine, commit, figures with their bars; JSON to a file.

A figure is a dictionary: name, value, unit, and where there is one a bar and whether it holds.
`Report.ratio` keeps both sides of a ratio, measured in one run; `Report.rounds` is for two sides
that took turns (rounds.py): the median of the ratios of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """CPU model, cores, memory and library versions of this machine."""
    import numpy

    model, memory = platform.processor() or platform.machine(), 0
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
    }


def commit() -> str:
    """Short hash of the checkout, with + when the tree is dirty."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
        ).stdout.strip()

    dirty = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + dirty


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """With linear interpolation; of one value, that value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, median, upper


def _named(argument: str) -> str:
    """Without the folders of this machine."""
    return Path(argument).name if os.path.isabs(argument) else argument


@dataclass
class Report:
    """Collects figures of one benchmark and prints them."""

    name: str
    figures: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)  # beside the figures, in the JSON only

    def figure(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        bar: float | None = None,
        sense: Literal["<=", ">="] = ">=",
        **facts: Any,
    ) -> None:
        """One measured value; with a bar, whether `value sense bar` holds."""
        entry: dict[str, Any] = {"name": name, "value": value, "unit": unit, **facts}
        if bar is not None:
            entry["bar"] = f"{sense} {bar:g}"
            entry["holds"] = value >= bar if sense == ">=" else value <= bar
        self.figures.append(entry)

    def ratio(
        self,
        name: str,
        ours: float,
        other: float,
        *,
        bar: float | None = None,
        sense: Literal["<=", ">="] = ">=",
        **facts: Any,
    ) -> None:
        """ours / other, both sides kept."""
        self.figure(name, ours / other, "x", bar=bar, sense=sense, ours=ours, other=other, **facts)

    def rounds(
        self,
        name: str,
        ours: Sequence[float],
        other: Sequence[float],
        *,
        bar: float | None = None,
        sense: Literal["<=", ">="] = ">=",
        **facts: Any,
    ) -> None:
        """ours[round] / other[round]: the median over the rounds, with its quartiles.

        What slows a whole round down is in both of its sides and leaves the ratio alone."""
        found = [mine / theirs for mine, theirs in zip(ours, other, strict=True)]
        lower, median, upper = quartiles(found)
        self.figure(
            name,
            median,
            "x",
            bar=bar,
            sense=sense,
            ours=statistics.median(ours),
            other=statistics.median(other),
            lower_quartile=lower,
            upper_quartile=upper,
            rounds=len(found),
            **facts,
        )

    def note(self, text: str) -> None:
        self.notes.append(text)

    def text(self, markdown: str) -> None:
        """A table or picture of its own for docs/BENCHMARKS.md."""
        self.texts.append(markdown)

    def finish(self, *, quiet: bool = False) -> None:
        """Print a table and JSON, unless quiet; write bench/results/NAME.json."""
        for entry in [] if quiet else self.figures:
            verdict = {True: "  holds", False: "  SHORT OF THE BAR"}.get(entry.get("holds"), "")
            bar = f"  (bar {entry['bar']})" if "bar" in entry else ""
            print(f"{entry['name']:<58} {entry['value']:>12.4g} {entry['unit']}{bar}{verdict}")
        record = {
            "benchmark": self.name,
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "command": "python "
            + " ".join([os.path.relpath(sys.argv[0], ROOT), *map(_named, sys.argv[1:])]),
            "figures": self.figures,
            "notes": self.notes,
            "texts": self.texts,
            **self.extra,
        }
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps(record, indent=1)
        (RESULTS / f"{self.name}.json").write_text(text + "\n")
        if not quiet:
            print(text)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, for a first look")
    return parser
