"""What is known of every node about being kept: claims, deadlines, priority; and what follows.

Facts lie in flat columns that are made when somebody first asks for anything but plain use. A node
is *dead* when its labels say so, its deadline has passed or a rule that is still being carried out
matches it: whoever walks the tree stops there, so that everything below is out of reach as well.
This file decides; `sweep.py` frees. It changes the class and the pin of blocks, nothing else of
theirs. Standard library only.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from kveik.cache.claims import Claims, Label, LabelSet
from kveik.cache.deadlines import NEVER, Clock, Deadlines
from kveik.cache.directive import Directive, Priority
from kveik.cache.lease import Lease
from kveik.cache.policy import DEMOTED, HIGH, LOW, NORMAL, IdleQueues
from kveik.cache.pool import BlockPool
from kveik.cache.prefix import Identity, PrefixTree
from kveik.cache.recipes import Recipes
from kveik.cache.rules import Conditions, Rule

PRIORITIES: dict[Priority, int] = {"low": LOW, "normal": NORMAL, "high": HIGH}
_RANK = 3  # bits of the priority in a flag byte
_FADED = 4  # demoted by its deadline


class Retention:
    """See the module. active: did anybody ask for more than plain use? rules: invalidations that
    are still being carried out; sweeping: dead nodes may be left in the tree."""

    def __init__(
        self, tree: PrefixTree, pools: tuple[BlockPool, ...], idle: tuple[IdleQueues, ...]
    ) -> None:
        self.tree, self.pools, self.idle = tree, pools, idle
        self.clock = Clock()
        self.claims = Claims()
        self.deadlines = Deadlines(tree.used)
        self.recipes = Recipes()
        self.rules: list[Rule] = []
        self.sweeping = False
        self.active = False
        self._serial = array("q")
        self._serials = 0
        self._flags = bytearray()
        for queues in idle:
            queues.facts.kept = self

    # --- the columns

    def activate(self) -> None:
        """From now on facts are kept of every node."""
        if not self.active:
            self.active = True
            self.tree.on_remove = self._removed
        self._fit()

    def _fit(self) -> None:
        size = len(self.tree.parent)
        more = size - len(self._flags)
        if more > 0:
            self._flags.extend(bytes([NORMAL]) * more)
            self._serial.extend(array("q", bytes(8 * more)))
            self.claims.fit(size)

    def contains(self, recipe: Identity, paths: Sequence[Sequence[int]]) -> None:
        """The recipe was computed behind the nodes of these paths, each from its root on."""
        root = self.tree.roots.get(recipe)
        if root is not None:
            self.tree.on_remove = self._removed
            for path in paths:
                if path:
                    self.recipes.link(root, path)

    def _removed(self, node: int) -> None:
        deadly = self.claims.why_dead(self.set_of(node).number) if self.active else ""
        due = self.deadlines.delete_at(node) < NEVER
        self.recipes.removed(node, died=bool(deadly) or due)
        if node < len(self._flags):
            self.claims.leave(node)
            self.deadlines.take_back(node)
            self._flags[node] = NORMAL
            self._serial[node] = 0

    def next_serial(self) -> int:
        """A number greater than that of every node so far."""
        self._serials += 1
        return self._serials

    def new_rule(self, conditions: Conditions) -> Rule:
        """A rule about the nodes that are there now."""
        return Rule(conditions, self.next_serial(), self.tree, self.claims, self._serial)

    # --- facts for policies

    def deadline(self, node: int) -> float:
        """When the node is deleted if it is not used before."""
        return self.deadlines.delete_at(node)

    def tags(self, node: int) -> int:
        if node >= len(self._flags):
            return 0
        return sum(label.kind == "tag" for label in self.set_of(node).labels)

    def generation(self, node: int) -> int:
        return self._serial[node] if node < len(self._serial) else 0

    # --- dead or alive

    def troubled(self) -> bool:
        """May a dead node be left in the tree?"""
        return self.sweeping or self.deadlines.possible(self.clock.now)

    def why_dead(self, node: int) -> str:
        """By its own labels or deadline: the reason; empty when it is alive."""
        if node >= len(self._flags):
            return ""
        reason = self.claims.why_dead(self.claims.set_of[node])
        if not reason and self.overdue(node):
            return "expired"
        return reason

    def why_gone(self, node: int) -> str:
        """Like `why_dead`, with the rules that are being carried out."""
        reason = self.why_dead(node)
        if not reason:
            for rule in self.rules:
                if rule.matches(node):
                    return "invalidated"
        return reason

    def overdue(self, node: int) -> bool:
        """Has its deadline passed? The time since the last use does not run while it is read."""
        deadlines = self.deadlines
        if deadlines.delete_at(node) > self.clock.now:
            return False
        return deadlines.ends_at(node) <= self.clock.now or not self.is_read(node)

    def is_read(self, node: int) -> bool:
        return any(
            payload[node] >= 0 and pool.refs[payload[node]] > 0
            for payload, pool in zip(self.tree.payload, self.pools, strict=True)
        )

    def alive(self, walked: Sequence[int], identity: Identity, data: bytes) -> tuple[int, str]:
        """How many of these nodes, from the root on, come before the first that is dead; and why
        it is."""
        end, why = len(walked), ""
        for rule in self.rules:
            first = rule.first_match(walked[:end], identity, data)
            if first < end:
                end, why = first, "invalidated"
        for number in range(end):
            reason = self.why_dead(walked[number])
            if reason:
                return number, reason
        return end, why

    # --- use

    def labels_of(self, directive: Directive, namespace: str) -> frozenset[Label]:
        """What every block that this directive writes carries (documents come beside it)."""
        label = self.claims.label
        labels = [label(namespace, "tag", tag) for tag in directive.tags]
        if directive.session is not None:
            labels.append(label(namespace, "session", directive.session))
        if directive.name is not None:
            labels.append(label(namespace, "name", directive.name))
        if directive.session is None and directive.name is None:
            labels.append(label(namespace, "plain"))
        if directive.context is not None:
            labels.append(label(namespace, "context", directive.context))
        return frozenset(labels)

    def written(self, lease: Lease, node: int, start: int, end: int) -> None:
        """A lease published tokens start .. end of its sequence as this new node."""
        self._fit()
        self._serial[node] = self.next_serial()
        labels = self._with_documents(lease, start, end)
        self.claims.move(node, self.claims.intern(lease.identity.namespace, labels))
        directive = lease.directive
        rank = LOW if directive.write == "low" else PRIORITIES[directive.priority]
        self._flags[node] = rank
        self._give_ttl(lease, node, start)
        if directive.session is not None:
            lease.claimed.add(node)
        self.arrange(node)

    def shared(self, lease: Lease, node: int, start: int, end: int) -> None:
        """The lease computed, or reuses, what no other sequence continues: its claims, tags and
        deadline hold for this node as well."""
        self._fit()
        labels = self._with_documents(lease, start, end)
        of = self.set_of(node)
        if any(label.kind == "name" and not label.ended for label in of.labels):
            labels = frozenset(label for label in labels if label.kind != "plain")
        self._claim_for_session(lease, node, of)
        self.add_labels(node, labels, lease.identity.namespace)
        rank = LOW if lease.directive.write == "low" else PRIORITIES[lease.directive.priority]
        if rank > self._flags[node] & _RANK:
            self._flags[node] = self._flags[node] & ~_RANK | rank
            self.arrange(node)
        self._give_ttl(lease, node, start)
        self.used(node)

    def visited(self, lease: Lease, node: int) -> None:
        """The lease reuses a node that others continue: it stays when those who hold it go."""
        self._fit()
        of = self.set_of(node)
        holders = of.holders()
        mine = lease.directive.session
        if holders and all(
            label.kind == "pin" or (label.kind in ("session", "turn") and label.key != mine)
            for label in holders
        ):
            plain = self.claims.label(lease.identity.namespace, "plain")
            self.add_labels(node, frozenset((plain,)), lease.identity.namespace)
        elif mine is not None and any(label.kind == "turn" for label in holders):
            self._claim_for_session(lease, node, of)
            self.add_labels(node, lease.labels, lease.identity.namespace)
        self.used(node)

    def _claim_for_session(self, lease: Lease, node: int, of: LabelSet) -> None:
        """Note that the session's claim comes from this turn, unless an earlier one made it. What
        was left of this turn when it was interrupted is its own again."""
        session = lease.directive.session
        if session is None:
            return
        for label in of.live_labels():
            if label.kind == "session" and label.key == session:
                return
        lease.claimed.add(node)
        turn = self.claims.find(lease.identity.namespace, "turn", session)
        if turn in of.labels:
            label = self.claims.label(lease.identity.namespace, "session", session)
            self.replace_labels(node, frozenset((turn,)), frozenset((label,)))

    def used(self, node: int) -> None:
        """A use now: deadlines since the last use begin anew."""
        self.tree.used[node] = self.clock.now
        if self.is_faded(node) and self.deadlines.demotes_by_use(node):
            self._flags[node] &= ~_FADED
            self.deadlines.wait(node)
            self.arrange(node)

    def _with_documents(self, lease: Lease, start: int, end: int) -> frozenset[Label]:
        labels = lease.labels
        spans = lease.directive.documents
        if not spans:
            return labels
        namespace = lease.identity.namespace
        return labels.union(
            self.claims.label(namespace, "document", f"{span.document}@{span.version}")
            for span in spans
            if span.start < end and start < span.end
        )

    def _give_ttl(self, lease: Lease, node: int, start: int) -> None:
        """Deadlines of the directive; those of a named cache belong to the name."""
        ttl = lease.directive.ttl_at(start)
        if ttl is not None and lease.directive.name is None:
            self.deadlines.give(node, ttl, self.clock.now)

    def give_back(self, lease: Lease, path: Iterable[int], instead: Label) -> None:
        """A turn that did not finish: what it claimed for its session carries `instead`. What it
        publishes from now on (its tail) does so, too."""
        namespace = lease.identity.namespace
        session = lease.directive.session
        gone = {label for label in lease.labels if label.kind in ("session", "context")}
        for node in path:
            of = self.set_of(node)
            if node in lease.claimed and of.namespace == namespace:
                mine = {each for each in of.live_labels() if each.kind == "context"}
                mine |= {
                    each for each in of.labels if each.kind == "session" and each.key == session
                }
                self.replace_labels(node, frozenset(mine), frozenset((instead,)))
        labels = (lease.labels - gone) | {instead}
        self.claims.hold(labels)
        self.claims.let_go(lease.labels)
        lease.labels = labels

    # --- labels, class and pin of a node

    def add_labels(self, node: int, labels: frozenset[Label], namespace: str) -> None:
        of = self.claims.sets[self.claims.set_of[node]]
        if of.number == 0:
            self._carry(node, namespace, labels | {self.claims.label(namespace, "plain")})
        elif not labels <= of.labels:
            self._carry(node, namespace, of.live_labels() | labels)

    def replace_labels(self, node: int, old: frozenset[Label], new: frozenset[Label]) -> None:
        of = self.claims.sets[self.claims.set_of[node]]
        self._carry(node, of.namespace, (of.live_labels() - old) | new)

    def _carry(self, node: int, namespace: str, labels: frozenset[Label]) -> None:
        """Give a living node other labels. A rule made before does not concern it any more than it
        did. A dead node keeps those that it died of."""
        if self.troubled() and self.why_gone(node):
            return
        self._serial[node] = self.next_serial()
        self.claims.move(node, self.claims.intern(namespace, labels))
        self.arrange(node)

    def set_of(self, node: int) -> LabelSet:
        return self.claims.sets[self.claims.set_of[node] if node < len(self._flags) else 0]

    def fade(self, node: int) -> None:
        """Its deadline to be demoted has passed."""
        self._flags[node] |= _FADED
        self.arrange(node)

    def is_faded(self, node: int) -> bool:
        return node < len(self._flags) and bool(self._flags[node] & _FADED)

    def is_demoted(self, node: int) -> bool:
        return self.is_faded(node) or self.set_of(node).away

    def priority(self, node: int) -> Priority:
        rank = self._flags[node] & _RANK if node < len(self._flags) else NORMAL
        return "low" if rank == LOW else "high" if rank == HIGH else "normal"

    def arrange(self, node: int) -> None:
        """Its blocks get the class and the pin that follow from all this."""
        of = self.claims.sets[self.claims.set_of[node]]
        flags = self._flags[node]
        rank = DEMOTED if flags & _FADED or of.away else flags & _RANK
        for payload, idle in zip(self.tree.payload, self.idle, strict=True):
            block = payload[node]
            if block >= 0:
                idle.set_class(block, rank)
                idle.set_pinned(block, of.pinned)
