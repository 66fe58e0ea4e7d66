"""What is cached, to be looked at: sessions, and the hottest blocks. Changes nothing.

Every view looks at a bounded number of blocks, so that it does not hold up a step. Standard library
only.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

from kveik.cache.deadlines import NEVER
from kveik.cache.directive import BlockView
from kveik.cache.lease import Lease
from kveik.cache.names import Names
from kveik.cache.prefix import WORD, unpack_tokens
from kveik.cache.retention import Retention
from kveik.cache.sessions import SessionTable

_LOOKED_AT = 512  # blocks
_CLIMBED = 4000  # steps towards the root


def session_views(
    table: SessionTable, retention: Retention, namespace: str | None, block_size: int
) -> list[tuple[str, str, float, int, int]]:
    """(namespace, session, idle seconds, blocks, tokens), the session used last first."""
    views: list[tuple[str, str, float, int, int]] = []
    for space, session, entry in table.table(namespace):
        label = retention.claims.find(space, "session", session)
        blocks = sum(of.count for of in label.sets) if label is not None else 0
        idle = 0.0 if entry.open else retention.clock.now - entry.last_use
        views.append((space, session, idle, blocks, blocks * block_size))
    return views


class Listing:
    """One listing."""

    def __init__(self, retention: Retention, names: Names, leases: Collection[Lease]) -> None:
        self.retention, self.names, self.leases = retention, names, leases
        self.tree = retention.tree
        self._steps = 0
        self._roots: dict[int, tuple[int, int]] = {}  # node -> (root, tokens up to its end)

    def views(self, namespace: str | None, top: int, with_path: bool) -> list[BlockView]:
        found: list[BlockView] = []
        for block in self._hottest():
            if len(found) >= top or self._steps > _CLIMBED:
                break
            view = self._view(block, namespace, with_path)
            if view is not None:
                found.append(view)
        return found

    def _hottest(self) -> list[int]:
        """Blocks of the first group: those that are read, then the idle ones, used last first.

        The policy's own order is not shown: it may be learned from everybody's traffic."""
        held = dict.fromkeys(block for lease in self.leases for block in lease.every_block(0))
        read = list(islice(held, _LOOKED_AT))
        idle, owner = self.retention.idle[0], self.retention.pools[0].owner
        rest = islice(idle.hottest(), _LOOKED_AT - len(read))
        return read + sorted(
            rest, key=lambda block: (-idle.last_used[block], self.tree.depth[owner[block]])
        )

    def _view(self, block: int, namespace: str | None, with_path: bool) -> BlockView | None:
        retention, tree = self.retention, self.tree
        node = retention.pools[0].owner[block]
        if node < 0:
            return None
        root, depth = self._climb(node)
        identity = tree.identities.get(root)
        if identity is None or namespace not in (None, identity.namespace):
            return None
        of = retention.set_of(node)
        if retention.troubled() and self._is_gone(node):
            return None
        now = retention.clock.now
        left = min(
            retention.deadlines.delete_at(node) - now, self.names.time_left(of.live_labels())
        )
        return BlockView(
            namespace=identity.namespace,
            tokens=tree.length[node],
            depth=depth,
            hits=retention.idle[0].hits[block],
            age=now - tree.created[node],
            idle=0.0 if retention.is_read(node) else now - tree.used[node],
            time_left=None if left == NEVER else max(left, 0.0),
            priority=retention.priority(node),
            demoted=retention.is_demoted(node),
            pinned=of.pinned,
            readers=retention.pools[0].refs[block],
            # a node of which nobody said anything is plain use, whether or not others are told of
            claims=tuple(sorted(label.text for label in of.live_labels())) or ("plain",),
            path=unpack_tokens(tree.path(node)) if with_path else (),
        )

    def _is_gone(self, node: int) -> bool:
        while self.tree.parent[node] >= 0:
            self._steps += 4  # each is dearer than a step of a climb
            if self.retention.why_gone(node):
                return True
            node = self.tree.parent[node]
        return False

    def _climb(self, node: int) -> tuple[int, int]:
        """Its root, and the tokens up to its end."""
        chain: list[int] = []
        while node not in self._roots and self.tree.parent[node] >= 0:
            chain.append(node)
            node = self.tree.parent[node]
        self._steps += len(chain)
        before = len(self.tree.before.get(node, b"")) // WORD
        root, depth = self._roots.get(node, (node, before))
        for each in reversed(chain):
            depth += self.tree.length[each]
            self._roots[each] = root, depth
        return root, depth
