"""Synthetic traces: conversations that grow turn by turn behind a shared start; one-shots."""

from __future__ import annotations

import random

from kveik.lab.trace import Trace, TraceRequest


def request(blocks: tuple[int, ...], seconds: float = 0.0, size: int = 16) -> TraceRequest:
    return TraceRequest(seconds, len(blocks) * size, 1, blocks)


def trace_of(*prompts: tuple[int, ...], size: int = 16) -> Trace:
    """One request a second."""
    return Trace("made", size, tuple(request(one, n, size) for n, one in enumerate(prompts)))


def chats(requests: int, seed: int = 1, size: int = 16) -> Trace:
    """Half of the prompts continue one of the last conversations, half begin one."""
    draw = random.Random(seed)
    fresh = iter(range(1, 10**9))
    open_ones: list[tuple[int, ...]] = []
    made: list[tuple[int, ...]] = []
    for _ in range(requests):
        if open_ones and draw.random() < 0.5:
            before = open_ones.pop(draw.randrange(len(open_ones)))
        else:
            before = (0,) if draw.random() < 0.7 else ()
        prompt = before + tuple(next(fresh) for _ in range(draw.randint(1, 6)))
        made.append(prompt)
        open_ones = [*open_ones, prompt][-40:]
    return trace_of(*made, size=size)
