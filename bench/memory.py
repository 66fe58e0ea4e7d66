"""How many requests fit in a KV pool and how much of it holds tokens: the real scheduler and cache.

A simulation without a model: the scheduler and the cache manager are the engine's own, a mock
runner answers each step at once. Requests arrive faster than they can be served, so the pool is
the limit. Pool: 15,700 slots (OPT-13B on one A100-40G in the vLLM paper, SOSP'23), block 16,
lengths with the means of ShareGPT there (161.31 in, 337.99 out), at most 2,048 tokens together.

Beside it, from the same requests and the same number of slots, the reservations of the paper's
baselines: "max" reserves 2,048 slots per request, "pow2" the next power of two of the output,
"oracle" knows the output's length; each reservation is one contiguous range from a buddy
allocator, as the authors' Orca had it.

Usage: python bench/memory.py [--quick]
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from report import Report, arguments

from kveik.cache.manager import CacheManager
from kveik.cache.segments import KvGroup
from kveik.engine.plan import SampledToken, SequenceResult, StepPlan, StepResult
from kveik.engine.request import Request, SamplingParams
from kveik.engine.scheduler import Scheduler, SchedulerLimits

SLOTS, BLOCK, CONTEXT = 15_700, 16, 2_048
MEAN_IN, MEAN_OUT = 161.31, 337.99


@dataclass(frozen=True)
class Lengths:
    prompt: int
    output: int


def draw_lengths(count: int, shape: float, seed: int) -> list[Lengths]:
    """Gamma-distributed lengths (shape 1: exponential), clipped to the context."""
    generator = random.Random(seed)

    def draw(mean: float, most: int) -> int:
        return min(most, max(4, round(generator.gammavariate(shape, mean / shape))))

    drawn = []
    for _ in range(count):
        prompt = draw(MEAN_IN, CONTEXT // 2)
        drawn.append(Lengths(prompt, draw(MEAN_OUT, CONTEXT - prompt)))
    return drawn


@dataclass
class Load:
    """Means over the steps in which requests were waiting."""

    running: list[int] = field(default_factory=list)
    useful: list[float] = field(default_factory=list)  # tokens / slots of leased blocks
    arithmetic: list[float] = field(default_factory=list)  # tokens / slots at ceil(n / block)
    occupied: list[float] = field(default_factory=list)  # tokens / slots of the pool


def mean(values: list[float] | list[int]) -> float:
    return sum(values) / len(values)


def answer(plan: StepPlan) -> StepResult:
    """A runner without a model: every sample is token 1."""
    return StepResult(
        plan.step_id,
        tuple(
            SequenceResult(one.sequence_id, tuple(SampledToken(1) for _ in one.samples))
            for one in plan.sequences
        ),
    )


def paged(requests: list[Lengths], seed: int) -> Load:
    """The engine's scheduler and cache on these requests."""
    blocks = SLOTS // BLOCK
    cache = CacheManager([KvGroup(layers=(0,), bytes_per_block=1)], [blocks], BLOCK)
    limits = SchedulerLimits(
        block_size=BLOCK, max_num_seqs=512, max_num_batched_tokens=4_096, max_model_len=CONTEXT
    )
    scheduler = Scheduler(cache, limits)
    generator, load = random.Random(seed), Load()
    for handle, lengths in enumerate(requests):
        prompt = tuple(generator.randrange(2, 50_000) for _ in range(lengths.prompt))
        params = SamplingParams(max_tokens=lengths.output, temperature=0, ignore_eos=True)
        scheduler.add(handle, Request(prompt, params), 0)
    while (plan := scheduler.plan_step()) is not None:
        tokens = [sum(one.spans[-1]) for one in plan.sequences]  # with K/V after this step
        leased = cache.stats().leased_blocks[0]
        scheduler.apply(answer(plan))
        if scheduler.queues.requests:
            load.running.append(len(tokens))
            load.useful.append(sum(tokens) / (leased * BLOCK))
            load.arithmetic.append(sum(tokens) / sum(-(-n // BLOCK) * BLOCK for n in tokens))
            load.occupied.append(sum(tokens) / SLOTS)
    cache.check()
    return load


class Buddy:
    """Contiguous power-of-two ranges out of `slots` (which is cut into powers of two first)."""

    def __init__(self, slots: int) -> None:
        self.free: dict[int, set[int]] = {2**k: set() for k in range(slots.bit_length())}
        start = 0
        for bit in reversed(range(slots.bit_length())):
            if slots & (1 << bit):
                self.free[1 << bit].add(start)
                start += 1 << bit

    def take(self, slots: int) -> tuple[int, int] | None:
        size = 1 << (slots - 1).bit_length()
        larger = next((s for s in sorted(self.free) if s >= size and self.free[s]), None)
        if larger is None:
            return None
        start = self.free[larger].pop()
        while larger > size:
            larger //= 2
            self.free[larger].add(start + larger)
        return start, size

    def give(self, start: int, size: int) -> None:
        while size * 2 in self.free and (start ^ size) in self.free[size]:
            self.free[size].remove(start ^ size)
            start, size = min(start, start ^ size), size * 2
        self.free[size].add(start)


def reserved(requests: list[Lengths], reservation: Callable[[Lengths], int]) -> Load:
    """First come, first served, each request in one contiguous reservation until it ends."""
    buddy, waiting, load = Buddy(SLOTS), deque(requests), Load()
    running: list[tuple[Lengths, int, tuple[int, int]]] = []  # lengths, tokens made, range
    while waiting or running:
        while waiting and (taken := buddy.take(reservation(waiting[0]))) is not None:
            running.append((waiting.popleft(), 0, taken))
        if waiting:
            load.running.append(len(running))
            load.occupied.append(sum(x.prompt + made for x, made, _ in running) / SLOTS)
        for lengths, made, taken in running:
            if made + 1 == lengths.output:
                buddy.give(*taken)
        running = [(x, made + 1, taken) for x, made, taken in running if made + 1 < x.output]
    return load


RESERVATIONS: dict[str, Callable[[Lengths], int]] = {
    "max": lambda x: CONTEXT,
    "pow2": lambda x: min(CONTEXT, x.prompt + (1 << (x.output - 1).bit_length())),
    "oracle": lambda x: x.prompt + x.output,
}


def main() -> None:
    options = arguments(__doc__).parse_args()
    report = Report("memory")
    count = 300 if options.quick else 1_500
    for shape, name in ((1.0, "exponential"), (2.0, "gamma 2")):
        requests = draw_lengths(count, shape, seed=1)
        ours = paged(requests, seed=2)
        report.figure(
            f"{name}: tokens / leased slots, of what block {BLOCK} allows",
            mean(ours.useful) / mean(ours.arithmetic),
            "share",
            bar=0.99,
            useful=mean(ours.useful),
            block_arithmetic=mean(ours.arithmetic),
        )
        report.figure(f"{name}: tokens / pool slots", mean(ours.occupied), "share")
        bars = {"max": 4.3, "oracle": 2.2}
        for kind, reservation in RESERVATIONS.items():
            other = reserved(requests, reservation)
            report.ratio(
                f"{name}: running requests, paged against {kind}",
                mean(ours.running),
                mean(other.running),
                bar=bars.get(kind),
            )
            report.figure(f"{name}: tokens / pool slots, {kind}", mean(other.occupied), "share")
    report.finish()


if __name__ == "__main__":
    main()
