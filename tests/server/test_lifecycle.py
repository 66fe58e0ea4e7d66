"""Clients that leave or do not read, queues that are full, servers that stop."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_harness import (
    LONG,
    MODEL,
    Brake,
    RunningServer,
    read_response,
    request_bytes,
    running,
    sse,
    tiny_engine,
    until,
)

from kveik.config import ServerConfig
from kveik.engine.engine import Engine
from kveik.engine.request import ChoiceDelta, PromptReady, Request, SamplingParams
from kveik.errors import KveikError, Unavailable
from kveik.server.bridge import Bridge, Feed, SlowReaderError
from kveik.server.metrics import Metrics
from kveik.server.service import Service

PATH = "/v1/completions"
GOOD = {"model": MODEL, "prompt": "Hello", "max_tokens": 2}


def long_body(prompt: str, **options: Any) -> bytes:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": LONG, "ignore_eos": True, **options}
    return json.dumps(body).encode()


@pytest.fixture(scope="module")
def small(tiny_folder: Callable[..., Path]) -> Iterator[RunningServer]:
    """Two requests may wait; one runs; a step computes one block of a prompt."""
    engine = tiny_engine(
        tiny_folder(), max_queued_requests=2, max_num_seqs=1, max_num_batched_tokens=16
    )
    with running(engine, ServerConfig(port=0, drain_seconds=0.3)) as one:
        yield one
    engine.stop()
    engine.check()


# ---- clients that leave


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("place", ["queue", "prefill", "decode"])
def test_a_client_that_leaves_frees_its_blocks_and_keeps_its_prefix(
    small: RunningServer, place: str, stream: bool
) -> None:
    prompt = f"{place} {stream} " + "a prompt of several blocks that is left alone " * 3
    before = small.engine.stats()
    aborted, steps = before.requests_finished.get("abort", 0), before.steps
    with Brake(small.engine) as brake, ExitStack() as stack:
        if place == "queue":
            other = stack.enter_context(small.connect())
            other.sendall(request_bytes(PATH, long_body("in front")))
            until(lambda: small.engine.stats().running == 1)
        connection = small.connect()
        connection.sendall(request_bytes(PATH, long_body(prompt, stream=stream)))
        if place == "queue":
            until(lambda: small.engine.stats().waiting == 1)
        elif place == "prefill":
            brake.step(3)
            until(lambda: small.engine.stats().steps == steps + 3)
        else:
            brake.step(12)
            until(lambda: small.engine.stats().steps == steps + 12)
            assert small.engine.stats().generation_tokens > before.generation_tokens
            if stream:
                connection.recv(100)
        connection.close()
        if place == "queue":
            other.close()
        brake.release()
        until(lambda: small.engine.stats().requests_finished.get("abort", 0) > aborted)
        until(lambda: small.leased() == 0)
    until(lambda: small.service.active == 0)
    small.engine.check()
    if place != "queue":
        with small.http() as http:
            again = http.post(PATH, json={**GOOD, "prompt": prompt}).json()
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 32


def test_many_clients_that_leave_leak_nothing(small: RunningServer) -> None:
    for number in range(20):
        with small.connect() as connection:
            connection.sendall(request_bytes(PATH, long_body("leaving", stream=number % 2 == 0)))
            if number % 3 == 0:
                connection.recv(10)
    until(lambda: small.service.active == 0)
    until(lambda: small.leased() == 0)  # a request that still waits leases nothing
    until(lambda: (stats := small.engine.stats()).running == stats.waiting == 0)
    assert small.engine.stats().cache.leaked_blocks == 0
    small.engine.check()


# ---- overload


def test_a_full_queue_is_a_429_with_retry_after(small: RunningServer) -> None:
    with Brake(small.engine), ExitStack() as stack:
        for number in range(3):  # one runs, two wait
            connection = stack.enter_context(small.connect())
            connection.sendall(request_bytes(PATH, long_body(f"number {number}")))
            until(lambda n=number: small.service.active == n + 1)  # type: ignore[misc]
            until(lambda: small.engine.stats().running == 1)
        until(lambda: small.engine.stats().waiting == 2)
        with small.http() as http:
            refused = http.post(PATH, json=GOOD)
            streamed = http.post(PATH, json={**GOOD, "stream": True})
            assert http.get("/health").status_code == 200
    for response in (refused, streamed):
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["type"] == "rate_limit_error"
    until(lambda: small.leased() == 0)


def test_several_prompts_are_queued_together_or_not_at_all(small: RunningServer) -> None:
    with Brake(small.engine) as brake, small.http() as http:
        refused = http.post(PATH, json={**GOOD, "prompt": ["one", "two", "three", "four"]})
        assert refused.status_code == 429
        brake.release()
        until(lambda: small.engine.stats().waiting == 0)
    until(lambda: small.leased() == 0)


# ---- slow readers


def feed_of(limit: int | None) -> tuple[Feed, list[int]]:
    aborted: list[int] = []
    feed = Feed(aborted.append, Metrics(), limit)
    feed.add(0, 77)
    return feed, aborted


def test_a_feed_that_nobody_takes_is_cut_at_its_limit() -> None:
    async def go() -> None:
        feed, aborted = feed_of(limit=1024 * 1024)
        cut: list[bool] = []
        feed.on_overflow = lambda: cut.append(True)
        held = 0
        for _ in range(100_000):
            if aborted:
                break
            feed.put(0, ChoiceDelta(0, "x" * 100, (1,)))
            held += 1
        assert aborted == [77]
        assert cut == [True]
        assert held < 4096
        with pytest.raises(SlowReaderError):
            await feed.batch()

    asyncio.run(go())


def test_a_feed_that_is_taken_has_no_limit() -> None:
    async def go() -> None:
        feed, aborted = feed_of(limit=2048)
        for _ in range(1000):
            feed.put(0, ChoiceDelta(0, "x" * 100, (1,)))
            assert len(await feed.batch()) == 1
        assert aborted == []

    asyncio.run(go())


def test_a_reader_that_stops_loses_its_stream_and_nobody_else(
    tiny_folder: Callable[..., Path],
) -> None:
    """Logprobs make each token some KiB, so that the socket buffers fill within the context."""
    engine = tiny_engine(tiny_folder())
    config = ServerConfig(port=0, send_buffer_bytes=64 * 1024, slow_reader_seconds=0.5)
    with running(engine, config) as one, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", one.port))
        options: dict[str, Any] = {"stream": True, "n": 16, "logprobs": 5}
        slow.sendall(request_bytes(PATH, long_body("slow", **options)))
        until(lambda: one.engine.stats().running > 0)
        with one.http() as http:
            assert http.post(PATH, json=GOOD).status_code == 200
        until(lambda: one.service.active == 0, 60)
        until(lambda: one.engine.stats().requests_finished.get("abort") == 1)
        until(lambda: one.leased() == 0)
    engine.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="a timeout of the kernel")
def test_a_whole_answer_that_nobody_reads_does_not_stay(tiny_folder: Callable[..., Path]) -> None:
    engine = tiny_engine(tiny_folder())
    config = ServerConfig(port=0, send_buffer_bytes=64 * 1024, slow_reader_seconds=0.5)
    with running(engine, config) as one, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", one.port))
        slow.sendall(request_bytes(PATH, long_body("slow", n=16, logprobs=5)))
        until(lambda: one.service.active == 1)
        until(lambda: one.service.active == 0, 120)
        until(lambda: not one.server.server_state.connections)
    engine.stop()


# ---- streams that wait, and streams that fail


def test_a_quiet_stream_is_pinged(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service, "ping_seconds", 0.02)
    with Brake(server.engine) as brake, server.http() as http:
        body = {**GOOD, "prompt": "quiet", "stream": True}
        with http.stream("POST", PATH, json=body) as response:
            lines = response.iter_lines()
            assert response.status_code == 200
            assert next(lines) == ": ping"
            brake.release()
            rest = [line for line in lines if line and not line.startswith(":")]
    assert rest[-1] == "data: [DONE]"


def test_a_stream_that_fails_says_so_and_closes(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Brake(server.engine) as brake, server.http() as http:
        body = json.loads(long_body("to fail", stream=True))
        brake.step(4)
        with http.stream("POST", PATH, json=body) as response:
            lines = response.iter_lines()
            first = next(lines)
            bridge = server.service.serving.bridge
            error = Unavailable("the test ends it")
            server.loop.call_soon_threadsafe(bridge.fail_all, error)
            rest = [first, *lines]
    events = sse("\n".join(rest) + "\n" * (2 if rest[-1] else 1))
    assert events[-1]["error"]["message"] == "the test ends it"
    assert "[DONE]" not in events
    assert not [c for e in events[:-1] for c in e["choices"] if c["finish_reason"]]
    until(lambda: server.leased() == 0)


def test_an_engine_fault_before_the_first_token(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its neighbours go on, stream or not."""
    from kveik.engine.delivery import Delivery
    from kveik.engine.sequence import TokenAccepted

    tell = Delivery.tell

    def faulty(self: Delivery, told: Any) -> int | None:
        if self.request.params.seed == 666 and isinstance(told, TokenAccepted):
            raise RuntimeError("planted")
        return tell(self, told)

    monkeypatch.setattr(Delivery, "tell", faulty)
    with server.http() as http:
        for stream in (False, True):
            body = {**GOOD, "seed": 666, "stream": stream}
            response = http.post(PATH, json=body)
            assert "planted" not in response.text
            if response.status_code == 200:  # the stream had begun
                assert stream
                assert sse(response.text)[-1]["error"]["type"] == "server_error"
                assert "[DONE]" not in response.text
            else:
                assert response.status_code == 500
                assert response.json()["error"]["type"] == "server_error"
        assert http.post(PATH, json=GOOD).status_code == 200


