"""Who goes first: the policy seam, and the queues in which idle blocks wait to be evicted.

A policy is three small functions of facts. It sees no container and changes nothing:

    queue(facts) -> which of its at most 32 queues a block joins when it becomes idle
    key(facts)   -> a number independent of the time of eviction
    rank(queue, key, now) -> compared between the heads of the queues; the smallest goes first

and two more, where it has them:

    again(facts) -> asked of the block whose turn has come: a queue to join instead of going; -1
    gone(facts)  -> this block is being evicted: what a policy remembers of it, it notes now

A policy that says `steady = True` promises that ranks change only when `queue` is called; then
they are asked for once in between.

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
from collections.abc import Callable, Iterator
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

_CHANCES = 256
"""Blocks in a row that a policy may send back when their turn has come; then the next one goes,
whatever it says, so that a step's time stays bounded."""


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
    def now(self) -> float:
        """Seconds: the time of this call."""
        return self._tree.now

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
    def sequence(self) -> int:
        """Tokens of the last prompt, with its answer, that used it: what lies behind it is the
        difference to its depth."""
        return self._idle.sequence[self.block]

    @property
    def found(self) -> int:
        """Tokens of that prompt that were cached when it came; 0: it went on from nothing."""
        return self._idle.found[self.block]

    @property
    def capacity(self) -> int:
        """Blocks of the pool."""
        return self._pool.num_blocks

    @property
    def content(self) -> bytes:
        """A keyed digest of what it holds and all before that: the same when it is computed again
        after it was evicted. 32 bytes; the first call for a block costs some microseconds."""
        return self._tree.digest(self._node)

    @property
    def mark(self) -> int:
        """A check sum of the same: 32 bits, there at once. Others may have the same, so it serves
        for samples and statistics only."""
        return self._tree.mark[self._node]

    @property
    def leaf(self) -> bool:
        """Does nothing that is cached go on behind it?"""
        return not self._tree.children[self._node]

    @property
    def continues(self) -> bool:
        """Was it computed behind a cached text that nothing else, or one other thing, went on
        from? Then it is of a further turn, else it begins something behind a start that many
        share, or behind none."""
        return bool(self._idle.continues[self.block])

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


_HERE = "kveik.cache.policies."
SHIPPED: dict[str, str] = {
    "lru": _HERE + "lru:LeastRecentlyUsed",
    "cost": _HERE + "cost:CostAware",
    "fifo": _HERE + "fifo:FirstInFirstOut",
    "slru": _HERE + "slru:SegmentedLru",
    "s3fifo": _HERE + "s3fifo:S3Fifo",
    "lfu-aged": _HERE + "lfu_aged:AgedFrequency",
    "arc": _HERE + "arc:AdaptiveReplacement",
    "reuse-time": _HERE + "reuse_time:ReuseTime",
    "tail-lru": _HERE + "tail_lru:TailOptimizedLru",
    "hit-density": _HERE + "hit_density:HitDensity",
}
"""Names, and the classes that are imported when one is used."""


def make_policy(name: str) -> Policy:
    """The policy of that name, or an instance of `module:Class`, which is imported: the name comes
    from whoever runs the engine, never from a request. ConfigError when it cannot be used."""
    module_name, colon, class_name = SHIPPED.get(name, name).partition(":")
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
    _try(name, policy)
    fresh: Policy = made()  # the other one has seen a pool of one block
    return fresh


