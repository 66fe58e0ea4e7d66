"""The only door of the cache room: lookup, reserve, commit, fork, release, invalidate, explain.

The manager keeps books; it moves nothing. It is given token ids and returns block ids and moves.
It never sees a tensor, a socket, a file or a clock that it was not handed. Standard library only.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from kveik.cache.audit import audit
from kveik.cache.claims import Label
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
from kveik.cache.invalidation import Invalidation
from kveik.cache.lease import (
    EVICTION_REASONS,
    MISS_REASONS,
    Ages,
    CacheStats,
    Lease,
    Match,
    Miss,
    NoRoom,
    Opened,
    OpenResult,
    Wait,
)
from kveik.cache.listing import Listing, session_views
from kveik.cache.lookup import Found, Lookup
from kveik.cache.names import Names
from kveik.cache.policy import DEMOTED, LOW, IdleQueues, make_policy
from kveik.cache.pool import SEALED, BlockPool, StepFence
from kveik.cache.prefix import WORD, GhostRing, Identity, PrefixTree, pack_tokens, unpack_tokens
from kveik.cache.reclaim import Reclaimer
from kveik.cache.restrict import Restrictor
from kveik.cache.retention import Retention
from kveik.cache.segments import EXACT, CopyPrefix, Erase, KvGroup, Move, Segment
from kveik.cache.sessions import Session, SessionTable
from kveik.cache.shares import Share, Shares
from kveik.cache.sweep import Sweeper
from kveik.errors import ConfigError

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


_CONTINUATION = 512  # tokens of either side that a divergence shows
_EVERYTHING = 1 << 60  # limit of a lease that may publish all its blocks


class CacheManager:
    """See the class of each returned record. All methods are for one thread (the engine's).

    A lease holds the whole path of tree nodes of its published blocks, and its own blocks behind
    them. When two leases compute the same block, the first to commit publishes it; the second
    gives its own copy back and takes the published one (equal bits, by idea C)."""

    def __init__(
        self,
        groups: Sequence[KvGroup],
        num_blocks: Sequence[int],  # per group
        block_size: int,
        *,
        policy: str = "lru",
        enable_prefix_caching: bool = True,
        ghosts: int = 4096,
        session_idle: float = 1800.0,  # seconds without a use after which a session ends
        pin_share: float = 0.5,  # of the blocks of every group
        relevance: Relevance = "demote",  # where a directive says nothing
    ) -> None:
        _check_sizes(groups, num_blocks, block_size)
        self.groups = tuple(groups)
        self.block_size = block_size
        self.caching = enable_prefix_caching
        self.relevance = relevance
        self.pools = tuple(BlockPool(count) for count in num_blocks)
        self.tree = PrefixTree(len(self.groups), block_size, secrets.token_bytes(32))
        self.idle = tuple(IdleQueues(pool, self.tree, make_policy(policy)) for pool in self.pools)
        self.ghosts = GhostRing(ghosts)
        self.fence = StepFence()
        self.leases: set[Lease] = set()
        # A row at position t of a window group reads back to t - window + 1. At least one earlier
        # token is kept, so that every group has a block at the end of a match.
        self.reach = tuple(
            max(group.window or 0, 2) if group.kind == "window" else 0 for group in self.groups
        )
        self._windowed = tuple(g for g, reach in enumerate(self.reach) if reach)
        self._range = range(len(self.groups))
        self._width = block_size * WORD
        self.retention = Retention(self.tree, self.pools, self.idle)
        self.search = Lookup(
            self.tree, self.ghosts, self.reach, enable_prefix_caching, self.retention
        )
        self.reclaim = Reclaimer(self.pools, self.idle, self.tree, self.ghosts, self.reach)
        self.shares = Shares(self.tree, self.idle, min(num_blocks))
        self.reclaim.victim = self.shares.victim
        self.restrictor = Restrictor(self.tree, self.reclaim)
        self.leaders = self.restrictor.leaders
        self.sweeper = Sweeper(
            self.retention, self.reclaim, self.ghosts, self.groups, self._cut_leases
        )
        self.names = Names(
            self.retention, self.sweeper, int(min(num_blocks) * pin_share), self._stop_leases
        )
        self.table = SessionTable(session_idle)
        self.invalidation = Invalidation(
            self.retention, self.sweeper, self.restrictor, self.table, self.leases
        )
        self._now = 0.0
        self._tick = 0
        self._launches = 0
        self._queried = self._hits = self._approximate = 0
        self._committed = self._copied = 0
        self._misses = dict.fromkeys(MISS_REASONS, 0)
        self._reuse_gaps = Ages()

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
        self._now = self.tree.now = self.retention.clock.read(reading)
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
        self._at(now)
        data = pack_tokens(tokens)
        identity = Identity(namespace, adapter, EXACT, salt)
        found = self.search.find(identity, data, self.search.cap(len(tokens)))
        self._touch(found)
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
        self._at(now)
        data = pack_tokens(tokens)
        identity = Identity(namespace, adapter, EXACT, salt)
        return self.search.match(
            self.search.find(identity, data, self.search.cap(len(tokens))), identity, data
        )

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
        self._at(now)
        data = pack_tokens(tokens)
        identity = Identity(namespace, adapter, EXACT, salt)
        found = self.search.find(identity, data, self.search.cap(len(tokens)))
        match = self.search.match(found, identity, data)
        at, reason = match.cached_tokens, match.miss.reason if match.miss else "too_short"
        cached: tuple[int, ...] = ()
        if reason in ("diverged", "new"):
            cached = unpack_tokens(self.search.continuation(found, _CONTINUATION))
        return Divergence(at, reason, cached, tuple(tokens[at : at + _CONTINUATION]))

    def _touch(self, found: Found) -> None:
        """Count the found path as used now; tail before head, as when a lease lets it go."""
        self._tick += 1
        path = [found.source] if found.source >= 0 else []
        path += reversed(found.walked[: found.blocks])
        for g in self._range:
            payload, refs, idle = self.tree.payload[g], self.pools[g].refs, self.idle[g]
            for node in path:
                block = payload[node]
                if block >= 0 and not refs[block]:
                    idle.remove(block)
                    idle.last_used[block] = self._tick
                    idle.append(block)
        for node in path:
            self.retention.used(node)

    # --- open, extend, fork

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
    ) -> OpenResult:
        """Look up `tokens`, hold what matches, reserve slots so that `wanted` tokens fit.

        store False: nothing it computes is published (and it never leads). reuse False: the match
        is capped at 0 (prompt_logprobs, score) but full blocks are still committed.
        directive: who keeps what this lease writes, and until when (its pin is refused here with
        PinBudgetExceeded). wanted >= cached tokens + 1. A partial match inside a sealed block
        becomes a CopyPrefix into a private block. spare: blocks per group that must stay free or
        evictable beside it, for the growth of those that run already; otherwise NoRoom.
        last_resort: nothing else runs and there was no room; even what is pinned gives way."""
        self._at(now)
        data = pack_tokens(tokens)
        identity = Identity(namespace, adapter, lineage, salt)
        store = store and directive.write != "none"
        if directive.pin:
            self.names.check_pin(self.blocks_for(len(tokens)))
        found = self.search.find(identity, data, self.search.cap(len(tokens)) if reuse else 0)
        if reuse and (leader := self.leaders.get(self.search.next_key(found, data))):
            return Wait(leader)
        if not self._fits(found, wanted, spare, namespace, last_resort):
            # Without the source of a copy nothing but the path is held: that fits whenever the
            # sequence fits alone.
            found = self.search.whole_blocks(found, identity)
            if not self._fits(found, wanted, spare, namespace, last_resort):
                return NoRoom()
        if found.public:
            identity = identity._replace(base=self.tree.base_of(found.walked[found.public - 1]))
        lease = Lease(identity, len(self.groups), directive)
        lease.opened_at = self._now
        cached = found.blocks * self.block_size + found.extra
        lease.miss = (
            self.search.miss(found, identity, data, cached) if reuse else Miss(0, "too_short")
        )
        if not store and self.caching:
            self._note_unstored(lease, found, data)
        elif self.caching:
            self._publish_behind(lease, found, data)
        if cached:
            last = found.source if found.source >= 0 else found.walked[found.blocks - 1]
            self._reuse_gaps.add(self._now - self.tree.used[last])
        moves = self._hold(lease, found, wanted)
        if self.retention.active or directive != PLAIN:
            self._claim(lease, found, data)
        if reuse:
            self._count(lease, len(tokens))
        self.leases.add(lease)
        return Opened(lease, moves)

    def _fits(
        self, found: Found, wanted: int, spare: int, namespace: str, last_resort: bool
    ) -> bool:
        """Are there blocks for `wanted` tokens and `spare`, beside what the match will hold?"""
        cached = found.blocks * self.block_size + found.extra
        need = self.blocks_for(max(wanted, cached + 1)) - found.blocks + spare
        for g in self._range:
            pool, payload, idle = self.pools[g], self.tree.payload[g], self.idle[g]
            held = found.walked[self.search.first_needed(g, cached) : found.blocks]
            if found.source >= 0:
                held = [*held, found.source]
            kept = 0  # blocks that could be evicted if this lease did not hold them
            for node in held:
                block = payload[node]
                kept += not pool.refs[block] and not idle.is_pinned(block)
            room = self.shares.evictable(g, self.shares.account(namespace)) - kept
            if last_resort:
                room = idle.count - len(held)
            if need > len(pool.free) + room:
                return False
        return True

    def _hold(self, lease: Lease, found: Found, wanted: int) -> tuple[Move, ...]:
        """Take the match and the blocks behind it. The caller knows that they fit."""
        cached = found.blocks * self.block_size + found.extra
        lease.cached_tokens = lease.committed = cached
        lease.sealed = found.blocks
        sources: list[tuple[int, int]] = []
        for g in self._range:
            payload = self.tree.payload[g]
            start = lease.starts[g] = self.search.first_needed(g, cached)
            lease.blocks[g] = [payload[node] for node in found.walked[start : found.blocks]]
            self._reuse(g, lease.blocks[g])
            if found.source >= 0:
                sources.append((g, payload[found.source]))
                self._reuse(g, [payload[found.source]])
        if found.source >= 0:
            lease.tail = self.tree.chunk(found.source)[: found.extra * WORD]
        lease.capacity = found.blocks * self.block_size
        self._grow(lease, max(wanted, cached + 1))
        return self._copies(lease, sources, found.extra)

    def _claim(self, lease: Lease, found: Found, data: bytes) -> None:
        """What the lease reuses is kept by it, too: labelled behind the last place where the tree
        branches, held as plain use before it."""
        retention, directive = self.retention, lease.directive
        namespace = lease.identity.namespace
        retention.activate()
        self.reclaim.careful = True
        if lease.limit:
            self._join_session(lease, found)
            lease.labels = retention.labels_of(directive, namespace)
            retention.claims.hold(lease.labels)
        lease.erase = directive.deletes
        if directive.write_until is not None:
            self.restrictor.limit(lease, directive.write_until // self.block_size)
        path = found.walked[: found.blocks]
        alone = self._alone(path, found, data) if lease.limit else len(path)
        names: set[Label] = set()
        for number, node in enumerate(path):
            names |= retention.set_of(node).labels
            start = number * self.block_size
            if number < found.public:
                retention.used(node)
            elif number >= alone:
                retention.shared(lease, node, start, start + self.block_size)
            else:
                retention.visited(lease, node)
        if found.source >= 0:
            retention.used(found.source)
        self.names.used(names)

    def _alone(self, path: list[int], found: Found, data: bytes) -> int:
        """Number of the first node of the path behind which no other sequence leaves it."""
        children, alone = self.tree.children, len(path)
        if alone > found.public and not self._leaves(path[-1], found, data):
            alone -= 1
            while alone > found.public and children[path[alone - 1]] == 1:
                alone -= 1
        return alone

    def _leaves(self, last: int, found: Found, data: bytes) -> bool:
        """Does another sequence go on behind the last matched node than that of `data`?"""
        others = self.tree.children[last]
        if found.source >= 0:
            rest = data[found.blocks * self._width : (found.blocks + 1) * self._width]
            chunk = self.tree.chunk(found.source)
            others -= chunk.startswith(rest) or rest.startswith(chunk)
        return others > 0

    def _join_session(self, lease: Lease, found: Found) -> None:
        """The lease works on a turn of its session, which may be about something else now."""
        directive, namespace = lease.directive, lease.identity.namespace
        if directive.name is not None:
            self.names.renew(namespace, directive.name, directive.ttl)
        if directive.session is None:
            return
        entry = self.table.use(namespace, directive.session, self._now)
        entry.open += 1
        lease.session = entry
        if directive.context is not None and directive.context != entry.context:
            if entry.context is not None:
                mode = directive.relevance or self.relevance
                live = found.walked[: found.blocks]
                self.invalidation.switch_context(
                    namespace, directive.session, directive.context, mode, live
                )
            entry.context = directive.context

    def _copies(self, lease: Lease, sources: list[tuple[int, int]], count: int) -> tuple[Move, ...]:
        """Moves from (group, block) to the lease's first unsealed block; the fence keeps the
        sources, which already carry a reference for it."""
        if not sources:
            return ()
        self.fence.hold_for_next(sources)
        lease.opened = self._launches
        self._copied += len(sources)
        return tuple(
            CopyPrefix(g, source, lease.blocks[g][lease.sealed - lease.starts[g]], count)
            for g, source in sources
        )

    def _reuse(self, group: int, blocks: Sequence[int]) -> None:
        """One more holder for each of these blocks."""
        refs, idle = self.pools[group].refs, self.idle[group]
        for block in blocks:
            if not refs[block]:
                idle.remove(block)
            refs[block] += 1
            idle.hits[block] += 1

    def _grow(self, lease: Lease, wanted: int) -> None:
        """Add blocks until `wanted` tokens fit. The caller knows that there are enough."""
        need = self.blocks_for(wanted) - lease.capacity // self.block_size
        for g in self._range:
            pool = self.pools[g]
            taken = pool.take(min(need, len(pool.free)))
            evicting = need - len(taken)
            account = self.shares.account(lease.identity.namespace)
            self.reclaim.make_room(g, evicting, self._now, account)
            taken += reversed(pool.take(evicting))  # in the order in which they were evicted
            lease.blocks[g] += taken
            self.idle[g].renew(taken)
        lease.capacity += need * self.block_size
        self._name_blocks(lease)

    def _name_blocks(self, lease: Lease) -> None:
        """Make the lease's tables anew after its blocks changed."""
        size, committed = self.block_size, lease.committed
        lease.tables = tuple(
            (Segment(tuple(blocks), start * size, 0, committed - start * size, 0),)
            for blocks, start in zip(lease.blocks, lease.starts, strict=True)
        )

    def _count(self, lease: Lease, length: int) -> None:
        self._queried += length
        if lease.miss is not None:
            self._misses[lease.miss.reason] += 1
        if lease.lineage == EXACT:
            self._hits += lease.cached_tokens
        else:
            self._approximate += lease.cached_tokens

    def _publish_behind(self, lease: Lease, found: Found, data: bytes) -> None:
        """From now on full blocks of the lease are published behind the end of the match."""
        root = self.tree.root(lease.identity, data[: found.public * self._width])
        lease.node = found.walked[found.blocks - 1] if found.blocks > found.public else root
        lease.limit = _EVERYTHING
        self.tree.pins[lease.node] += 1
        lease.sealed = found.blocks
        lease.prompt = data
        self._lead(lease)

    def _note_unstored(self, lease: Lease, found: Found, data: bytes) -> None:
        """Remember what this lease will compute and not publish, to be able to say so later."""
        chunk = data[found.blocks * self._width : (found.blocks + 1) * self._width]
        if len(chunk) == self._width and self.ghosts.capacity:
            tree, node = self.tree, found.behind(found.blocks)
            above = tree.digest(node) if node >= 0 else tree.absent_root_digest(lease.identity)
            lease.unstored = tree.digest_below(above, chunk)

    def _lead(self, lease: Lease) -> None:
        """Whoever needs the next block of this lease's prompt waits for it (invariant 7)."""
        start = lease.sealed * self._width
        chunk = lease.prompt[start : start + self._width]
        if len(chunk) < self._width:
            lease.prompt = b""
            return
        key = lease.node.to_bytes(4, "big") + chunk
        if key not in self.leaders:
            self.leaders[key] = lease
            lease.leading = key

    def extend(self, lease: Lease, wanted: int) -> bool:
        """Grow the lease so that `wanted` tokens fit; evicts idle blocks. False: nothing
        changed."""
        if wanted <= lease.capacity:
            return True
        self._known(lease)
        need = self.blocks_for(wanted) - lease.capacity // self.block_size
        for g in self._range:
            account = self.shares.account(lease.identity.namespace)
            if need > len(self.pools[g].free) + self.shares.evictable(g, account):
                return False
        self._grow(lease, wanted)
        return True

    def fork(self, lease: Lease) -> tuple[Lease, tuple[Move, ...]] | None:
        """A second lease on the same tokens: full blocks shared, the partial tail copied
        (CopyPrefix). None when no block is free for the tail. A lease can be forked from its first
        step on: a copy of a copy cannot be made in one step."""
        self._known(lease)
        if not self._moved(lease):
            raise ValueError("fork: the moves of this lease were not launched yet")
        partial = lease.committed - lease.sealed * self.block_size
        if partial and any(
            not self.pools[g].free
            and not self.shares.evictable(g, self.shares.account(lease.identity.namespace))
            for g in self._range
        ):
            return None
        child = Lease(lease.identity, len(self.groups), lease.directive)
        child.cached_tokens, child.miss = lease.cached_tokens, lease.miss
        child.committed, child.sealed, child.tail = lease.committed, lease.sealed, lease.tail
        child.starts = list(lease.starts)
        child.selectors = list(lease.selectors)
        child.node, child.limit = lease.node, lease.limit
        child.unstored, child.erase, child.opened_at = lease.unstored, lease.erase, lease.opened_at
        child.labels = lease.labels
        self.retention.claims.hold(child.labels)
        entry = self._session_of(lease)
        if entry is not None:
            entry.open += 1
            child.session = entry
        if child.node >= 0:
            self.tree.pins[child.node] += 1
        sources: list[tuple[int, int]] = []
        for g in self._range:
            shared = lease.sealed - lease.starts[g]
            child.blocks[g] = lease.blocks[g][:shared]
            self._reuse(g, child.blocks[g])
            if partial:
                sources.append((g, lease.blocks[g][shared]))
                self.pools[g].refs[lease.blocks[g][shared]] += 1
        child.capacity = lease.sealed * self.block_size
        self._grow(child, lease.committed)
        self.leases.add(child)
        return child, self._copies(child, sources, partial)

    # --- commit and release

    def commit(self, lease: Lease, tokens: Sequence[int], now: float = 0.0) -> None:
        """Tokens computed and accepted so far (all of them, from position 0, or the sequence the
        caller keeps appending to: only the part after the last commit is read). Publishes blocks
        that became full, frees blocks that left a window; after it `lease.tables` is the only
        table."""
        self._known(lease)
        self._at(now)
        count = len(tokens)
        if not lease.committed <= count <= lease.capacity:
            raise ValueError(
                f"commit of {count} tokens: the lease has {lease.committed} committed and room "
                f"for {lease.capacity}; extend it first"
            )
        if count == lease.committed:
            return
        lease.tail += pack_tokens(tokens[lease.committed : count])
        lease.committed = count
        if lease.selectors:
            self.restrictor.obey(lease, tokens)
        changed = False
        full = count // self.block_size
        if full > lease.sealed:
            changed = self._seal(lease, full)
        for g in self._windowed:
            changed = self._leave_window(lease, g) or changed
        if changed:
            self._name_blocks(lease)
        else:
            self._count_tokens(lease)

    def _count_tokens(self, lease: Lease) -> None:
        """The tables when only the number of tokens changed."""
        committed = lease.committed
        lease.tables = tuple(
            (Segment(table[0].blocks, table[0].home, 0, committed - table[0].home, 0),)
            for table in lease.tables
        )

    def _seal(self, lease: Lease, full: int) -> bool:
        """Blocks up to number `full` became full: publish them. True when a block was swapped."""
        width, tail = self._width, lease.tail
        publish = max(min(full, lease.limit) - lease.sealed, 0)
        swapped: list[tuple[int, int]] = []
        node = first = lease.node
        for offset in range(publish):
            chunk = tail[offset * width : (offset + 1) * width]
            node = self._publish(lease, node, lease.sealed + offset, chunk, swapped)
        if node != first:
            self.tree.pins[node] += 1
            self.tree.pins[first] -= 1
            lease.node = node
        for g in self._range:
            state, start = self.pools[g].state, lease.starts[g]
            for block in lease.blocks[g][lease.sealed - start : full - start]:
                state[block] = SEALED
        lease.tail = tail[(full - lease.sealed) * width :]
        lease.sealed = full
        self.restrictor.stop_leading(lease)
        if lease.prompt and lease.limit > full:
            self._lead(lease)
        self._let_go(lease, swapped)
        return bool(swapped)

    def _publish(
        self, lease: Lease, parent: int, number: int, chunk: bytes, swapped: list[tuple[int, int]]
    ) -> int:
        """Put block `number` of the lease into the tree, or take the one that is there."""
        tree = self.tree
        node = tree.index.get(parent.to_bytes(4, "big") + chunk, -1)
        if node >= 0:
            node = self._living(node)
        new = node < 0
        if new:
            redundant = tree.shorter_tail(parent, chunk)
            node = tree.insert(parent, chunk)
            if redundant >= 0:
                self._drop_redundant(redundant)
        for g in self._range:
            index = number - lease.starts[g]
            own, published = lease.blocks[g][index], tree.payload[g][node]
            if published < 0:
                tree.payload[g][node] = own
                self.pools[g].owner[own] = node
                self.pools[g].state[own] = SEALED
                self._committed += 1
                if self.sweeper.doomed:
                    self.sweeper.doomed.discard((g, own))
            else:
                self._reuse(g, (published,))
                lease.blocks[g][index] = published
                swapped.append((g, own))
        if self.retention.active:
            start = number * self.block_size
            keep = self.retention.written if new else self.retention.shared
            keep(lease, node, start, start + len(chunk) // WORD)
        return node

    def _living(self, node: int) -> int:
        """The node, or -1 for a dead one, which is put out of the way of a new one."""
        if node >= 0 and self.retention.troubled():
            reason = self.retention.why_gone(node)
            if reason:
                self.sweeper.bury(node, reason)
                return -1
        return node

    def _is_extended(self, parent: int, chunk: bytes) -> bool:
        """Does a longer living block under `parent` begin with `chunk`?"""
        while (longer := self.tree.extension(parent, chunk)) >= 0:
            if self._living(longer) >= 0:
                return True
        return False

    def _drop_redundant(self, tail: int) -> None:
        """A tail that a longer block extends goes, unless a named cache or a pin holds it."""
        if all(label.kind not in ("name", "pin") for label in self.retention.set_of(tail).labels):
            self.reclaim.drop_if_idle(tail)

    def _leave_window(self, lease: Lease, group: int) -> bool:
        """Let go of blocks that no later token of the lease sees."""
        start = self.search.first_needed(group, lease.committed)
        gone = start - lease.starts[group]
        if gone <= 0:
            return False
        blocks = lease.blocks[group]
        lease.starts[group] = start
        leaving = [(group, block) for block in blocks[:gone]]
        del blocks[:gone]
        self._let_go(lease, leaving)
        return True

    def release(
        self, lease: Lease, *, keep: bool = True, finished: bool | None = True, now: float = 0.0
    ) -> None:
        """End the lease. keep: what was committed stays cached and the partial tail is sealed, so
        that a later prompt reuses it token-granularly. Tails are freed before heads. finished
        False: an aborted turn, what it wrote does not enter its session; None: the turn goes on
        later in another lease."""
        self._known(lease)
        self._at(now)
        self._tick += 1
        self.restrictor.stop_leading(lease)
        self.leases.discard(lease)
        if finished is not True and lease.claimed:
            self._give_back(lease, "plain" if finished is False else "turn")
        published = min(lease.sealed, lease.limit) * self.block_size
        lease.stored = max(lease.cached_tokens, published)
        tail = -1
        if keep and lease.tail and self._may_seal_tail(lease):
            tail = self._seal_tail(lease)
            lease.stored = lease.committed
        if finished and lease.directive.pin and lease.node >= 0:
            self._pin_path(lease, tail if tail >= 0 else lease.node)
        if lease.unstored and lease.sealed * self.block_size > lease.cached_tokens:
            self.ghosts.remember(lease.unstored, "no_store")
        for g in self._range:
            self._let_go(lease, [(g, block) for block in reversed(lease.blocks[g])])
            lease.blocks[g] = []
        if lease.node >= 0:
            self.tree.pins[lease.node] -= 1
            self.reclaim.prune(lease.node)
        lease.tables, lease.node = (), -1
        self._leave_session(lease, finished)

    def _may_seal_tail(self, lease: Lease) -> bool:
        until = lease.directive.write_until
        if until is not None and lease.limit == until // self.block_size == lease.sealed:
            return lease.node >= 0 and lease.committed <= until and self._moved(lease)
        return lease.sealed < lease.limit and self._moved(lease)

    def _seal_tail(self, lease: Lease) -> int:
        """Publish the partial last block, unless a block that begins with it is there (-1)."""
        if self._is_extended(lease.node, lease.tail):
            return -1
        swapped: list[tuple[int, int]] = []
        node = self._publish(lease, lease.node, lease.sealed, lease.tail, swapped)
        self._let_go(lease, swapped)
        return node

    def _give_back(self, lease: Lease, kind: str) -> None:
        """The turn did not finish: what it claimed for its session is plain use, or waits for the
        turn to go on."""
        namespace, key = lease.identity.namespace, lease.directive.session if kind == "turn" else ""
        label = self.retention.claims.label(namespace, kind, key or "")
        self.retention.give_back(lease, self._path(lease.node), label)

    def _path(self, node: int) -> list[int]:
        """The nodes from this one up to below the root."""
        path: list[int] = []
        while node >= 0 and self.tree.parent[node] >= 0:
            path.append(node)
            node = self.tree.parent[node]
        return path

    def _pin_path(self, lease: Lease, node: int) -> None:
        """Pin what the lease leaves behind, as long as its session, or its name, lasts."""
        directive, namespace = lease.directive, lease.identity.namespace
        path = self._path(node)
        fresh = sum(not self.retention.set_of(each).pinned for each in path)
        if fresh > self.names.budget - self.names.pinned():
            return  # others took the budget meanwhile
        key = "" if directive.session is None else f"session:{directive.session}"
        pin = frozenset((self.retention.claims.label(namespace, "pin", key),))
        for each in path:
            self.retention.add_labels(each, pin, namespace)

    def _leave_session(self, lease: Lease, finished: bool | None) -> None:
        self.retention.claims.let_go(lease.labels)
        lease.labels = frozenset()
        entry = self._session_of(lease)
        if entry is None:
            return
        namespace, session = lease.identity.namespace, lease.directive.session or ""
        entry.open -= 1
        if finished:
            entry.turns += 1
        self.table.use(namespace, session, self._now)
        if finished is False and not entry.turns and not entry.open:
            self.table.forget(namespace, session)

    def _session_of(self, lease: Lease) -> Session | None:
        """The session in whose turn the lease works, unless it has ended."""
        return lease.session if lease.session is not None and not lease.session.over else None

    def _known(self, lease: Lease) -> None:
        if lease not in self.leases:
            raise ValueError("the lease was released already, or belongs to another manager")

    def _moved(self, lease: Lease) -> bool:
        """Were the moves that fill its first block launched (or needs it none)?"""
        return lease.opened != self._launches

    # --- references

    def _let_go(self, lease: Lease, references: list[tuple[int, int]]) -> None:
        """Give up references; those that a launched step may still use pass to the fence."""
        if not references:
            return
        if lease.erase:
            owners = [pool.owner for pool in self.pools]
            self.sweeper.doom(pair for pair in references if owners[pair[0]][pair[1]] < 0)
        if not self._moved(lease):
            self.fence.hold_for_next(references)
        elif self.fence.running:
            self.fence.hold(references)
        else:
            self._drop(references)

    def _drop(self, references: list[tuple[int, int]]) -> None:
        for g, block in references:
            pool = self.pools[g]
            pool.refs[block] -= 1
            if pool.refs[block]:
                continue
            node = pool.owner[block]
            if node < 0:
                pool.give(block)
                self.sweeper.let_go(g, block)
                continue
            self.idle[g].last_used[block] = self._tick
            self.tree.used[node] = self._now
            self.idle[g].append(block)
            if self.tree.length[node] < self.block_size and self._is_extended(
                self.tree.parent[node], self.tree.chunk(node)
            ):
                self._drop_redundant(node)

    def launched(self, step_id: int) -> None:
        """A StepPlan that names live blocks was handed to the runner: blocks freed from now on
        become reusable only after this step is acknowledged."""
        self.fence.launched(step_id)
        self._launches += 1

    def acknowledge(self, step_id: int) -> None:
        """The StepResult came back: its moves are done, its fence falls."""
        self._tick += 1
        self._drop(self.fence.acknowledge(step_id))

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
            namespace, session, context, mode or self.relevance, live
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
        path = found.walked[found.public : found.blocks]
        held = found.blocks * self.block_size
        if found.source >= 0 and self.tree.length[found.source] == found.extra:
            path = [*path, found.source]
            held += found.extra
        if pin:
            fresh = sum(not self.retention.set_of(node).pinned for node in path)
            self.names.check_pin(max(fresh, self.blocks_for(len(tokens)) - len(path) + fresh))
        entry = self.names.renew(namespace, name, ttl)
        self.names.set_pin(namespace, name, pin)
        label = frozenset((entry.label,))
        for node in path:
            self.retention.add_labels(node, label, namespace)
            self.retention.used(node)
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
        """Expire deadlines, end idle sessions, free at most `budget` nodes that are out of reach;
        True while there are more."""
        self._at(now)
        left = self.sweeper.advance(budget)
        self._trim(budget)
        while left > 0:
            node = self.retention.deadlines.take_due(self._now)
            if node >= 0:
                self._come_due(node)
                left = self.sweeper.advance(left - 1)
                continue
            idle = self.table.next_idle(self._now)
            if idle is None:
                break
            self.invalidation.end_session(*idle, "expired")
            left -= 8
        return bool(self.sweeper.jobs) or self.retention.deadlines.is_due(self._now)

    def _trim(self, budget: int) -> None:
        """What a namespace keeps beyond its maximum goes."""
        for g, account, above in self.shares.above_maximum():
            self.reclaim.trim(g, min(above, budget), self._now, account)

    def _come_due(self, node: int) -> None:
        """A deadline of this node may have passed."""
        retention = self.retention
        if retention.overdue(node):
            self.sweeper.bury_top(node, "expired")
            return
        if retention.is_read(node):
            self.tree.used[node] = self._now
        if retention.deadlines.demote_at(node) <= self._now:
            retention.fade(node)
        retention.deadlines.wait(node, demoted=retention.is_faded(node))

    def next_deadline(self) -> float | None:
        """When `tick` has something to do at the latest, as the caller's clock counts; None: not
        before the next call."""
        clock = self.retention.clock
        if self.sweeper.jobs or self.tree.orphans:
            return clock.as_read(clock.now)
        moments = (
            self.retention.deadlines.next(),
            self.names.next_deadline(),
            self.table.next_deadline(),
        )
        known = [moment for moment in moments if moment is not None]
        return clock.as_read(min(known)) if known else None

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

    def _stop_leases(self, label: Label) -> None:
        """Leases that would write this label publish nothing more."""
        for lease in self.leases:
            if label in lease.labels:
                self.restrictor.detach(lease)

    def _cut_leases(self, node: int) -> None:
        for lease in self.leases:
            if lease.node == node:
                self.restrictor.cut(lease)

    def reset(self, namespace: str | None = None) -> bool:
        """Forget everything cached. False (and nothing changed) while blocks are leased."""
        for lease in self.leases:
            if namespace is None or lease.identity.namespace == namespace:
                return False
        names = {identity.namespace for identity in self.tree.roots}
        for name in names if namespace is None else names & {namespace}:
            self.invalidate(Selector(namespace=name))
        return True

    # --- sizes, counters, proof

    def blocks_for(self, tokens: int) -> int:
        """Blocks (of the first full group) that `tokens` need."""
        return -(-tokens // self.block_size)

    def capacity_tokens(self, namespace: str = "") -> int:
        """The longest sequence of this namespace that fits when nothing else runs: others keep what
        is reserved for them. A window group counts as if it kept everything: one chunk of a prompt
        may be as long as the prompt."""
        blocks = min(pool.num_blocks for pool in self.pools)
        return (blocks - self.shares.others_reserve(namespace)) * self.block_size

    def set_shares(self, shares: Mapping[str, tuple[int, int | None]]) -> None:
        """Reserved and maximum bytes of cached blocks per namespace; all others share the rest.
        ConfigError, and nothing changed, when they are no shares of this pool."""
        size = max(sum(group.bytes_per_block for group in self.groups), 1)
        self.shares.set(
            {
                name: Share(-(-reserved // size), None if most is None else most // size)
                for name, (reserved, most) in shares.items()
            }
        )

    def usage(self, namespace: str) -> tuple[int, int, int, int | None]:
        """Bytes of a namespace with a share: idle in the cache, the same as if what is public
        were its own, reserved, maximum."""
        size, share = sum(group.bytes_per_block for group in self.groups), self.shares.of(namespace)
        account = self.shares.account(namespace)
        idle = self.idle[0].evictable_of[account] * size if account else 0
        public = sum(self.tree.blocks_before(each) for each in self.tree.identities_of(namespace))
        most = None if share.maximum is None else share.maximum * size
        return idle, idle + public * size, share.reserved * size, most

    def stats(self) -> CacheStats:
        fenced = tuple(len(blocks) for blocks in self._fenced_only())
        free = tuple(len(pool.free) for pool in self.pools)
        idle = tuple(queue.count for queue in self.idle)
        total = tuple(pool.num_blocks for pool in self.pools)
        leased = tuple(
            len({block for lease in self.leases for block in lease.blocks[g]}) for g in self._range
        )
        return CacheStats(
            queried_tokens=self._queried,
            hit_tokens=self._hits,
            approximate_hit_tokens=self._approximate,
            evicted_blocks=self.reclaim.evicted,
            committed_blocks=self._committed,
            copied_blocks=self._copied,
            total_blocks=total,
            free_blocks=free,
            leased_blocks=leased,
            idle_blocks=idle,
            fenced_blocks=fenced,
            leaked_blocks=sum(total) - sum(free) - sum(idle) - sum(fenced) - sum(leased),
            logical_blocks=tuple(
                count + self.tree.shared_blocks() for count in self._used_blocks()
            ),
            pinned_blocks=(self.names.pinned(),) * len(self.pools),
            demoted_blocks=tuple(queue.waiting(DEMOTED) for queue in self.idle),
            low_blocks=tuple(queue.waiting(LOW) for queue in self.idle),
            evictions={
                reason: self.sweeper.deleted.get(reason, 0)
                if reason != "capacity"
                else self.reclaim.evicted
                for reason in EVICTION_REASONS
            },
            misses=dict(self._misses),
            erased_blocks=self.sweeper.erased,
            sessions=len(self.table),
            block_ages=self.reclaim.ages.record(),
            reuse_gaps=self._reuse_gaps.record(),
        )

    def _used_blocks(self) -> list[int]:
        """Blocks that hold something, per group."""
        return [pool.num_blocks - len(pool.free) for pool in self.pools]

    def _fenced_only(self) -> list[set[int]]:
        """Per group, blocks that nobody but the fence holds."""
        counts: list[dict[int, int]] = [{} for _ in self._range]
        for g, block in self.fence.held():
            counts[g][block] = counts[g].get(block, 0) + 1
        return [
            {block for block, count in counts[g].items() if count == self.pools[g].refs[block]}
            for g in self._range
        ]

    def check(self) -> None:
        """Raise AssertionError unless every block is in exactly one place and counts add up."""
        audit(self)


def _check_sizes(groups: Sequence[KvGroup], num_blocks: Sequence[int], block_size: int) -> None:
    if not groups or len(groups) != len(num_blocks):
        raise ConfigError(f"{len(groups)} KV groups need as many pool sizes, got {num_blocks}")
    if not 1 <= block_size <= 4096 or min(num_blocks) < 1:
        raise ConfigError(
            f"block_size {block_size} must be 1 .. 4096 and every pool needs a block: {num_blocks}"
        )
    for group in groups:
        if group.kind == "state":
            raise ConfigError("KV groups of kind 'state' (recurrent models) are not served yet")
        if group.kind == "window" and (group.window is None or group.window < 1):
            raise ConfigError(f"a window group needs window >= 1, got {group.window}")
