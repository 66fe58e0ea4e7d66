"""What somebody does to one place of the tree: pin it, unpin it, or evict what hangs below it.

Deleting is not here: that is `invalidate` with the tokens up to there. A pin by hand is a claim of
its own on the whole path, within the budget of pins; it lasts until it is ended. Standard library
only.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from kveik.cache.claims import Label
from kveik.cache.directive import Receipt
from kveik.cache.invalidation import Invalidation
from kveik.cache.names import Names
from kveik.cache.reclaim import Reclaimer
from kveik.cache.segments import KvGroup

BY_HAND = "hand:"
"""How the keys of these pins begin."""

MOST = 4096
"""Nodes that one eviction looks at, and children of one of them."""


class ByHand:
    """The caller knows that the node is in the tree, and whose it is."""

    def __init__(
        self,
        reclaim: Reclaimer,
        names: Names,
        invalidation: Invalidation,
        groups: tuple[KvGroup, ...],
    ) -> None:
        self._reclaim, self._names, self._invalidation = reclaim, names, invalidation
        self._retention, self._tree = names.retention, reclaim.tree
        self._groups = groups
        self._pins = 0

    def pin(self, namespace: str, node: int) -> Receipt:
        """What lies on the way to the node is not evicted any more; the receipt counts what was
        not pinned before. PinBudgetExceeded, and nothing changed."""
        path = self._path(node)
        fresh = [each for each in path if not self._retention.set_of(each).pinned]
        self._names.check_pin(len(fresh))
        self._retention.activate()
        self._pins += 1
        label = self._retention.claims.label(namespace, "pin", f"{BY_HAND}{self._pins}")
        for each in path:
            self._retention.add_labels(each, frozenset((label,)), namespace)
        return self._receipt(fresh)

    def unpin(self, node: int) -> Receipt:
        """End every pin by hand that holds this node. What nothing else holds goes."""
        labels = self.pins(node)
        receipts = [self._invalidation.end_pin(label) for label in labels]
        return Receipt(
            sum(one.blocks for one in receipts),
            sum(one.tokens for one in receipts),
            (("memory", sum(size for one in receipts for _, size in one.bytes_by_tier)),),
            sum(one.deferred for one in receipts),
        )

    def pins(self, node: int) -> list[Label]:
        """The pins by hand on a node."""
        labels = self._retention.set_of(node).live_labels()
        return [one for one in labels if one.kind == "pin" and one.key.startswith(BY_HAND)]

    def evict(self, top: int) -> Receipt:
        """The idle blocks of this subtree make room, children before parents; what is pinned, read
        or written to stays, and what comes before it. It looks at `MOST` nodes, so that a large
        subtree takes several calls. deferred: nodes that it looked at and that stay."""
        tree, reclaim = self._tree, self._reclaim
        parent = tree.parent[top]
        tree.pins[parent] += 1  # what is remembered of the top needs it
        blocks = tokens = size = stay = 0
        evicted: int | None = None
        for node in islice(self._leaves_first(top), MOST):
            if tree.is_empty(node):
                continue
            if not self._may_go(node):
                stay += 1
                continue
            tokens += tree.length[node]
            size += self._bytes(node)
            blocks += reclaim.remove_leaf(node)
            evicted = node if node == top else evicted
        reclaim.evicted += blocks
        reclaim.leave_ghost(parent, evicted)
        return Receipt(blocks, tokens, (("memory", size),), stay)

    def _may_go(self, node: int) -> bool:
        tree = self._tree
        if tree.children[node] or tree.pins[node]:
            return False
        return not self._retention.set_of(node).pinned and not self._retention.is_read(node)

    def _leaves_first(self, top: int) -> Iterator[int]:
        """The subtree, children before parents; the caller may remove what it was told."""
        tree = self._tree
        waiting = [(top, False)]
        while waiting:
            node, opened = waiting.pop()
            if opened or not tree.children[node]:
                yield node
            else:
                waiting.append((node, True))
                waiting.extend((child, False) for child in islice(tree.each_child(node), MOST))

    def _path(self, node: int) -> list[int]:
        path: list[int] = []
        while self._tree.parent[node] >= 0:
            path.append(node)
            node = self._tree.parent[node]
        return path

    def _bytes(self, node: int) -> int:
        return sum(
            group.bytes_per_block
            for group, payload in zip(self._groups, self._tree.payload, strict=True)
            if payload[node] >= 0
        )

    def _receipt(self, nodes: list[int]) -> Receipt:
        return Receipt(
            sum(payload[node] >= 0 for payload in self._tree.payload for node in nodes),
            sum(self._tree.length[node] for node in nodes),
            (("memory", sum(map(self._bytes, nodes))),),
        )