def _try(name: str, policy: Any) -> None:
    """A block of one token is shown to the policy: better a fault now than later."""
    pool, tree = BlockPool(1), PrefixTree(1, 1, b"")
    pool.owner[0] = tree.insert(tree.root(Identity("")), bytes(WORD))
    queues = IdleQueues(pool, tree, policy)
    try:
        queues.append(0)
        queues.first(0.0)
        queues.tell(0)
        rank = policy.rank(0, 0.0, 0.0)
    except Exception as error:
        _refuse(name, f"failed with a first block ({type(error).__name__}: {error})")
    if isinstance(rank, bool) or not isinstance(rank, int | float):
        _refuse(name, f"rank returned {type(rank).__name__}, not a number")


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
        self._again: Callable[[BlockFacts], int] | None = getattr(policy, "again", None)
        self._gone: Callable[[BlockFacts], None] | None = getattr(policy, "gone", None)
        self._steady = bool(getattr(policy, "steady", False))
        self._ranks: dict[int, float] = {}  # of heads, while they hold
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
        self._queue = bytearray(size)
        self._class = bytearray([NORMAL]) * size
        self._pinned = bytearray(size)
        self._tree, self._owner = tree, pool.owner
        self._account = bytearray(size)
        self._waiting = [0] * _CLASSES  # blocks linked in each class of each account
        self._busy = [0] * _CLASSES  # a bit for each of its queues that may hold a block
        self.evictable_of = [0]
        self.parked: set[int] = set()
        self.last_used = array("q", bytes(8 * size))
        self.hits = array("i", bytes(4 * size))
        self.sequence = array("i", bytes(4 * size))  # see BlockFacts
        self.found = array("i", bytes(4 * size))
        self.continues = bytearray(size)
        self.count = 0
        self.pinned = 0  # idle blocks that are pinned
        self.inflation = 0.0  # see BlockFacts
        self.inflates = queues > 1  # within one queue keys make no difference
        self.tells = self._gone is not None

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
        self._busy = [0] * (count * _CLASSES)
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
                if self._again is not None:
                    return self._first_without_chance(rank, now, self._again)
                if self._queues == 1:
                    return self._next[self._rings + rank]
                return self._first_of(rank, now)
        return -1

    def inflate(self, block: int) -> None:
        """The turn of this block has come."""
        self.inflation = max(self.inflation, self._key[block])

    def tell(self, block: int) -> None:
        """This block is being evicted; it is still in its place."""
        if self._gone is not None:
            self.facts.block = block
            self._gone(self.facts)

    def _first_without_chance(
        self, rank: int, now: float, again: Callable[[BlockFacts], int]
    ) -> int:
        """The first that its policy lets go; others join the end of a queue meanwhile."""
        facts = self.facts
        block = self._first_of(rank, now)
        for _ in range(_CHANCES):
            facts.block = block
            queue = again(facts)
            if queue < 0:
                break
            self._check_queue(queue)
            self._take_out(block)
            self._join(block, queue)
            block = self._first_of(rank, now)
        return block

    def _first_of(self, rank: int, now: float) -> int:
        """Compares the heads of the queues of one class."""
        best, least = -1, 0.0
        rings, following = self._rings + rank * self._queues, self._next
        policy_rank, keys, known = self._policy.rank, self._key, self._ranks
        left = self._busy[rank]
        while left:
            bit = left & -left
            left ^= bit
            queue = bit.bit_length() - 1
            block = following[rings + queue]
            if block == rings + queue:  # emptied since it was looked at
                self._busy[rank] ^= bit
                continue
            value = known.get(block)
            if value is None:
                value = policy_rank(queue, keys[block], now)
                if self._steady:
                    known[block] = value
            if best < 0 or value < least:
                best, least = block, value
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
            rank = self._rank(block)
            queue = self._queue[block]
            self._waiting[rank] += 1
            self._busy[rank] |= 1 << queue
            self._insert(block, self._next[self._rings + rank * self._queues + queue])

    # --- links

    def _rank(self, block: int) -> int:
        """Its class among those of all accounts."""
        return self._account[block] * _CLASSES + self._class[block]

    def _link(self, block: int) -> None:
        if self._pinned[block]:
            self.pinned += 1
            self._insert(block, self._pinned_ring)
            return
        facts = self.facts
        facts.block = block
        queue = self._policy.queue(facts)
        self._check_queue(queue)
        self._join(block, queue)

    def _check_queue(self, queue: int) -> None:
        if not 0 <= queue < self._queues:
            raise ValueError(f"the policy named queue {queue} of {self._queues}")

    def _join(self, block: int, queue: int) -> None:
        """Last in a queue of its class; the facts show the block."""
        self._ranks.clear()
        self._queue[block] = queue
        self._key[block] = self._policy.key(self.facts)
        rank = self._rank(block)
        self._waiting[rank] += 1
        self._busy[rank] |= 1 << queue
        self._insert(block, self._rings + rank * self._queues + queue)

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
