"""The prefix tree: which sequence of tokens a block belongs to.

One dictionary maps `parent node id + token ids` (bytes, compared exactly) to a node, so a wrong
hit is impossible whatever a hash does. A node is one block: `block_size` tokens, or fewer for a
sealed partial tail (a leaf for ever). All facts of a node lie in flat array columns: a million
nodes are no objects for the garbage collector. Roots stand for (namespace, adapter, lineage):
a recipe has a root of its own, so no exact lookup can ever reach it.

Token ids are big-endian 32-bit words inside keys, so that the order of bytes is the order of
tokens: among many siblings the longest common prefix is found next to where the key would be
inserted. The tree does not know leases, reference counts or policies. Standard library only.
"""

from __future__ import annotations

import hashlib
import sys
import zlib
from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from kveik.cache.segments import EXACT
from kveik.errors import InvalidRequest

WORD = 4  # bytes of one token id
_DIGEST = 32
_BASE = 8  # bytes of the name of a public node
_GRAVE = bytes(_DIGEST - 1) + b"\1"  # above what nobody can find
_LISTED = 16  # siblings up to this number are compared one by one, more are kept sorted
_NEAREST = 16  # sorted siblings looked at on either side for the longest common prefix
_LEAF = 512  # keys in one sorted chunk


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Token ids as big-endian unsigned 32-bit words; InvalidRequest when one does not fit."""
    try:
        words = array("I", tokens)
    except (OverflowError, TypeError) as error:
        raise InvalidRequest(
            f"token ids: each must be an integer in 0 .. 2**32 - 1 ({error})", param="prompt"
        ) from error
    if sys.byteorder == "little":
        words.byteswap()
    return words.tobytes()


def unpack_tokens(data: bytes) -> tuple[int, ...]:
    words = array("I", data)
    if sys.byteorder == "little":
        words.byteswap()
    return tuple(words)


def shared_tokens(left: bytes, right: bytes) -> int:
    """Length in tokens of the longest common prefix of two packed sequences."""
    size = min(len(left), len(right))
    left, right = left[:size], right[:size]
    if left == right:
        return size // WORD
    difference = int.from_bytes(left, "big") ^ int.from_bytes(right, "big")
    return (8 * size - difference.bit_length()) // (8 * WORD)


def mark_of(identity: Identity) -> int:
    """Of the root of a tree; see mark_below."""
    return zlib.crc32(repr(identity).encode())


def mark_below(mark: int, chunk: bytes) -> int:
    """A check sum of 32 bits for a path, from that of the path above: enough to count and to sample
    by, not to find by. The same in every process, so that a replay can be repeated."""
    return zlib.crc32(chunk, mark)


class Identity(NamedTuple):
    """What separates trees that must never see each other. lineage: EXACT or a recipe digest;
    salt: a narrower circle within the namespace (hashed before it comes here). base: names the
    public node behind which this tree goes on; empty: it begins at position 0. A recipe begins
    anew, and its base names every public text that it contains, one name after the other."""

    namespace: str
    adapter: int = 0
    lineage: bytes = EXACT
    salt: str = ""
    base: bytes = b""


def base_names(base: bytes) -> list[bytes]:
    """The names of public nodes that a base consists of."""
    return [base[start : start + _BASE] for start in range(0, len(base), _BASE)]


class SortedKeys:
    """Keys in byte order in chunks, so that an insertion moves little among 10^5 siblings.

    Never empty: few siblings are not kept sorted."""

    def __init__(self, keys: list[bytes]) -> None:
        self._chunks = [sorted(keys)]

    def _place(self, key: bytes) -> int:
        """Index of the chunk that holds, or would hold, the key."""
        return max(bisect_right(self._chunks, key, key=lambda keys: keys[0]) - 1, 0)

    def add(self, key: bytes) -> None:
        place = self._place(key)
        chunk = self._chunks[place]
        insort(chunk, key)
        if len(chunk) > _LEAF:
            self._chunks[place : place + 1] = [chunk[: _LEAF // 2], chunk[_LEAF // 2 :]]

    def remove(self, key: bytes) -> None:
        """KeyError when it is not there."""
        place = self._place(key)
        chunk = self._chunks[place]
        at = bisect_left(chunk, key)
        if at == len(chunk) or chunk[at] != key:
            raise KeyError(key)
        del chunk[at]
        if not chunk:
            del self._chunks[place]

    def from_key(self, key: bytes) -> Iterator[bytes]:
        """Keys >= key, ascending."""
        place = self._place(key)
        chunk = self._chunks[place]
        yield from chunk[bisect_left(chunk, key) :]
        for later in self._chunks[place + 1 :]:
            yield from later

    def before_key(self, key: bytes) -> Iterator[bytes]:
        """Keys < key, descending."""
        place = self._place(key)
        chunk = self._chunks[place]
        yield from reversed(chunk[: bisect_left(chunk, key)])
        for index in range(place - 1, -1, -1):
            yield from reversed(self._chunks[index])


class PrefixTree:
    """Nodes by number. `payload[g][node]` is the block of group g, -1 when it has none.

    pins[node]: leases that publish behind this node; a pinned node is not removed by `prune`.
    depth[node]: tokens of its whole path; mark[node]: see mark_below.
    created[node], used[node]: seconds, by the clock that the owner of the tree keeps in `now`.
    graves: roots without identity, above subtrees that nobody can find any more. on_remove is
    told of every node that goes. account[node]: whose share of the pool it counts against (0:
    everybody's), as `accounts` says of its namespace; space[node]: whose it is, as `space_of` calls
    a namespace.

    A tree may go on behind a node of another one, which is public: before[root] are the packed
    tokens up to there, bases[node] the name by which identities call that node for as long as it
    lives. orphans: names of public nodes that are gone, behind which trees may be left."""

    def __init__(self, num_groups: int, block_size: int, secret: bytes) -> None:
        self.block_size = block_size
        self.now = 0.0
        self.graves: set[int] = set()
        self.on_remove: Callable[[int], None] | None = None
        self.index: dict[bytes, int] = {}
        self.roots: dict[Identity, int] = {}
        self.identities: dict[int, Identity] = {}
        self.accounts: dict[str, int] = {}
        self.account = bytearray()
        self.space = array("I")
        self.mark = array("I")
        self.before: dict[int, bytes] = {}
        self.bases: dict[int, bytes] = {}
        self.orphans: list[bytes] = []
        self._base_names = 0
        self._on_base: dict[bytes, set[Identity]] = {}
        self._by_namespace: dict[str, set[Identity]] = {}
        self.depth = array("i")
        self.created = array("d")
        self.used = array("d")
        self.parent = array("i")
        self.length = array("H")  # tokens
        self.children = array("i")  # number of children
        self.pins = array("i")
        self.payload = tuple(array("i") for _ in range(num_groups))
        self._first_child = array("i")
        self._next_sibling = array("i")
        self._previous_sibling = array("i")
        self._tokens = bytearray()
        self._digests = bytearray()
        self._digested = bytearray()  # of which node the digest is known
        # Nodes that were used before, strung on their links to siblings, and the first that never
        # was: neither list moves in memory, which would hold up a step.
        self._vacant, self._fresh = -1, 0
        self._sorted: dict[int, SortedKeys] = {}
        self._width = block_size * WORD
        self._blank = bytes(self._width)
        self._secret = secret

    def __len__(self) -> int:
        return len(self.index)

    # --- lookup

    def walk(self, root: int, data: bytes, blocks: int) -> list[int]:
        """The nodes of the first `blocks` whole blocks of `data`, up to the first that is not
        there. The path of a tree that goes on behind a public one begins there."""
        nodes: list[int] = []
        if root < 0:
            return nodes
        get, width, node = self.index.get, self._width, root
        before = len(self.before[root]) if root in self.before else 0
        for start in range(before, blocks * width, width):
            found = get(node.to_bytes(4, "big") + data[start : start + width])
            if found is None:
                break
            node = found
            nodes.append(node)
        return nodes

    def closest(self, parent: int, wanted: bytes) -> list[tuple[int, int]]:
        """Children that begin like `wanted`, as (shared tokens > 0, node), most shared first.

        Among many siblings only the nearest ones of either side in token order."""
        if not self.children[parent] or not wanted:
            return []
        found: list[tuple[int, int]] = []
        keys = self._sorted.get(parent)
        if keys is None:
            for node in self.each_child(parent):
                shared = shared_tokens(self.chunk(node), wanted)
                if shared:
                    found.append((shared, node))
        else:
            key = parent.to_bytes(4, "big") + wanted
            for side in (keys.from_key(key), keys.before_key(key)):
                for _, near in zip(range(_NEAREST), side, strict=False):
                    shared = shared_tokens(near, key) - 1  # the parent id is the first word
                    if shared < 1:
                        break
                    found.append((shared, self.index[near]))
        # The number of a node tells when it was made, and so of others: equals go by their tokens.
        found.sort(key=lambda near: (near[0], self.chunk(near[1])), reverse=True)
        return found

    def first_child(self, node: int) -> int:
        return self._first_child[node]

    def next_sibling(self, node: int) -> int:
        return self._next_sibling[node]

    def each_child(self, parent: int) -> Iterator[int]:
        node = self._first_child[parent]
        while node >= 0:
            following = self._next_sibling[node]
            yield node
            node = following

    def chunk(self, node: int) -> bytes:
        """The packed tokens of one node."""
        start = node * self._width
        return bytes(self._tokens[start : start + self.length[node] * WORD])

    def path(self, node: int) -> bytes:
        """The packed tokens from position 0 to the end of the node."""
        chunks: list[bytes] = []
        while self.parent[node] >= 0:
            chunks.append(self.chunk(node))
            node = self.parent[node]
        chunks.append(self.before.get(node, b""))
        return b"".join(reversed(chunks))

    def nodes_above(self, node: int) -> list[int]:
        """The nodes from below the root to this one; none for a root or -1."""
        nodes: list[int] = []
        while node >= 0 and self.parent[node] >= 0:
            nodes.append(node)
            node = self.parent[node]
        return nodes[::-1]

    def key(self, node: int) -> bytes:
        return self.parent[node].to_bytes(4, "big") + self.chunk(node)

    def shorter_tail(self, parent: int, chunk: bytes) -> int:
        """A sealed partial tail under `parent` that `chunk` extends, or -1."""
        if not self.children[parent]:
            return -1
        keys = self._sorted.get(parent)
        if keys is not None:
            key = parent.to_bytes(4, "big") + chunk
            before = next(keys.before_key(key), None)
            return self.index[before] if before and key.startswith(before) else -1
        for node in self.each_child(parent):
            if self.length[node] * WORD < len(chunk) and chunk.startswith(self.chunk(node)):
                return node
        return -1

    def extension(self, parent: int, chunk: bytes) -> int:
        """A longer block under `parent` that begins with `chunk`, or -1."""
        keys = self._sorted.get(parent)
        if keys is not None:
            key = parent.to_bytes(4, "big") + chunk
            near = keys.from_key(key)
            after = next(near, b"")
            if after == key:
                after = next(near, b"")
            return self.index[after] if after.startswith(key) else -1
        for node in self.each_child(parent):
            if self.length[node] * WORD > len(chunk) and self.chunk(node).startswith(chunk):
                return node
        return -1

    def sorted_keys(self, parent: int) -> list[bytes] | None:
        """The sorted keys of the children, where there are enough of them to be kept sorted."""
        keys = self._sorted.get(parent)
        return None if keys is None else list(keys.from_key(b""))

    # --- change

    def base_of(self, node: int) -> bytes:
        """The name of a node behind which other trees go on."""
        if node not in self.bases:
            self._base_names += 1
            self.bases[node] = self._base_names.to_bytes(_BASE, "big")
        return self.bases[node]

    def on_base(self, base: bytes) -> list[Identity]:
        """The trees that go on behind that node."""
        return list(self._on_base.get(base, ()))

    def blocks_before(self, identity: Identity) -> int:
        """Whole blocks of the public path behind which the tree goes on."""
        root = self.roots.get(identity, -1)
        return len(self.before.get(root, b"")) // self._width

    def shared_blocks(self) -> int:
        """Blocks of public paths, counted once for every tree that goes on behind them."""
        return sum(len(before) // self._width for before in self.before.values())

    def root(self, identity: Identity, before: bytes = b"") -> int:
        """The root of that identity, made when it is not there."""
        node = self.roots.get(identity)
        if node is None:
            node = self._new()
            self.parent[node] = -1
            self.length[node] = 0
            self.depth[node] = len(before) // WORD
            self.roots[identity] = node
            self.identities[node] = identity
            self.account[node] = self.accounts.get(identity.namespace, 0)
            self.space[node] = self.space_of(identity.namespace)
            self.mark[node] = mark_of(identity)
            self._by_namespace.setdefault(identity.namespace, set()).add(identity)
            if identity.base:
                self.before[node] = before
                for name in base_names(identity.base):
                    self._on_base.setdefault(name, set()).add(identity)
        return node

    def space_of(self, namespace: str) -> int:
        """A number for the namespace, from 32 bits of a keyed digest: two namespaces that have the
        same one by chance only share what is counted by it."""
        name = namespace.encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(name, digest_size=4, key=self._secret).digest())

    def namespaces(self) -> Collection[str]:
        """Those that have trees."""
        return self._by_namespace.keys()

    def identities_of(self, namespace: str) -> list[Identity]:
        return list(self._by_namespace.get(namespace, ()))

    def _forget_root(self, node: int) -> None:
        identity = self.identities.pop(node)
        del self.roots[identity]
        if identity.base:
            del self.before[node]
            for name in base_names(identity.base):
                self._on_base[name].discard(identity)
        others = self._by_namespace[identity.namespace]
        others.discard(identity)
        if not others:
            del self._by_namespace[identity.namespace]

    def bury(self, node: int) -> int:
        """Put the subtree out of reach in O(1); returns the root above it (a root becomes one)."""
        parent = self.parent[node]
        if parent < 0:
            self._forget_root(node)
            self.graves.add(node)
            return node
        self._unlink(node, parent)
        grave = self._new()
        self.parent[grave] = -1
        self.length[grave] = 0
        self.graves.add(grave)
        self.parent[node] = grave
        self._link(node, grave, self.key(node))
        return grave

    def root_of(self, node: int) -> int:
        while self.parent[node] >= 0:
            node = self.parent[node]
        return node

    def insert(self, parent: int, chunk: bytes) -> int:
        """A new node without payload. The caller knows that there is none with these tokens."""
        node = self._new()
        self.parent[node] = parent
        self.length[node] = len(chunk) // WORD
        self.account[node], self.space[node] = self.account[parent], self.space[parent]
        self.depth[node] = self.depth[parent] + self.length[node]
        self.mark[node] = mark_below(self.mark[parent], chunk)
        self.created[node] = self.used[node] = self.now
        start = node * self._width
        self._tokens[start : start + len(chunk)] = chunk
        self._link(node, parent, parent.to_bytes(4, "big") + chunk)
        return node

    def _link(self, node: int, parent: int, key: bytes) -> None:
        self.index[key] = node
        head = self._first_child[parent]
        self._next_sibling[node] = head
        self._previous_sibling[node] = -1
        if head >= 0:
            self._previous_sibling[head] = node
        self._first_child[parent] = node
        self.children[parent] += 1
        keys = self._sorted.get(parent)
        if keys is not None:
            keys.add(key)
        elif self.children[parent] > _LISTED:
            every = [self.key(child) for child in self.each_child(parent)]
            self._sorted[parent] = SortedKeys(every)

    def remove(self, node: int) -> None:
        """Forget a node that has neither children nor payload; its number may be used again (its
        `chunk` can be read until the next insertion)."""
        if self.children[node] or not self.is_empty(node):
            raise ValueError(f"node {node} is removed although it has children or a block")
        self.drop(node)

    def drop(self, node: int) -> None:
        """`remove` for a caller that has looked whether it may."""
        parent = self.parent[node]
        if parent >= 0:
            self._unlink(node, parent)
        elif node in self.graves:
            self.graves.remove(node)
        else:
            self._forget_root(node)
        if self.on_remove is not None:
            self.on_remove(node)
        if node in self.bases:
            self.orphans.append(self.bases.pop(node))
        self.pins[node] = 0
        self._digested[node] = False
        self._next_sibling[node] = self._vacant
        self._vacant = node

    def wipe(self, node: int) -> None:
        """Overwrite the tokens of a node that was deleted and removed."""
        start = node * self._width
        self._tokens[start : start + self._width] = self._blank

    def is_empty(self, node: int) -> bool:
        """Has the node no block in any group?"""
        for blocks in self.payload:  # noqa: SIM110  (a generator would cost more than the loop)
            if blocks[node] >= 0:
                return False
        return True

    def _unlink(self, node: int, parent: int) -> None:
        key = parent.to_bytes(4, "big") + self.chunk(node)
        del self.index[key]
        before, after = self._previous_sibling[node], self._next_sibling[node]
        if before >= 0:
            self._next_sibling[before] = after
        else:
            self._first_child[parent] = after
        if after >= 0:
            self._previous_sibling[after] = before
        self.children[parent] -= 1
        keys = self._sorted.get(parent)
        if keys is not None:
            if self.children[parent] > _LISTED // 2:
                keys.remove(key)
            else:
                del self._sorted[parent]

    def _new(self) -> int:
        node = self._vacant
        if node >= 0:
            self._vacant = self._next_sibling[node]
            self._next_sibling[node] = -1
            return node
        if self._fresh == len(self.parent):
            self._grow()
        self._fresh += 1
        return self._fresh - 1

    def _grow(self) -> None:
        """Room for an eighth more nodes (at least 256)."""
        size = len(self.parent)
        more = max(256, size // 8)
        blank = array("i", [-1]) * more
        zero = array("i", bytes(4 * more))
        for column in (self.parent, self._first_child, self._next_sibling, *self.payload):
            column.extend(blank)
        self._previous_sibling.extend(blank)
        self.created.extend(array("d", bytes(8 * more)))
        self.used.extend(array("d", bytes(8 * more)))
        for count in (self.children, self.pins, self.depth):
            count.extend(zero)
        self.length.extend(array("H", bytes(2 * more)))
        for number in (self.space, self.mark):
            number.extend(array("I", bytes(4 * more)))
        self.account.extend(bytes(more))
        self._tokens.extend(bytes(self._width * more))
        self._digests.extend(bytes(_DIGEST * more))
        self._digested.extend(bytes(more))

    # --- subtrees and digests

    def tops(self, root: int, prefix: bytes) -> list[int]:
        """The highest nodes whose whole path begins with `prefix` (empty: all children)."""
        blocks = max(len(prefix) - WORD, 0) // self._width
        path = self.walk(root, prefix, blocks)
        if len(path) < blocks:
            return []
        parent = path[-1] if path else root
        rest = prefix[blocks * self._width :]
        return [node for node in self.each_child(parent) if self.chunk(node).startswith(rest)]

    def subtree(self, top: int) -> list[int]:
        """The node and everything below it, children before parents."""
        nodes = [top]
        for node in nodes:
            nodes.extend(self.each_child(node))
        nodes.reverse()
        return nodes

    def nodes(self) -> Iterator[int]:
        """Every node that is in use, roots included."""
        return chain(self.roots.values(), self.graves, self.index.values())

    def undigested(self, node: int, most: int) -> int:
        """How many digests `digest` would have to compute; `most` when it is more."""
        for count in range(most):
            if self._digested[node]:
                return count
            node = self.parent[node]
            if node < 0:
                return count + 1
        return most

    def digest(self, node: int) -> bytes:
        """Keyed 256-bit digest of identity and path; kept, so that each node pays for it once."""
        unknown: list[int] = []
        while True:
            if self._digested[node]:
                known = bytes(self._digests[node * _DIGEST : (node + 1) * _DIGEST])
                break
            unknown.append(node)
            if self.parent[node] < 0:
                break
            node = self.parent[node]
        for missing in reversed(unknown):
            if self.parent[missing] < 0:
                identity = self.identities.get(missing)
                known = self._root_digest(identity) if identity is not None else _GRAVE
            else:
                known = self.digest_below(known, self.chunk(missing))
            self._digests[missing * _DIGEST : (missing + 1) * _DIGEST] = known
            self._digested[missing] = True
        return known

    def digest_below(self, parent_digest: bytes, chunk: bytes) -> bytes:
        """Digest of a (possible) child with these packed tokens."""
        return hashlib.blake2b(
            parent_digest + chunk, digest_size=_DIGEST, key=self._secret
        ).digest()

    def absent_root_digest(self, identity: Identity) -> bytes:
        """Digest of a root that may not be there."""
        return self._root_digest(identity)

    def _root_digest(self, identity: Identity) -> bytes:
        name = identity.namespace.encode("utf-8", "surrogatepass")
        salt = identity.salt.encode("utf-8", "surrogatepass")
        adapter = identity.adapter.to_bytes(8, "big", signed=True)
        parts = (name, adapter, identity.lineage, salt, identity.base)
        framed = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hashlib.blake2b(
            framed, digest_size=_DIGEST, key=self._secret, person=b"kveik root"
        ).digest()
