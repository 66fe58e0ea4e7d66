"""A real `kveik serve` process on a free loopback port, for tests that are a stranger's client."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def running_server(*arguments: str, deadline: float = 60.0) -> Iterator[str]:
    """`kveik serve ARGUMENTS` in a subprocess; yields its base URL once /ready answers 200."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "kveik", "serve", *arguments, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            wait_until_ready(process, url, deadline)
            yield url
        finally:
            process.terminate()
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until_ready(process: subprocess.Popen[bytes], url: str, deadline: float) -> None:
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        if process.poll() is not None:
            output = process.stdout.read().decode() if process.stdout else ""
            raise RuntimeError(f"kveik serve ended with {process.returncode}:\n{output}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/ready", timeout=1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"{url}/ready did not answer within {deadline} s")
