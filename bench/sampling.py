"""Native sampling beside numpy's: how many times faster, per level, vocabulary and kind of row.

Both sides read the same rows of random logits (normal, times three) in one thread and draw the same
tokens; they take turns and the fastest turn of each counts. Ratios are numpy's time over ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
from report import Report, arguments

from kveik.kernels import reference_sampling
from kveik.kernels.extension import native_extension
from kveik.kernels.native_sampling import sample
from kveik.kernels.ops import SampleRow

WARM = SampleRow(0, 0.5, 0.8)
ROWS = {
    "greedy": SampleRow(0),
    "greedy, log-probability": SampleRow(0, logprobs=0),
    "greedy, five alternatives": SampleRow(0, logprobs=5),
    "greedy, penalties over 500 tokens": SampleRow(
        0, repetition_penalty=1.1, prompt_ids=tuple(range(500))
    ),
    "temperature": WARM,
    "top_k 50": WARM._replace(top_k=50),
    "top_p 0.95": WARM._replace(top_p=0.95),
    "top_p 0.95, cold": WARM._replace(temperature=0.2, top_p=0.95),
    "min_p 0.05": WARM._replace(min_p=0.05),
}


def best_of(turns: int, *sides: Callable[[], object]) -> list[float]:
    """The fastest turn of each side, in seconds."""
    best = [float("inf")] * len(sides)
    for _ in range(turns):
        for index, side in enumerate(sides):
            start = time.perf_counter()
            side()
            best[index] = min(best[index], time.perf_counter() - start)
    return best


def main() -> None:
    quick = arguments(__doc__).parse_args().quick
    native = native_extension().module
    if native is None:
        raise SystemExit(f"native kernels {native_extension().missing}")
    report = Report("sampling")
    turns = 5 if quick else 25
    levels = [level for level in native.levels() if level not in ("amx", "scalar")]
    for size in (32_000, 152_064):
        logits = 3 * np.random.default_rng(0).standard_normal((64, size), dtype=np.float32)
        for name, row in ROWS.items():
            other = partial(reference_sampling.sample, logits, [row])
            ours = [partial(sample, logits, [row], level) for level in levels]
            times = best_of(turns, other, *ours)
            for level, seconds in zip(levels, times[1:], strict=True):
                facts = {"ours_us": 1e6 * seconds}
                report.ratio(f"V={size}, {level}: {name}", times[0], seconds, **facts)
        rows = [SampleRow(number) for number in range(64)]
        other, ours_64 = best_of(
            turns,
            partial(reference_sampling.sample, logits, rows),
            partial(sample, logits, rows),
        )
        report.ratio(f"V={size}, {levels[0]}: 64 rows, greedy", other, ours_64)
    rows, few = [SampleRow(number) for number in range(64)], np.zeros((64, 1), np.float32)
    (seconds,) = best_of(100, partial(sample, few, rows))
    report.figure(
        "64 greedy rows of one logit: Python's share", 1e6 * seconds, "us", bar=100, sense="<="
    )
    report.note("level amx reads logits as avx512 does; scalar as portable")
    report.finish()


if __name__ == "__main__":
    main()
