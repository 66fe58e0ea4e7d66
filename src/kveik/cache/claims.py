"""Who keeps a block: labels, sets of labels, and which nodes carry which set.

A label is (kind, key) within a namespace. Labels of the kinds in HOLDS are claims: a block stays
while one of its claims is left. Tags and contexts only select. Every node carries one set of
labels; sets are interned, so that a million nodes share a few sets, and each set strings its nodes
on one doubly linked ring of flat arrays.

Ending a claim (`end`) and deleting what carries a label (`kill`) each write one word in the label:
what that means for a set is worked out when the set is next looked at, and the set's nodes are
freed afterwards by whoever sweeps. A label that ended is retired: whatever is labelled with the
same kind and key later gets a new one, and is not concerned. Standard library only.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

HOLDS = frozenset({"plain", "session", "turn", "name", "document", "pin"})
"""turn: what a turn of a session computed before it was interrupted; it ends with the session."""


class Label:
    """One claim or tag. ended: it holds nothing any more; killed: what carries it is dead; either
    way `reason` says why. pins: what carries it is not evicted. sets: the label sets that contain
    it, while it lasts; leases: open leases that will write it (and the table of names)."""

    __slots__ = ("ended", "key", "killed", "kind", "leases", "namespace", "pins", "reason", "sets")

    def __init__(self, namespace: str, kind: str, key: str) -> None:
        self.namespace, self.kind, self.key = namespace, kind, key
        self.ended = self.killed = False
        self.pins = kind == "pin"
        self.reason = ""
        self.sets: set[LabelSet] = set()
        self.leases = 0

    @property
    def text(self) -> str:
        return f"{self.kind}:{self.key}" if self.key else self.kind


class LabelSet:
    """Labels that some nodes carry. count: how many nodes; first: the one that got it first.

    away: the conversation that alone holds these nodes has turned to something else."""

    __slots__ = (
        "away",
        "checked",
        "count",
        "first",
        "killed",
        "labels",
        "namespace",
        "number",
        "why",
    )

    def __init__(self, number: int, namespace: str, labels: frozenset[Label]) -> None:
        self.number, self.namespace, self.labels = number, namespace, labels
        self.count, self.first = 0, -1
        self.away = False
        self.killed = ""  # reason
        self.checked, self.why = -1, ""

    def live_labels(self) -> frozenset[Label]:
        return frozenset(label for label in self.labels if not label.ended)

    def holders(self) -> list[Label]:
        return [label for label in self.labels if label.kind in HOLDS and not label.ended]

    @property
    def pinned(self) -> bool:
        return any(label.pins and not label.ended for label in self.labels)


class Claims:
    """Labels and label sets of all namespaces, and the set of every node.

    Set 0 is that of nodes about which nobody ever said anything; it has no ring."""

    def __init__(self) -> None:
        self.set_of = array("i")
        self._next = array("i")
        self._previous = array("i")
        self.sets: list[LabelSet] = [LabelSet(0, "", frozenset())]
        self.pinning: set[LabelSet] = set()
        self._labels: dict[tuple[str, str, str], Label] = {}
        self._versions: dict[tuple[str, str], set[str]] = {}  # keys of the labels of a document
        self._interned: dict[tuple[str, frozenset[Label]], LabelSet] = {}
        self._unused: list[int] = []
        self._epoch = 0

    @property
    def epoch(self) -> int:
        """Grows whenever a label ends."""
        return self._epoch

    def fit(self, nodes: int) -> None:
        """Room for node numbers below `nodes`."""
        more = nodes - len(self.set_of)
        if more > 0:
            self.set_of.extend(array("i", bytes(4 * more)))
            self._next.extend(array("i", [-1]) * more)
            self._previous.extend(array("i", [-1]) * more)

    # --- labels

    def label(self, namespace: str, kind: str, key: str = "") -> Label:
        """The live label of that name, made when there is none."""
        name = (namespace, kind, key)
        label = self._labels.get(name)
        if label is None:
            label = self._labels[name] = Label(namespace, kind, key)
            if kind == "document":
                document = key.partition("@")[0]
                self._versions.setdefault((namespace, document), set()).add(key)
        return label

    def find(self, namespace: str, kind: str, key: str = "") -> Label | None:
        return self._labels.get((namespace, kind, key))

    def versions(self, namespace: str, document: str) -> list[Label]:
        """The labels of every version of a document."""
        keys = self._versions.get((namespace, document), ())
        return [self._labels[namespace, "document", key] for key in keys]

    def hold(self, labels: Iterable[Label]) -> None:
        """An open lease will write these."""
        for label in labels:
            label.leases += 1

    def let_go(self, labels: Iterable[Label]) -> None:
        for label in labels:
            label.leases -= 1
            self._forget_unused(label)

    def end(self, label: Label, reason: str) -> set[LabelSet]:
        """The claim holds nothing any more. Returns the sets that contain it, for the caller."""
        label.ended = True
        return self._retire(label, reason)

    def kill(self, label: Label, reason: str) -> set[LabelSet]:
        """Whatever carries the label now is dead; returns the same."""
        label.ended = label.killed = True
        return self._retire(label, reason)

    def kill_set(self, of: LabelSet, reason: str) -> None:
        """The nodes of one set are dead; others with the same labels, made later, are not."""
        of.killed = reason
        of.checked = -1
        if self._interned.get((of.namespace, of.labels)) is of:
            del self._interned[of.namespace, of.labels]

    def _retire(self, label: Label, reason: str) -> set[LabelSet]:
        label.reason = reason
        self._epoch += 1
        self._drop_name(label)
        sets, label.sets = label.sets, set()  # they may be many: nobody copies them
        return sets

    def _drop_name(self, label: Label) -> None:
        name = (label.namespace, label.kind, label.key)
        if self._labels.get(name) is not label:
            return
        del self._labels[name]
        if label.kind == "document":
            document = (label.namespace, label.key.partition("@")[0])
            self._versions[document].discard(label.key)
            if not self._versions[document]:
                del self._versions[document]

    def _forget_unused(self, label: Label) -> None:
        if not label.sets and not label.leases:
            self._drop_name(label)

    # --- sets

    def intern(self, namespace: str, labels: frozenset[Label]) -> LabelSet:
        """The set of these live labels."""
        found = self._interned.get((namespace, labels))
        if found is None:
            if not self._unused:
                self._unused.append(len(self.sets))
                self.sets.append(self.sets[0])
            found = LabelSet(self._unused.pop(), namespace, labels)
            self.sets[found.number] = self._interned[namespace, labels] = found
            for label in labels:
                label.sets.add(found)
            self.note_pin(found)
        return found

    def note_pin(self, of: LabelSet) -> None:
        """After a label of the set began or ended to pin."""
        if of.pinned:
            self.pinning.add(of)
        else:
            self.pinning.discard(of)

    def relabel(self, of: LabelSet, labels: frozenset[Label]) -> None:
        """All nodes of the set carry these live labels instead."""
        if self._interned.get((of.namespace, of.labels)) is of:
            del self._interned[of.namespace, of.labels]
        dropped = of.labels - labels
        of.labels, of.checked = labels, -1
        for label in labels:
            label.sets.add(of)
        for label in dropped:
            label.sets.discard(of)
            self._forget_unused(label)
        self._interned.setdefault((of.namespace, labels), of)
        self.note_pin(of)

    def why_dead(self, number: int) -> str:
        """The reason why nodes with this set are dead; empty: they are not."""
        of = self.sets[number]
        if of.checked != self._epoch:
            of.checked = self._epoch
            of.why = self._judge(of) if number else ""
        return of.why

    def _judge(self, of: LabelSet) -> str:
        if of.killed:
            return of.killed
        last = ""
        for label in of.labels:
            if label.killed:
                return label.reason
            if label.kind in HOLDS:
                if not label.ended:
                    last = "held"
                elif last != "held":
                    last = label.reason
        return "" if last == "held" else last

    def _recycle(self, of: LabelSet) -> None:
        of.first = -1
        if self._interned.get((of.namespace, of.labels)) is of:
            del self._interned[of.namespace, of.labels]
        for label in of.labels:
            label.sets.discard(of)
            self._forget_unused(label)
        self.pinning.discard(of)
        self.sets[of.number] = self.sets[0]
        self._unused.append(of.number)

    # --- nodes

    def move(self, node: int, to: LabelSet) -> None:
        """The node carries this set from now on, as the last on its ring."""
        if self.set_of[node] == to.number:
            return
        self.leave(node)
        self.set_of[node] = to.number
        to.count += 1
        first = to.first
        if first < 0:
            to.first = self._next[node] = self._previous[node] = node
            return
        last = self._previous[first]
        self._next[last] = node
        self._previous[node] = last
        self._next[node] = first
        self._previous[first] = node

    def leave(self, node: int) -> None:
        """The node is gone, or will carry another set."""
        number = self.set_of[node]
        if not number:
            return
        of = self.sets[number]
        before, after = self._previous[node], self._next[node]
        self._next[before] = after
        self._previous[after] = before
        self.set_of[node] = 0
        of.count -= 1
        if not of.count:
            self._recycle(of)
        elif of.first == node:
            of.first = after

    def rotate(self, of: LabelSet) -> None:
        """The first node of the ring becomes the last."""
        of.first = self._next[of.first]

    def nodes(self, of: LabelSet) -> Iterator[int]:
        """From the first to the last; the caller changes nothing meanwhile."""
        node = of.first
        for _ in range(of.count):
            yield node
            node = self._next[node]
