"""What the cache core costs at a million blocks: memory, collector pause, lookups, evictions.

    python bench/cache_core.py [--quick] [--blocks N]

No arithmetic runs: the manager keeps books only. Prompts are 4,096 tokens in blocks of 16.
Times are medians of the thread's CPU time (nothing here waits), so that of a busy machine only
the caches that others use show in them; a cold prompt shares nothing but its first 16 tokens with
the others.
"""

from __future__ import annotations

import gc
import itertools
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

from report import Report, arguments

from kveik.cache.directive import PLAIN, Directive, Selector
from kveik.cache.manager import CacheManager, Lease, Opened
from kveik.cache.segments import KvGroup

SIZE = 16
PROMPT = 4096
SHARED = list(range(SIZE))
STEPS = itertools.count()


def cold(random_ids: random.Random, length: int = PROMPT) -> list[int]:
    """A prompt that nobody asked before, behind a common first block."""
    return SHARED + random_ids.choices(range(1000, 150_000), k=length - SIZE)


def opened(
    manager: CacheManager, tokens: list[int], wanted: int, directive: Directive = PLAIN
) -> Lease:
    result = manager.open(tokens, wanted, directive=directive)
    assert isinstance(result, Opened), result
    return result.lease


def pass_through(manager: CacheManager, tokens: list[int], directive: Directive = PLAIN) -> None:
    """Open, compute everything in one step, release."""
    lease = opened(manager, tokens, len(tokens), directive)
    step = next(STEPS)
    manager.launched(step)
    manager.acknowledge(step)
    manager.commit(lease, tokens)
    manager.release(lease)


