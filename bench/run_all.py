"""Run every benchmark of this folder, one process each, and say which bars hold.

Usage: python bench/run_all.py [--quick] [--only NAME,NAME]
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from report import RESULTS, arguments

FOLDER = Path(__file__).parent
NOT_BENCHMARKS = {
    "run_all",
    "report",
    "rounds",
    "random_model",
    "joined",
    "gapped",
    "novel",
    "rows",
    "watched",
    "kernel_chains",
    "table",
    "conversations",
    "dashboard_traffic",
    "relevance_fit",
    "policy_traces",
}


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--only", default="", help="names of benchmarks, separated by commas")
    options = parser.parse_args()
    wanted = set(filter(None, options.only.split(",")))
    names = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in NOT_BENCHMARKS)
    unknown = wanted - set(names)
    if unknown:
        parser.error(f"--only: no such benchmark: {', '.join(sorted(unknown))}; there are {names}")
    failed = []
    for name in names:
        if wanted and name not in wanted:
            continue
        print(f"\n== {name}", flush=True)
        command = [sys.executable, str(FOLDER / f"{name}.py"), *(["--quick"] * options.quick)]
        if subprocess.run(command, check=False).returncode:
            failed.append(f"{name}: did not finish")
            continue
        result = RESULTS / f"{name}.json"
        for figure in json.loads(result.read_text())["figures"] if result.exists() else []:
            if figure.get("holds") is False:
                failed.append(f"{name}: {figure['name']} {figure['value']:.4g}, {figure['bar']}")
    print("\n".join(["", "short of the bar:", *failed] if failed else ["", "every bar holds"]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
