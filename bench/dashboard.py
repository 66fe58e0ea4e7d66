"""What the dashboard costs: frames of its page, and throughput of the server that feeds it.

Frames. A page in headless Chromium watches a pool of 10,000 blocks of which `CHANGED` others change
with every one of 50 updates a second, once for each way of colouring; the time from frame to frame
is what the browser says. Stream, page and drawing are the real ones, the changes are made up.

Throughput. Clients of one process generate with the embedded model; windows with and without an
onlooker take turns. The onlooker is another process that reads the stream as the page asks for it
and throws it away: a browser is on somebody else's machine. Machines that are shared wander by
more than an onlooker costs, so the time that steps lose to every update is measured beside it, and
the processor time of the threads that put the stream together.

Usage: python bench/dashboard.py [--quick] [--screenshots FOLDER]
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dashboard_traffic import Traffic
from report import Report, arguments

from kveik.cache.block_map import MapChanges, Row
from kveik.config import EngineConfig, ServerConfig
from kveik.engine.engine import Engine
from kveik.engine.request import Event, Request, RequestFinished, SamplingParams
from kveik.engine.stepping import Stepping
from kveik.server.http_server import HttpServer
from kveik.server.run import bind
from kveik.server.service import Service
from kveik.server.watch_stream import View

BLOCKS, CHANGED, RATE = 10_000, 200, 50
FRAME_BAR = 33.0  # milliseconds, 95th percentile
COST_BAR = 1.0  # per cent of the throughput without an onlooker
NEAR = 0.1  # seconds around an update whose steps are compared
MODES = ("owner", "tier", "age", "heat")
READER = """
import sys, urllib.request
for line in sys.stdin:
    with urllib.request.urlopen(sys.argv[1]) as answer:
        print("open", flush=True)
        while answer.read(65536): pass
"""


@contextlib.contextmanager
def serving(engine: Engine) -> Iterator[tuple[str, Service]]:
    """A server of this process on a free port of the loopback: its address, and what it shares."""
    service = Service.of(ServerConfig(port=0))
    listener = bind(service.config)
    started = threading.Event()
    servers: list[HttpServer] = []

    async def main() -> None:
        server = HttpServer(service)
        servers.append(server)
        service.ready(engine)
        await server.run_until_stopped(listener, started.set)

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    started.wait(30)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", service
    finally:
        servers[0].should_exit = True
        thread.join(30)


# --- frames


def made_up() -> Callable[..., Callable[[], MapChanges]]:
    """Stands for `Watching.block_map`: a full pool of twelve owners, of which some change."""
    drawn = random.Random(1)

    def row(now: int) -> Row:
        used = now - drawn.choice((2, 80, 900, 20_000))
        owner = min(int(drawn.expovariate(0.4)), 11)
        return Row(drawn.choice((1, 2, 3, 3, 3, 3, 4, 5)), owner, used - 50, used, 3)

    def block_map(namespace: str | None, *, whole: bool = False) -> Callable[[], MapChanges]:
        first = True

        def changes() -> MapChanges:
            nonlocal first
            now = int(time.monotonic() * 10)
            places = range(BLOCKS) if first else drawn.sample(range(BLOCKS), CHANGED)
            told = MapChanges(BLOCKS, now, {place: row(now) for place in places})
            if first:
                told.owners = {number: f"session:s{number}" for number in range(12)}
            first = False
            return told

        return changes

    return block_map


COUNT = """
window.updates = 0;
const parse = JSON.parse;
JSON.parse = (text) => { const value = parse(text); if (value && value.at) window.updates += 1;
  return value; };