# ---- the bridge


def test_a_step_with_many_events_wakes_the_loop_once() -> None:
    class Loop:
        calls = 0

        def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
            self.calls += 1

    async def go() -> None:
        sinks: list[Any] = []

        class Fake:
            def submit(self, request: Request, sink: Any) -> int:
                sinks.append(sink)
                return len(sinks)

            def abort(self, handle: int) -> None: ...

        bridge = Bridge(Fake(), Metrics())  # type: ignore[arg-type]
        feed = bridge.open([Request((1,), SamplingParams())], None)
        bridge._loop = loop = Loop()  # type: ignore[assignment]
        for _ in range(50):
            sinks[0](PromptReady(0, None))
        assert loop.calls == 1
        bridge._deliver()
        assert len(await feed.batch()) == 50
        sinks[0](PromptReady(0, None))
        assert loop.calls == 2

    asyncio.run(go())


def test_a_request_refused_in_the_middle_takes_its_siblings_along() -> None:
    async def go() -> None:
        aborted: list[int] = []

        class Fake:
            count = 0

            def submit(self, request: Request, sink: Any) -> int:
                self.count += 1
                if self.count == 3:
                    raise Unavailable("no")
                return self.count

            def abort(self, handle: int) -> None:
                aborted.append(handle)

        bridge = Bridge(Fake(), Metrics())  # type: ignore[arg-type]
        with pytest.raises(KveikError):
            bridge.open([Request((1,), SamplingParams())] * 3, None)
        assert aborted == [1, 2]

    asyncio.run(go())


