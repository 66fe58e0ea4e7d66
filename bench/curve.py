"""The curve of hit rate against memory: what it costs, and how far a sample is from the truth.

    python bench/curve.py [--quick]

Cost: the same prompts pass through two cache managers, one of which tells its curve nothing, in
turns (no arithmetic runs: the manager keeps books only; processor time). That of a block of 16
tokens is then set against the time in which the embedded model computes one on all cores.

Truth: conversations (a few openings, turns that go on from earlier ones, one-shot prompts) through
a meter that follows every block, which tests compare with real pools, beside the bounded ones.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import time
from collections.abc import Sequence

from report import Report, arguments, quartiles

from kveik import LLM, SamplingParams
from kveik.cache.curve import KEPT, Curve, CurveMeter
from kveik.cache.manager import CacheManager, Opened
from kveik.cache.segments import KvGroup

SIZE = 16
STEPS = itertools.count()


def manager(blocks: int, *, watched: bool) -> CacheManager:
    made = CacheManager([KvGroup((0,))], [blocks], SIZE)
    made.leasing.publisher.feed.enabled = watched
    return made


def conversations(seed: int, count: int, reach: int) -> list[list[int]]:
    """Prompts by block; turns go on from one of the last `reach` prompts."""
    rng = random.Random(seed)
    openings = [[rng.getrandbits(40) for _ in range(rng.randrange(4, 30))] for _ in range(20)]
    last: list[list[int]] = list(openings)
    prompts = []
    for _ in range(count):
        kind = rng.random()
        before = rng.choice(last[-reach:]) if kind < 0.6 else rng.choice(openings)
        if kind > 0.85:
            before = []
        prompt = [*before, *(rng.getrandbits(40) for _ in range(rng.randrange(1, 12)))][:120]
        prompts.append(prompt)
        last.append(prompt)
    return prompts


def tokens_of(prompt: Sequence[int]) -> list[int]:
    """Whole blocks of 16 tokens, and one token behind them."""
    words = [(block >> shift) % 150_000 for block in prompt for shift in range(SIZE)]
    return [*words, 1]


def serve(cache: CacheManager, prompts: Sequence[list[int]]) -> None:
    """Every prompt computed in one step."""
    for tokens in prompts:
        opened = cache.open(tokens, len(tokens))
        assert isinstance(opened, Opened), opened
        step = next(STEPS)
        cache.launched(step)
        cache.acknowledge(step)
        cache.commit(opened.lease, tokens)
        cache.release(opened.lease)


def seconds(cache: CacheManager, prompts: Sequence[list[int]]) -> float:
    """Of the processor: nothing here waits."""
    started = time.thread_time()
    serve(cache, prompts)
    return time.thread_time() - started


def cost(report: Report, blocks: int, rounds: int) -> float:
    """Microseconds that watching adds for each block of a prompt."""
    paths = conversations(1, 400, 200)
    prompts = [tokens_of(path) for path in paths]
    count = sum(map(len, paths))
    watched, blind = manager(blocks, watched=True), manager(blocks, watched=False)
    serve(watched, prompts)
    serve(blind, prompts)
    times = [(seconds(watched, prompts), seconds(blind, prompts)) for _ in range(rounds)]
    added = [(mine - other) / count * 1e6 for mine, other in times]
    lower, median, upper = quartiles(added)
    report.figure(
        f"watching, per block of a prompt, pool of {blocks:,} blocks",
        median,
        "us",
        lower_quartile=lower,
        upper_quartile=upper,
        blind_us=statistics.median(other for _, other in times) / count * 1e6,
        rounds=rounds,
    )
    return median


def block_seconds(repeats: int) -> float:
    """Processor time of 16 tokens of a prompt of 512, by the embedded model on one thread."""
    rng = random.Random(4)
    with LLM(kv_memory=64 * 2**20, threads=1) as llm:
        best = float("inf")
        for _ in range(repeats):
            prompt = [rng.randrange(100, 900) for _ in range(512)]
            started = time.process_time()
            llm.generate({"prompt_token_ids": prompt}, SamplingParams(max_tokens=0))
            best = min(best, time.process_time() - started)
    return best * SIZE / 512


def watch(prompts: Sequence[list[int]], pool: int, kept: int) -> Curve:
    meter = CurveMeter(pool, SIZE, kept=kept)
    for prompt in prompts:
        marks = list(itertools.accumulate(prompt, lambda mark, block: hash((mark, block))))
        meter.looked_up(marks, None, len(marks) * SIZE, 0)
        meter.touched(marks)
    return meter.curve()


def accuracy(report: Report, pool: int, count: int) -> None:
    prompts = conversations(2, count, pool // 10)
    truth = watch(prompts, pool, 1 << 30)
    sample = watch(prompts, pool, KEPT)
    errors = [abs(sample.at(times) - truth.at(times)) for times in (0.5, 1, 2)]
    whole = zip(sample.hit_rates, truth.hit_rates, strict=True)
    report.figure(
        f"largest error at half, this and twice a pool of {pool:,} blocks",
        100 * max(errors),
        "points",
        bar=2.0,
        sense="<=",
        share=sample.share,
        truth=[round(truth.at(times), 4) for times in (0.5, 1, 2)],
        at_any_size=100 * max(abs(mine - theirs) for mine, theirs in whole),
    )


def main() -> None:
    options = arguments(__doc__).parse_args()
    report = Report("curve")
    rounds, count = (3, 4000) if options.quick else (9, 12_000)
    small, large = cost(report, 1000, rounds), cost(report, 16_000, rounds)
    cores = os.cpu_count() or 1
    block = block_seconds(3 if options.quick else 9) / cores  # no core helps with books
    report.figure(
        "watching, of the time in which the embedded model computes a block",
        100 * max(small, large) / (block * 1e6),
        "%",
        bar=1.0,
        sense="<=",
        block_us=block * 1e6,
    )
    for pool in (4000, 16_000):
        accuracy(report, pool, count)
    report.finish()


if __name__ == "__main__":
    main()
