"""Runs of a tiny random checkpoint, in the form that exactness compares: ids and log-probabilities.

`python grid.py FOLDER` runs a small grid and exits with an error at the first difference; the test
starts it under several BLAS kernels and thread counts.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kveik.config import EngineConfig
from kveik.engine.engine import Engine
from kveik.engine.parts import EngineParts, load_parts
from kveik.engine.plan import TokenLogprobs
from kveik.engine.request import (
    ChoiceDelta,
    Event,
    PromptReady,
    Request,
    RequestFinished,
    SamplingParams,
    Usage,
)

BLOCK = 16
VOCABULARY = 320


@dataclass
class Run:
    """One request's outcome. `chosen` compares with ==: floats bit for bit (none is NaN)."""

    request: Request
    chosen: list[list[TokenLogprobs]]
    prompt: tuple[TokenLogprobs | None, ...] | None = None
    usage: Usage | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, ChoiceDelta):
            self.chosen[event.choice].extend(event.logprobs)
        elif isinstance(event, PromptReady):
            self.prompt = event.prompt_logprobs
        elif isinstance(event, RequestFinished):
            self.usage = event.usage


def request(prompt: Sequence[int], **params: Any) -> Request:
    """Sampled at temperature 1 with a fixed seed, so that a single bit may change a text."""
    first_choice = params.pop("first_choice", 0)
    given = {"max_tokens": 8, "seed": 11, "logprobs": 5, "ignore_eos": True, **params}
    return Request(tuple(prompt), SamplingParams(**given), first_choice=first_choice)


def prompt(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, VOCABULARY) for _ in range(length)]


def engine(
    parts: EngineParts,
    blocks: int = 256,
    *,
    clock: Callable[[], float] = time.monotonic,
    **config: Any,
) -> Engine:
    """A cold engine around loaded weights."""
    blocks_per_group = (blocks,) * len(parts.model.groups)
    config = {"block_size": BLOCK, **config}
    around = replace(parts, config=EngineConfig(**config), pool_blocks=blocks_per_group)
    return Engine(around, clock=clock)


def run(subject: Engine, requests: Sequence[Request], *, apart: int = 0) -> list[Run]:
    """Serve the requests together; with `apart`, each comes so many steps after the last."""
    runs = [Run(one, [[] for _ in range(one.params.n)]) for one in requests]
    for one in runs:
        subject.submit(one.request, one)
        for _ in range(apart):
            subject.step()
    while subject.step():
        pass
    subject.check()
    assert all(one.usage is not None for one in runs)
    return runs


def parts_of(folder: str, **config: Any) -> EngineParts:
    return load_parts(EngineConfig(model=folder, block_size=BLOCK, **config))


def small_grid(folder: str) -> None:
    """Cold, chunked, warm, in company and without cache: the same bits."""
    parts = parts_of(folder, kernels="reference")
    subject = prompt(75)
    [cold] = run(engine(parts), [request(subject)])
    variants = {
        "chunks of 16": engine(parts, max_num_batched_tokens=16),
        "chunks of 33": engine(parts, max_num_batched_tokens=33),
        "few blocks": engine(parts, blocks=8),
    }
    for name, variant in variants.items():
        company = [request(prompt(length, length)) for length in (34, 20, 61)]
        runs = run(variant, [company[0], request(subject), *company[1:]], apart=1)
        assert runs[1].chosen == cold.chosen, name
        [warm] = run(variant, [request(subject)])
        assert warm.usage is not None
        assert warm.usage.cached_tokens >= 64 or name == "few blocks", name
        assert warm.chosen == cold.chosen, f"{name}, warm"
    [uncached] = run(engine(parts), [request(subject, use_cache=False)])
    assert uncached.chosen == cold.chosen, "without cache"


if __name__ == "__main__":
    small_grid(sys.argv[1])
