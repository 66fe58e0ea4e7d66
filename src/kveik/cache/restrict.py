"""What open leases may still publish after an invalidation (invariant 17), and who leads.

A lease opened before an invalidation that matches its directive publishes nothing more; one whose
tokens may turn out to begin with an invalidated prefix is told when they do. Standard library only.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kveik.cache.claims import Label
from kveik.cache.lease import Lease
from kveik.cache.prefix import WORD, PrefixTree, pack_tokens
from kveik.cache.reclaim import Reclaimer


class Restrictor:
    """leases: those that are open; leaders: the keys of blocks that others wait for, and the leases
    that compute them."""

    def __init__(self, tree: PrefixTree, reclaim: Reclaimer, leases: Collection[Lease]) -> None:
        self.tree, self.reclaim, self.leases = tree, reclaim, leases
        self.leaders: dict[bytes, Lease] = {}
        self._width = tree.block_size * WORD

    def stop_leading(self, lease: Lease) -> None:
        if lease.leading:
            del self.leaders[lease.leading]
            lease.leading = b""

    def detach(self, lease: Lease) -> None:
        """The lease publishes nothing more."""
        node = lease.node
        self.cut(lease)
        if node >= 0:
            self.reclaim.prune(node)

    def cut(self, lease: Lease) -> None:
        """The same for a lease whose node is about to be freed."""
        self.stop_leading(lease)
        if lease.node >= 0:
            self.tree.pins[lease.node] -= 1
        lease.node, lease.limit, lease.prompt, lease.erase = -1, 0, b"", True

    def cut_at(self, node: int) -> None:
        """The node goes: what leases compute behind it is not published."""
        for lease in self.leases:
            if lease.node == node:
                self.cut(lease)

    def stop(self, label: Label) -> None:
        """Leases that would write this label publish nothing more."""
        for lease in self.leases:
            if label in lease.labels:
                self.detach(lease)

    def limit(self, lease: Lease, blocks: int) -> None:
        """The lease publishes no block from this number on."""
        lease.limit = min(lease.limit, blocks)
        if lease.limit <= lease.sealed:
            self.stop_leading(lease)

    def by_prefix(self, lease: Lease, selector: bytes) -> None:
        """What begins with the packed tokens `selector` is not published (empty: nothing is)."""
        if not selector:
            self.detach(lease)
        elif lease.evicted:  # nobody knows its beginning any more
            lease.erase = True
        elif len(selector) > lease.committed * WORD:
            lease.selectors.append(selector)
        elif lease.limit > lease.sealed and lease.node >= 0:
            self._if_matching(lease, selector, self.tree.path(lease.node) + lease.tail)

    def obey(self, lease: Lease, tokens: Sequence[int]) -> None:
        """Once the tokens reach the end of a selector it is known whether it matches them."""
        size = len(tokens) * WORD
        for selector in lease.selectors:
            if len(selector) <= size:
                self._if_matching(lease, selector, pack_tokens(tokens[: len(selector) // WORD]))
        lease.selectors = [selector for selector in lease.selectors if len(selector) > size]

    def _if_matching(self, lease: Lease, selector: bytes, path: bytes) -> None:
        if path.startswith(selector):
            lease.erase = True
            self.limit(lease, (len(selector) - WORD) // self._width)
