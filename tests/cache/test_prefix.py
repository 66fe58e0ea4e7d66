"""The tree alone: packing, siblings, digests; and that no collision of hashes is ever a hit."""

from __future__ import annotations

import itertools
import random

import pytest
from books import Books
from hypothesis import given, settings
from hypothesis import strategies as st

from kveik.cache import leasing as leasing_module
from kveik.cache import manager as manager_module
from kveik.cache.ghosts import Ghosts
from kveik.cache.prefix import (
    Identity,
    PrefixTree,
    SortedKeys,
    pack_tokens,
    shared_tokens,
)
from kveik.errors import InvalidRequest

SIZE = 4


def tree() -> PrefixTree:
    return PrefixTree(1, SIZE, b"secret")


def common(left: list[int], right: list[int]) -> int:
    return next(
        (n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b),
        min(len(left), len(right)),
    )


@pytest.mark.parametrize("token", [-1, 2**32, "1", 1.5, None])
def test_token_ids_that_are_no_32_bit_integers_are_refused(token: object) -> None:
    with pytest.raises(InvalidRequest, match="token ids"):
        pack_tokens([token])  # type: ignore[list-item]


def test_packed_order_is_token_order() -> None:
    dice = random.Random(1)
    rows = [[dice.choice((0, 1, 255, 256, 2**31, 2**32 - 1)) for _ in range(3)] for _ in range(99)]
    assert sorted(rows) == sorted(rows, key=pack_tokens)


def test_shared_tokens_counts_whole_tokens() -> None:
    dice = random.Random(2)
    for _ in range(500):
        left = dice.choices((0, 1, 256), k=dice.randint(0, 6))
        right = dice.choices((0, 1, 256), k=dice.randint(0, 6))
        assert shared_tokens(pack_tokens(left), pack_tokens(right)) == common(left, right)


def test_sorted_keys_against_a_sorted_list() -> None:
    dice = random.Random(3)
    plain = sorted({dice.randbytes(3) for _ in range(40)})
    keys = SortedKeys(list(plain))
    for number in range(4000):
        key = dice.randbytes(3)
        if number % 3 == 2:
            keys.remove(plain.pop(dice.randrange(len(plain))))
        elif key not in plain:
            keys.add(key)
            plain = sorted([*plain, key])
        probe = dice.randbytes(2)
        if number % 100 == 0:
            assert list(keys.from_key(probe)) == [k for k in plain if k >= probe]
            assert list(keys.before_key(probe)) == [k for k in reversed(plain) if k < probe]
    while len(plain) > 1:
        keys.remove(plain.pop())
    assert list(keys.from_key(b"")) == plain
    with pytest.raises(KeyError):
        keys.remove(b"not there")


@pytest.mark.parametrize("siblings", [3, 16, 17, 200])
def test_the_closest_child_shares_most(siblings: int) -> None:
    dice = random.Random(siblings)
    trie = tree()
    root = trie.root(Identity(""))
    rows: dict[int, list[int]] = {}
    while len(rows) < siblings:
        row = dice.choices(range(5), k=dice.randint(1, SIZE))
        if row not in rows.values():
            rows[trie.insert(root, pack_tokens(row))] = row
    for _ in range(300):
        wanted = dice.choices(range(6), k=dice.randint(0, SIZE))
        found = trie.closest(root, pack_tokens(wanted))
        best = max(common(wanted, row) for row in rows.values())
        assert (found[0][0] if found else 0) == best
        assert all(shared == common(wanted, rows[node]) for shared, node in found)
    for node in list(rows):
        trie.remove(node)
    assert trie.children[root] == 0
    assert trie.sorted_keys(root) is None


def test_siblings_stay_complete_while_their_number_rises_and_falls() -> None:
    """They are sorted from 17 on, and until there are 8: between, both is possible."""
    dice = random.Random(6)
    trie = tree()
    root = trie.root(Identity(""))
    there: dict[int, bytes] = {}
    for goal in (20, 10, 14, 9, 30, 12, 18, 3, 16, 9, 17, 0):
        while len(there) < goal:
            chunk = pack_tokens(dice.choices(range(9), k=SIZE))
            if chunk not in there.values():
                there[trie.insert(root, chunk)] = chunk
        while len(there) > goal:
            node = dice.choice(list(there))
            trie.remove(node)
            del there[node]
        keys = [root.to_bytes(4, "big") + chunk for chunk in there.values()]
        assert sorted(trie.index) == sorted(keys)
        assert trie.sorted_keys(root) in (None, sorted(keys))
        assert trie.sorted_keys(root) is not None or goal <= 16
        for node, chunk in there.items():
            assert trie.closest(root, chunk)[0] == (SIZE, node)


@pytest.mark.parametrize("others", [0, 40])
def test_tails_and_what_extends_them(others: int) -> None:
    trie = tree()
    root = trie.root(Identity(""))
    for number in range(others):
        trie.insert(root, pack_tokens([1000 + number] * SIZE))
    short = trie.insert(root, pack_tokens([1, 2]))
    assert trie.shorter_tail(root, pack_tokens([1, 2, 3])) == short
    assert trie.shorter_tail(root, pack_tokens([1, 3, 3])) == -1
    assert trie.shorter_tail(root, pack_tokens([1, 2])) == -1
    assert trie.extension(root, pack_tokens([1, 2])) < 0
    assert trie.extension(root, pack_tokens([1])) >= 0


