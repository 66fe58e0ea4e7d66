"""Who goes first: the policy seam, and the queues in which idle blocks wait to be evicted.

A policy is three small functions of facts. It sees no container and changes nothing:

    queue(facts) -> which of its at most 32 queues a block joins when it becomes idle
    key(facts)   -> a number independent of the time of eviction
    rank(queue, key, now) -> compared between the heads of the queues; the smallest goes first

Within a queue blocks leave in the order in which they came, so every operation is O(1). Idle
blocks come tail before head (whoever lets a prefix go lets its last block go first), which keeps
prefixes for longest (invariant 6).

Above the policy stand four classes: demoted blocks go before those of low priority, these before
normal ones, high ones last; the policy decides within a class. Pinned blocks wait aside and are
never named. Standard library only; links are flat arrays.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NoReturn, Protocol

from kveik.cache.pool import BlockPool
from kveik.cache.prefix import WORD, Identity, PrefixTree
from kveik.errors import ConfigError

MAX_QUEUES = 32
DEMOTED, LOW, NORMAL, HIGH = range(4)
_CLASSES = 4
ATTENTION_PARITY = 4096
"""Tokens before a token at which reading them costs as much as everything else that is computed for
it: six times the width of the hidden state, for models of the Llama family of some hundred million
parameters. A policy compares costs, so that only the order of magnitude matters."""


class Kept(Protocol):
    """What is known of a node about being kept."""

    def deadline(self, node: int) -> float: ...

    def tags(self, node: int) -> int: ...

    def generation(self, node: int) -> int: ...


class BlockFacts:
    """What a policy may know of a block, read from the books when asked for.

    Valid during the call only: the next call shows another block through the same object. Seconds
    are those of the clock that is handed to the cache."""

    __slots__ = ("_idle", "_pool", "_tree", "block", "kept")

    def __init__(self, idle: IdleQueues, pool: BlockPool, tree: PrefixTree) -> None:
        self._idle, self._pool, self._tree = idle, pool, tree
        self.kept: Kept | None = None
        self.block = -1

    @property
    def _node(self) -> int:
        return self._pool.owner[self.block]

    @property
    def namespace(self) -> str:
        """Whose it is; found by walking to the start of the prompt."""
        identity = self._tree.identities.get(self._tree.root_of(self._node))
        return identity.namespace if identity else ""

    @property
    def created(self) -> float:
        """Seconds: when it was computed, which is its first use."""
        return self._tree.created[self._node]

    @property
    def used(self) -> float:
        """Seconds: its last use."""
        return self._tree.used[self._node]

    @property
    def last_used(self) -> int:
        """Logical time of the last use: a counter of cache operations."""
        return self._idle.last_used[self.block]

    @property
    def hits(self) -> int:
        """How many leases and forks reused it since it was filled."""
        return self._idle.hits[self.block]

    @property
    def priority(self) -> int:
        """DEMOTED, LOW, NORMAL or HIGH: the class in which the policy decides."""
        return self._idle.class_of(self.block)

    @property
    def tokens(self) -> int:
        """Tokens in the block: fewer than the block size in a sealed tail."""
        return self._tree.length[self._node]

    @property
    def depth(self) -> int:
        """Tokens from the start of the prompt up to the end of the block."""
        return self._tree.depth[self._node]

    @property
    def recompute_cost(self) -> float:
        """Of its tokens, the prefix being there; 1 is a token with nothing before it."""
        tokens = self.tokens
        return tokens * (1.0 + (self.depth - tokens / 2) / ATTENTION_PARITY)

    @property
    def deadline(self) -> float:
        """Seconds: when it is deleted if it is not used before; infinite: never."""
        return math.inf if self.kept is None else self.kept.deadline(self._node)

    @property
    def tags(self) -> int:
        """How many tags it carries."""
        return 0 if self.kept is None else self.kept.tags(self._node)

    @property
    def generation(self) -> int:
        """Grows from node to node; 0 while nobody asked for more than plain use."""
        return 0 if self.kept is None else self.kept.generation(self._node)

    @property
    def inflation(self) -> float:
        """The greatest key of a block evicted so far: how old the cache is, in the policy's own
        measure (the L of GreedyDual)."""
        return self._idle.inflation


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


class CostAware:
    """Cheap to compute again and seldom used goes first: GreedyDual-Size with frequency.

    The key is inflation + uses * recompute cost / size (Cherkasova 1998); all blocks have one
    size. Values are rounded down to half octaves, one queue each: within a queue keys grow with
    the inflation, so that the head has the smallest."""

    queues = MAX_QUEUES

    def queue(self, facts: BlockFacts) -> int:
        value = (1 + facts.hits) * facts.recompute_cost
        return min(int(2 * math.log2(value)), MAX_QUEUES - 1)

    def key(self, facts: BlockFacts) -> float:
        return facts.inflation + float(2 ** (self.queue(facts) / 2))

    def rank(self, queue: int, key: float, now: float) -> float:
        return key


SHIPPED: dict[str, type[Policy]] = {"lru": LeastRecentlyUsed, "cost": CostAware}


def make_policy(name: str) -> Policy:
    """The policy of that name, or an instance of `module:Class`, which is imported: the name comes
    from whoever runs the engine, never from a request. ConfigError when it cannot be used."""
    if name in SHIPPED:
        return SHIPPED[name]()
    module_name, colon, class_name = name.partition(":")
    if not colon:
        known = ", ".join(SHIPPED)
        _refuse(name, f"is not known; use {known} or module:Class")
    try:
        module = import_module(module_name)
    except Exception as error:
        _refuse(name, f"{module_name} cannot be imported ({type(error).__name__}: {error})")
    made = getattr(module, class_name, None)
    if not isinstance(made, type):
        _refuse(name, f"{module_name} has no class {class_name!r}")
    try:
        policy = made()
    except Exception as error:
        _refuse(name, f"cannot be made without arguments ({type(error).__name__}: {error})")
    for method in ("queue", "key", "rank"):
        if not callable(getattr(policy, method, None)):
            _refuse(name, f"is not a policy: it has no method {method}")
    return _tried(name, policy)


def _tried(name: str, policy: Any) -> Policy:
    """The policy, after a block of one token was shown to it: better a fault now than later."""
    pool, tree = BlockPool(1), PrefixTree(1, 1, b"")
    pool.owner[0] = tree.insert(tree.root(Identity("")), bytes(WORD))
    queues = IdleQueues(pool, tree, policy)
    try:
        queues.append(0)
        rank = policy.rank(0, 0.0, 0.0)
    except Exception as error:
        _refuse(name, f"failed with a first block ({type(error).__name__}: {error})")
    if isinstance(rank, bool) or not isinstance(rank, int | float):
        _refuse(name, f"rank returned {type(rank).__name__}, not a number")
    loaded: Policy = policy
    return loaded


def _refuse(name: str, why: str) -> NoReturn:
    raise ConfigError(f"policy: {name!r} {why}", param="policy")


class IdleQueues:
    """Idle blocks of one group in the order of eviction; intrusive doubly linked lists.

    Entry `num_blocks` of the link arrays is the ring head of the pinned blocks, those behind it are
    the heads of the queues, account by account (see `shares.py`), class by class. A block keeps
    its class and its pin while it is held.

    parked: idle blocks that were set aside because they cannot go before their children.
    count: idle blocks, pinned ones included; evictable: those that may go, evictable_of: by
    account."""

    def __init__(self, pool: BlockPool, tree: PrefixTree, policy: Policy) -> None:
        queues = getattr(policy, "queues", None)
        if not isinstance(queues, int) or not 1 <= queues <= MAX_QUEUES:
            _refuse(type(policy).__name__, f"has 1 to {MAX_QUEUES} queues, got {queues}")
        self._policy = policy
        self._queues = queues
        self.facts = BlockFacts(self, pool, tree)
        size = pool.num_blocks
        self._pinned_ring = size
        # of queue q in class c of account a: _rings + (a * classes + c) * queues + q
        self._rings = size + 1
        links = range(size + 1 + _CLASSES * queues)
        self._next = array("i", links)  # alone: linked to itself
        self._previous = array("i", links)
        self._key = array("d", bytes(8 * size))
        self._class = bytearray([NORMAL]) * size
        self._pinned = bytearray(size)
        self._tree, self._owner = tree, pool.owner
        self._account = bytearray(size)
        self._waiting = [0] * _CLASSES  # blocks linked in each class of each account
        self.evictable_of = [0]
        self.parked: set[int] = set()
        self.last_used = array("q", bytes(8 * size))
        self.hits = array("i", bytes(4 * size))
        self.count = 0
        self.pinned = 0  # idle blocks that are pinned
        self.inflation = 0.0  # see BlockFacts
        self.inflates = queues > 1  # within one queue keys make no difference

    @property
    def evictable(self) -> int:
        return self.count - self.pinned

    def append(self, block: int) -> None:
        """A block became idle."""
        if len(self.evictable_of) > 1:
            self._account[block] = self._tree.account[self._owner[block]]
        self._link(block)
        self.count += 1
        if not self._pinned[block]:
            self.evictable_of[self._account[block]] += 1

    def remove(self, block: int) -> None:
        """A block is held again or leaves the tree."""
        self.count -= 1
        if not self._pinned[block]:
            self.evictable_of[self._account[block]] -= 1
        self._take_out(block)

    def set_accounts(self, count: int) -> None:
        """Blocks are sorted by account anew; each keeps its place among those it meets."""
        waiting = [block for block in self if not self._pinned[block]]
        for block in waiting:
            self.remove(block)
        del self._next[self._rings :], self._previous[self._rings :]
        rings = range(self._rings, self._rings + count * _CLASSES * self._queues)
        self._next.extend(rings)
        self._previous.extend(rings)
        self._waiting = [0] * (count * _CLASSES)
        self.evictable_of = [0] * count
        self._account = bytearray(len(self._account))
        for block in waiting:
            self.append(block)
        for block in self._ring_members(self._pinned_ring):
            self._account[block] = self._tree.account[self._owner[block]]

    def each_pinned(self) -> Iterator[int]:
        """The idle blocks that are pinned, what became idle first coming first."""
        return self._ring_members(self._pinned_ring)

    def first(self, now: float, account: int = 0) -> int:
        """The account's block to be evicted first; -1 when none is idle (or all are pinned or
        parked)."""
        start = account * _CLASSES
        for rank in range(start, start + _CLASSES):
            if self._waiting[rank]:
                ring = self._rings + rank * self._queues
                if self._queues == 1:
                    return self._next[ring]
                return self._first_of(ring, now)
        return -1

    def inflate(self, block: int) -> None:
        """This block is evicted."""
        self.inflation = max(self.inflation, self._key[block])

    def _first_of(self, rings: int, now: float) -> int:
        """Compares the heads of the queues of one class."""
        best, best_rank = -1, 0.0
        for queue in range(self._queues):
            block = self._next[rings + queue]
            if block == rings + queue:
                continue
            rank = self._policy.rank(queue, self._key[block], now)
            if best < 0 or rank < best_rank:
                best, best_rank = block, rank
        return best

    def waiting(self, rank: int) -> int:
        """Idle blocks of that class that are neither pinned nor parked."""
        return self._waiting[rank]

    # --- class and pin of one block, idle or held

    def class_of(self, block: int) -> int:
        return self._class[block]

    def set_class(self, block: int, rank: int) -> None:
        """DEMOTED, LOW, NORMAL or HIGH. An idle block joins the end of a queue of that class."""
        if self._class[block] == rank:
            return
        if self._is_idle(block):
            self._take_out(block)
            self._class[block] = rank
            self._link(block)
        else:
            self._class[block] = rank

    def class_columns(self) -> tuple[bytearray, bytearray]:
        """The class of every block, and whether it is pinned; to be read."""
        return self._class, self._pinned

    def is_pinned(self, block: int) -> bool:
        return bool(self._pinned[block])

    def set_pinned(self, block: int, pinned: bool) -> None:
        """A pinned block is not evicted. Whoever pins a block pins those before it, too."""
        if bool(self._pinned[block]) == pinned:
            return
        if self._is_idle(block):
            self._take_out(block)
            self._pinned[block] = pinned
            self._link(block)
            self.evictable_of[self._account[block]] += -1 if pinned else 1
        else:
            self._pinned[block] = pinned

    def renew(self, blocks: list[int]) -> None:
        """These blocks will be filled with something else: nothing of their past holds."""
        for block in blocks:
            self.hits[block] = 0
            self._class[block] = NORMAL
            self._pinned[block] = False

    # --- blocks that cannot go before their children

    def park(self, block: int) -> None:
        """Set an idle block aside that cannot go before its children."""
        self._take_out(block)
        self.parked.add(block)

    def unpark(self, block: int) -> None:
        """The last child is gone: a parked block is again at the head of its queue."""
        if block in self.parked:
            self.parked.remove(block)
            self._waiting[self._rank(block)] += 1
            self._insert(block, self._next[self._ring(block)])

    # --- links

    def _ring(self, block: int) -> int:
        """Head of the queue that the policy names for the block, in the block's class."""
        facts = self.facts
        facts.block = block
        queue = self._policy.queue(facts)
        if not 0 <= queue < self._queues:
            raise ValueError(f"the policy named queue {queue} of {self._queues}")
        return self._rings + self._rank(block) * self._queues + queue

    def _rank(self, block: int) -> int:
        """Its class among those of all accounts."""
        return self._account[block] * _CLASSES + self._class[block]

    def _link(self, block: int) -> None:
        if self._pinned[block]:
            self.pinned += 1
            self._insert(block, self._pinned_ring)
            return
        ring = self._ring(block)
        self._key[block] = self._policy.key(self.facts)
        self._waiting[self._rank(block)] += 1
        self._insert(block, ring)

    def _insert(self, block: int, after: int) -> None:
        """Link the block before the entry `after`; before a ring head it is the last."""
        before = self._previous[after]
        self._next[before] = block
        self._previous[block] = before
        self._next[block] = after
        self._previous[after] = block

    def _take_out(self, block: int) -> None:
        """Out of its queue, or from what is set aside."""
        following, preceding = self._next, self._previous
        before, after = preceding[block], following[block]
        if after == block:
            self.parked.discard(block)
            return
        following[before] = after
        preceding[after] = before
        following[block] = preceding[block] = block
        if self._pinned[block]:
            self.pinned -= 1
        else:
            self._waiting[self._account[block] * _CLASSES + self._class[block]] -= 1

    def _is_idle(self, block: int) -> bool:
        return self._next[block] != block or block in self.parked

    def __iter__(self) -> Iterator[int]:
        """Class after class, queue after queue, in the order of eviction within each; then what is
        set aside, parked or pinned."""
        for ring in range(self._rings, len(self._next)):
            yield from self._ring_members(ring)
        yield from self.parked
        yield from self._ring_members(self._pinned_ring)

    def hottest(self) -> Iterator[int]:
        """The highest class first, within a queue what joined it last; then what is set aside."""
        for ring in range(len(self._next) - 1, self._pinned_ring - 1, -1):
            block = self._previous[ring]
            while block != ring:
                yield block
                block = self._previous[block]
        yield from self.parked

    def _ring_members(self, ring: int) -> Iterator[int]:
        block = self._next[ring]
        while block != ring:
            yield block
            block = self._next[block]
