"""What the cache core costs at a million blocks: memory, collector pause, lookups, evictions.

    python bench/cache_core.py [--quick] [--blocks N]

No arithmetic runs: the manager keeps books only. Prompts are 4,096 tokens in blocks of 16.
Times are medians of the thread's CPU time (nothing here waits), so that a busy
machine does not show in them; a cold prompt shares nothing but its first 16 tokens with the others.
"""

from __future__ import annotations

import gc
import itertools
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable

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


def deletions(report: Report, blocks: int) -> None:
    """Half of the pool carries one tag, a quarter each belongs to a session and to nobody."""
    random_ids = random.Random(10)
    manager = CacheManager([KvGroup((0,))], [blocks + 1024], SIZE)
    prompts = blocks // (PROMPT // SIZE)
    for _ in range(2):  # the common first block is nobody's own
        pass_through(manager, cold(random_ids))
    for number in range(prompts):
        share = (Directive(tags=("t",)), Directive(session="s"), Directive(tags=("t",)), PLAIN)
        pass_through(manager, cold(random_ids), share[number % 4])
    verbs: tuple[tuple[str, Callable[[], object]], ...] = (
        ("one tag", lambda: manager.invalidate(Selector(tag="t"))),
        ("a session", lambda: manager.end_session("", "s")),
        ("the namespace", lambda: manager.invalidate(Selector())),
    )
    gc.collect()
    for what, verb in verbs:
        before = manager.stats().free_blocks[0]
        call = microseconds(verb)
        ticks = [0.0]
        listing = microseconds(lambda: manager.listing(top=100))
        while manager.retention.sweeping:
            ticks.append(microseconds(lambda: manager.tick(0.0)))
            manager.take_erasures()
        report.figure(
            f"deleting {what} among {blocks:,} blocks: longest stall",
            max(call, *ticks) / 1000,
            "ms",
            bar=1.0,
            sense="<=",
            call_ms=call / 1000,
            longest_tick_ms=max(ticks) / 1000,
            median_tick_ms=statistics.median(ticks) / 1000,
            ticks=len(ticks) - 1,
            listing_ms=listing / 1000,
            blocks=manager.stats().free_blocks[0] - before,
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
    deletions(report, blocks)
    report.finish()


if __name__ == "__main__":
    main()
