"""Starts a runner, talks to it, watches its memory. Linux; standard library."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.2  # seldom enough not to disturb what is measured


class Failed(Exception):
    """A peer cannot be installed, converted for, or run; the message says why."""


def run_job(
    command: Sequence[str],
    job: Mapping[str, Any],
    *,
    environment: Mapping[str, str],
    log: Path,
    seconds: float,
) -> dict[str, dict[str, Any]]:
    """Records of the runner by column, "process" among them: when it was started (time.monotonic)
    and its private peak memory. What it found before it failed is kept: "process" has "error".
    Raises Failed only where there is no record at all."""
    found: dict[str, dict[str, Any]] = {}
    with log.open("w") as errors:
        started = time.monotonic()
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=dict(environment),
            start_new_session=True,
        )
    memory = Memory(process.pid)
    timer = threading.Timer(seconds, _end, [process])
    timer.start()
    error = None
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job))
            process.stdin.close()
        error = _read(process.stdout, found)
        memory.finish()
    finally:
        timer.cancel()
        _end(process)
    if error and not found:
        raise Failed(f"{error} (exit {process.returncode}; see {log})")
    found["process"] = {"started": started, "peak_bytes": memory.peak}
    if error:
        found["process"]["error"] = f"{error} (exit {process.returncode}; see {log})"
    return found


def _read(lines: Any, found: dict[str, dict[str, Any]]) -> str | None:
    """Fills `found`; the error, if it did not come to its end."""
    for line in lines:
        record = json.loads(line)
        if record.get("done"):
            return None
        if "error" in record:
            return str(record["error"])
        found[record.pop("column")] = record
    return "it ended without a word, or took too long"


def _end(process: subprocess.Popen[str]) -> None:
    """The runner and what it started (it leads its own process group)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Memory:
    """Largest sum, over a process and its descendants, of private memory: RssAnon and RssShmem of
    /proc/PID/status, which cost no walk over the pages. Mapped files (weights read in place) are
    the page cache's and do not count."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self.peak = max(self.peak, sum(map(private_bytes, descendants(self._pid))))


def descendants(pid: int) -> list[int]:
    """`pid` and everything below it."""
    found = [pid]
    for parent in found:
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found.extend(map(int, path.read_text().split()))
    return found


def private_bytes(pid: int) -> int:
    """0 for a process that has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(
        1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:"))
    )


def read_bandwidth(program: Path, threads: int) -> float:
    """GB/s, by bandwidth.c."""
    done = subprocess.run([str(program), str(threads)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def warm_page_cache(folder: Path) -> None:
    """Every start is a second start: the model's files are in memory."""
    buffer = bytearray(1 << 24)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