"""
MEASURE = """(milliseconds) => new Promise((resolve) => {
  const gaps = []; let last = performance.now(); const begun = last; const before = window.updates;
  const frame = (now) => { gaps.push(now - last); last = now;
    if (now - begun < milliseconds) requestAnimationFrame(frame);
    else resolve([gaps.slice(2), (window.updates - before) / ((now - begun) / 1000)]); };
  requestAnimationFrame(frame); })"""


def browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    return os.environ.get("KVEIK_CHROMIUM", found)


def frames(report: Report, seconds: float) -> None:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        report.note("No Playwright (`pip install 'kveik[browser]'`): frames were not measured.")
        return
    if browser() is None:
        report.note("No Chromium: frames were not measured.")
        return
    engine = Engine.load(EngineConfig(kv_memory=8 * 2**20))
    engine.start()
    engine.watching.block_map = made_up()  # type: ignore[method-assign]
    with serving(engine) as (url, _), sync_playwright() as started:
        one = started.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        page = one.new_page(viewport={"width": 1280, "height": 900})
        page.add_init_script(COUNT)
        page.goto(f"{url}/dashboard?rate={RATE}")
        page.wait_for_selector("#live[data-state=live]")
        for mode in MODES:
            page.click(f"#colours [data-mode={mode}]")
            page.wait_for_timeout(500)
            gaps, rate = page.evaluate(MEASURE, seconds * 1000)
            report.figure(
                f"frame, 95th percentile, coloured by {mode}",
                statistics.quantiles(gaps, n=20)[-1],
                "ms",
                bar=FRAME_BAR,
                sense="<=",
                median=statistics.median(gaps),
                longest=max(gaps),
                frames=len(gaps),
                updates_per_second=rate,
            )
        one.close()
    engine.stop()
    report.note(
        f"Frames: {BLOCKS:,} blocks, {CHANGED} of them changed by each of {RATE} updates a second."
    )


# --- throughput


class Load:
    """Clients that generate without a pause; counts tokens that were generated."""

    def __init__(self, engine: Engine, clients: int) -> None:
        self._engine, self._stopping = engine, False
        self.tokens = 0
        self._random = random.Random(2)
        for _ in range(clients):
            self._ask()

    def _ask(self) -> None:
        vocabulary = self._engine.info.vocab_size
        shared = tuple(range(20, 20 + 16 * self._random.randrange(1, 24)))
        tail = tuple(self._random.randrange(20, vocabulary) for _ in range(24))
        params = SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True)
        self._engine.submit(Request(shared + tail, params), self._hear)

    def _hear(self, event: Event) -> None:
        if isinstance(event, RequestFinished):
            self.tokens += event.usage.completion_tokens
            if not self._stopping:
                self._ask()

    def rate(self, seconds: float) -> float:
        before, start = self._engine.stats().generation_tokens, time.perf_counter()
        time.sleep(seconds)
        after = self._engine.stats().generation_tokens
        return (after - before) / (time.perf_counter() - start)

    def stop(self) -> None:
        self._stopping = True


class Onlooker:
    """Another process that reads the stream and throws it away, when it is told to."""

    def __init__(self, url: str, service: Service) -> None:
        self._service = service
        command = [sys.executable, "-c", READER, f"{url}/v1/cache/watch"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("look\n")
        self._process.stdin.flush()
        self._process.stdout.readline()
        try:
            yield
        finally:
            self._service.phase = "draining"  # ends the stream, and nothing else
            while self._service.watchers:
                time.sleep(0.01)
            self._service.phase = "ready"

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


class Updates:
    """When `View.frames` ran, on whatever thread, and its processor time."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []
        self.seconds = 0.0
        inner = View.frames

        def frames(view: View) -> bytes:
            begun, before = time.perf_counter(), time.thread_time()
            told = inner(view)
            self.seconds += time.thread_time() - before
            self.spans.append((begun, time.perf_counter()))
            return told

        View.frames = frames  # type: ignore[method-assign]


