"""kveik side by side with its peers on this CPU, in one go, with the same token ids.

Every round starts every engine in a process of its own, one after another, and probes the read
bandwidth; ratios are taken inside a round. What one engine lacks or fails at is said, and the
others go on. Results, after every round: bench/results/peers_MODEL.json and
docs/images/peers_MODEL.svg; `python bench/table.py` makes docs/BENCHMARKS.md of them.

Usage: python bench/peers/run.py [--model 1.1b|0.5b|160m] [--rounds 7] [--engines kveik,vllm-bf16]
       [--columns start,decode,...] [--prepare] [--keep] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[1]))  # the first is the folder of the script

import chart
import checkpoints
import summary
from bars import judge
from environments import ENGINES, Peer, Workshop, default_home, every_peer, runner_file
from processes import Failed, read_bandwidth, run_job, warm_page_cache
from report import RESULTS, ROOT, Report
from workload import COLUMNS, LONGEST

from kveik.kernels.cores import usable_cores

FOLDER = Path(__file__).parent
EXACT_MODEL = "160m"
KV_BYTES = 1 << 30  # of every engine's pool
SEQUENCES = 16
TITLES = {str(peer): peer.title for peer in every_peer()}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=list(checkpoints.SHAPES), default="1.1b")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--engines",
        default=",".join(ENGINES),
        help="names (all their widths) or name-width, separated by commas; default: all",
    )
    parser.add_argument(
        "--columns",
        default=",".join((*COLUMNS, "installed", "exact")),
        help="separated by commas; default: all",
    )
    parser.add_argument(
        "--slow",
        type=float,
        default=45.0,
        metavar="SECONDS",
        help="a column that took a peer longer is measured in its first round only (default 45)",
    )
    parser.add_argument("--home", type=Path, default=default_home(), help="of environments, models")
    parser.add_argument("--prepare", action="store_true", help="install and convert, then stop")
    parser.add_argument("--keep", action="store_true", help="add rounds to those on file")
    parser.add_argument("--quick", action="store_true", help="one round, short columns")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.columns = 1, "start,ttft_16,decode,prefill_1024,repeat_1024"
    given.columns = given.columns.split(",")
    given.peers = chosen(parser, given.engines.split(","))
    for name in given.columns:
        if name not in (*COLUMNS, "installed", "exact"):
            parser.error(f"--columns: {name!r} is none of {', '.join(COLUMNS)}, installed, exact")
    return given


def chosen(parser: argparse.ArgumentParser, names: list[str]) -> list[Peer]:
    known = every_peer()
    for name in names:
        if not any(name in (str(peer), peer.engine) for peer in known):
            parser.error(f"--engines: {name!r} is none of {', '.join(map(str, known))}")
    return [peer for peer in known if str(peer) in names or peer.engine in names]


class Comparison:
    """One model, several engines, rounds."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.workshop = Workshop(given.home)
        self.config = checkpoints.SHAPES[given.model]
        self.path = RESULTS / f"peers_{given.model}.json"
        self.rounds: list[dict[str, Any]] = []
        self.exact: dict[str, Any] = {}
        self.notes: list[str] = []
        self.bandwidth = self.workshop.home / "bandwidth"
        self.ready: list[Peer] = []
        if given.keep and self.path.exists():
            before = json.loads(self.path.read_text())
            self.rounds, self.exact = before["rounds"], before["exact"]

    def prepare(self) -> None:
        """Environments and models of every engine; one that fails is left out, with a note."""
        source = FOLDER / "bandwidth.c"
        command = ["cc", "-O3", "-march=native", "-pthread", str(source), "-o"]
        subprocess.run([*command, str(self.bandwidth)], check=True)
        for peer in self.given.peers:
            try:
                self.workshop.python(peer)
                self.workshop.model(self.given.model, peer)
                if "exact" in self.given.columns:
                    self.workshop.model(EXACT_MODEL, peer)
                self.first_start(peer)
            except Failed as reason:
                self.note(f"{peer.title}: left out: {reason}")
            else:
                self.ready.append(peer)
        if not self.ready:
            sys.exit("no engine is ready: see the notes above")

    def first_start(self, peer: Peer) -> None:
        """Unmeasured: engines leave compiled graphs and quantised weights for their second start.
        kveik does it every time, because its files may be of an older checkout."""
        seen = self.workshop.logs / f"first-start-{self.given.model}-{peer}"
        if peer.engine == summary.OURS or not seen.exists():
            print(f"first start of {peer}", flush=True)
            self.measured(peer, [], 0)
            seen.touch()

    def note(self, text: str) -> None:
        print(text, flush=True)
        self.notes.append(text)

    def run(self) -> None:
        if "exact" in self.given.columns:
            for peer in self.ready:
                self.exact[str(peer)] = self.exactness(peer)
            self.write()
        sizes: dict[str, float] = {}
        if "installed" in self.given.columns:
            sizes = {p.engine: self.workshop.installed_megabytes(p) for p in self.ready}
        for _ in range(self.given.rounds):
            found = self.one_round(len(self.rounds), sizes)
            self.rounds.append(found)
            self.write()

    def one_round(self, number: int, sizes: dict[str, float]) -> dict[str, Any]:
        found: dict[str, Any] = {"load": os.getloadavg()[0], "peers": {}}
        found["bandwidth"] = read_bandwidth(self.bandwidth, usable_cores())
        turn = number % len(self.ready)  # another one begins each round
        for peer in self.ready[turn:] + self.ready[:turn]:
            begin = time.monotonic()
            columns = [c for c in self.given.columns if not self.too_slow(peer, c)]
            try:
                records = self.measured(peer, columns, number)
            except Failed as reason:
                records = {"process": {"error": str(reason)}}
            if peer.engine in sizes:
                records["installed"] = {"value": sizes[peer.engine]}
            found["peers"][str(peer)] = records
            self.say(number, peer, records, time.monotonic() - begin)
        found["bandwidth"] = max(found["bandwidth"], read_bandwidth(self.bandwidth, usable_cores()))
        print(f"round {number + 1}: read {found['bandwidth']:.1f} GB/s", flush=True)
        return found

    def measured(self, peer: Peer, columns: list[str], number: int) -> dict[str, Any]:
        job = {"task": "measure", "columns": columns, "round": number}
        records = self.job(peer, self.given.model, job, LONGEST, SEQUENCES)
        process, start = records["process"], records.get("start")
        if start is None:
            raise Failed(process["error"])
        start["value"] = start["first_token"] - process["started"]
        start["load"] = start["loaded"] - process["started"]
        records["memory"] = {"value": process["peak_bytes"] / 1e6}
        return records

    def exactness(self, peer: Peer) -> dict[str, Any]:
        try:
            records = self.job(peer, EXACT_MODEL, {"task": "exact"}, 640, 32)
        except Failed as reason:
            return {"failed": str(reason)}
        result = records.get("exact", {"failed": records["process"].get("error")})
        print(f"{peer}: answers changed: {result}", flush=True)
        return dict(result)

    def job(
        self, peer: Peer, shape: str, job: dict[str, Any], tokens: int, sequences: int
    ) -> dict[str, dict[str, Any]]:
        folder = self.workshop.model(shape, peer)
        warm_page_cache(folder)
        setting = {
            "folder": str(folder),
            "width": peer.width,
            "vocabulary": checkpoints.SHAPES[shape]["vocab_size"],
            "max_tokens": tokens,
            "kv_bytes": KV_BYTES,
            "sequences": sequences,
            "threads": usable_cores(),
        }
        return run_job(
            [str(self.workshop.python(peer)), runner_file(peer)],
            job | setting,
            environment=self.workshop.environment(peer),
            log=self.workshop.logs / f"{job['task']}-{shape}-{peer}.log",
            seconds=3600,
        )

    def too_slow(self, peer: Peer, column: str) -> bool:
        """Measured once, and it took long: the remaining rounds are spent on the others."""
        took = [one["peers"].get(str(peer), {}).get(column, {}).get("took") for one in self.rounds]
        return max([t for t in took if t is not None], default=0.0) > self.given.slow

    def say(self, number: int, peer: Peer, records: dict[str, Any], seconds: float) -> None:
        shown = [
            f"{name} {summary.number(record['value'])}"
            for name, record in records.items()
            if "value" in record
        ]
        error = records["process"].get("error")
        failed = [f"{c}: {r['failed']}" for c, r in records.items() if "failed" in r]
        text = "; ".join([", ".join(shown), *filter(None, [error, *failed])])
        print(f"round {number + 1}, {peer} ({seconds:.0f} s): {text}", flush=True)

    def write(self) -> None:
        """bench/results/peers_MODEL.json and the picture, from the rounds so far."""
        report = Report(f"peers_{self.given.model}", extra={"rounds": self.rounds})
        report.extra["exact"] = self.exact
        if self.rounds:
            judge(report, self.rounds, self.config, KV_BYTES)
            report.text(summary.medians_table(self.rounds, TITLES))
            report.text(summary.ratios_table(self.rounds, TITLES))
            self._sanity(report)
            self._picture(report)
        if self.exact:
            report.text(summary.exact_table(self.exact, TITLES))
        for note in self.notes:
            report.note(note)
        report.finish(quiet=True)

    def _picture(self, report: Report) -> None:
        """Not of a quick look: it would replace the one in the repository."""
        name = f"peers_{self.given.model}.svg"
        heading = f"{self.given.model}, {usable_cores()} cores, {len(self.rounds)} rounds"
        path = ROOT / "docs" / "images" / name
        if not self.given.quick and chart.draw(self.rounds, TITLES, heading, path):
            report.text(f"![Speed of the engines](images/{name})")

    def _sanity(self, report: Report) -> None:
        for peer in summary.peers_in(self.rounds):
            agree, compared = summary.same_model(self.rounds, "kveik-bf16", peer)
            if compared and summary.width(peer) == "bf16" and agree < 0.8 * compared:
                report.note(f"{TITLES[peer]}: {agree} of {compared} first tokens are kveik's.")
        for column in summary.columns_in(self.rounds):
            for peer in summary.peers_in(self.rounds):
                count = len(summary.values(self.rounds, peer, column))
                if 0 < count < len(self.rounds):
                    report.note(f"{TITLES[peer]}, {summary.title(column)}: {count} round(s) only.")


def main() -> None:
    given = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the engine's processes end as well
    comparison = Comparison(given)
    comparison.prepare()
    if given.prepare:
        return
    comparison.run()
    result = json.loads(comparison.path.read_text())
    for figure in result["figures"]:
        verdict = {True: "holds", False: "SHORT OF THE BAR"}.get(figure.get("holds"), "")
        print(f"{figure['name']:<70} {figure['value']:>10.4g} {figure['unit']} {verdict}")
    print(f"written: {os.path.relpath(comparison.path)}")


if __name__ == "__main__":
    main()
