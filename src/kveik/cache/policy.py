"""Who goes first: the policy seam, and the queues in which idle blocks wait to be evicted.

A policy is three small functions of facts. It sees no container and changes nothing:

    queue(facts) -> which of its at most 32 queues a block joins when it becomes idle
    key(facts)   -> a number independent of the time of eviction
    rank(queue, key, now) -> compared between the heads of the queues; the smallest goes first

Within a queue blocks leave in the order in which they came, so every operation is O(1). Idle
blocks come tail before head (whoever lets a prefix go lets its last block go first), which keeps
prefixes for longest (invariant 6). Standard library only; links are flat arrays.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from kveik.errors import ConfigError

MAX_QUEUES = 32


class BlockFacts(NamedTuple):
    """What a policy may know of a block. last_used: logical time (a counter of cache operations);
    hits: how many leases and forks reused it since it was filled."""

    last_used: int
    hits: int


class Policy(Protocol):
    """See the module. `queues` is the number of queues, at most 32."""

    @property
    def queues(self) -> int: ...

    def queue(self, facts: BlockFacts) -> int: ...

    def key(self, facts: BlockFacts) -> float: ...

    def rank(self, queue: int, key: float, now: float) -> float: ...


class LeastRecentlyUsed:
    """The block that was not used for longest goes first."""

    queues = 1

    def queue(self, facts: BlockFacts) -> int:
        return 0

    def key(self, facts: BlockFacts) -> float:
        return float(facts.last_used)

    def rank(self, queue: int, key: float, now: float) -> float:
        return key


def make_policy(name: str) -> Policy:
    """The policy of that name; ConfigError when there is none."""
    if name == "lru":
        return LeastRecentlyUsed()
    raise ConfigError(f"cache policy: {name!r} is not known; use lru", param="policy")


class IdleQueues:
    """Idle blocks of one group in the order of eviction; intrusive doubly linked lists.

    Entries `num_blocks ..` of the link arrays are the ring heads of the queues."""

    def __init__(self, num_blocks: int, policy: Policy) -> None:
        if not 1 <= policy.queues <= MAX_QUEUES:
            raise ConfigError(f"a policy has 1 to {MAX_QUEUES} queues, got {policy.queues}")
        self._policy = policy
        self._rings = range(num_blocks, num_blocks + policy.queues)
        self._next = array("i", range(num_blocks + policy.queues))  # alone: linked to itself
        self._previous = array("i", range(num_blocks + policy.queues))
        self._key = array("d", bytes(8 * num_blocks))
        self._parked: set[int] = set()
        self.last_used = array("q", bytes(8 * num_blocks))
        self.hits = array("i", bytes(4 * num_blocks))
        self.count = 0

    def append(self, block: int) -> None:
        """A block became idle."""
        self._link(block)
        self.count += 1

    def _link(self, block: int) -> None:
        facts = BlockFacts(self.last_used[block], self.hits[block])
        ring = self._rings[self._policy.queue(facts)]
        self._key[block] = self._policy.key(facts)
        last = self._previous[ring]
        self._next[last] = block
        self._previous[block] = last
        self._next[block] = ring
        self._previous[ring] = block

    def remove(self, block: int) -> None:
        """A block is held again or leaves the tree."""
        self._unlink(block)
        self.count -= 1
        if self._parked:
            self._parked.discard(block)

    def park(self, block: int) -> None:
        """Set an idle block aside that cannot go before its children."""
        self._unlink(block)
        self._parked.add(block)

    def unpark(self, block: int) -> None:
        """The last child is gone: a parked block waits in its queue again."""
        if block in self._parked:
            self._parked.remove(block)
            self._link(block)

    def _unlink(self, block: int) -> None:
        before, after = self._previous[block], self._next[block]
        self._next[before] = after
        self._previous[after] = before
        self._next[block] = self._previous[block] = block

    def first(self, now: float) -> int:
        """The block to be evicted first; -1 when none is idle (or all are parked)."""
        if len(self._rings) == 1:
            ring = self._rings[0]
            block = self._next[ring]
            return -1 if block == ring else block
        best, best_rank = -1, 0.0
        for queue, ring in enumerate(self._rings):
            block = self._next[ring]
            if block == ring:
                continue
            rank = self._policy.rank(queue, self._key[block], now)
            if best < 0 or rank < best_rank:
                best, best_rank = block, rank
        return best

    def __iter__(self) -> Iterator[int]:
        """Queue after queue, in the order of eviction within each; then what is set aside."""
        for ring in self._rings:
            block = self._next[ring]
            while block != ring:
                yield block
                block = self._next[block]
        yield from self._parked
