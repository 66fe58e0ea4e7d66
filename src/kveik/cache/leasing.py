"""The life of a lease: open, extend, fork, commit, release; see CacheManager for what each
promises.

A lease holds the whole path of tree nodes of its published blocks, and its own blocks behind them.
What it holds is in `holdings.py`, what it publishes in `publish.py`, what it claims in `turns.py`;
here is the order of events. Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence

from kveik.cache.directive import PLAIN, Directive
from kveik.cache.lease import Lease, Miss, NoRoom, Opened, OpenResult, Wait
from kveik.cache.lookup import Found
from kveik.cache.prefix import Identity, pack_tokens
from kveik.cache.publish import Publisher
from kveik.cache.segments import Move
from kveik.cache.turns import Turns
from kveik.cache.window import StreamWindow


class Leasing:
    """leases: those that are open."""

    def __init__(self, leases: set[Lease], publisher: Publisher, turns: Turns) -> None:
        self.leases, self.publisher, self.turns = leases, publisher, turns
        self.holdings, self.counters = publisher.holdings, publisher.counters
        self.search, self.restrictor = self.holdings.search, publisher.restrictor
        self.tree, self.retention = self.search.tree, self.search.retention
        self.streams = self.holdings.streams
        self._groups = len(self.holdings.pools)
        self._size = self.search.block_size

    def open(
        self,
        identity: Identity,
        data: bytes,
        length: int,  # tokens of the prompt, packed in `data`
        wanted: int,
        *,
        store: bool,
        reuse: bool,
        spare: int,
        directive: Directive,
        last_resort: bool,
        stream: StreamWindow | None = None,
    ) -> OpenResult:
        namespace = identity.namespace
        cap = self.search.cap(length) if reuse else 0
        if stream is not None:
            if not self.streams.fits(stream, namespace):
                return NoRoom()
            cap = min(cap, stream.size - 1)  # behind it rows see another past
            wanted = self.streams.blocks_for(stream) * self._size
        found = self.search.find(identity, data, cap)
        if reuse and (leader := self.restrictor.leaders.get(self.search.next_key(found, data))):
            return Wait(leader)
        everything = found if reuse else self.search.find(identity, data, length)
        if not self.holdings.fits(found, wanted, spare, namespace, last_resort):
            # Without the source of a copy nothing but the path is held: that fits whenever the
            # sequence fits alone.
            found = self.search.whole_blocks(found, identity)
            if not self.holdings.fits(found, wanted, spare, namespace, last_resort):
                return NoRoom()
        if found.public:
            identity = identity._replace(base=self.tree.base_of(found.walked[found.public - 1]))
        lease = Lease(identity, self._groups, directive, stream)
        lease.opened_at = self.tree.now
        lease.there = self.search.there(everything, data)
        cached = found.blocks * self._size + found.extra
        lease.miss = (
            self.search.miss(found, identity, data, cached) if reuse else Miss(0, "too_short")
        )
        if stream is not None and cached == stream.size - 1:  # the rest has another past
            lease.miss = Miss(cached, "too_short")
        store = store and directive.write != "none"
        if not store and self.search.caching:
            self.publisher.note_unstored(lease, found, data)
        elif self.search.caching:
            self.publisher.begin(lease, found, data)
        self.publisher.feed.opened(lease, found, data, cap, counted=reuse)
        moves = self._take(lease, found, data, wanted if stream is None else 1)
        if reuse:
            self.counters.opened(lease, length)
        self.leases.add(lease)
        self.streams.add(lease)
        return Opened(lease, moves)

    def _take(self, lease: Lease, found: Found, data: bytes, wanted: int) -> tuple[Move, ...]:
        """The lease holds what was found, and claims what its directive says."""
        if found.blocks or found.extra:
            last = found.source if found.source >= 0 else found.walked[found.blocks - 1]
            self.counters.reuse_gaps.add(self.tree.now - self.tree.used[last])
        moves = self.holdings.hold(lease, found, wanted)
        if self.retention.active or lease.directive != PLAIN:
            self.turns.begin(lease, found, data)
            self.turns.names.keep_budget(lease.labels)
        return moves

    def extend(self, lease: Lease, wanted: int) -> bool:
        if wanted <= lease.capacity:
            return True
        self._known(lease)
        need = self.holdings.blocks_for(wanted) - lease.capacity // self._size
        if not self.holdings.has_room(lease, need):
            return False
        self.holdings.grow(lease, wanted)
        return True

    def fork(self, lease: Lease) -> tuple[Lease, tuple[Move, ...]] | None:
        self._known(lease)
        if lease.stream is not None:
            raise ValueError("fork: a stream has one continuation")
        if not self.holdings.were_moved(lease):
            raise ValueError("fork: the moves of this lease were not launched yet")
        if lease.committed % self._size and not self.holdings.has_room(lease, 1):
            return None
        child = Lease(lease.identity, self._groups, lease.directive)
        child.cached_tokens, child.miss = lease.cached_tokens, lease.miss
        child.there, child.marks = lease.there, list(lease.marks)
        child.committed, child.sealed, child.tail = lease.committed, lease.sealed, lease.tail
        child.starts = list(lease.starts)
        child.selectors = list(lease.selectors)
        child.node, child.limit = lease.node, lease.limit
        child.unstored, child.erase, child.opened_at = lease.unstored, lease.erase, lease.opened_at
        self.turns.fork(lease, child)
        if child.node >= 0:
            self.tree.pins[child.node] += 1
        moves = self.holdings.share(lease, child)
        self.leases.add(child)
        return child, moves

    def commit(self, lease: Lease, tokens: Sequence[int]) -> None:
        self._known(lease)
        count = len(tokens)
        if not lease.committed <= count <= lease.capacity:
            raise ValueError(
                f"commit of {count} tokens: the lease has {lease.committed} committed and room "
                f"for {lease.capacity}; extend it first"
            )
        if count == lease.committed:
            return
        more = tokens[lease.committed : count]
        lease.committed = count
        if lease.selectors:
            self.restrictor.obey(lease, tokens)
        self._append(lease, more)

    def append(self, lease: Lease, more: Sequence[int]) -> None:
        self._known(lease)
        count = lease.committed + len(more)
        if not (lease.evicted and count <= lease.capacity):
            raise ValueError(
                f"append of {len(more)} tokens: only to a stream that dropped some, and only "
                f"where it has room ({lease.capacity})"
            )
        lease.committed = count
        self._append(lease, more)

    def _append(self, lease: Lease, more: Sequence[int]) -> None:
        """These are the last of the committed tokens."""
        count = lease.committed
        if lease.stream is not None:
            lease.evicted = lease.stream.evicted(count)
        lease.tail += pack_tokens(more)
        changed = False
        full = count // self._size
        if full > lease.sealed:
            changed = self.publisher.seal(lease, full)
            self.turns.names.keep_budget(lease.labels)
        if lease.node >= 0 and lease.evicted:
            self.publisher.leave_tree(lease)
        changed = self.holdings.leave_windows(lease) or changed
        if changed:
            self.holdings.name_blocks(lease)
        else:
            self.holdings.count_tokens(lease)

    def rest(self, lease: Lease) -> None:
        self._known(lease)
        published = min(lease.sealed, self.publisher.most(lease)) * self._size
        lease.stored = max(lease.stored, lease.cached_tokens, published)
        self.turns.rest(lease)

    def release(self, lease: Lease, *, keep: bool, finished: bool | None) -> None:
        self._known(lease)
        self.holdings.tick += 1
        self.restrictor.stop_leading(lease)
        self.leases.discard(lease)
        self.streams.discard(lease)
        if lease.rests_in is not None:  # nobody can ever read again what it alone holds
            lease.erase = True
        if finished:
            self.turns.hear(lease)
        self.turns.give_back(lease, finished)
        published = min(lease.sealed, self.publisher.most(lease)) * self._size
        lease.stored = max(lease.cached_tokens, published, lease.stored)
        tail = self.publisher.seal_tail(lease) if keep else -1
        self.turns.names.keep_budget(lease.labels)
        if finished and lease.directive.pin and lease.node >= 0:
            lease.pinned = self.turns.pin(lease, tail if tail >= 0 else lease.node)
        if lease.unstored and lease.sealed * self._size > lease.cached_tokens:
            space = self.tree.space_of(lease.identity.namespace)
            self.publisher.ghosts.remember(space, lease.unstored, "no_store")
        self.publisher.feed.released(lease)
        self.holdings.let_go_all(lease)
        if lease.node >= 0:
            self.tree.pins[lease.node] -= 1
            self.turns.reclaim.prune(lease.node)
        lease.tables, lease.node = (), -1
        self.turns.end(lease, finished)

    def _known(self, lease: Lease) -> None:
        if lease not in self.leases:
            raise ValueError("the lease was released already, or belongs to another manager")