class Steps:
    """When the steps of the engine ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        inner = Stepping.step

        def step(stepping: Stepping) -> bool:
            busy = inner(stepping)
            self.ends.append(time.perf_counter())
            return busy

        Stepping.step = step  # type: ignore[method-assign]

    def lost(self, begun: float, ended: float) -> float:
        """Seconds by which the steps around an update came late, beside as many before it."""
        first, start, stop = (
            bisect.bisect(self.ends, at) for at in (begun - NEAR, begun, ended + NEAR / 2)
        )
        usual = (self.ends[start] - self.ends[first]) / (start - first)
        return (self.ends[stop] - self.ends[start]) - usual * (stop - start)


def throughput(report: Report, rounds: int, seconds: float) -> None:
    steps, updates = Steps(), Updates()
    engine = Engine.load(EngineConfig(kv_memory=480 * 2**20))
    engine.start()
    with serving(engine) as (url, service):
        onlooker = Onlooker(url, service)
        load = Load(engine, clients=16)
        load.rate(2.0)
        open_rates, closed_rates, processor = [], [], 0.0
        seen: list[tuple[float, float]] = []
        for number in range(rounds):
            for is_open in (True, False) if number % 2 else (False, True):
                if is_open:
                    whole = len(updates.spans) + 2  # the pool is told once, then what changed
                    with onlooker.watching():
                        while len(updates.spans) < whole:
                            time.sleep(0.01)
                        before, first = updates.seconds, len(updates.spans)
                        open_rates.append(load.rate(seconds))
                        processor += updates.seconds - before
                        seen += updates.spans[first:]
                else:
                    closed_rates.append(load.rate(seconds))
        load.rate(NEAR)
        blocks, looked = engine.info.pool_blocks[0], rounds * seconds
        lost = [steps.lost(*span) for span in seen]
        report.figure(
            "throughput that the updates of an open page cost",
            100 * sum(lost) / looked,
            "%",
            bar=COST_BAR,
            sense="<=",
            updates=len(seen),
            updates_per_second=len(seen) / looked,
            ms_per_update=1e3 * statistics.mean(lost),
            blocks=blocks,
        )
        report.rounds("tokens per second, open over closed", open_rates, closed_rates)
        cores = len(os.sched_getaffinity(0))
        report.figure(
            "processor time of the stream, of all cores",
            100 * processor / looked / cores,
            "%",
            bar=1.0,
            sense="<=",
            cores=cores,
        )
        load.stop()
        onlooker.stop()
    engine.stop()
    report.note(
        f"Throughput: 16 clients, a pool of {blocks:,} blocks, one onlooker in another process at "
        "the rate that the page asks for. What updates cost is the time by which the steps during "
        f"and {1e3 * NEAR / 2:g} ms behind each come late, beside the steps of the {1e3 * NEAR:g} "
        f"ms before it; open over closed are windows of {seconds:g} s that take turns, and a "
        "shared machine moves them by more than the bar."
    )


# --- pictures


def screenshots(folder: Path, seconds: float) -> None:
    """The page in both lights, after some traffic."""
    from playwright.sync_api import sync_playwright

    engine = Engine.load(EngineConfig(kv_memory=40 * 2**20))
    engine.start()
    with serving(engine) as (url, _), sync_playwright() as started:
        traffic = Traffic(url)
        traffic.run(seconds)
        one = started.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        for light in ("light", "dark"):
            page = one.new_page(viewport={"width": 1240, "height": 860}, color_scheme=light)
            page.goto(f"{url}/dashboard")
            page.wait_for_selector("#tree .node")
            traffic.run(14.0)
            page.screenshot(path=folder / f"dashboard_{light}.png")
            page.locator("#tree .twist[aria-expanded=false]").first.click()
            page.locator("#requests button:has(.cached):has(.computed)").nth(2).click()
            page.wait_for_timeout(600)
            page.set_viewport_size({"width": 1240, "height": 1560})
            page.locator("#tree-title").evaluate("e => scrollTo(0, e.parentElement.offsetTop - 16)")
            page.wait_for_timeout(300)
            page.screenshot(path=folder / f"dashboard_{light}_more.png")
            page.close()
        one.close()
    engine.stop()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--screenshots", type=Path, help="only take pictures, into this folder")
    options = parser.parse_args()
    if options.screenshots is not None:
        screenshots(options.screenshots, 20.0 if options.quick else 100.0)
        return
    report = Report("dashboard")
    frames(report, 4.0 if options.quick else 10.0)
    throughput(report, 10 if options.quick else 60, 2.0)
    report.finish()


if __name__ == "__main__":
    main()
