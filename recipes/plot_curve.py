"""Draw the loss curve of one or more runs from their log.jsonl.

python recipes/plot_curve.py --out curve.png runs/default
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

SMOOTHED_OVER = 50


def read_log(run: Path) -> list[dict[str, float]]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def smooth(values: list[float]) -> list[float]:
    """The mean of the last `SMOOTHED_OVER` values at every point."""
    starts = (max(0, number + 1 - SMOOTHED_OVER) for number in range(len(values)))
    return [sum(values[a : b + 1]) / (b + 1 - a) for b, a in enumerate(starts)]


def draw(runs: list[Path], out: Path) -> None:
    figure, axes = plt.subplots(figsize=(6.4, 3.6), dpi=80)
    for run in runs:
        log = read_log(run)
        steps = [record["step"] for record in log]
        axes.plot(steps, smooth([r["loss"] for r in log]), label=f"{run.name}: training mix")
        checks = [record for record in log if "validation" in record]
        axes.plot(
            [record["step"] for record in checks],
            [record["validation"] for record in checks],
            label=f"{run.name}: kept-back prose",
        )
    axes.set(xlabel="step", ylabel="loss (nats per token)", ylim=(0.0, 7.0))
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    options = parser.parse_args()
    draw(options.runs, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