def test_nodes_with_children_or_blocks_are_not_removed() -> None:
    trie = tree()
    root = trie.root(Identity(""))
    parent = trie.insert(root, pack_tokens([1] * SIZE))
    child = trie.insert(parent, pack_tokens([2] * SIZE))
    with pytest.raises(ValueError, match="children"):
        trie.remove(parent)
    trie.payload[0][child] = 5
    with pytest.raises(ValueError, match="block"):
        trie.remove(child)


def test_digests_depend_on_identity_path_and_secret_and_not_on_the_node() -> None:
    trie = tree()
    digests = set()
    for identity in (Identity(""), Identity("a"), Identity("", 1), Identity("", 0, b"r")):
        root = trie.root(identity)
        first = trie.insert(root, pack_tokens([1] * SIZE))
        second = trie.insert(first, pack_tokens([1] * SIZE))
        digests |= {trie.digest(root), trie.digest(second), trie.digest(first)}
        assert trie.digest(root) == trie.absent_root_digest(identity)
    assert len(digests) == 12
    other = PrefixTree(1, SIZE, b"another")
    assert other.digest(other.root(Identity(""))) not in digests
    root = trie.root(Identity("again"))
    kept = trie.digest(trie.insert(root, pack_tokens([9])))
    trie.remove(trie.closest(root, pack_tokens([9]))[0][1])
    assert trie.digest(trie.insert(root, pack_tokens([8]))) != kept


def test_framing_separates_namespace_from_lineage() -> None:
    trie = tree()
    one = trie.absent_root_digest(Identity("ab", 0, b"c"))
    assert one != trie.absent_root_digest(Identity("a", 0, b"bc"))


def test_ghosts_are_bounded() -> None:
    ghosts = Ghosts(2)
    for name in (b"a", b"b", b"a", b"c"):
        ghosts.remember(1, name, "evicted")
    assert [ghosts.reason(1, name) for name in (b"a", b"b")] == ["evicted", None]
    assert (len(ghosts), ghosts.reason(2, b"a")) == (2, None)
    empty = Ghosts(0)
    empty.remember(1, b"a", "evicted")
    assert len(empty) == 0


def test_a_flood_takes_no_ghost_from_another_namespace() -> None:
    ghosts, number = Ghosts(32), itertools.count()
    mine = [str(n).encode() for n in range(20)]
    for digest in mine:
        ghosts.remember(0, digest, "expired")
    for _ in range(1000):
        for space in (1, 2, 3, 4, 5):
            ghosts.remember(space, str(next(number)).encode(), "evicted")
    assert [ghosts.reason(0, digest) for digest in mine] == ["expired"] * 20
    assert len(ghosts) == 128
    held = [sum(ghosts.reason(s, str(n).encode()) is not None for n in range(5000)) for s in (1, 5)]
    assert all(21 <= count <= 22 for count in held)  # equal shares of what is left


@settings(max_examples=100, deadline=None)
@given(calls=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=200))
def test_ghosts_of_a_namespace_are_its_last_ones(calls: list[tuple[int, int]]) -> None:
    ghosts = Ghosts(4)
    last: dict[int, list[int]] = {space: [] for space in range(4)}
    for space, name in calls:
        ghosts.remember(space, bytes([name]), "evicted")
        last[space] = [*(one for one in last[space] if one != name), name][-4:]
    for space, names in last.items():
        kept = [n for n in range(10) if ghosts.reason(space, bytes([n])) is not None]
        assert kept == sorted(names)
    assert len(ghosts) == sum(map(len, last.values()))


class WeakBytes(bytes):
    """Bytes whose hash has one bit: nearly every two keys collide."""

    hashed = 0

    def __hash__(self) -> int:
        WeakBytes.hashed += 1
        return self[-1] & 1

    def __getitem__(self, key: object) -> object:  # type: ignore[override]
        part = super().__getitem__(key)  # type: ignore[index]
        return WeakBytes(part) if isinstance(part, bytes) else part

    def __add__(self, other: bytes) -> WeakBytes:
        return WeakBytes(bytes(self) + bytes(other))

    def __radd__(self, other: bytes) -> WeakBytes:
        return WeakBytes(other + bytes(self))


def test_colliding_hashes_never_give_a_wrong_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (manager_module, leasing_module):
        monkeypatch.setattr(module, "pack_tokens", lambda row: WeakBytes(pack_tokens(row)))
    chunk = PrefixTree.chunk
    monkeypatch.setattr(PrefixTree, "chunk", lambda self, node: WeakBytes(chunk(self, node)))
    dice = random.Random(5)
    books = Books(blocks=400, size=2)
    stored = []
    for _ in range(60):
        row = dice.choices(range(4), k=dice.randint(3, 10))
        books.end(books.run(row))
        stored.append(row)
    assert len({hash(key) for key in books.tree.index}) == 2
    before = WeakBytes.hashed
    for _ in range(10_000):
        asked = dice.choices(range(4), k=dice.randint(1, 10))
        expected = min(max(common(asked, row) for row in stored), len(asked) - 1)
        assert books.cached(asked) == expected
    assert WeakBytes.hashed > before


def test_a_node_that_is_used_again_has_no_sibling_of_before() -> None:
    tree = PrefixTree(1, 2, b"")
    root = tree.root(Identity(""))
    first, second, _ = (tree.insert(root, pack_tokens([k, k])) for k in range(3))
    tree.remove(second)
    grave = tree.bury(first)
    assert grave == second
    assert tree.next_sibling(grave) == -1
