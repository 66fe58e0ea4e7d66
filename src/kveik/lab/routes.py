"""Which replica gets a request: one idea a class. Standard library only.

A route sees the request, how many requests every replica has that are not over, and what it
remembers itself, never a cache: that is what a router in front of many servers knows.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kveik.errors import ConfigError
from kveik.lab.trace import TraceRequest

SLACK = 2
"""Requests that a replica may have beyond its bound: an idle fleet is not out of balance."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """What a route is made for. blocks: of the pool of each replica. seed: of what is drawn.
    load_bound: how many times the mean load a replica may have and still be chosen for what it
    holds; infinite: any. least_match: share of a prompt's blocks below which a match is none."""

    replicas: int
    blocks: int
    seed: int = 0
    load_bound: float = 1.25
    least_match: float = 0.3


class Route(Protocol):
    def choose(self, request: TraceRequest, loads: Sequence[int]) -> int:
        """The number of the replica that gets it."""
        ...


class RoundRobin:
    """One after the other."""

    def __init__(self, fleet: Fleet) -> None:
        self._next, self._replicas = -1, fleet.replicas

    def choose(self, request: TraceRequest, loads: Sequence[int]) -> int:
        self._next = (self._next + 1) % self._replicas
        return self._next


class Random:
    """Any, with equal chances."""

    def __init__(self, fleet: Fleet) -> None:
        self._draw, self._replicas = random.Random(fleet.seed), fleet.replicas

    def choose(self, request: TraceRequest, loads: Sequence[int]) -> int:
        return self._draw.randrange(self._replicas)


class LeastLoaded:
    """Fewest requests that are not over; of equal ones the next behind the one chosen last."""

    def __init__(self, fleet: Fleet) -> None:
        self._last = -1

    def choose(self, request: TraceRequest, loads: Sequence[int]) -> int:
        least = min(loads)
        try:
            self._last = loads.index(least, self._last + 1)
        except ValueError:
            self._last = loads.index(least)
        return self._last


class Session:
    """Where the session was before; a new one, and what has none, where the load is least."""

    def __init__(self, fleet: Fleet) -> None:
        self._homes: dict[tuple[str, str], int] = {}
        self._others = LeastLoaded(fleet)

    def choose(self, request: TraceRequest, loads: Sequence[int]) -> int:
        if not request.session:
            return self._others.choose(request, loads)
        who = (request.namespace, request.session)
        if who not in self._homes:
            self._homes[who] = self._others.choose(request, loads)
        return self._homes[who]


class PrefixAffinity:
    """The replica that was sent the longest beginning of this prompt, unless its load is beyond the
    bound; where the load is least when nobody was sent enough of it.

    The router remembers what it sent where, as SGLang's cache-aware one does, and forgets what a
    pool of that size has no room for since. The bound is that of consistent hashing with bounded
    loads (Mirrokni, Thorup, Zadimoghaddam 2018): so many times the mean, the new request
    included."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._sent: dict[int, dict[int, int]] = {}  # block -> replica -> its _blocks then
        self._blocks = [0] * fleet.replicas  # that each has had to make room for so far
        self._others = LeastLoaded(fleet)

    def choose(self, request: TraceRequest, loads: Sequence[int]) -> int:
        chosen = self._holder(request, loads)
        if chosen is None:
            chosen = self._others.choose(request, loads)
        self._note(request, chosen)
        return chosen

    def _note(self, request: TraceRequest, chosen: int) -> None:
        sent = [self._sent.setdefault(block, {}) for block in request.blocks]
        self._blocks[chosen] += sum(not self._fresh(one, chosen) for one in sent)
        for one in sent:
            one[chosen] = self._blocks[chosen]

    def _holder(self, request: TraceRequest, loads: Sequence[int]) -> int | None:
        """Of those that were sent the deepest block, and may have more, the least loaded one."""
        bound = self._bound(loads)
        for depth in range(len(request.blocks), 0, -1):
            if depth < self._fleet.least_match * len(request.blocks):
                return None
            sent = self._sent.get(request.blocks[depth - 1], {})
            fits = [one for one in sent if self._fresh(sent, one) and loads[one] < bound]
            if fits:
                return min(fits, key=lambda one: (loads[one], one))
        return None

    def _bound(self, loads: Sequence[int]) -> float:
        if math.isinf(self._fleet.load_bound):
            return math.inf
        return math.ceil(self._fleet.load_bound * (sum(loads) + 1) / len(loads)) + SLACK

    def _fresh(self, sent: dict[int, int], one: int) -> bool:
        return one in sent and self._blocks[one] - sent[one] <= self._fleet.blocks


ROUTES: dict[str, Callable[[Fleet], Route]] = {
    "round-robin": RoundRobin,
    "random": Random,
    "least-loaded": LeastLoaded,
    "session": Session,
    "prefix-affinity": PrefixAffinity,
}


def make_route(name: str, fleet: Fleet) -> Route:
    """ConfigError for a name that is none."""
    if name not in ROUTES:
        known = ", ".join(ROUTES)
        raise ConfigError(f"--route: {name!r} is not one of {known}, or all", param="route")
    return ROUTES[name](fleet)
