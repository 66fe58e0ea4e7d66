"""What the tree holds of a prompt, and why not more. Reads the tree, changes nothing.

A match is the longest prefix that every group can serve: whole blocks from the root, then part of
one more sealed block. A window group serves a match when no block that the next token still sees
is missing. Standard library only.
"""

from __future__ import annotations

from operator import itemgetter
from typing import NamedTuple

from kveik.cache.directive import PUBLIC, Divergence
from kveik.cache.ghosts import Ghosts
from kveik.cache.lease import Match, Miss
from kveik.cache.prefix import WORD, Identity, PrefixTree, unpack_tokens
from kveik.cache.retention import Retention
from kveik.cache.segments import EXACT

_CONTINUATION = 512  # tokens of either side that a divergence shows


class Found(NamedTuple):
    """What the tree holds of a prompt.

    walked: the nodes of all whole blocks that are there; blocks: how many of them every group can
    serve; source, extra: a node whose first `extra` tokens continue them, or (-1, 0); gone: the
    next one is there and dead, for this reason; public: how many of them belong to the public
    tree, behind which the tree of this root goes on."""

    root: int
    walked: list[int]
    blocks: int
    source: int
    extra: int
    gone: str = ""
    public: int = 0

    def behind(self, blocks: int) -> int:
        """The node behind which block number `blocks` hangs; -1 when there is none yet."""
        return self.walked[blocks - 1] if blocks > self.public else self.root


