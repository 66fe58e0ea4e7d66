"""A real server on a free port, in a thread of the test process, over a tiny random model.

`Brake` holds the engine between two steps, so that a test can act while requests are running
without any waiting by the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai

from kveik.config import EngineConfig, ServerConfig
from kveik.engine.engine import Engine
from kveik.server.http_server import HttpServer
from kveik.server.run import bind
from kveik.server.service import Service

MODEL = "tiny"
LONG = 400  # tokens: longer than a test takes while the brake is on


@dataclass
class RunningServer:
    url: str
    port: int
    service: Service
    engine: Engine
    loop: asyncio.AbstractEventLoop
    server: HttpServer

    def openai(self, key: str = "none", **options: Any) -> openai.OpenAI:
        options.setdefault("max_retries", 0)
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, timeout=60, **options)

    def anthropic(self, key: str = "none", **options: Any) -> anthropic.Anthropic:
        options.setdefault("max_retries", 0)
        return anthropic.Anthropic(base_url=self.url, api_key=key, timeout=60, **options)

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def leased(self) -> int:
        return sum(self.engine.stats().cache.leased_blocks)

    def stop(self) -> None:
        """Begin the drain, as a signal would."""
        self.loop.call_soon_threadsafe(self.server.stop)


@contextlib.contextmanager
def running(engine: Engine, config: ServerConfig | None = None) -> Iterator[RunningServer]:
    """Serve an engine that runs already until the block ends."""
    service = Service.of(config or ServerConfig(port=0))
    listener = bind(service.config)
    started = threading.Event()
    made: list[RunningServer] = []

    async def main() -> None:
        server, loop = HttpServer(service), asyncio.get_running_loop()
        service.ready(engine)
        port = listener.getsockname()[1]
        made.append(RunningServer(f"http://127.0.0.1:{port}", port, service, engine, loop, server))
        await server.run_until_stopped(listener, started.set)

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="test-server", daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield made[0]
    finally:
        made[0].server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def tiny_engine(
    folder: Path, *, clock: Callable[[], float] = time.monotonic, **options: Any
) -> Engine:
    options.setdefault("kv_memory", 4 * 2**20)
    config = EngineConfig(model=str(folder), served_model_name=MODEL, **options)
    engine = Engine.load(config, clock=clock)
    engine.start()
    return engine


class Brake:
    """`with Brake(engine) as brake`: no step runs until `release`; `step(n)` lets n steps run."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._allowed = threading.Semaphore(0)
        self._free = False

    def __enter__(self) -> Brake:
        runner = self._engine._runner
        self._run = runner.run

        def run(plan: Any) -> Any:
            while not self._free and not self._allowed.acquire(timeout=0.01):
                pass
            return self._run(plan)

        runner.run = run  # type: ignore[method-assign]
        return self

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self._allowed.release()

    def release(self) -> None:
        self._free = True

    def __exit__(self, *unused: object) -> None:
        self.release()
        self._engine._runner.run = self._run  # type: ignore[method-assign]


def leave_early(server: RunningServer, ask: Callable[[], Any]) -> Any:
    """The first event of a stream whose client leaves then; nothing is held for it any more."""
    with Brake(server.engine) as brake:
        brake.step(3)
        stream = ask()
        first = next(iter(stream))
        stream.close()
        brake.release()
        until(lambda: server.leased() == 0)
    return first


def broken_off(server: RunningServer, ask: Callable[[], Any]) -> Iterator[Any]:
    """The events of a stream whose request the server ends behind the first of them."""
    with Brake(server.engine) as brake:
        brake.step(3)
        events = iter(ask())
        first = next(events)
        for work in list(server.engine._scheduler._roster.works):
            server.engine.abort(work)
    return itertools.chain([first], events)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something that other threads do."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def sse(body: str) -> list[Any]:
    """The data of each event; "[DONE]" stays text. Comments are skipped. Checks the grammar."""
    assert body.endswith("\n\n"), body[-200:]
    events = []
    for block in body.removesuffix("\n\n").split("\n\n"):
        if block.startswith(":"):
            continue
        assert block.startswith("data: "), block
        assert "\n" not in block
        data = block.removeprefix("data: ")
        events.append(data if data == "[DONE]" else json.loads(data))
    return events


def request_bytes(path: str, body: bytes, *headers: str, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [*headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def read_response(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of one answer with Content-Length, or (0, {}, b"") if cut."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return 0, {}, b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    length = int(headers.get("content-length", 0))
    while len(body) < length:
        part = connection.recv(65536)
        if not part:
            break
        body += part
    return int(status_line.split()[1]), headers, body