# ---- loading and stopping


def test_while_loading_only_health_answers(server_engine: Engine) -> None:
    with running(server_engine) as one:
        loaded, one.service._serving = one.service._serving, None
        one.service.phase = "loading"
        with one.http() as http:
            assert http.get("/health").status_code == 200
            assert http.get("/").status_code == 200
            for method, path in (("GET", "/ready"), ("GET", "/v1/models"), ("POST", PATH)):
                response = http.request(method, path, json=GOOD)
                assert response.status_code == 503
                assert int(response.headers["retry-after"]) >= 1
                assert response.json()["error"]["type"] == "service_unavailable_error"
            one.service._serving, one.service.phase = loaded, "ready"
            assert http.get("/ready").status_code == 200


def test_a_drain_lets_running_requests_end_and_refuses_new_ones(server_engine: Engine) -> None:
    with running(server_engine, ServerConfig(port=0, drain_seconds=20)) as one:
        with Brake(one.engine) as brake, one.connect() as connection, one.http() as http:
            connection.sendall(request_bytes(PATH, json.dumps(GOOD).encode()))
            until(lambda: one.service.active == 1)
            one.stop()
            until(lambda: one.service.phase == "draining")
            refused = http.post(PATH, json=GOOD)
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            assert http.get("/ready").status_code == 503
            assert http.get("/health").status_code == 200
            brake.release()
            assert read_response(connection)[0] == 200
        until(lambda: one.server.should_exit)


