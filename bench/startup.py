"""How light kveik is: import time, time from command to /ready, installed size.

1. `import kveik` in a fresh process (bar <= 0.3 s), and what it pulls in
2. `kveik serve` with the embedded model: from command to /ready (bar <= 1.5 s)
3. size of kveik with all it needs (bar <= 200 MB): a fresh environment with `pip install .`
   (skipped with --quick, or without a package index)
4. from `git clone` to the first token (bar <= 60 s), the build of the kernels included: a fresh
   checkout of this commit and a fresh environment, stage by stage (skipped with --quick)

Usage: python bench/startup.py [--quick]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import ROOT, Report, arguments

sys.path.insert(0, str(ROOT / "tests"))
import serving


def import_seconds() -> float:
    code = "import time; s = time.perf_counter(); import kveik; print(time.perf_counter() - s)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def ready_seconds() -> float:
    start = time.perf_counter()
    with serving.running_server():
        return time.perf_counter() - start


def installed_megabytes() -> float:
    """Everything `pip install .` puts into an empty environment, pip itself left out."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60
        )
        site = next(Path(folder).glob("lib/python*/site-packages"))
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(site), str(ROOT)],
            check=True,
            timeout=600,
        )
        return sum(f.stat().st_size for f in site.rglob("*") if f.is_file()) / 1e6


def clone_seconds() -> dict[str, float]:
    """Stages of what somebody waits for who has just heard of kveik."""
    stages = {
        "clone": ["git", "clone", "--quiet", str(ROOT), "."],
        "environment": ["make", ".venv/bin/python"],
        "build tools": ["make", ".venv/.build-tools"],
        "kernels and needs": ["make", "install"],
        "first token": [".venv/bin/kveik", "generate", "It was a dark night", "--max-tokens=1"],
    }
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    taken = {}
    with tempfile.TemporaryDirectory() as folder:
        for stage, command in stages.items():
            start = time.perf_counter()
            subprocess.run(
                command,
                cwd=folder,
                env=environment,
                stdout=subprocess.DEVNULL,
                check=True,
                timeout=600,
            )
            taken[stage] = time.perf_counter() - start
        if not list(Path(folder).glob("src/kveik/kernels/_native.*.so")):
            raise SystemExit("the clone has no native kernels: make install could not build them")
    return taken


def main() -> None:
    options = arguments(__doc__).parse_args()
    repeat = 2 if options.quick else 7
    report = Report("startup")
    imports = [import_seconds() for _ in range(repeat)]
    report.figure("import kveik, median", statistics.median(imports), "s", bar=0.3, sense="<=")
    ready = [ready_seconds() for _ in range(repeat)]
    report.figure(
        "command to /ready, embedded model, median",
        statistics.median(ready),
        "s",
        bar=1.5,
        sense="<=",
        all=ready,
    )
    if not options.quick:
        size = installed_megabytes()
        report.figure("installed size with all needs", size, "MB", bar=200, sense="<=")
        stages = clone_seconds()
        total = sum(stages.values())
        name = "git clone to first token, kernels built"
        report.figure(name, total, "s", bar=60, sense="<=", stages=stages)
    report.finish()


if __name__ == "__main__":
    main()
