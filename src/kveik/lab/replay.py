"""A trace through the real cache room, without a model.

Requests come one after the other: each looks up its prompt, holds what it finds, evicts for the
rest, computes nothing, publishes, and lets go, tail before head, as the scheduler would have it do.
A block of the trace is a block of the cache, filled with one made-up token id, so what is equal in
the trace is equal in the cache and nothing else is. The clock is the trace's; answers take the room
that the trace knows of. Standard library only.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass

from kveik.cache.manager import CacheManager, Opened
from kveik.cache.policy import Policy
from kveik.cache.segments import KvGroup
from kveik.lab.trace import Trace, TraceRequest

_START = 1.0  # seconds on the cache's clock when the trace begins: 0.0 would be no reading


@dataclass(frozen=True, slots=True)
class Replay:
    """What a policy made of a trace in a pool of so many blocks.

    hits: blocks found, per request, the partial one at the end of a
    prompt included. refused: requests that are longer than the pool. evicted:
    blocks that went. seconds: of the whole replay; eviction_seconds: of those spent on making
    room. The last four are of everything that was played, the others of what was counted."""

    policy: str
    blocks: int
    prompt_blocks: int
    prompt_tokens: int
    hit_tokens: int
    hits: tuple[int, ...]
    refused: int
    evicted: int
    seconds: float
    eviction_seconds: float

    @property
    def hit_blocks(self) -> int:
        return sum(self.hits)

    @property
    def block_hit_rate(self) -> float:
        return self.hit_blocks / max(self.prompt_blocks, 1)

    @property
    def token_hit_rate(self) -> float:
        return self.hit_tokens / max(self.prompt_tokens, 1)

    @property
    def eviction_us(self) -> float:
        """Microseconds per block that was evicted."""
        return self.eviction_seconds * 1e6 / max(self.evicted, 1)


def replay(
    trace: Trace, policy: str | Callable[[], Policy], blocks: int, *, since: float = 0.0
) -> Replay:
    """Play the trace against an empty pool of `blocks` blocks. policy: a name, or what makes one.

    since: seconds; what arrives before is played and not counted."""
    machine = _Machine(policy, blocks, trace.block_size)
    begun = time.perf_counter()
    cached = [machine.play(request) for request in trace.requests]
    seconds = time.perf_counter() - begun
    counted = [
        (request, found)
        for request, found in zip(trace.requests, cached, strict=True)
        if request.seconds >= since
    ]
    return Replay(
        policy if isinstance(policy, str) else getattr(policy, "__name__", "policy"),
        blocks,
        sum(len(request.blocks) for request, _ in counted),
        sum(request.input_length for request, _ in counted),
        sum(found for _, found in counted),
        tuple(-(-found // trace.block_size) for _, found in counted),
        machine.refused,
        machine.cache.reclaim.evicted,
        seconds,
        machine.eviction_seconds,
    )


class _Machine:
    """One pool under one policy."""

    def __init__(self, policy: str | Callable[[], Policy], blocks: int, size: int) -> None:
        self.cache = CacheManager([KvGroup((0,))], [blocks], size, policy=policy, ghosts=0)
        self.refused = 0
        self.eviction_seconds = 0.0
        self._size = size
        self._step = 0

    def play(self, request: TraceRequest) -> int:
        """Tokens of the prompt that the request finds."""
        cache, now = self.cache, request.seconds + _START
        tokens = self._tokens(request)
        prompt = tokens[: request.input_length]
        opened = cache.open(prompt, 1, namespace=request.namespace, now=now)
        if not isinstance(opened, Opened):
            self.refused += 1
            return 0
        lease = opened.lease
        found = lease.cached_tokens
        begun = time.perf_counter()
        fits = cache.extend(lease, len(tokens))
        self.eviction_seconds += time.perf_counter() - begun
        if not fits:
            self.refused += 1
            cache.release(lease, keep=False, now=now)
            return 0
        self._step += 1
        cache.launched(self._step)
        cache.acknowledge(self._step)
        cache.commit(lease, tokens, now=now)
        cache.release(lease, now=now)
        return found

    def _tokens(self, request: TraceRequest) -> array[int]:
        """All that is computed for the request, and the last token of its prompt."""
        size, length = self._size, request.input_length
        blocks = request.blocks
        if request.answer:
            blocks = blocks[: length // size] + request.answer
            length += max(request.output_length - 1, 0)
        tokens = array("I")
        for block in blocks:
            tokens.extend(array("I", (block,)) * size)
        del tokens[length:]
        return tokens
