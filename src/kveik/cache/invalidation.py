"""The verbs that end or delete: invalidate, the end of a session, a document's new version, another
context. Each marks in time that does not depend on how many blocks are concerned; the sweep frees.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from kveik.cache.claims import Label, LabelSet
from kveik.cache.directive import Receipt, Relevance, Selector
from kveik.cache.lease import Lease
from kveik.cache.prefix import WORD, pack_tokens
from kveik.cache.restrict import Restrictor
from kveik.cache.retention import Retention
from kveik.cache.rules import Conditions
from kveik.cache.segments import EXACT
from kveik.cache.sessions import SessionTable
from kveik.cache.sweep import Arrange, Carrying, Drain, Job, Sweeper

AT_ONCE = 96
"""What the sweep spends, and tops that are buried, before a verb returns; the rest comes later."""

_COUNTED = 100  # label sets whose nodes a receipt counts as deferred


class _Before(NamedTuple):
    """Where the counters stood when a verb began, and what was being freed for others."""

    blocks: int
    tokens: int
    size: int
    nodes: int
    jobs: frozenset[Job]


class Invalidation:
    def __init__(
        self,
        retention: Retention,
        sweeper: Sweeper,
        restrictor: Restrictor,
        sessions: SessionTable,
        leases: set[Lease],
    ) -> None:
        self.retention, self.sweeper, self.restrictor = retention, sweeper, restrictor
        self.sessions, self.leases = sessions, leases
        self.at_once = AT_ONCE
        self.tree, self.claims = retention.tree, retention.claims
        self._width = self.tree.block_size * WORD

    # --- receipts

    def _begin(self) -> _Before:
        freed = self.sweeper.freed()
        jobs = frozenset(self.sweeper.jobs)
        return _Before(freed.blocks, freed.tokens, freed.size, freed.nodes, jobs)

    def _receipt(self, before: _Before, marked: int) -> Receipt:
        """Free a bounded number of nodes at once and say what that was: of this verb alone, since
        what is freed of others is none of the caller's business. marked: nodes that are known to
        be concerned."""
        sweeper = self.sweeper
        sweeper.advance(self.at_once, before.jobs)
        freed = sweeper.freed()
        left = not before.jobs.issuperset(sweeper.jobs)
        deferred = max(marked - (freed.nodes - before.nodes), 1) if left else 0
        return Receipt(
            blocks=freed.blocks - before.blocks,
            tokens=freed.tokens - before.tokens,
            bytes_by_tier=(("memory", freed.size - before.size),),
            deferred=deferred,
        )

    # --- invalidate

    def invalidate(self, selector: Selector) -> Receipt:
        """See CacheManager.invalidate."""
        before, marked = self._begin(), 0
        prefix = pack_tokens(selector.prefix)
        groups = self._groups(selector)
        self._restrict_leases(selector, prefix)
        self._forget_recipes(selector.namespace)
        if groups is not None:  # otherwise nothing carries one of its labels
            cutoff = float("inf")
            if selector.older_than is not None:
                cutoff = self.retention.clock.now - selector.older_than
            conditions = Conditions(selector.namespace, selector.adapter, prefix, groups, cutoff)
            marked = self._carry_out(conditions, aged=selector.older_than is not None)
        if selector == Selector(selector.namespace):
            self.sessions.forget_namespace(selector.namespace)
        return self._receipt(before, marked)

    def _groups(self, selector: Selector) -> tuple[frozenset[Label], ...] | None:
        """Of each group of labels a node must carry one; None: no node can."""
        namespace, find = selector.namespace, self.claims.find
        groups: list[frozenset[Label]] = []
        for kind, key in (
            ("name", selector.name),
            ("tag", selector.tag),
            ("session", selector.session),
            ("context", selector.context),
        ):
            if key is not None:
                label = find(namespace, kind, key)
                groups.append(frozenset([label] if label is not None else []))
        if selector.document is not None:
            groups.append(
                frozenset(
                    label
                    for label in self.claims.versions(namespace, selector.document)
                    if _is_version(label, selector)
                )
            )
        return None if any(not group for group in groups) else tuple(groups)

    def _carry_out(self, conditions: Conditions, aged: bool) -> int:
        """Mark what the conditions match; returns how many nodes are known to be concerned."""
        simple = conditions.adapter is None and not conditions.prefix and not aged
        if simple and len(conditions.labels) == 1:
            return self._kill(conditions.labels[0], "invalidated")
        if not conditions.labels and not aged:
            if not conditions.prefix:
                return self._bury_roots(conditions)
            if self._bury_tops(conditions):
                return 1
        return self._rule(conditions)

    def _kill(self, labels: Iterable[Label], reason: str) -> int:
        lots = [self.claims.kill(label, reason) for label in labels]
        return sum(self._drain(sets) for sets in lots)

    def _drain(self, sets: set[LabelSet]) -> int:
        """Sweep the dead among these sets; how many nodes they have (of the first hundred)."""
        if not sets:
            return 0
        why_dead = self.claims.why_dead
        marked = sum(of.count for of in islice(sets, _COUNTED) if why_dead(of.number))
        self.sweeper.add(Drain(sets))
        return marked

    def _bury_roots(self, conditions: Conditions) -> int:
        for identity in self.tree.identities_of(conditions.namespace):
            if conditions.covers(identity):
                root = self.tree.roots[identity]
                self._remember_tops(root)
                self.sweeper.bury(root, "invalidated")
        return 1

    def _remember_tops(self, root: int) -> None:
        """Ghosts for the first blocks of what goes, as many as can be written at once."""
        ghosts, tree = self.sweeper.ghosts, self.tree
        if ghosts.capacity:
            above = tree.digest(root)
            for _, node in zip(range(self.at_once), tree.each_child(root), strict=False):
                digest = tree.digest_below(above, tree.chunk(node))
                ghosts.remember(tree.space[root], digest, "invalidated")

    def _bury_tops(self, conditions: Conditions) -> bool:
        """Bury the highest nodes that begin with the prefix, unless they are many."""
        tops: list[int] = []
        for start, rest in self._starts(conditions):
            tree = self.tree
            if tree.children[start] > self.at_once:
                return False
            tops += [node for node in tree.each_child(start) if tree.chunk(node).startswith(rest)]
        if len(tops) > self.at_once:
            return False
        for node in tops:
            self.sweeper.bury(node, "invalidated")
        return True

    def _starts(self, conditions: Conditions) -> list[tuple[int, bytes]]:
        """Of every tree that is concerned: the node behind which the last block of the prefix
        follows, and the packed tokens with which that must begin."""
        prefix = conditions.prefix
        blocks = max(len(prefix) - WORD, 0) // self._width
        starts: list[tuple[int, bytes]] = []
        for identity in self.tree.identities_of(conditions.namespace):
            if conditions.covers(identity):
                root = self.tree.roots[identity]
                before = self.tree.before.get(root, b"")
                if before and before.startswith(prefix):
                    starts.append((root, b""))
                elif prefix.startswith(before):
                    path = self.tree.walk(root, prefix, blocks)
                    if len(path) + len(before) // self._width == blocks:
                        starts.append((path[-1] if path else root, prefix[blocks * self._width :]))
        return starts

    def _rule(self, conditions: Conditions) -> int:
        """Leave it to walks and to the sweep to find what the conditions match."""
        retention = self.retention
        retention.activate()
        starts = self._starts(conditions)
        for rest in dict.fromkeys(rest for _, rest in starts):
            rule = retention.new_rule(conditions)
            retention.rules.append(rule)
            nodes = [start for start, each in starts if each == rest]
            self.sweeper.add(Carrying(rule, nodes, rest, self.sweeper))
        return int(bool(starts))

    def _forget_recipes(self, namespace: str) -> None:
        """They may contain what is forgotten."""
        for identity in self.tree.identities_of(namespace):
            if identity.lineage != EXACT:
                root = self.tree.roots[identity]
                self._remember_tops(root)
                self.sweeper.bury(root, "invalidated")

    # --- leases

    def _restrict_leases(self, selector: Selector, prefix: bytes) -> None:
        for lease in list(self.leases):
            identity = lease.identity
            if identity.namespace != selector.namespace:
                continue
            if not (lease.limit or lease.evicted):
                continue
            if identity.lineage != EXACT:
                self.restrictor.detach(lease)
            elif selector.adapter in (None, identity.adapter) and self._was_open(lease, selector):
                self._restrict(lease, selector, prefix)

    def _was_open(self, lease: Lease, selector: Selector) -> bool:
        if selector.older_than is None:
            return True
        return lease.opened_at <= self.retention.clock.now - selector.older_than

    def _restrict(self, lease: Lease, selector: Selector, prefix: bytes) -> None:
        directive = lease.directive
        for asked, own in (
            (selector.name, (directive.name,)),
            (selector.session, (directive.session,)),
            (selector.context, (directive.context,)),
            (selector.tag, directive.tags),
        ):
            if asked is not None and asked not in own:
                return
        if selector.document is None:
            self.restrictor.by_prefix(lease, prefix)
            return
        starts = [
            span.start
            for span in directive.documents
            if span.document == selector.document and _is_wanted(span.version, selector)
        ]
        if starts:
            lease.erase = True
            self.restrictor.limit(lease, min(starts) // self.tree.block_size)

    # --- sessions, documents, contexts

    def end_session(self, namespace: str, session: str, reason: str) -> Receipt | None:
        """End the claim of a session: what nobody else holds goes."""
        entry = self.sessions.get(namespace, session)
        if entry is None:
            return None
        before, marked = self._begin(), 0
        windows = [self.sweeper.outside(one) for one in self.leases if one.rests_in is entry]
        for lease in list(self.leases):
            if lease.identity.namespace == namespace and lease.directive.session == session:
                self.restrictor.detach(lease)
        self.sessions.forget(namespace, session)
        for kind, key in (("pin", f"session:{session}"), ("turn", session), ("session", session)):
            label = self.claims.find(namespace, kind, key)
            if label is not None:
                marked += self._end(label, reason)
        return self._with_windows(self._receipt(before, marked), windows)

    def _with_windows(self, receipt: Receipt, windows: Sequence[list[list[int]]]) -> Receipt:
        """What streams that rest hold outside the tree goes, too: nobody else can read it. windows:
        of each, by group, the tokens in every such block."""
        blocks, tokens, size = receipt.blocks, receipt.tokens, receipt.bytes_by_tier[0][1]
        for window in windows:
            counts = [len(group) for group in window]
            blocks, tokens = blocks + sum(counts), tokens + sum(window[0])
            size += self.sweeper.bytes_of(counts)
        return replace(receipt, blocks=blocks, tokens=tokens, bytes_by_tier=(("memory", size),))

    def end_name(self, namespace: str, name: str) -> Receipt:
        """End the claim of a named cache."""
        before, marked = self._begin(), 0
        for lease in list(self.leases):
            if lease.identity.namespace == namespace and lease.directive.name == name:
                self.restrictor.detach(lease)
        label = self.claims.find(namespace, "name", name)
        if label is not None:
            marked = self._end(label, "invalidated")
        return self._receipt(before, marked)

    def end_pin(self, label: Label) -> Receipt:
        """End a claim that pins."""
        before = self._begin()
        return self._receipt(before, self._end(label, "evicted"))

    def _end(self, label: Label, reason: str) -> int:
        """The claim ends; returns how many nodes are known to go."""
        sets = self.claims.end(label, reason)
        if label.pins:
            for of in sets:
                self.claims.note_pin(of)
            self.sweeper.add(Arrange(sets))
        return self._drain(sets)

    def switch_context(
        self,
        namespace: str,
        session: str,
        context: str,
        mode: Relevance,
        live: Iterable[int],
    ) -> Receipt:
        """See CacheManager.switch_context; live: the nodes of the live prompt."""
        before, marked = self._begin(), 0
        label = self.claims.find(namespace, "session", session)
        if label is None or mode == "off":
            return self._receipt(before, 0)
        self._move_live(namespace, label, context, live)
        others, own = self._by_context(label, context)
        for of in own:
            of.away = False
        self.sweeper.add(Arrange(own + (others if mode == "demote" else [])))
        if mode == "demote":
            for of in others:
                of.away = True
        else:
            for of in others:
                self.claims.kill_set(of, "invalidated")
            self._forget_recipes(namespace)
            marked = self._drain(set(others))
            for lease in list(self.leases):
                directive = lease.directive
                mine = lease.identity.namespace == namespace and directive.session == session
                if mine and directive.context not in (None, context):
                    self.restrictor.detach(lease)
        return self._receipt(before, marked)

    def _move_live(self, namespace: str, session: Label, context: str, live: Iterable[int]) -> None:
        """What the live prompt contains belongs to the new context."""
        new = self.claims.label(namespace, "context", context)
        for node in live:
            of = self.retention.set_of(node)
            if session in of.labels:
                old = {label for label in of.live_labels() if label.kind == "context"}
                if old and old != {new}:
                    self.retention.replace_labels(node, frozenset(old), frozenset((new,)))

    def _by_context(self, session: Label, context: str) -> tuple[list[LabelSet], list[LabelSet]]:
        """Sets that the session alone holds: those of other contexts only, and those of this."""
        others: list[LabelSet] = []
        own: list[LabelSet] = []
        for of in session.sets:
            contexts = {label.key for label in of.live_labels() if label.kind == "context"}
            if not contexts or of.holders() != [session]:
                continue
            (own if context in contexts else others).append(of)
        return others, own


def _is_version(label: Label, selector: Selector) -> bool:
    return _is_wanted(label.key.partition("@")[2], selector)


def _is_wanted(version: str, selector: Selector) -> bool:
    return selector.version in (None, version) and version != selector.not_version
