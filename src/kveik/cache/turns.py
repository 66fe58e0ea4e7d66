"""What an open lease claims for its session and its name, and what becomes of that at the end.

A turn that finishes leaves its claims; one that was aborted leaves plain use, one that goes on
later in another lease leaves what waits for it. Standard library only.
"""

from __future__ import annotations

from dataclasses import replace

from kveik.cache.claims import Label, LabelSet
from kveik.cache.directive import Directive, Relevance
from kveik.cache.invalidation import Invalidation
from kveik.cache.lease import Lease
from kveik.cache.lookup import Found
from kveik.cache.names import Names
from kveik.cache.prefix import WORD
from kveik.cache.reclaim import Reclaimer
from kveik.cache.sessions import Session
from kveik.cache.topics import Topics, is_topic


class Turns:
    """relevance: what another context means where a directive says nothing; topics: what sessions
    are about whose callers announce no context."""

    def __init__(
        self,
        invalidation: Invalidation,
        reclaim: Reclaimer,
        names: Names,
        relevance: Relevance,
        topics: Topics | None,
    ) -> None:
        self.invalidation, self.reclaim, self.names = invalidation, reclaim, names
        self.retention, self.table = invalidation.retention, invalidation.sessions
        self.relevance, self.topics = relevance, topics
        self.tree = self.retention.tree
        self._size = self.tree.block_size
        self._width = self._size * WORD

    # --- the beginning

    def begin(self, lease: Lease, found: Found, data: bytes) -> None:
        """What the lease reuses is kept by it, too: labelled behind the last place where the tree
        branches, held as plain use before it."""
        retention, directive = self.retention, lease.directive
        namespace = lease.identity.namespace
        retention.activate()
        self.reclaim.careful = True
        if lease.limit:
            self._join_session(lease, found, data)
            directive = lease.directive
            lease.labels = retention.labels_of(directive, namespace)
            retention.claims.hold(lease.labels)
        lease.erase = directive.deletes
        names = frozenset(label for label in lease.labels if label.kind == "name")
        path = found.walked[: found.blocks]
        alone = self._alone(path, found, data) if lease.limit else len(path)
        last: dict[LabelSet, int] = {}  # of the nodes that carry it
        for number, node in enumerate(path):
            last[retention.set_of(node)] = node
            start = number * self._size
            if number < found.public:
                retention.used(node)
            elif number >= alone:
                retention.shared(lease, node, start, start + self._size)
            else:
                retention.visited(lease, node)
                if names:  # a name holds its whole path: what it pins hangs on it
                    retention.add_labels(node, names, namespace)
        if found.source >= 0:
            retention.used(found.source)
        tail = self._tail(found, data)
        if tail >= 0:
            last[retention.set_of(tail)] = tail
        self._use_names(last, directive.name)

    def _tail(self, found: Found, data: bytes) -> int:
        """The sealed tail with which the prompt goes on behind its whole blocks, or -1."""
        behind = found.behind(found.blocks)
        rest = data[found.blocks * self._width : (found.blocks + 1) * self._width]
        return self.tree.shorter_tail(behind, rest) if behind >= 0 else -1

    def _use_names(self, last: dict[LabelSet, int], own: str | None) -> None:
        """last: the deepest of the found nodes that carry each set of labels."""
        reached: dict[Label, int] = {}
        for of, node in last.items():
            for label in of.labels:
                reached[label] = max(self.tree.depth[node], reached.get(label, 0))
        self.names.used(reached, own)

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

    def _join_session(self, lease: Lease, found: Found, data: bytes) -> None:
        """The lease works on a turn of its session, which may be about something else now."""
        directive, namespace = lease.directive, lease.identity.namespace
        session = directive.session
        if directive.name is not None:
            self.names.renew(namespace, directive.name, directive.ttl)
        if session is None:
            return
        entry = self.table.use(namespace, session, self.tree.now)
        entry.open += 1
        lease.session = entry
        directive = lease.directive = self._about(lease, entry, data)
        if directive.context is not None and directive.context != entry.context:
            if entry.context is not None:
                mode = directive.relevance or self.relevance
                if mode == "delete" and is_topic(directive.context):
                    mode = "demote"  # a guess deletes nothing
                live = found.walked[: found.blocks]
                self.invalidation.switch_context(namespace, session, directive.context, mode, live)
            entry.context = directive.context

    def _about(self, lease: Lease, entry: Session, data: bytes) -> Directive:
        """A session whose caller announces no context is about the topic that is found."""
        directive, identity = lease.directive, lease.identity
        if self.topics is None or directive.context is not None:
            return directive
        if entry.context is not None and not is_topic(entry.context):
            return directive
        if (directive.relevance or self.relevance) == "off":
            return directive
        topic = self.topics.context(entry, (identity.namespace, identity.salt), data)
        return replace(directive, context=topic)

    def fork(self, lease: Lease, child: Lease) -> None:
        """The child works on the same turn."""
        child.labels = lease.labels
        self.retention.claims.hold(child.labels)
        entry = self._session_of(lease)
        if entry is not None:
            entry.open += 1
            child.session = entry

    # --- between two turns of a stream

    def rest(self, lease: Lease) -> None:
        """The turn has finished; the lease keeps its blocks for the next one."""
        self.hear(lease)
        entry = self._session_of(lease)
        lease.session, lease.rests_in = None, entry
        if entry is not None:
            entry.open -= 1
            entry.turns += 1
            self._use(lease)

    def resume(self, lease: Lease) -> bool:
        """The next turn begins; False: the session has ended."""
        entry = lease.rests_in
        if entry is None or entry.over:
            return False
        lease.session, lease.rests_in = entry, None
        entry.open += 1
        self._use(lease)
        return True

    def _use(self, lease: Lease) -> None:
        session = lease.directive.session or ""
        self.table.use(lease.identity.namespace, session, self.tree.now)

    # --- the end

    def hear(self, lease: Lease) -> None:
        """The answer of a turn that finished tells of its topic, too."""
        entry = self._session_of(lease)
        if self.topics is not None and entry is not None and lease.node >= 0:
            self.topics.answered(entry, self.tree.path(lease.node) + lease.tail)

    def give_back(self, lease: Lease, finished: bool | None) -> None:
        """A turn that did not finish: what it claimed for its session is plain use, or waits for
        the turn to go on (finished None)."""
        if finished is True or not lease.claimed:
            return
        namespace = lease.identity.namespace
        if finished is False:
            label = self.retention.claims.label(namespace, "plain")
        else:
            label = self.retention.claims.label(namespace, "turn", lease.directive.session or "")
        self.retention.give_back(lease, self._path(lease.node), label)

    def _path(self, node: int) -> list[int]:
        """The nodes from this one up to below the root."""
        path: list[int] = []
        while node >= 0 and self.tree.parent[node] >= 0:
            path.append(node)
            node = self.tree.parent[node]
        return path

    def pin(self, lease: Lease, node: int) -> bool:
        """Pin what the lease leaves behind, as long as its session, or its name, lasts; False:
        others took the budget meanwhile."""
        directive, namespace = lease.directive, lease.identity.namespace
        path = self._path(node)
        fresh = sum(not self.retention.set_of(each).pinned for each in path)
        if fresh > self.names.room_for_pins():
            return False
        key = "" if directive.session is None else f"session:{directive.session}"
        pin = frozenset((self.retention.claims.label(namespace, "pin", key),))
        for each in path:
            self.retention.add_labels(each, pin, namespace)
        return True

    def end(self, lease: Lease, finished: bool | None) -> None:
        """The lease works on its turn no longer."""
        self.retention.claims.let_go(lease.labels)
        lease.labels = frozenset()
        entry = self._session_of(lease)
        if entry is None:
            return
        namespace, session = lease.identity.namespace, lease.directive.session or ""
        entry.open -= 1
        if finished:
            entry.turns += 1
        self.table.use(namespace, session, self.tree.now)
        if finished is False and not entry.turns and not entry.open:
            self.table.forget(namespace, session)

    def _session_of(self, lease: Lease) -> Session | None:
        """The session in whose turn the lease works, unless it has ended."""
        return lease.session if lease.session is not None and not lease.session.over else None
