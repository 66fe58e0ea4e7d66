"""The eviction policies on a real trace and on made-up traffic, through the real cache code.

Block hit rates: requests one after the other, blocks of the trace, see docs/DEFAULT_POLICY.md. With
--trace a trace of Mooncake's format: its second half, by time, after its first half (warm) and
alone (cold), for every policy. Without one, and after it, the traffic of policy_traces.py: the
default policy against least recently used.

Usage: python bench/policies.py [--trace TRACE.jsonl] [--policies NAME,NAME] [--quick]
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from policy_traces import TRAFFIC
from report import Report, arguments

from kveik.cache.policy import SHIPPED
from kveik.lab.optimum import optimum
from kveik.lab.replay import Replay, replay
from kveik.lab.trace import Trace, TraceRequest, read_trace

OURS, LRU = "hit-density", "lru"
SIZES = (250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000)
MADE_SIZES = (250, 1_000, 4_000)
BARS = {4_000: 3.5, 8_000: 0.5, 16_000: 0.5}  # points above LRU, on the second half of a trace
FLOOR = -0.3  # points: how much worse than LRU it may be anywhere
MOONSHOT = 0.25  # of the gap between LRU and the optimum
SIZE = 16  # tokens in a block of made-up traffic


def made(name: str, requests: int | None) -> Trace:
    """That traffic, or its first requests."""
    prompts = islice(TRAFFIC[name](), requests)
    every = tuple(
        TraceRequest(seconds, SIZE * len(blocks), 1, tuple(blocks)) for seconds, blocks in prompts
    )
    return Trace(name, SIZE, every)


def second_half(trace: Trace) -> tuple[float, Trace]:
    """When it begins, and it alone."""
    middle = (trace.requests[0].seconds + trace.requests[-1].seconds) / 2
    late = tuple(one for one in trace.requests if one.seconds >= middle)
    return middle, Trace(trace.name, trace.block_size, late)


def percent(played: Replay) -> float:
    return 100 * played.block_hit_rate


def on_a_trace(report: Report, trace: Trace, policies: list[str], sizes: tuple[int, ...]) -> None:
    middle, late = second_half(trace)
    for title, what, since in (("warm", trace, middle), ("cold", late, 0.0)):
        rows: dict[str, list[float]] = {name: [] for name in policies}
        cost: dict[str, list[float]] = {name: [] for name in policies}
        best = []
        for blocks in sizes:
            for name in policies:
                played = replay(what, name, blocks, since=since)
                rows[name].append(percent(played))
                cost[name].append(played.eviction_us)
            best.append(percent(optimum(what, blocks, since=since)))
            if title == "warm":
                judge(report, trace.name, blocks, rows[OURS][-1], rows[LRU][-1], best[-1])
                report.figure(f"{blocks} blocks: {OURS}, each eviction with all its books",
                              cost[OURS][-1], "us", lru=cost[LRU][-1])  # fmt: skip
            else:
                report.figure(f"{trace.name}, cold, {blocks} blocks: {OURS} above {LRU}",
                              rows[OURS][-1] - rows[LRU][-1], "points", bar=FLOOR)  # fmt: skip
        rows["optimum"] = best
        report.text(
            table(f"second half of {trace.name}, {title}: hit rate of blocks, %", sizes, rows)
        )


def judge(report: Report, name: str, blocks: int, ours: float, lru: float, best: float) -> None:
    report.figure(f"{name}, {blocks} blocks: {OURS} above {LRU}", ours - lru, "points",
                  bar=BARS.get(blocks, FLOOR), ours=ours, other=lru, optimum=best)  # fmt: skip
    if blocks in BARS:
        report.figure(f"{name}, {blocks} blocks: share of the gap to the optimum",
                      (ours - lru) / max(best - lru, 1e-9), "", moonshot=MOONSHOT)  # fmt: skip


def on_made_traffic(report: Report, sizes: tuple[int, ...], requests: int | None) -> None:
    rows: dict[str, list[float]] = {}
    for name in TRAFFIC:
        trace = made(name, requests)
        differences, lru = [], []
        for blocks in sizes:
            lru.append(percent(replay(trace, LRU, blocks)))
            differences.append(percent(replay(trace, OURS, blocks)) - lru[-1])
        rows[f"{name}: lru"], rows[f"{name}: {OURS} above it"] = lru, differences
        report.figure(f"{name}: least of {OURS} above {LRU}", min(differences), "points", bar=FLOOR)
    report.text(table("made-up traffic: hit rate of blocks, %, and points above it", sizes, rows))


def table(title: str, sizes: tuple[int, ...], rows: dict[str, list[float]]) -> str:
    lines = [f"| {title} | " + " | ".join(f"{size:,}" for size in sizes) + " |"]
    lines.append("|---" * (len(sizes) + 1) + "|")
    for name, values in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--trace", type=Path, help="a trace of Mooncake's format")
    parser.add_argument("--policies", default="", help="names, separated by commas; else all")
    options = parser.parse_args()
    report = Report("policies")
    names = options.policies.split(",") if options.policies else list(SHIPPED)
    policies = list(dict.fromkeys([LRU, OURS, *names]))
    if options.trace:
        sizes = tuple(BARS) if options.quick else SIZES
        on_a_trace(report, read_trace(options.trace), policies, sizes)
    on_made_traffic(report, MADE_SIZES[:2] if options.quick else MADE_SIZES,
                    600 if options.quick else None)  # fmt: skip
    report.finish()


if __name__ == "__main__":
    main()
