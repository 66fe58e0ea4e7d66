"""Invalidations that no single label expresses: by prefix, age, adapter, or several at once.

A rule is evaluated by whoever walks the tree, until `sweep.py` has carried it out. It speaks only
of nodes whose labels were set before it. Standard library only.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from kveik.cache.claims import Claims, Label, LabelSet
from kveik.cache.prefix import WORD, Identity, PrefixTree
from kveik.cache.segments import EXACT


@dataclass(frozen=True, slots=True)
class Conditions:
    """All must hold. prefix: packed tokens with which a path begins; labels: of each group a node
    carries one; cutoff: it was made no later."""

    namespace: str
    adapter: int | None = None
    prefix: bytes = b""
    labels: tuple[frozenset[Label], ...] = ()
    cutoff: float = field(default=float("inf"))

    def covers(self, identity: Identity) -> bool:
        """Trees of exact blocks that it speaks of (recipes go whole)."""
        return (
            identity.namespace == self.namespace
            and identity.lineage == EXACT
            and self.adapter in (None, identity.adapter)
        )


class Rule:
    """Conditions on the nodes whose serial number is smaller than `serial`."""

    def __init__(
        self,
        conditions: Conditions,
        serial: int,
        tree: PrefixTree,
        claims: Claims,
        serials: array[int],
    ) -> None:
        self.conditions = conditions
        self._serial = serial
        # Of each group of labels the sets that contain one now: other tags change nothing.
        self._sets = [
            frozenset[LabelSet]().union(*(label.sets for label in group))
            for group in conditions.labels
        ]
        self._tree, self._claims, self._serials = tree, claims, serials

    def first_match(self, walked: Sequence[int], identity: Identity, data: bytes) -> int:
        """Number of the first of these nodes (the path of `data`, whole blocks) that matches."""
        conditions = self.conditions
        if not conditions.covers(identity) or not data.startswith(conditions.prefix):
            return len(walked)
        width = self._tree.block_size * WORD
        start = max(len(conditions.prefix) - WORD, 0) // width
        start = max(start - self._tree.blocks_before(identity), 0)
        return next((n for n in range(start, len(walked)) if self.concerns(walked[n])), len(walked))

    def matches(self, node: int) -> bool:
        """Does it match this node, wherever it hangs?"""
        if not self.concerns(node):
            return False
        identity = self._tree.identities.get(self._tree.root_of(node))
        if identity is None or not self.conditions.covers(identity):
            return False
        prefix = self.conditions.prefix
        return not prefix or self._tree.path(node).startswith(prefix)

    def concerns(self, node: int) -> bool:
        """Serial, labels and age."""
        conditions = self.conditions
        if node >= len(self._serials):
            return self._tree.created[node] <= conditions.cutoff and not conditions.labels
        if self._serials[node] >= self._serial or self._tree.created[node] > conditions.cutoff:
            return False
        carried = self._claims.sets[self._claims.set_of[node]]
        return all(carried in sets for sets in self._sets)
