"""What 16 streams over HTTP cost: tokens/s of server-sent events against the offline door.

Both doors have an engine of their own in one process; the same 16 prompts go to `LLM.generate` and
to `POST /v1/completions` with stream: true on loopback, in turns, and every round begins with the
other door. The client is another process that only counts bytes. The figure is the median of the
ratios of the rounds.

Models: the embedded one, a checkpoint of one's own (--model) or a random one (--shape 1.1b, written
to a temporary folder), and a toy whose step keeps every core busy for a given time without the
interpreter lock, as native kernels do (the share that HTTP costs depends on how long a step is).

Usage: python bench/streams.py [--quick] [--model FOLDER] [--shape NAME] [--only-checkpoints]
"""

from __future__ import annotations

import asyncio
import json
import random
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import pbkdf2_hmac
from pathlib import Path

from overheads import free_engine
from report import Report, arguments

sys.path.insert(0, str(Path(__file__).parent / "peers"))

import checkpoints

from kveik import LLM, SamplingParams
from kveik.config import EngineConfig, ServerConfig
from kveik.engine.engine import Engine
from kveik.kernels.cores import usable_cores
from kveik.server.http_server import HttpServer
from kveik.server.run import bind
from kveik.server.service import Service

STREAMS, PROMPT = 16, 64
BAR = 0.97
STEPS_MS = (5, 20, 100)  # of the toy

Prompts = list[list[int]]


def busy(seconds: float) -> Callable[[], None]:
    """Work that takes about so long on every core at once, without the interpreter lock."""
    cores = usable_cores()
    team = ThreadPoolExecutor(cores - 1) if cores > 1 else None

    def hash_for(rounds: int) -> None:
        pbkdf2_hmac("sha256", b"", b"", rounds)

    rounds = round(10_000 * seconds / min(_seconds(lambda: hash_for(10_000)) for _ in range(20)))

    def work() -> None:
        others = [team.submit(hash_for, rounds) for _ in range(cores - 1)] if team else []
        hash_for(rounds)
        for other in others:
            other.result()

    return work


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@dataclass
class Door:
    """A running server: its port, and the processor time of its event loop so far."""

    port: int
    thread: threading.Thread

    def seconds(self) -> float:
        assert self.thread.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(self.thread.ident))


@contextmanager
def served(engine: Engine) -> Iterator[Door]:
    """An HTTP server around the engine, on a thread of this process."""
    service = Service.of(ServerConfig(port=0))
    listener = bind(service.config)
    started, servers = threading.Event(), []

    async def main() -> None:
        servers.append(HttpServer(service))
        engine.start()
        service.ready(engine)
        await servers[0].run_until_stopped(listener, started.set)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    started.wait()
    try:
        yield Door(listener.getsockname()[1], thread)
    finally:
        servers[0].should_exit = True
        thread.join()
        engine.stop()


def prompts(seed: int, vocabulary: int) -> Prompts:
    generator = random.Random(seed)
    return [generator.choices(range(8, vocabulary), k=PROMPT) for _ in range(STREAMS)]


def offline(llm: LLM, ids: Prompts, tokens: int) -> float:
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    return _seconds(
        lambda: llm.generate([{"prompt_token_ids": one} for one in ids], params, use_tqdm=False)
    )


