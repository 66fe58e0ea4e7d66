"""A trace over many replicas: the real cache code in each, a model of time around it.

A request is routed when it arrives, and what its replica has of it is found then: prompts are
computed in the order of arrival, so the cache is what it will be when its turn comes. Time does not
act on the cache: what runs holds no room. Standard library only.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from kveik.config import DEFAULT_POLICY
from kveik.lab.replay import Machine, MakePolicy
from kveik.lab.replica import Job, Replica
from kveik.lab.routes import Fleet, make_route
from kveik.lab.service import ServiceTimes
from kveik.lab.trace import Trace, TraceRequest


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a route made of a trace. placed: the replica of every request; found: tokens of its
    prompt that were cached there; jobs: those that were not refused for being longer than a pool.
    busy: seconds of work, tokens: of prompts and answers, both by replica."""

    route: str
    replicas: int
    prompt_tokens: int
    placed: tuple[int, ...]
    found: tuple[int, ...]
    jobs: tuple[Job, ...]
    busy: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def refused(self) -> int:
        return len(self.placed) - len(self.jobs)

    @property
    def hit_tokens(self) -> int:
        return sum(self.found)

    @property
    def token_hit_rate(self) -> float:
        return self.hit_tokens / max(self.prompt_tokens, 1)

    def ttft(self, *shares: float) -> list[float | None]:
        """Seconds to the first token within which these shares of the requests have theirs; None:
        there was none. Each is the time of one request (nearest rank)."""
        times = sorted(job.first - job.arrival for job in self.jobs)
        return [times[math.ceil(share * len(times)) - 1] if times else None for share in shares]

    @property
    def queue_share(self) -> float:
        """Of all seconds to the first token, those before the prompt's computation began."""
        waited = sum(job.begun - job.arrival for job in self.jobs)
        whole = sum(job.first - job.arrival for job in self.jobs)
        return waited / whole if whole else 0.0

    @property
    def span(self) -> float:
        """Seconds from the first arrival to the last token."""
        if not self.jobs:
            return 0.0
        return max(job.finished for job in self.jobs) - min(job.arrival for job in self.jobs)

    @property
    def utilisation(self) -> float:
        """Share of the span in which a replica works, on average."""
        return sum(self.busy) / len(self.busy) / self.span if self.span else 0.0

    @property
    def busy_imbalance(self) -> float:
        return imbalance(self.busy)

    @property
    def token_imbalance(self) -> float:
        return imbalance(self.tokens)


def imbalance(values: Sequence[float]) -> float:
    """The largest over the mean: 1 is perfect balance, their number is one that has all."""
    whole = sum(values)
    return max(values) * len(values) / whole if whole else 1.0


def simulate(
    trace: Trace,
    route: str,
    fleet: Fleet,
    service: ServiceTimes,
    *,
    policy: str | MakePolicy = DEFAULT_POLICY,
) -> Simulation:
    """Send the trace to that many replicas, all of them empty. ConfigError: there is no such
    route."""
    router = make_route(route, fleet)
    replicas = [
        _Place(policy, fleet.blocks, trace.block_size, service) for _ in range(fleet.replicas)
    ]
    loads = [0] * fleet.replicas
    placed, found = [], []
    jobs: list[Job] = []
    for request in trace.requests:
        _advance(replicas, loads, request.seconds)
        chosen = router.choose(request, loads)
        job = replicas[chosen].take(request)
        loads[chosen] = replicas[chosen].time.load
        placed.append(chosen)
        found.append(0 if job is None else job.cached)
        if job is not None:
            jobs.append(job)
    _advance(replicas, loads, sys.float_info.max)
    return Simulation(
        route,
        fleet.replicas,
        trace.prompt_tokens,
        tuple(placed),
        tuple(found),
        tuple(jobs),
        tuple(one.time.busy for one in replicas),
        tuple(one.tokens for one in replicas),
    )


class _Place:
    """A replica: its cache, its time, the tokens that it was sent."""

    def __init__(
        self, policy: str | MakePolicy, blocks: int, size: int, service: ServiceTimes
    ) -> None:
        self.cache = Machine(policy, blocks, size, watch=False)
        self.time = Replica(service)
        self.tokens = 0

    def take(self, request: TraceRequest) -> Job | None:
        """None: it is longer than the pool."""
        refused = self.cache.refused
        cached = self.cache.play(request)
        if self.cache.refused > refused:
            return None
        job = Job(request.seconds, request.input_length, cached, request.output_length)
        self.time.submit(job, request.seconds)
        self.tokens += request.input_length + request.output_length
        return job


def _advance(replicas: Sequence[_Place], loads: list[int], now: float) -> None:
    for number, one in enumerate(replicas):
        if one.time.due <= now:
            one.time.advance(now)
            loads[number] = one.time.load