def test_a_drain_ends_what_takes_too_long_with_an_error(server_engine: Engine) -> None:
    with running(server_engine, ServerConfig(port=0, drain_seconds=0.05)) as one:
        with Brake(one.engine) as brake, one.connect() as plain, one.http() as http:
            plain.sendall(request_bytes(PATH, long_body("plain")))
            body = json.loads(long_body("stream", stream=True))
            brake.step(4)
            with http.stream("POST", PATH, json=body) as stream:
                lines = stream.iter_lines()
                first = next(lines)
                one.stop()
                events = [first, *lines]
            assert "service_unavailable_error" in events[-1] + events[-2]
            assert read_response(plain)[0] == 503
            brake.release()
        until(lambda: one.server.should_exit)
    until(lambda: sum(server_engine.stats().cache.leased_blocks) == 0)


class Process:
    """`python -m kveik.server` as a user starts it."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        command = [sys.executable, "-m", "kveik.server", "--model", str(folder)]
        command += ["--served-model-name", MODEL, "--kv-memory", "4MiB", *arguments]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        )

    def greeting(self) -> list[str]:
        assert self.process.stdout
        return [self.process.stdout.readline() for _ in range(4)]

    def end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_greets_serves_and_drains(
    tiny_folder: Callable[..., Path], number: signal.Signals
) -> None:
    process = Process(
        tiny_folder(), "--port", "0", "--log-format", "json", "--api-key", "token-abc123"
    )
    lines = process.greeting()
    url = lines[0].split()[-1]
    assert MODEL in lines[0]
    assert "tokens" in lines[1]
    assert "kernel" in lines[2]
    assert "weights" in lines[2]
    assert f"curl {url}/v1/chat/completions" in lines[3]
    assert "token-abc123" not in "".join(lines)
    answers: list[int] = []

    def ask() -> None:
        body = json.loads(long_body("until the end", n=4))
        headers = {"authorization": "Bearer token-abc123"}
        answers.append(httpx.post(url + PATH, json=body, headers=headers, timeout=60).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    headers = {"authorization": "Bearer token-abc123"}

    def arrived() -> bool:
        metrics = httpx.get(url + "/metrics", headers=headers).text
        (running,) = re.findall(r"^vllm:num_requests_running(?:\{.*\})? (\S+)$", metrics, re.M)
        return bool(answers) or float(running) > 0

    until(arrived)
    process.process.send_signal(number)
    status, errors = process.end()
    asking.join()
    assert status == 0
    assert answers in ([200], [503])
    for line in errors.splitlines():
        assert set(json.loads(line)) >= {"time", "level", "message"}
    assert "token-abc123" not in errors
    assert "until the end" not in errors


def test_a_second_signal_stops_now(tiny_folder: Callable[..., Path]) -> None:
    process = Process(tiny_folder(), "--port", "0", "--drain-seconds", "600")
    url = process.greeting()[0].split()[-1]
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        unfinished = request_bytes(PATH, b"{}").replace(b"Length: 2", b"Length: 100")
        connection.sendall(unfinished)
        until(lambda: httpx.get(url + "/ready").status_code == 200)
        process.process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(url + "/ready").status_code == 503)
        process.process.send_signal(signal.SIGTERM)
        status, _ = process.end()
    assert status == 0


def test_a_process_that_cannot_start_says_why(tiny_folder: Callable[..., Path]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        started = [
            (Process(tiny_folder(), "--port", str(port)), f"--port {port + 1}"),
            (Process(tiny_folder(), "--port", "0", "--host", "0.0.0.0"), "--api-key"),
            (Process(Path("/nowhere"), "--port", "0"), "/nowhere"),
            (Process(tiny_folder(), KVEIK_PORT="x"), "KVEIK_PORT"),
        ]
        for process, remedy in started:
            status, errors = process.end()
            assert status == 1
            assert remedy in errors
            assert "Traceback" not in errors


def test_service_phases() -> None:
    service = Service.of(ServerConfig())
    with pytest.raises(Unavailable):
        _ = service.serving
    service.phase = "draining"
    with pytest.raises(Unavailable) as error:
        _ = service.serving
    assert error.value.retry_after >= 1
