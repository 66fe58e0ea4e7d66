"""A policy that is watched: why blocks were computed, where they were put, which ones went."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from kveik.cache.policy import BlockFacts, Policy


@dataclass(slots=True)
class Reasons:
    """Blocks. computed_first: never asked for before; computed_again: they had been there and were
    evicted. evicted_unused: went without a reuse; evicted_reused. By queue of the policy: admitted
    (what is new joined it), rejoined (what was reused did), moved (was sent there when its turn
    had come), evicted (went from it)."""

    computed_first: int = 0
    computed_again: int = 0
    evicted_unused: int = 0
    evicted_reused: int = 0
    admitted: Counter[int] = field(default_factory=Counter)
    rejoined: Counter[int] = field(default_factory=Counter)
    moved: Counter[int] = field(default_factory=Counter)
    evicted: Counter[int] = field(default_factory=Counter)


class Watched:
    """Decides as `policy` does and notes it."""

    def __init__(self, policy: Policy, reasons: Reasons) -> None:
        self.queues = policy.queues
        self.key, self.rank = policy.key, policy.rank
        self._policy, self._reasons = policy, reasons
        self._gone = getattr(policy, "gone", None)
        self._again = getattr(policy, "again", None)
        self._queue: dict[int, int] = {}
        if self._again is not None:  # a policy that has none is not asked
            self.again = self._send_back

    def queue(self, facts: BlockFacts) -> int:
        queue = self._policy.queue(facts)
        self._queue[facts.block] = queue
        joined = self._reasons.rejoined if facts.hits else self._reasons.admitted
        joined[queue] += 1
        return queue

    def _send_back(self, facts: BlockFacts) -> int:
        assert self._again is not None
        queue: int = self._again(facts)
        if queue >= 0:
            self._queue[facts.block] = queue
            self._reasons.moved[queue] += 1
        return queue

    def gone(self, facts: BlockFacts) -> None:
        self._reasons.evicted[self._queue[facts.block]] += 1
        if facts.hits:
            self._reasons.evicted_reused += 1
        else:
            self._reasons.evicted_unused += 1
        if self._gone is not None:
            self._gone(facts)
