"""Write docs/BENCHMARKS.md from the JSON that the benchmarks left in bench/results. What was not
measured again keeps its section: each says its machine, commit and date.

Usage: python bench/table.py
"""

from __future__ import annotations

import json
from typing import Any

from report import RESULTS, ROOT

HEAD = """# Benchmarks

Written by `python bench/table.py` from what `make bench` and `make bench-peers` measured. Times are
of one shared, noisy machine: compare within a run and quote ratios. Where a row has two sides, both
were measured in the same process. Sections may be of different machines. The numpy reference
kernels compute in float32; beating other engines is the native kernels' job.
"""
PAGE = ROOT / "docs" / "BENCHMARKS.md"


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


def sections(page: str) -> dict[str, str]:
    """The sections of a page by name."""
    _, *parts = page.split("\n## ")
    return {part.split("\n", 1)[0]: f"## {part.strip()}" for part in parts}


def page(before: str, results: list[dict[str, Any]]) -> str:
    """The page of these results, and of what stood there before of other benchmarks."""
    known = sections(before) | {result["benchmark"]: section(result) for result in results}
    return "\n\n".join([HEAD.strip(), *(known[name] for name in sorted(known))]) + "\n"


def main() -> None:
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    PAGE.write_text(page(PAGE.read_text() if PAGE.exists() else "", results))


if __name__ == "__main__":
    main()
