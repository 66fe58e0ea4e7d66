"""What no policy can beat: the hits of one that knows the rest of the trace.

Belady's rule with bypass: of what is cached and what was just used, the blocks whose next use is
nearest stay, and what is never used again is not kept at all. A block is never used later than
what hangs behind it, so what stays is always whole beginnings of prompts. A pool may hold a prompt
while it is computed and keep nothing of it; so may every policy. Standard library only.
"""

from __future__ import annotations

import time
from heapq import heappop, heappush

from kveik.lab.replay import Played, Replay, outcome
from kveik.lab.trace import Trace, TraceRequest

_NEVER = 2**62


def optimum(trace: Trace, blocks: int, *, since: float = 0.0) -> Replay:
    """The most that a pool of so many blocks can hit. since: see `replay`."""
    begun = time.perf_counter()
    store = _Clairvoyant(blocks)
    found = []
    for request, uses in zip(trace.requests, _next_uses(trace), strict=True):
        hits = store.find(request.blocks)
        found.append(min(hits * trace.block_size, request.input_length - 1))
        store.keep(request.sequence(trace.block_size), uses)
    seconds = time.perf_counter() - begun
    return outcome("optimum", trace, blocks, Played(found, 0, store.evicted, seconds), since)


class _Clairvoyant:
    """The blocks whose next use is nearest."""

    def __init__(self, blocks: int) -> None:
        self.evicted = 0
        self._blocks = blocks
        self._kept: dict[int, int] = {}  # block -> number of the request that uses it next
        self._heap: list[tuple[int, int, int]] = []  # (- next use, - depth, block), old ones too

    def find(self, blocks: tuple[int, ...]) -> int:
        """How many of them are there, from the first one on."""
        for count, block in enumerate(blocks):
            if block not in self._kept:
                return count
        return len(blocks)

    def keep(self, blocks: tuple[int, ...], uses: list[int]) -> None:
        kept, heap = self._kept, self._heap
        for depth, (block, use) in enumerate(zip(blocks, uses, strict=True)):
            kept.pop(block, None)
            if use < _NEVER:
                kept[block] = use
                heappush(heap, (-use, -depth, block))
        while len(kept) > self._blocks:
            use, _, block = heappop(heap)
            if kept.get(block) == -use:
                del kept[block]
                self.evicted += 1


def _next_uses(trace: Trace) -> list[list[int]]:
    """For every block that a request leaves, the number of the next one whose prompt has it."""
    coming: dict[int, int] = {}
    uses: list[list[int]] = []
    request: TraceRequest
    for number, request in reversed(list(enumerate(trace.requests))):
        uses.append([coming.get(block, _NEVER) for block in request.sequence(trace.block_size)])
        for block in request.blocks:
            coming[block] = number
    uses.reverse()
    return uses
