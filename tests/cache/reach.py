"""What walks through a cache reach, written down as a dictionary of token tuples.

`reachable` reads every living block with its labels, deadline and age; the rest of this file says
in the plainest way how such paths hang together: what a block depends on, and how much of a prompt
they would serve. An arena keeps what is really in every slot. None of it decides who dies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kveik.cache.claims import HOLDS
from kveik.cache.directive import PUBLIC
from kveik.cache.manager import CacheManager, Lease
from kveik.cache.prefix import WORD, Identity, unpack_tokens
from kveik.cache.segments import CopyPrefix, Move

Tokens = tuple[int, ...]
Path = tuple[Identity, Tokens]


@dataclass(frozen=True)
class Facts:
    """What is known of one reachable block. Times are those of the manager's clock."""

    labels: frozenset[tuple[str, str]]
    delete_at: float  # however it is used; those of its names included
    unused_at: float  # when it is deleted unless somebody uses it or goes on reading it
    read: bool
    created: float
    blocks: tuple[tuple[int, int], ...]  # (group, block)
    before: int  # tokens of the public path behind which its tree goes on
    pinned: bool
    idle: bool  # nobody holds its block of the first group, so that it counts in a share

    @property
    def ends_at(self) -> float:
        return self.delete_at if self.read else min(self.delete_at, self.unused_at)

    def keys(self, kind: str) -> set[str]:
        return {key for each, key in self.labels if each == kind}

    def held_without(self, *ended: tuple[str, str]) -> bool:
        return any(kind in HOLDS and (kind, key) not in ended for kind, key in self.labels)


def caller(identity: Identity) -> Identity:
    """Whose it is, wherever its tree begins."""
    return identity._replace(base=b"")


def hangs(path: Path, facts: Facts, top: Path, size: int) -> bool:
    """Is it that block, or does it depend on it? Nothing hangs below a partial tail."""
    (identity, tokens), (above, head) = path, top
    if path == top:
        return True
    if len(head) % size or tokens[: len(head)] != head:
        return False
    public = above == Identity(PUBLIC, identity.adapter) and len(head) <= facts.before
    return identity == above or (bool(identity.base) and public)


def longest(paths: Iterable[Path], identity: Identity, tokens: Tokens) -> int:
    """How much of these tokens blocks of the caller, or public ones, could serve at the most."""
    trees = (caller(identity), Identity(PUBLIC, identity.adapter))
    best = 0
    for owner, path in paths:
        if caller(owner) in trees and len(path) > best:
            best = max(best, shared(path, tokens))
    return best


def shared(left: Tokens, right: Tokens) -> int:
    for count, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return count
    return min(len(left), len(right))


def reachable(manager: CacheManager) -> dict[Path, Facts]:
    """Every block that a walk of the manager's own search reaches."""
    found: dict[Path, Facts] = {}
    for identity, root in manager.tree.roots.items():
        public = _public(manager, identity, root)
        if public is None:
            continue
        stack = [root]
        while stack:
            for node in manager.tree.each_child(stack.pop()):
                data = manager.tree.path(node)
                if _alive(manager, identity, public, node, data):
                    facts = _facts(manager, node, len(public) * manager.block_size)
                    found[identity, unpack_tokens(data)] = facts
                    stack.append(node)
    return found


def _public(manager: CacheManager, identity: Identity, root: int) -> list[int] | None:
    """The living public nodes behind which the tree goes on; None: they are gone."""
    before = manager.tree.before.get(root, b"")
    if not before:
        return []
    nodes = manager.search._public_path(caller(identity), before, len(before) // WORD)
    whole = len(nodes) * manager.block_size * WORD == len(before)
    return nodes if whole and manager.tree.bases.get(nodes[-1]) == identity.base else None


def _alive(
    manager: CacheManager, identity: Identity, public: list[int], node: int, data: bytes
) -> bool:
    if manager.tree.length[node] < manager.block_size:
        return not manager.retention.why_gone(node)
    walked = manager.search._find(identity, public, data, len(data) // WORD).walked
    return len(walked) == len(data) // WORD // manager.block_size


def _facts(manager: CacheManager, node: int, before: int) -> Facts:
    retention, tree = manager.retention, manager.tree
    labels = retention.set_of(node)
    live = labels.live_labels()
    until = retention.deadlines.ends_at(node)
    for label in live:
        entry = manager.names._names.get(label)
        if entry is not None and entry.ttl is not None and entry.ttl.mode == "delete":
            until = min(until, entry.deadline())
    blocks = [(g, payload[node]) for g, payload in enumerate(tree.payload) if payload[node] >= 0]
    return Facts(
        labels=frozenset((label.kind, label.key) for label in live) or frozenset([("plain", "")]),
        delete_at=until,
        unused_at=retention.deadlines.delete_at(node),
        read=retention.is_read(node),
        created=tree.created[node],
        blocks=tuple(blocks),
        before=before,
        pinned=labels.pinned,
        idle=all(manager.pools[g].refs[block] == 0 for g, block in blocks if g == 0),
    )


class Arena:
    """What is in every slot: (whose, tokens up to and including this one)."""

    def __init__(self, manager: CacheManager) -> None:
        self.manager, self.size = manager, manager.block_size
        self.slots: dict[tuple[int, int, int], Path] = {}

    def erase(self, group: int, block: int) -> None:
        for slot in range(self.size):
            self.slots.pop((group, block, slot), None)

    def move(self, moves: Iterable[Move]) -> None:
        for move in moves:
            assert isinstance(move, CopyPrefix)
            for slot in range(move.count):
                content = self.slots[move.group, move.src, slot]
                self.slots[move.group, move.dst, slot] = content

    def places(self, lease: Lease, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(position, group, block, slot) of these tokens, as far as the tables go back."""
        for g, table in enumerate(lease.tables):
            (segment,) = table
            for position in range(max(start, segment.home), end):
                block, slot = divmod(position - segment.home, self.size)
                yield position, g, segment.blocks[block], slot

    def write(self, lease: Lease, tokens: Tokens, start: int) -> None:
        owner = caller(lease.identity)
        for position, *place in self.places(lease, start, len(tokens)):
            group, block, slot = place
            self.slots[group, block, slot] = (owner, tokens[: position + 1])

    def read(self, lease: Lease, tokens: Tokens) -> None:
        """What the lease sees was computed for its own tokens, by its caller or for everybody."""
        owners = (caller(lease.identity), Identity(PUBLIC, lease.identity.adapter))
        for position, *place in self.places(lease, 0, len(tokens)):
            group, block, slot = place
            owner, path = self.slots[group, block, slot]
            assert path == tokens[: position + 1], "a block holds other tokens"
            assert owner in owners, "a block of somebody else"
