"""The only door of the cache room: lookup, reserve, commit, fork, release, invalidate, explain.

The manager keeps books; it moves nothing. It is given token ids and returns block ids and moves.
It never sees a tensor, a socket, a file or a clock that it was not handed. Here is what each verb
promises; the work is done by the parts that are put together here (ARCHITECTURE.md has the map).
Standard library only.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

from kveik.cache.audit import audit
from kveik.cache.block_map import BlockMap
from kveik.cache.by_hand import ByHand
from kveik.cache.counters import Counters, cache_stats
from kveik.cache.curve import Curve, CurveMeter
from kveik.cache.curve_feed import CurveFeed
from kveik.cache.directive import (
    PLAIN,
    BlockView,
    Directive,
    Divergence,
    Receipt,
    Relevance,
    Selector,
    Ttl,
)
from kveik.cache.ghosts import Ghosts
from kveik.cache.holdings import Holdings
from kveik.cache.invalidation import Invalidation
from kveik.cache.join import JoinedPrompt
from kveik.cache.joining import Joined, Joining, Missing
from kveik.cache.lease import CacheStats, Lease, Match, Miss, NoRoom, Opened, OpenResult, Wait
from kveik.cache.leasing import Leasing
from kveik.cache.listing import Listing, session_views
from kveik.cache.lookup import Found, Lookup
from kveik.cache.names import Names
from kveik.cache.outline import Outline
from kveik.cache.policy import IdleQueues, Policy, make_policy
from kveik.cache.pool import BlockPool
from kveik.cache.prefix import Identity, PrefixTree, pack_tokens
from kveik.cache.publish import Publisher
from kveik.cache.reclaim import Reclaimer
from kveik.cache.restrict import Restrictor
from kveik.cache.retention import Retention
from kveik.cache.segments import EXACT, Erase, KvGroup, Move, check_groups
from kveik.cache.sessions import SessionTable
from kveik.cache.shares import Shares
from kveik.cache.streams import StreamBooks
from kveik.cache.sweep import Sweeper
from kveik.cache.topics import MakeTracker, Topics
from kveik.cache.turns import Turns
from kveik.cache.upkeep import Upkeep
from kveik.cache.window import StreamWindow
from kveik.errors import InvalidRequest, PromptTooLarge, StreamBudgetExceeded

__all__ = [
    "CacheManager",
    "CacheStats",
    "Lease",
    "Match",
    "Miss",
    "NoRoom",
    "OpenResult",
    "Opened",
    "Wait",
]


class CacheManager:
    """See the class of each returned record. All methods are for one thread (the engine's)."""

    def __init__(
        self,
        groups: Sequence[KvGroup],
        num_blocks: Sequence[int],  # per group
        block_size: int,
        *,
        policy: str | Callable[[], Policy] = "lru",  # a name, or what makes one for each group
        enable_prefix_caching: bool = True,
        ghosts: int = 4096,  # of every namespace; four times as many of all
        session_idle: float = 1800.0,  # seconds without a use after which a session ends
        pin_share: float = 0.5,  # of the blocks of every group
        relevance: Relevance = "demote",  # where a directive says nothing
        tracker: MakeTracker | None = None,  # follows sessions by topic; None: nobody does
    ) -> None:
        check_groups(groups, num_blocks, block_size)
        self.groups = tuple(groups)
        self.block_size = block_size
        # A row at position t of a window group reads back to t - window + 1. At least one earlier
        # token is kept, so that every group has a block at the end of a match.
        self.reach = tuple(
            max(group.window or 0, 2) if group.kind == "window" else 0 for group in self.groups
        )
        self.pools = tuple(BlockPool(count) for count in num_blocks)
        self.tree = PrefixTree(len(self.groups), block_size, secrets.token_bytes(32))
        self.idle = tuple(
            IdleQueues(
                pool, self.tree, make_policy(policy) if isinstance(policy, str) else policy()
            )
            for pool in self.pools
        )
        self.leases: set[Lease] = set()
        self.topics = None if tracker is None else Topics(tracker)
        self._put_together(ghosts, enable_prefix_caching, session_idle, pin_share, relevance)

    def _put_together(
        self, ghosts: int, caching: bool, idle: float, pin_share: float, relevance: Relevance
    ) -> None:
        """The parts that work on these books; each is told what it may touch."""
        pools, tree = self.pools, self.tree
        fewest = min(pool.num_blocks for pool in pools)
        self.ghosts = Ghosts(ghosts)
        self.counters = Counters()
        self.table = SessionTable(idle)
        self.retention = Retention(tree, pools, self.idle)
        self.search = Lookup(tree, self.ghosts, self.reach, caching, self.retention)
        self.reclaim = Reclaimer(pools, self.idle, tree, self.ghosts, self.reach)
        self.shares = Shares(tree, self.idle, fewest)
        self.reclaim.victim = self.shares.victim
        self.restrictor = Restrictor(tree, self.reclaim, self.leases)
        self.leaders = self.restrictor.leaders
        self.sweeper = Sweeper(
            self.retention, self.reclaim, self.ghosts, self.groups, self.restrictor.cut_at
        )
        self.names = Names(
            self.retention, self.sweeper, int(fewest * pin_share), self.restrictor.stop
        )
        self.invalidation = Invalidation(
            self.retention, self.sweeper, self.restrictor, self.table, self.leases
        )
        self.streams = StreamBooks(self.block_size, fewest, self._taken)
        self.names.streams = self.streams
        self.holdings = Holdings(
            pools,
            self.idle,
            self.search,
            self.shares,
            self.reclaim,
            self.sweeper,
            self.counters,
            self.streams,
        )
        self.fence = self.holdings.fence
        self.meter = CurveMeter(fewest, self.block_size)
        feed = CurveFeed(self.meter, tree, caching)
        self.sweeper.on_deleted = feed.deleted
        publisher = Publisher(self.holdings, self.restrictor, self.ghosts, feed)
        self.turns = Turns(self.invalidation, self.reclaim, self.names, relevance, self.topics)
        self.leasing = Leasing(self.leases, publisher, self.turns)
        self.joining = Joining(self.leasing)
        self.upkeep = Upkeep(self.invalidation, self.reclaim, self.names, self.shares)
        self.hand = ByHand(self.reclaim, self.names, self.invalidation, self.groups)

    def _taken(self, namespace: str) -> int:
        """Blocks that no stream of this namespace can have."""
        return self.names.pinned() + self.shares.others_reserve(namespace)

    @property
    def open_leases(self) -> Collection[Lease]:
        return self.leases

    @property
    def led_keys(self) -> Mapping[bytes, Lease]:
        return self.leaders

    @property
    def job_pins(self) -> Counter[int]:
        """Pins that the sweep holds."""
        return Counter(node for job in self.sweeper.jobs for node in job.pinned())

    def _at(self, reading: float) -> None:
        """Time goes on to what this reading of the caller's clock says; 0.0: none was made."""
        self.tree.now = self.retention.clock.read(reading)
        self.names.expire()

    # --- lookup

    def lookup(
        self,
        tokens: Sequence[int],
        *,
        namespace: str = "",
        adapter: int = 0,
        salt: str = "",
        now: float = 0.0,
    ) -> Match:
        """Longest exact match, token-granular, capped at len(tokens) - 1."""
        found, identity, data = self._found(tokens, namespace, adapter, salt, now)
        path = [found.source] if found.source >= 0 else []
        path += reversed(found.walked[: found.blocks])  # tail before head, as a lease lets it go
        self.holdings.touch(path)
        for node in path:
            self.retention.used(node)
        return self.search.match(found, identity, data)

    def explain(
        self,
        tokens: Sequence[int],
        *,
        namespace: str = "",
        adapter: int = 0,
        salt: str = "",
        now: float = 0.0,
    ) -> Match:
        """Like lookup, without touching recency or counters."""
        return self.search.match(*self._found(tokens, namespace, adapter, salt, now))

    def divergence(
        self,
        tokens: Sequence[int],
        *,
        namespace: str = "",
        adapter: int = 0,
        salt: str = "",
        now: float = 0.0,
    ) -> Divergence:
        """Where the prompt leaves what is cached, and what the nearest continuation has there."""
        found, identity, data = self._found(tokens, namespace, adapter, salt, now)
        return self.search.divergence(found, identity, data)

    def _found(
        self, tokens: Sequence[int], namespace: str, adapter: int, salt: str, now: float
    ) -> tuple[Found, Identity, bytes]:
        self._at(now)
        data = pack_tokens(tokens)
        identity = Identity(namespace, adapter, EXACT, salt)
        return self.search.find(identity, data, self.search.cap(len(tokens))), identity, data

    # --- leases

    def open(
        self,
        tokens: Sequence[int],
        wanted: int,
        *,
        namespace: str = "",
        adapter: int = 0,
        salt: str = "",
        store: bool = True,
        reuse: bool = True,
        lineage: bytes = EXACT,
        spare: int = 0,
        now: float = 0.0,
        directive: Directive = PLAIN,
        last_resort: bool = False,
        stream: StreamWindow | None = None,
    ) -> OpenResult:
        """Look up `tokens`, hold what matches, reserve slots so that `wanted` tokens fit.

        store False: nothing it computes is published (and it never leads). reuse False: the match
        is capped at 0 (prompt_logprobs, score) but full blocks are still committed.
        directive: who keeps what this lease writes, and until when (its pin is refused here with
        PinBudgetExceeded). wanted >= cached tokens + 1. A partial match inside a sealed block
        becomes a CopyPrefix into a private block. spare: blocks per group that must stay free or
        evictable beside it, for the growth of those that run already; otherwise NoRoom.
        last_resort: nothing else runs and there was no room; even what is pinned gives way.
        stream: only this much is kept of what it computes; it opens when its whole window fits,
        has a slot for the next token only, and never fails to `extend` by one block once nobody
        but streams holds blocks."""
        self._at(now)
        if directive.pin:
            self.names.check_pin(self.blocks_for(len(tokens)))
        return self.leasing.open(
            Identity(namespace, adapter, lineage, salt),
            pack_tokens(tokens),
            len(tokens),
            wanted,
            store=store,
            reuse=reuse,
            spare=spare,
            directive=directive,
            last_resort=last_resort,
            stream=stream,
        )

    def open_joined(
        self,
        tokens: Sequence[int],
        wanted: int,
        prompt: JoinedPrompt,
        *,
        namespace: str = "",
        adapter: int = 0,
        salt: str = "",
        spare: int = 0,
        now: float = 0.0,
        directive: Directive = PLAIN,
        last_resort: bool = False,
    ) -> OpenResult | Missing:
        """The same for a prompt that is joined from units: every unit is held where it lies, what
        is computed between them is looked up under its lineage. The lease is a `Joined`, and every
        verb takes it. Missing: units that must be computed first, as prompts of their own. Only
        for managers whose groups are all of kind "full"."""
        self._at(now)
        return self.joining.open(
            Identity(namespace, adapter, EXACT, salt),
            tokens,
            wanted,
            prompt,
            spare=spare,
            directive=directive,
            last_resort=last_resort,
        )

    def extend(self, lease: Lease, wanted: int) -> bool:
        """Grow the lease so that `wanted` tokens fit; evicts idle blocks. False: nothing
        changed."""
        if isinstance(lease, Joined):
            return self.joining.extend(lease, wanted)
        return self.leasing.extend(lease, wanted)

    def fork(self, lease: Lease) -> tuple[Lease, tuple[Move, ...]] | None:
        """A second lease on the same tokens: full blocks shared, the partial tail copied
        (CopyPrefix). None when no block is free for the tail. A lease can be forked from its first
        step on: a copy of a copy cannot be made in one step."""
        if isinstance(lease, Joined):
            return self.joining.fork(lease)
        return self.leasing.fork(lease)

    def commit(self, lease: Lease, tokens: Sequence[int], now: float = 0.0) -> None:
        """Tokens computed and accepted so far (all of them, from position 0, or the sequence the
        caller keeps appending to: only the part after the last commit is read). Publishes blocks
        that became full, frees blocks that left a window; after it `lease.tables` is the only
        table."""
        self._at(now)
        if isinstance(lease, Joined):
            self.joining.commit(lease, tokens)
        else:
            self.leasing.commit(lease, tokens)

    def append(self, lease: Lease, more: Sequence[int], now: float = 0.0) -> None:
        """Like commit, of the tokens since the last one, for a stream that has dropped tokens: its
        caller need not keep them either."""
        self._at(now)
        self.leasing.append(lease, more)

    def check_stream(
        self, stream: StreamWindow, namespace: str, *, stays: bool, waiting: int = 0
    ) -> None:
        """Raise what keeps a stream from ever being opened (InvalidRequest, PromptTooLarge), or
        from being opened beside what is pinned (StreamBudgetExceeded): pins do not give way to a
        window, and one that `stays` open between requests shares their budget. waiting: blocks of
        other such streams that are not open yet."""
        for group in self.groups:
            if group.window is not None and stream.size > group.window:
                raise InvalidRequest(
                    f"stream_window: sinks + window are {stream.size} tokens, and layers of this "
                    f"model see {group.window} at most: ask for no more than that",
                    param="stream_window",
                )
        need = self.streams.blocks_for(stream)
        most = self.capacity_tokens(namespace) // self.block_size
        if need > most:
            raise PromptTooLarge(
                f"stream_window: {stream.sinks}+{stream.window} tokens need {need} blocks of "
                f"{self.block_size} tokens and the KV pool has {most}: ask for a smaller window "
                "or give the engine more --kv-memory",
                param="stream_window",
            )
        beside = self.streams.total - self._taken(namespace)
        if need > beside:
            raise StreamBudgetExceeded(
                f"stream_window: {stream.sinks}+{stream.window} tokens need {need} blocks, and "
                f"{max(beside, 0)} of the KV pool are neither pinned nor reserved for others: ask "
                "for a smaller window, unpin a cache, or give the engine more --kv-memory",
                param="stream_window",
                retry_after=30,
            )
        left = self.names.room_for_pins() - waiting
        if stays and need > left:
            raise StreamBudgetExceeded(
                f"stream_window: a session keeps its window of {need} blocks between requests, "
                f"and {max(left, 0)} are left in the budget of pins and "
                "open streams: end another session, or raise --pin-share or --kv-memory",
                param="stream_window",
                retry_after=30,
            )

    def stream_blocks(self, stream: StreamWindow) -> int:
        """Blocks that a stream is promised."""
        return self.streams.blocks_for(stream)

    def rest(self, lease: Lease, now: float = 0.0) -> None:
        """The turn of a stream has finished; its window stays for the next one."""
        self._at(now)
        self.leasing.rest(lease)

    def is_over(self, lease: Lease) -> bool:
        """Has the session ended in which this stream rests?"""
        return lease.rests_in is None or lease.rests_in.over

    def resume(self, lease: Lease, now: float = 0.0) -> bool:
        """The next turn of a stream that rests. False: its session has ended; release it."""
        self._at(now)
        return self.turns.resume(lease)

    def release(
        self, lease: Lease, *, keep: bool = True, finished: bool | None = True, now: float = 0.0
    ) -> None:
        """End the lease. keep: what was committed stays cached and the partial tail is sealed, so
        that a later prompt reuses it token-granularly. Tails are freed before heads. finished
        False: an aborted turn, what it wrote does not enter its session; None: the turn goes on
        later in another lease."""
        self._at(now)
        if isinstance(lease, Joined):
            self.joining.release(lease, keep=keep, finished=finished)
        else:
            self.leasing.release(lease, keep=keep, finished=finished)

    def launched(self, step_id: int) -> None:
        """A StepPlan that names live blocks was handed to the runner: blocks freed from now on
        become reusable only after this step is acknowledged."""
        self.holdings.launched(step_id)

    def acknowledge(self, step_id: int) -> None:
        """The StepResult came back: its moves are done, its fence falls."""
        self.holdings.acknowledge(step_id)

    # --- invalidation

    def invalidate(self, selector: Selector, now: float = 0.0) -> Receipt:
        """What the selector matches is not found any more, nor what hangs below it. In-flight
        readers finish; what they compute from it is not published.

        A block is removed when the tokens up to its end begin with the prefix. Recipes of the
        namespace may contain what is forgotten, so they all go."""
        self._at(now)
        receipt = self.invalidation.invalidate(selector)
        self.names.forget_ended()
        return receipt

    def announce_document(
        self, namespace: str, document: str, version: str, now: float = 0.0
    ) -> Receipt:
        """Every other version of the document goes, and what depends on it."""
        return self.invalidate(Selector(namespace, document=document, not_version=version), now)

    def end_session(self, namespace: str, session: str, now: float = 0.0) -> Receipt | None:
        """End the claim of a session: what nobody else holds goes. None when there is none."""
        self._at(now)
        return self.invalidation.end_session(namespace, session, "invalidated")

    def switch_context(
        self,
        namespace: str,
        session: str,
        context: str,
        mode: Relevance | None = None,
        live_tokens: Sequence[int] = (),
        now: float = 0.0,
    ) -> Receipt:
        """The session is about `context` from now on: what it alone holds of other contexts is
        demoted or deleted (mode None: as configured), but for what the live prompt contains."""
        self._at(now)
        entry = self.table.get(namespace, session)
        if entry is None:
            return Receipt()
        entry.context = context
        live: list[int] = []
        if live_tokens:
            data = pack_tokens(live_tokens)
            for identity in self.tree.identities_of(namespace):
                live += self.search.find(identity, data, len(live_tokens)).walked
        return self.invalidation.switch_context(
            namespace, session, context, mode or self.turns.relevance, live
        )

    # --- names, pins, time

    def check_pin(self, tokens: int) -> None:
        """PinBudgetExceeded unless that many tokens could be pinned beside what is."""
        self.names.check_pin(self.blocks_for(tokens))

    def name(
        self,
        namespace: str,
        name: str,
        tokens: Sequence[int],
        *,
        ttl: Ttl | None = None,
        pin: bool = False,
        adapter: int = 0,
        salt: str = "",
        now: float = 0.0,
    ) -> int:
        """The named cache holds the path of `tokens`; returns how many of them are there. A name
        that exists begins anew. PinBudgetExceeded, and nothing changed, when it does not fit."""
        self._at(now)
        identity = Identity(namespace, adapter, EXACT, salt)
        data = pack_tokens(tokens)
        found = self.search.find(identity, data, len(tokens))
        path, held = self.search.own_path(found)
        missing = self.blocks_for(len(tokens)) - len(path)
        self.names.claim(namespace, name, ttl, path, missing if pin else None)
        return held

    def unname(self, namespace: str, name: str, now: float = 0.0) -> Receipt:
        """End the claim of a named cache and its pin."""
        self._at(now)
        receipt = self.invalidation.end_name(namespace, name)
        self.names.forget_ended()
        return receipt

    def name_left(self, namespace: str, name: str, now: float = 0.0) -> float | None:
        """Seconds until the time of a named cache is up (infinite: it has no end); None: there is
        none of that name, or its time was up."""
        self._at(now)
        return self.names.left(namespace, name)

    def name_hits(self, namespace: str, name: str, now: float = 0.0) -> tuple[int, float | None]:
        """How many requests found all that a named cache holds, whether they named it or not;
        seconds since the last one did."""
        self._at(now)
        return self.names.hits(namespace, name)

    def set_ttl(self, namespace: str, name: str, ttl: Ttl | None, now: float = 0.0) -> None:
        """Another time to live for the named cache, which begins now."""
        self._at(now)
        self.names.set_ttl(namespace, name, ttl)

    def set_pin(self, namespace: str, name: str, pinned: bool, now: float = 0.0) -> None:
        """Pin what the named cache holds, or let it be evicted again; PinBudgetExceeded."""
        self._at(now)
        self.names.set_pin(namespace, name, pinned)

    def set_tags(self, namespace: str, name: str, tags: tuple[str, ...], now: float = 0.0) -> None:
        """Other tags for what the named cache holds."""
        self._at(now)
        self.names.set_tags(namespace, name, tags)

    def tick(self, now: float, budget: int = 64) -> bool:
        """Expire deadlines, end idle sessions, look at about `budget` nodes that are out of
        reach, or free half as many; True while there are more."""
        self._at(now)
        return self.upkeep.tick(budget)

    def next_deadline(self) -> float | None:
        """When `tick` has something to do at the latest, as the caller's clock counts; None: not
        before the next call."""
        return self.upkeep.next_deadline()

    def take_erasures(self) -> tuple[Erase, ...]:
        """Blocks freed since the last call whose bytes must be overwritten first of all."""
        return self.sweeper.take_erasures()

    def sessions(
        self, namespace: str | None = None, now: float = 0.0
    ) -> list[tuple[str, str, float, int, int]]:
        """(namespace, session, idle seconds, blocks, tokens) of every session."""
        self._at(now)
        return session_views(self.table, self.retention, namespace, self.block_size)

    def listing(
        self,
        namespace: str | None = None,
        now: float = 0.0,
        top: int = 100,
        with_path: bool = False,
    ) -> list[BlockView]:
        """Cached blocks, the hottest first (of one namespace); looks at a bounded number."""
        self._at(now)
        return Listing(self.retention, self.names, self.leases).views(namespace, top, with_path)

    def block_map(self, namespace: str | None = None, *, whole: bool = False) -> BlockMap:
        """The pool as one onlooker sees it from now on; see BlockMap."""
        return BlockMap(self.retention, self.leases, namespace, whole=whole)

    def outline(self, now: float = 0.0) -> Outline:
        """One look at the prefix tree."""
        self._at(now)
        return Outline(self.retention, self.names, self.groups)

    def by_hand(self, now: float = 0.0) -> ByHand:
        """For somebody who points at a node of the outline."""
        self._at(now)
        return self.hand

    def node_of(self, namespace: str, node: int, key: bytes, created: float) -> bool:
        """Is this still the node that had this key and was made then, and is it alive?"""
        tree = self.tree
        if tree.index.get(key) != node or tree.created[node] != created:
            return False
        identity = tree.identities.get(tree.root_of(node))
        if identity is None or identity.namespace != namespace:
            return False
        return not (self.retention.troubled() and self._is_gone(node))

    def _is_gone(self, node: int) -> bool:
        while self.tree.parent[node] >= 0:
            if self.retention.why_gone(node):
                return True
            node = self.tree.parent[node]
        return False

    def reset(self, namespace: str | None = None) -> bool:
        """Forget everything cached. False (and nothing changed) while blocks are leased."""
        for lease in self.leases:
            own = namespace is None or lease.identity.namespace == namespace
            if own and lease.rests_in is None:  # a stream that rests is its caller's to end
                return False
        names = {identity.namespace for identity in self.tree.roots}
        if namespace is None:
            self.meter.clear()
        for name in names if namespace is None else names & {namespace}:
            self.invalidate(Selector(namespace=name))
            if self.topics is not None:
                self.topics.forget(name)
        return True

    # --- sizes, counters, proof

    @property
    def caches(self) -> bool:
        """Is anything found again?"""
        return self.search.caching

    def blocks_for(self, tokens: int) -> int:
        """Blocks (of the first full group) that `tokens` need."""
        return self.holdings.blocks_for(tokens)

    def capacity_tokens(self, namespace: str = "") -> int:
        """The longest sequence of this namespace that fits when nothing else runs: others keep what
        is reserved for them. A window group counts as if it kept everything: one chunk of a prompt
        may be as long as the prompt."""
        blocks = min(pool.num_blocks for pool in self.pools)
        return (blocks - self.shares.others_reserve(namespace)) * self.block_size

    def set_shares(self, shares: Mapping[str, tuple[int, int | None]]) -> None:
        """Reserved and maximum bytes of cached blocks per namespace; all others share the rest.
        ConfigError, and nothing changed, when they are no shares of this pool."""
        self.shares.set_bytes(shares, sum(group.bytes_per_block for group in self.groups))

    def usage(self, namespace: str) -> tuple[int, int, int, int | None]:
        """Bytes of a namespace with a share: idle in the cache, the same as if what is public
        were its own, reserved, maximum."""
        return self.shares.usage(namespace, sum(group.bytes_per_block for group in self.groups))

    def memory(self) -> tuple[int, int, int]:
        """Bytes of K/V that are in use, that are only kept, and that there are."""
        used = cached = total = 0
        for group, pool, queue in zip(self.groups, self.pools, self.idle, strict=True):
            size, idle = group.bytes_per_block, queue.count
            used += size * (pool.num_blocks - len(pool.free) - idle)
            cached += size * idle
            total += size * pool.num_blocks
        return used, cached, total

    def curve(self) -> Curve:
        """What pools of other sizes would have served of the same prompts; see Curve."""
        return self.meter.curve()

    def stats(self) -> CacheStats:
        return cache_stats(
            self.counters,
            self.pools,
            self.idle,
            self.holdings.fence,
            self.leases,
            self.reclaim,
            self.sweeper,
            self.names,
            self.table,
        )

    def check(self) -> None:
        """Raise AssertionError unless every block is in exactly one place and counts add up."""
        audit(self)
