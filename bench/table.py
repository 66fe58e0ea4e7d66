"""Write docs/BENCHMARKS.md from the JSON that the benchmarks left in bench/results.

Usage: python bench/table.py
"""

from __future__ import annotations

import json
from typing import Any

from report import RESULTS, ROOT

HEAD = """# Benchmarks

Written by `python bench/table.py` from what `make bench` and `make bench-peers` measured. Times are
of one shared, noisy machine: compare within a run and quote ratios. Where a row has two sides, both
were measured in the same process. The numpy reference kernels compute in float32; beating other
engines is the native kernels' job.
"""


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def sides(figure: dict[str, Any]) -> str:
    if "ours" not in figure:
        return ""
    return f"{number(figure['ours'])} / {number(figure['other'])}"


def row(figure: dict[str, Any]) -> str:
    verdict = {True: "yes", False: "**no**"}.get(figure.get("holds"), "")
    cells = [
        figure["name"],
        f"{number(figure['value'])} {figure['unit']}",
        sides(figure),
        figure.get("bar", ""),
        verdict,
    ]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def section(result: dict[str, Any]) -> str:
    machine = result["machine"]
    lines = [
        f"## {result['benchmark']}",
        "",
        f"`{result['command']}`, commit {result['commit']}, {result['date']}; {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, Python {machine['python']}, "
        f"numpy {machine['numpy']}; load {machine['load_1min']} when it ended.",
        "",
        "| figure | value | both sides | bar | holds |",
        "|---|---|---|---|---|",
        *(row(figure) for figure in result["figures"]),
        *(f"\n{text}" for text in (*result.get("texts", ()), *result["notes"])),
    ]
    return "\n".join(lines)


def main() -> None:
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    text = "\n\n".join([HEAD.strip(), *(section(result) for result in results)]) + "\n"
    (ROOT / "docs" / "BENCHMARKS.md").write_text(text)


if __name__ == "__main__":
    main()
