"""The proof of conservation: every block is in exactly one place, every count adds up.

    free + fenced + leased outside the tree + in the tree == total, refs == holders, per group

Reads the books of a manager and changes nothing; AssertionError names what does not add up. It
takes time in proportion to the pool: tests call it after every operation, an engine when idle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Protocol

from kveik.cache.lease import Lease
from kveik.cache.policy import IdleQueues
from kveik.cache.pool import FREE, SEALED, BlockPool, StepFence
from kveik.cache.prefix import PrefixTree
from kveik.cache.reclaim import Reclaimer
from kveik.cache.retention import Retention


class Books(Protocol):
    """What the proof reads of a manager."""

    block_size: int
    pools: tuple[BlockPool, ...]
    idle: tuple[IdleQueues, ...]
    tree: PrefixTree
    fence: StepFence
    reclaim: Reclaimer
    reach: tuple[int, ...]

    retention: Retention

    @property
    def open_leases(self) -> Collection[Lease]: ...

    @property
    def led_keys(self) -> Mapping[bytes, Lease]: ...

    @property
    def job_pins(self) -> Counter[int]: ...


def audit(books: Books) -> None:
    """Raise AssertionError unless the books are right."""
    held = books.fence.held()
    for g in range(len(books.pools)):
        fenced = Counter(block for group, block in held if group == g)
        leased = Counter(block for lease in books.open_leases for block in lease.every_block(g))
        _blocks(books, g, leased + fenced)
        _queues(books, g)
    _leases(books)
    _tree(books)
    _recipes(books)


def _blocks(books: Books, g: int, holders: Counter[int]) -> None:
    pool, payload = books.pools[g], books.tree.payload[g]
    free = set(pool.free)
    assert len(free) == len(pool.free), f"group {g}: a block is free twice"
    for block in range(pool.num_blocks):
        where = f"group {g} block {block}"
        assert pool.refs[block] == holders[block], f"{where}: {pool.refs[block]} references"
        in_tree = pool.owner[block] >= 0
        if block in free:
            assert not holders[block], f"{where}: free and held"
            assert not in_tree, f"{where}: free and in the tree"
            assert pool.state[block] == FREE, f"{where}: free but not in that state"
        else:
            assert holders[block] or in_tree, f"{where}: leaked"
            assert pool.state[block] != FREE, f"{where}: in use in state free"
        if in_tree:
            assert payload[pool.owner[block]] == block, f"{where}: its node names another block"
            assert pool.state[block] == SEALED, f"{where}: in the tree, not sealed"


def _queues(books: Books, g: int) -> None:
    pool, tree = books.pools[g], books.tree
    waiting = list(books.idle[g])
    expected = {
        block for block in range(pool.num_blocks) if pool.owner[block] >= 0 and not pool.refs[block]
    }
    assert len(waiting) == books.idle[g].count, f"group {g}: count of idle blocks"
    assert set(waiting) == expected, f"group {g}: idle blocks are not those that wait"
    if books.reach[g]:
        return
    # A stream that dropped tokens holds blocks without those before them.
    passed = Counter(
        block for lease in books.open_leases if lease.evicted for block in lease.every_block(g)
    )
    if books.reclaim.passed_over:
        passed.update(block for group, block in books.fence.held() if group == g)
    for block in expected:
        for child in tree.each_child(pool.owner[block]):
            below = tree.payload[g][child]
            assert pool.refs[below] <= passed[below], (
                f"group {g}: block {block} is idle, its child is held"
            )


def _leases(books: Books) -> None:
    size = books.block_size
    pins = Counter(books.job_pins)
    for lease in books.open_leases:
        assert lease.sealed == lease.committed // size, "sealed blocks of a lease"
        assert lease.committed <= lease.capacity, "a lease holds more tokens than slots"
        for blocks, start in zip(lease.blocks, lease.starts, strict=True):
            assert (start + len(blocks)) * size == lease.capacity, "blocks of a lease"
        _stream(lease, size)
        if lease.node >= 0:
            pins[lease.node] += 1
        if lease.leading:
            assert books.led_keys[lease.leading] is lease, "a leader is not registered"
    led = sum(1 for lease in books.open_leases if lease.leading)
    assert led == len(books.led_keys), "somebody waits for a lease that has ended"
    for node in books.tree.nodes():
        assert books.tree.pins[node] == pins.pop(node, 0), f"pins of node {node}"
    assert not pins, "a lease publishes behind a node that is gone"


def _stream(lease: Lease, size: int) -> None:
    """What a stream holds is what its window sees, and no block more."""
    stream = lease.stream
    sinks = 0 if stream is None else -(-stream.sinks // size)
    for kept, start in zip(lease.sinks, lease.starts, strict=True):
        assert len(kept) == (0 if stream is None else min(sinks, start)), "sinks of a stream"
        if stream is not None:
            assert start == stream.first_recent(lease.committed) // size, "window of a stream"
    assert not (lease.evicted and lease.node >= 0), "a stream publishes what it must not"


def _recipes(books: Books) -> None:
    nodes, recipes = books.retention.recipes.known()
    there = set(books.tree.nodes())
    assert nodes <= there, f"recipes contain nodes that are gone: {nodes - there}"
    roots = {*books.tree.identities, *books.tree.graves}
    assert recipes <= roots, f"recipes that are gone: {recipes - roots}"


def _tree(books: Books) -> None:
    tree = books.tree
    children: Counter[int] = Counter()
    for key, node in tree.index.items():
        parent = tree.parent[node]
        assert tree.key(node) == key, f"node {node} is filed under another key"
        rooted = parent in tree.identities or parent in tree.graves
        assert rooted or tree.length[parent] == books.block_size, (
            f"node {node} hangs below a partial tail or nothing"
        )
        children[parent] += 1
        for g, reach in enumerate(books.reach):
            assert reach or tree.payload[g][node] >= 0, f"node {node} has no block in group {g}"
            block = tree.payload[g][node]
            assert block < 0 or books.pools[g].owner[block] == node, f"owner of block {block}"
        empty = all(payload[node] < 0 for payload in tree.payload)
        assert tree.children[node] or tree.pins[node] or not empty, f"node {node} is of no use"
    for node in tree.nodes():
        listed = list(tree.each_child(node))
        assert len(listed) == tree.children[node] == children[node], f"children of node {node}"
        assert all(tree.parent[child] == node for child in listed), f"children of node {node}"
        ordered = tree.sorted_keys(node)
        if ordered is not None:
            assert len(ordered) == len(listed), f"sorted children of node {node}"
            assert all(left < right for left, right in pairwise(ordered)), f"order at {node}"