def microseconds(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return (time.thread_time() - start) * 1e6


def fill(blocks: int, length: int, random_ids: random.Random) -> tuple[CacheManager, float]:
    """A full pool, and the Python memory it took per block."""
    tracemalloc.start()
    manager = CacheManager([KvGroup((0,))], [blocks], SIZE)
    while manager.stats().free_blocks[0] > length // SIZE:
        pass_through(manager, cold(random_ids, length))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return manager, used / blocks


def collector_pause(repeats: int) -> float:
    """Longest full collection, in milliseconds."""
    gc.collect()
    return max(microseconds(gc.collect) for _ in range(repeats)) / 1000


def cold_prompts(report: Report, manager: CacheManager, repeats: int, state: str) -> None:
    """Lookup, reservation and commit of prompts that are not there."""
    random_ids = random.Random(7)
    lookups, opens, commits = [], [], []
    for _ in range(repeats):
        tokens = cold(random_ids)
        leases: list[Lease] = []
        lookups.append(microseconds(lambda tokens=tokens: manager.lookup(tokens)))
        opens.append(
            microseconds(
                lambda tokens=tokens, leases=leases: leases.append(opened(manager, tokens, PROMPT))
            )
        )
        commits.append(
            microseconds(lambda tokens=tokens, leases=leases: manager.commit(leases[0], tokens))
        )
        manager.release(leases[0])
    lookup, commit = statistics.median(lookups), statistics.median(commits)
    report.figure(
        f"lookup + commit, cold 4,096-token prompt, {state}",
        (lookup + commit) / 1000,
        "ms",
        bar=1.5,
        sense="<=",
        lookup_ms=lookup / 1000,
        commit_ms=commit / 1000,
        open_ms=statistics.median(opens) / 1000,
    )


def warm_prompt(report: Report, manager: CacheManager, repeats: int) -> None:
    tokens = cold(random.Random(8))
    pass_through(manager, tokens)
    times = [microseconds(lambda: manager.lookup(tokens)) for _ in range(repeats)]
    report.figure("lookup of a cached 4,096-token prompt", statistics.median(times) / 1000, "ms")


def evictions(report: Report, manager: CacheManager, repeats: int) -> None:
    """Reserving in a full pool: every block that is taken was evicted for it."""
    assert manager.stats().free_blocks[0] < PROMPT // SIZE
    held, times = [], []
    for number in range(repeats):
        held.append(opened(manager, [200_000 + number, 1], 2))
        lease = held[-1]
        wanted = 2 * PROMPT
        before = manager.stats().evicted_blocks
        spent = microseconds(lambda lease=lease, wanted=wanted: manager.extend(lease, wanted))
        times.append(spent / max(manager.stats().evicted_blocks - before, 1))
    for lease in held:
        manager.release(lease, keep=False)
    report.figure("eviction per block", statistics.median(times), "us", bar=5.0, sense="<=")


def siblings(report: Report, count: int) -> None:
    """Prompts that differ in their second block: all hang under one node."""
    random_ids = random.Random(9)
    manager = CacheManager([KvGroup((0,))], [count + 64], SIZE)
    few: list[float] = []
    many: list[float] = []
    for number in range(count):
        tokens = cold(random_ids, 2 * SIZE)
        spent = microseconds(lambda tokens=tokens: pass_through(manager, tokens))
        if number < 1000:
            few.append(spent)
        elif number >= count - 1000:
            many.append(spent)
    report.figure(
        f"open + commit + release of a new sibling among {count:,}",
        statistics.median(many),
        "us",
        among_1000=statistics.median(few),
    )
    times = []
    for _ in range(1000):
        tokens = cold(random_ids, 3 * SIZE)
        times.append(microseconds(lambda tokens=tokens: manager.explain(tokens)))
    report.figure(f"partial match among {count:,} siblings", statistics.median(times), "us")


@dataclass(frozen=True)
class Deletion:
    """What all blocks of the pool carry, and the verb that deletes it."""

    what: str
    directive: Callable[[int], Directive]  # of the prompt with this number
    verb: Callable[[CacheManager], object]


DELETIONS = (
    Deletion(
        "one tag",
        lambda number: Directive(tags=("t",)),
        lambda manager: manager.invalidate(Selector(tag="t")),
    ),
    Deletion(
        "one tag of many sessions",
        lambda number: Directive(session=f"s{number}", tags=("t",)),
        lambda manager: manager.invalidate(Selector(tag="t")),
    ),
    Deletion(
        "one session",
        lambda number: Directive(session="s"),
        lambda manager: manager.end_session("", "s"),
    ),
    Deletion(
        "one namespace",
        lambda number: PLAIN,
        lambda manager: manager.invalidate(Selector()),
    ),
)


class Collections:
    """Garbage collections while it is watched: how many, and the longest in microseconds."""

    def __init__(self) -> None:
        self.count, self.longest, self._start = 0, 0.0, 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._start = time.thread_time()
        else:
            self.count += 1
            self.longest = max(self.longest, (time.thread_time() - self._start) * 1e6)


def deleted(deletion: Deletion, blocks: int) -> tuple[float, list[float], Collections]:
    """Microseconds of the call and of every tick after it until nothing is left."""
    random_ids = random.Random(10)
    manager = CacheManager([KvGroup((0,))], [blocks + 256], SIZE)
    number = 0
    while manager.stats().free_blocks[0] >= PROMPT // SIZE:
        pass_through(manager, cold(random_ids), deletion.directive(number))
        number += 1
    gc.collect()
    watch = Collections()
    gc.callbacks.append(watch)
    call = microseconds(lambda: deletion.verb(manager))
    ticks: list[float] = []
    more = True
    while more:
        ticks.append(microseconds(lambda: manager.tick(0.0)))
        manager.take_erasures()
        more = bool(manager.sweeper.jobs)
    gc.callbacks.remove(watch)
    assert manager.stats().idle_blocks[0] == 0, "something is left"
    return call, ticks, watch


def deletions(report: Report, blocks: int, runs: int) -> None:
    """How long a step waits. Every run does the same work in the same order: the least of a tick's
    times is its own, what is above it came from outside (interrupts, other processes); both are
    told, and the collector's part."""
    above, longest = 0, 0.0
    for deletion in DELETIONS:
        calls, ticks, watches = zip(*(deleted(deletion, blocks) for _ in range(runs)), strict=True)
        title = f"deleting {blocks:,} blocks of {deletion.what}: "
        report.figure(
            title + "the call",
            min(calls) / 1000,
            "ms",
            bar=1.0,
            sense="<=",
            longest_of_any_run_ms=max(calls) / 1000,
        )
        own = [min(times) for times in zip(*ticks, strict=False)]
        every = sorted(itertools.chain(*ticks))
        above += sum(spent > 1000 for spent in every)
        longest = max(longest, every[-1] / 1000)
        report.figure(
            title + "longest tick",
            max(own) / 1000,
            "ms",
            bar=1.0,
            sense="<=",
            ticks=len(own),
            median_ms=statistics.median(every) / 1000,
            p99_ms=every[len(every) * 99 // 100] / 1000,
            longest_of_each_run_ms=[max(times) / 1000 for times in ticks],
            above_1_ms=sum(spent > 1000 for spent in every),
            collections=[watch.count for watch in watches],
            longest_collection_ms=max(watch.longest for watch in watches) / 1000,
        )
    report.note(
        f"Deletions: a tick's time is the least of {runs} runs, which do the same work in the same "
        "order. What single ticks took beyond that came from outside (interrupts, other "
        f"processes): {above} ticks of all runs took more than 1 ms, the longest {longest:.1f} ms."
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--blocks", type=int, default=1_000_000)
    options = parser.parse_args()
    blocks = 100_000 if options.quick else options.blocks
    repeats = 20 if options.quick else 200
    report = Report("cache_core")
    random_ids = random.Random(1)

    empty = CacheManager([KvGroup((0,))], [repeats * PROMPT // SIZE + 1024], SIZE)
    cold_prompts(report, empty, repeats, "free blocks")
    del empty

    flat = min(blocks, 100_000)
    short, per_block = fill(flat, 2 * SIZE, random_ids)
    title = f"{flat:,} sibling blocks: "
    report.figure(title + "Python memory per block", per_block, "bytes", bar=600, sense="<=")
    report.figure(title + "longest gc.collect", collector_pause(5), "ms", bar=50, sense="<=")
    del short

    manager, per_block = fill(blocks, PROMPT, random_ids)
    title = f"{blocks:,} blocks of long prompts: "
    report.figure(title + "Python memory per block", per_block, "bytes", bar=600, sense="<=")
    report.figure(title + "longest gc.collect", collector_pause(5), "ms", bar=50, sense="<=")
    evictions(report, manager, min(repeats, blocks // 1024))
    warm_prompt(report, manager, repeats)
    cold_prompts(report, manager, repeats, "full pool")
    siblings(report, 10_000 if options.quick else 100_000)
    manager.check()
    del manager
    deletions(report, blocks, 1 if options.quick else 3)
    report.finish()


if __name__ == "__main__":
    main()