def online(port: int, model: str, ids: Prompts, tokens: int) -> float:
    """Seconds as the client process saw them."""
    bodies = [
        {
            "model": model,
            "prompt": one,
            "stream": True,
            "temperature": 0,
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        for one in ids
    ]
    command = [sys.executable, __file__, "--client", str(port), str(tokens)]
    text = "\n".join(map(json.dumps, bodies))
    return float(subprocess.run(command, input=text, capture_output=True, text=True).stdout)


def client(port: int, tokens: int) -> None:
    """Send the bodies of standard input at once, read every stream to its end; print seconds."""
    waiting, streams = selectors.DefaultSelector(), []
    for body in sys.stdin.read().split("\n"):
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
        stream = socket.create_connection(("127.0.0.1", port))
        streams.append((stream, f"{head}\r\nContent-Type: application/json\r\n\r\n{body}".encode()))
    start = time.perf_counter()
    for stream, request in streams:
        stream.sendall(request)
        waiting.register(stream, selectors.EVENT_READ, bytearray())
    events = 0
    while waiting.get_map():
        for key, _ in waiting.select():
            received: bytearray = key.data
            received += key.fileobj.recv(65536)  # type: ignore[union-attr]
            if received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
                events += received.count(b'"text":')
                waiting.unregister(key.fileobj)
    seconds = time.perf_counter() - start
    if events < STREAMS * tokens / 2:  # a chunk may hold the text of several tokens
        sys.exit(f"{events} chunks are too few for {STREAMS} streams of {tokens} tokens")
    print(seconds)


def compare(
    report: Report, name: str, make: Callable[[], Engine], tokens: int, rounds: int
) -> None:
    llm, engine = LLM.from_engine(make()), make()
    model, vocabulary = engine.info.model_id, engine.info.vocab_size
    loop = []  # processor seconds of the event loop
    with served(engine) as door:

        def through_http(ids: Prompts) -> float:
            before = door.seconds()
            seconds = online(door.port, model, ids, tokens)
            loop.append(door.seconds() - before)
            return seconds

        ours, other = alternating(
            through_http,
            lambda ids: offline(llm, ids, tokens),
            [prompts(seed, vocabulary) for seed in range(rounds + 1)],
        )
    llm.close()
    total = STREAMS * tokens
    report.rounds(
        f"{name}: {STREAMS} streams against offline",
        [total / seconds for seconds in ours],
        [total / seconds for seconds in other],
        bar=BAR,
        computed_by=engine.info.kernel,
        offline_step_ms=1e3 * statistics.median(other) / tokens,
        event_loop_ms_per_step=1e3 * statistics.median(loop[1:]) / tokens,
    )


def alternating(
    ours: Callable[[Prompts], float],
    other: Callable[[Prompts], float],
    rounds: Sequence[Prompts],
) -> tuple[list[float], list[float]]:
    """Seconds of both for the prompts of every round but the first, which warms them up. Who begins
    changes from round to round."""
    found: tuple[list[float], list[float]] = ([], [])
    for number, ids in enumerate(rounds):
        for side in (0, 1) if number % 2 else (1, 0):
            found[side].append((ours, other)[side](ids))
    return found[0][1:], found[1][1:]


def measure_checkpoint(report: Report, name: str, folder: str, rounds: int) -> None:
    config = EngineConfig(model=folder, kv_memory=256 * 2**20)
    compare(report, name, lambda: Engine.load(config), 64, rounds)


def measure_small(report: Report, rounds: int) -> None:
    embedded = EngineConfig(kv_memory=64 * 2**20)
    compare(report, "embedded model", lambda: Engine.load(embedded), 128, rounds)
    for milliseconds in STEPS_MS:
        work, tokens = busy(1e-3 * milliseconds), 2000 // milliseconds + 80
        make = partial(free_engine, work)
        compare(report, f"toy of {milliseconds} ms a step", make, tokens, rounds)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", metavar="FOLDER", help="measure this checkpoint as well")
    parser.add_argument("--shape", choices=sorted(checkpoints.SHAPES), help="and random weights")
    parser.add_argument("--only-checkpoints", action="store_true", help="of --model and --shape")
    parser.add_argument("--client", nargs=2, type=int, help="PORT TOKENS: what this script starts")
    options = parser.parse_args()
    if options.client:
        client(*options.client)
        return
    report, rounds = Report("streams"), 2 if options.quick else 7
    if options.model:
        measure_checkpoint(report, "the checkpoint of --model", options.model, rounds)
    if options.shape:
        with tempfile.TemporaryDirectory() as parent:
            folder = checkpoints.write(options.shape, Path(parent) / options.shape)
            measure_checkpoint(report, f"{options.shape} shape", str(folder), rounds)
    if not options.only_checkpoints:
        measure_small(report, rounds)
    report.note(
        "A token over HTTP takes some time of the event loop and of the kernel's network code "
        "(event_loop_ms_per_step in the JSON), whatever the model: the shorter a step, the larger "
        "its share. A step's own length is offline_step_ms."
    )
    report.finish()


if __name__ == "__main__":
    main()