class Lookup:
    """Walks one tree. reach: per group, how many tokens a row reads back (0: all of them)."""

    def __init__(
        self,
        tree: PrefixTree,
        ghosts: Ghosts,
        reach: tuple[int, ...],
        caching: bool,
        retention: Retention,
    ) -> None:
        self.tree = tree
        self.retention = retention
        self.ghosts = ghosts
        self.reach = reach
        self.caching = caching
        self.block_size = tree.block_size
        self._windowed = tuple(g for g, back in enumerate(reach) if back)
        self._width = tree.block_size * WORD

    def cap(self, length: int) -> int:
        """At least one token is always computed (invariant 4)."""
        return max(length - 1, 0) if self.caching else 0

    def find(self, identity: Identity, data: bytes, cap: int) -> Found:
        """The longest prefix of at most `cap` tokens that every group can serve. A prompt may run
        through whole public blocks and go on in the caller's own tree behind them."""
        public = self._public_path(identity, data, cap)
        if public:
            found = self._find(self.based(identity, public[-1]), public, data, cap)
            if found.blocks >= len(public):
                return found
        if identity.base and not data.startswith(self._before(identity)):
            return Found(-1, [], 0, -1, 0)
        return self._find(identity, [], data, cap)

    def based(self, identity: Identity, node: int) -> Identity:
        """The identity of the tree behind a public node; one that is nowhere before it has a
        name."""
        return identity._replace(base=self.tree.bases.get(node, b"none"))

    def may_be_public(self, identity: Identity) -> bool:
        """False: no prompt of this identity begins with public blocks."""
        return Identity(PUBLIC, identity.adapter) in self.tree.roots

    def _before(self, identity: Identity) -> bytes:
        return self.tree.before.get(self.tree.roots.get(identity, -1), b"")

    def _public_path(self, identity: Identity, data: bytes, cap: int) -> list[int]:
        """The living nodes of the public tree that begin the prompt."""
        if identity.namespace == PUBLIC or identity.lineage != EXACT or identity.base or cap <= 0:
            return []
        shared = Identity(PUBLIC, identity.adapter)
        walked = self.tree.walk(self.tree.roots.get(shared, -1), data, cap // self.block_size)
        if walked and self.retention.troubled():
            del walked[self.retention.alive(walked, shared, data)[0] :]
        return walked

    def _find(self, identity: Identity, public: list[int], data: bytes, cap: int) -> Found:
        root = self.tree.roots.get(identity, -1)
        if (root < 0 and not public) or cap <= 0:
            return Found(root, [], 0, -1, 0)
        size = self.block_size
        walked = self.tree.walk(root, data, cap // size)
        troubled, gone = self.retention.troubled(), ""
        if troubled:
            alive, gone = self.retention.alive(walked, identity, data)
            del walked[alive:]
        walked = public + walked
        found = Found(root, walked, 0, -1, 0, gone, len(public))
        runs = [self._runs(g, walked) for g in self._windowed]
        whole = len(walked)
        while whole and not self._served(runs, whole, whole * size):
            whole -= 1
        for blocks in range(len(walked), whole - 1, -1):
            start = blocks * size
            wanted = data[start * WORD : min(start + size, cap) * WORD]
            for extra, node in self._closest(found, blocks, wanted):
                held = all(self.tree.payload[g][node] >= 0 for g in self._windowed)
                if not held or not self._served(runs, blocks, start + extra):
                    continue
                if not troubled or not self.retention.why_gone(node):
                    return Found(root, walked, blocks, node, extra, gone, len(public))
        return Found(root, walked, whole, -1, 0, gone, len(public))

    def _closest(self, found: Found, blocks: int, wanted: bytes) -> list[tuple[int, int]]:
        """See PrefixTree.closest; where the public path ends, of both trees."""
        parent = found.behind(blocks)
        near = self.tree.closest(parent, wanted) if parent >= 0 else []
        if found.public and blocks == found.public:
            near += self.tree.closest(found.walked[blocks - 1], wanted)
            near.sort(key=itemgetter(0), reverse=True)  # of equals the own tree's first
        return near

    def _runs(self, group: int, walked: list[int]) -> list[int]:
        """runs[k]: blocks of a window group that are there without a gap before block k."""
        payload = self.tree.payload[group]
        runs = [0]
        for node in walked:
            runs.append(runs[-1] + 1 if payload[node] >= 0 else 0)
        return runs

    def _served(self, runs: list[list[int]], blocks: int, length: int) -> bool:
        """Can every window group serve a match of `length` from the first `blocks` nodes?"""
        return all(
            run[blocks] >= blocks - self.first_needed(g, length)
            for g, run in zip(self._windowed, runs, strict=True)
        )

    def first_needed(self, group: int, length: int) -> int:
        """Number of the first block that the token at position `length` still sees."""
        reach = self.reach[group]
        return max(length - reach + 1, 0) // self.block_size if reach else 0

    def match(self, found: Found, identity: Identity, data: bytes) -> Match:
        cached = found.blocks * self.block_size + found.extra
        return Match(cached, self.miss(found, identity, data, cached))

    def miss(self, found: Found, identity: Identity, data: bytes, cached: int) -> Miss:
        """The first token that was not served, and why; of the caller's own namespace only."""
        length = len(data) // WORD
        if not self.caching:
            return Miss(0, "no_store")
        if cached >= length - 1:
            return Miss(cached, "too_short")
        if len(found.walked) > found.blocks:  # the path is known, a window group lost its blocks
            return Miss(cached, "evicted")
        gone = found.gone or self._ghost(found, identity, data)
        if gone:
            return Miss(cached, gone)
        if found.extra:
            shared = self.tree.length[found.source]
            return Miss(cached, "diverged" if shared > found.extra else "new")
        behind = found.behind(found.blocks)
        if found.blocks and behind >= 0 and self.tree.children[behind]:
            return Miss(cached, "diverged")
        return Miss(cached, "new")

    def _ghost(self, found: Found, identity: Identity, data: bytes) -> str | None:
        """Why the block behind the found path is gone, if it is remembered."""
        if not len(self.ghosts):
            return None
        node = found.behind(len(found.walked))
        tree = self.tree
        if found.public:
            identity = self.based(identity, found.walked[found.public - 1])
        above = tree.digest(node) if node >= 0 else tree.absent_root_digest(identity)
        start = found.blocks * self._width
        rest, space = data[start : start + self._width], tree.space_of(identity.namespace)
        for end in range(len(rest), found.extra * WORD, -WORD):
            reason = self.ghosts.reason(space, tree.digest_below(above, rest[:end]))
            if reason is not None:
                return reason
        return None

    def own_path(self, found: Found) -> tuple[list[int], int]:
        """The nodes behind what is public that are there as a whole, and the tokens up to the end
        of the last (which may be a public tail, and is then none of these nodes)."""
        path, held = found.walked[found.public : found.blocks], found.blocks * self.block_size
        tail = found.source
        if tail < 0 or self.tree.length[tail] != found.extra:
            return path, held
        if self.tree.parent[tail] == found.behind(found.blocks):
            path = [*path, tail]
        return path, held + found.extra

    def divergence(self, found: Found, identity: Identity, data: bytes) -> Divergence:
        """Where a prompt leaves what is there, and how both go on."""
        match = self.match(found, identity, data)
        at, reason = match.cached_tokens, match.miss.reason if match.miss else "too_short"
        cached = b""
        if reason in ("diverged", "new"):
            cached = self._continuation(found, _CONTINUATION)
        rest = data[at * WORD : (at + _CONTINUATION) * WORD]
        return Divergence(at, reason, unpack_tokens(cached), unpack_tokens(rest))

    def _continuation(self, found: Found, most: int) -> bytes:
        """Packed tokens with which the nearest cached sequence goes on behind the match; empty when
        nothing of it was matched."""
        tree = self.tree
        if found.source >= 0:
            node, rest = found.source, tree.chunk(found.source)[found.extra * WORD :]
        elif found.blocks and len(found.walked) == found.blocks:
            node, rest = found.walked[-1], b""
        else:
            return b""
        troubled = self.retention.troubled()
        while len(rest) < most * WORD:
            node = tree.first_child(node)
            if node < 0 or (troubled and self.retention.why_gone(node)):
                break
            rest += tree.chunk(node)
        return rest[: most * WORD]

    def there(self, found: Found, data: bytes) -> int:
        """How many tokens of the prompt are cached: those found, and the last one, too, where a
        match that had to end before it goes on with it."""
        cached = found.blocks * self.block_size + found.extra
        if len(data) != (cached + 1) * WORD:
            return cached
        rest = data[found.blocks * self._width :]
        troubled = self.retention.troubled()
        return cached + any(
            shared > found.extra and not (troubled and self.retention.why_gone(node))
            for shared, node in self._closest(found, found.blocks, rest)
        )

    def next_key(self, found: Found, data: bytes) -> bytes:
        """Key of the next whole block of the prompt (empty: there is none)."""
        node = found.behind(found.blocks)
        chunk = data[found.blocks * self._width : (found.blocks + 1) * self._width]
        if node < 0 or len(chunk) < self._width:
            return b""
        return node.to_bytes(4, "big") + chunk

    def whole_blocks(self, found: Found, identity: Identity) -> Found:
        """The match without its partial block. What is public is served whole or not at all."""
        runs = [self._runs(g, found.walked) for g in self._windowed]
        whole = found.blocks
        while whole and not self._served(runs, whole, whole * self.block_size):
            whole -= 1
        if whole < found.public:
            return Found(self.tree.roots.get(identity, -1), [], 0, -1, 0)
        return found._replace(blocks=whole, source=-1, extra=0)
