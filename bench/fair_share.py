"""What a tenant that floods costs another: hit rates alone, with a flood and shares, and without.

A simulation without a model: the engine's own scheduler and cache manager, a runner that answers
at once. The tenant "chats" asks about one of 16 contexts of 512 tokens, each time with 32 tokens
of its own; 720 of 1,000 blocks are reserved for it. The tenant "flood" may keep 100 blocks and
sends prompts that nobody ever sends again: ten times its quota in the time in which "chats" asks
20 times (steady), or between two of its questions (burst). Both run in the same steps.

The hit rate is the share of the prompt tokens of "chats" that the cache served, after 60 questions
that only fill it. Each figure is that of the worst of the seeds. The last rows have 20 contexts,
89 % of the reserve: questions that never return count in it, too, and push out what is asked next.

Usage: python bench/fair_share.py [--quick]
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from memory import answer
from report import Report, arguments

from kveik.cache.manager import CacheManager
from kveik.cache.segments import KvGroup
from kveik.engine.request import Request, SamplingParams
from kveik.engine.scheduler import Scheduler, SchedulerLimits
from kveik.engine.sequence import Work

BLOCKS, BLOCK, CONTEXT = 1_000, 16, 1_024
CONTEXTS, TIGHT, CONTEXT_TOKENS, QUESTION = 16, 20, 512, 32
RESERVED, QUOTA, TIMES = 720, 100, 10
FLOOD_PROMPT = 25 * BLOCK
WARM_UP = 60
SHARES: dict[str, tuple[int, int | None]] = {"chats": (RESERVED, None), "flood": (0, QUOTA)}
RATES = {"steady": TIMES * QUOTA // 20, "burst": TIMES * QUOTA}  # blocks per question


@dataclass
class Tenants:
    """One scheduler over one cache, and who asks for what."""

    seed: int
    shared: bool
    contexts: int = CONTEXTS

    def __post_init__(self) -> None:
        group = KvGroup(layers=(0,), bytes_per_block=1)
        self.cache = CacheManager([group], [BLOCKS], BLOCK)
        if self.shared:
            self.cache.set_shares(SHARES)
        limits = SchedulerLimits(BLOCK, 16, 1_024, CONTEXT)
        self.scheduler = Scheduler(self.cache, limits)
        self.handles = 0
        self.noise = random.Random(self.seed + 1)

    def tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self.noise.randrange(2, 50_000) for _ in range(count))

    def ask(self, namespace: str, prompt: tuple[int, ...]) -> Work:
        self.handles += 1
        params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
        return self.scheduler.add(self.handles, Request(prompt, params, namespace), 0)

    def run(self, questions: int, flood: int) -> float:
        """Hit rate of "chats"; flood: blocks that the other writes per question."""
        chats = random.Random(self.seed)
        contexts = [
            tuple(chats.randrange(2, 50_000) for _ in range(CONTEXT_TOKENS))
            for _ in range(self.contexts)
        ]
        served = asked = 0
        for number in range(WARM_UP + questions):
            for _ in range(flood * BLOCK // FLOOD_PROMPT // 2):
                self.ask("flood", self.tokens(FLOOD_PROMPT))
            question = tuple(chats.randrange(2, 50_000) for _ in range(QUESTION))
            work = self.ask("chats", chats.choice(contexts) + question)
            for _ in range(flood * BLOCK // FLOOD_PROMPT // 2):
                self.ask("flood", self.tokens(FLOOD_PROMPT))
            while (plan := self.scheduler.plan_step()) is not None:
                self.scheduler.apply(answer(plan))
            if number >= WARM_UP:
                served += work.cached_tokens
                asked += work.prompt_length
        self.cache.check()
        return served / asked


def compare(report: Report, seeds: range, questions: int, contexts: int, name: str) -> None:
    """Alone, and beside each flood with shares and without."""

    def rates(flood: int, shared: bool) -> list[float]:
        return [Tenants(seed, shared, contexts).run(questions, flood) for seed in seeds]

    alone = rates(0, True)
    report.figure(f"{name}chats alone: hit rate", min(alone), "share", seeds=len(seeds))
    for rate, flood in RATES.items():
        for shared in (True, False):
            beside = rates(flood, shared)
            row = f"{name}{rate} flood, {'shares' if shared else 'no shares'}"
            report.figure(f"{row}: hit rate", min(beside), "share")
            report.figure(
                f"{row}: cost to chats",
                100 * max(a - b for a, b in zip(alone, beside, strict=True)),
                "points",
                bar=2.0 if shared and contexts == CONTEXTS else None,
                sense="<=",
                alone=alone,
                beside=beside,
            )


def main() -> None:
    options = arguments(__doc__).parse_args()
    report = Report("fair_share")
    questions, seeds = (60, range(1)) if options.quick else (200, range(3))
    compare(report, seeds, questions, CONTEXTS, "")
    compare(report, seeds, questions, TIGHT, "tight reserve, ")
    report.finish()


if __name__ == "__main__":
    main()
