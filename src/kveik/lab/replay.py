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
from dataclasses import dataclass, field

from kveik.cache.manager import CacheManager, Opened
from kveik.cache.policy import Policy, make_policy
from kveik.cache.segments import KvGroup
from kveik.lab.trace import Trace, TraceRequest
from kveik.lab.watch import Reasons, Watched

_START = 1.0  # seconds on the cache's clock when the trace begins: 0.0 would be no reading

MakePolicy = Callable[[], Policy]


@dataclass(frozen=True, slots=True)
class Played:
    """What happened to all requests, counted or not. found: tokens of the prompt that were cached,
    per request. refused: requests that are longer than the pool. evicted: blocks. seconds: of the
    whole replay; eviction_seconds: of this thread, spent on making room."""

    found: list[int]
    refused: int = 0
    evicted: int = 0
    seconds: float = 0.0
    eviction_seconds: float = 0.0
    reasons: Reasons = field(default_factory=Reasons)


@dataclass(frozen=True, slots=True)
class Replay:
    """What a policy made of a trace in a pool of so many blocks.

    hits: blocks found, per counted request, the partial one at the end of a prompt included. The
    fields before `played` are of requests that count, see `since`; that one is of all."""

    policy: str
    blocks: int
    prompt_blocks: int
    prompt_tokens: int
    hit_tokens: int
    hits: tuple[int, ...]
    played: Played

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
        """Microseconds for each block that was evicted, everything included; 0: none was."""
        evicted = self.played.evicted
        return self.played.eviction_seconds * 1e6 / evicted if evicted else 0.0


def replay(
    trace: Trace,
    policy: str | MakePolicy,
    blocks: int,
    *,
    since: float = 0.0,
    watch: bool = False,
) -> Replay:
    """Play the trace against an empty pool of `blocks` blocks. policy: a name, or what makes one.

    since: seconds; what arrives before is played and not counted. watch: note why blocks were
    computed and which ones went, which costs some time."""
    machine = Machine(policy, blocks, trace.block_size, watch=watch)
    begun = time.perf_counter()
    found = [machine.play(request) for request in trace.requests]
    seconds = time.perf_counter() - begun
    name = policy if isinstance(policy, str) else getattr(policy, "__name__", "policy")
    return outcome(name, trace, blocks, machine.played(found, seconds), since)


def outcome(name: str, trace: Trace, blocks: int, played: Played, since: float) -> Replay:
    """The same, counted from there on."""
    counted = [
        (request, found)
        for request, found in zip(trace.requests, played.found, strict=True)
        if request.seconds >= since
    ]
    return Replay(
        name,
        blocks,
        sum(len(request.blocks) for request, _ in counted),
        sum(request.input_length for request, _ in counted),
        sum(found for _, found in counted),
        tuple(-(-found // trace.block_size) for _, found in counted),
        played,
    )


class Machine:
    """One pool under one policy. refused: requests so far that are longer than the pool."""

    def __init__(self, policy: str | MakePolicy, blocks: int, size: int, *, watch: bool) -> None:
        self._reasons = Reasons()
        self._watch, self._seen = watch, set[int]()

        def make() -> Policy:
            made = make_policy(policy) if isinstance(policy, str) else policy()
            return Watched(made, self._reasons) if watch else made

        self._cache = CacheManager([KvGroup((0,))], [blocks], size, policy=make, ghosts=0)
        self.refused = 0
        self._eviction_seconds = 0.0
        self._size = size
        self._step = 0

    def play(self, request: TraceRequest) -> int:
        """Tokens of the prompt that the request finds."""
        cache, now = self._cache, request.seconds + _START
        tokens = self._tokens(request)
        prompt = tokens[: request.input_length]
        opened = cache.open(prompt, 1, namespace=request.namespace, now=now)
        if not isinstance(opened, Opened):
            self.refused += 1
            return 0
        lease = opened.lease
        found = lease.cached_tokens
        begun = time.thread_time()
        fits = cache.extend(lease, len(tokens))
        self._eviction_seconds += time.thread_time() - begun
        if not fits:
            self.refused += 1
            cache.release(lease, keep=False, now=now)
            return 0
        self._step += 1
        cache.launched(self._step)
        cache.acknowledge(self._step)
        cache.commit(lease, tokens, now=now)
        cache.release(lease, now=now)
        if self._watch:
            self._note(request, found)
        return found

    def _note(self, request: TraceRequest, found: int) -> None:
        """Why the blocks behind those that were found had to be computed."""
        for block in request.sequence(self._size)[-(-found // self._size) :]:
            if block in self._seen:
                self._reasons.computed_again += 1
            else:
                self._reasons.computed_first += 1
                self._seen.add(block)

    def _tokens(self, request: TraceRequest) -> array[int]:
        """All that is computed for the request, and the last token of its prompt."""
        length = request.input_length
        if request.answer:
            length += max(request.output_length - 1, 0)
        tokens = array("I")
        for block in request.sequence(self._size):
            tokens.extend(array("I", (block,)) * self._size)
        del tokens[length:]
        return tokens

    def played(self, found: list[int], seconds: float) -> Played:
        """What happened so far."""
        evicted = self._cache.reclaim.evicted
        return Played(found, self.refused, evicted, seconds, self._eviction_seconds, self._reasons)
