"""The pool as a map: what every block is, whose, since when; and what has changed since last time.

    read      under the lock of the books: flat columns are copied, a few microseconds per thousand
              blocks, so that no step waits
    changes   without it: chunks of the copies are compared with those before, and only what
              differs is looked at

A map of one namespace numbers its blocks by itself: block ids are handed out to everybody in turn,
and would tell of others. It shows the first group of layers, as the listing does. Standard library
only.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, NamedTuple, cast

from kveik.cache.claims import Label, LabelSet
from kveik.cache.lease import Lease
from kveik.cache.policy import DEMOTED
from kveik.cache.retention import Retention

KINDS = ("free", "computing", "read", "idle", "pinned", "demoted")
"""computing: held and not in the tree; read: cached, and a request reads it; idle: cached, goes by
the policy; pinned: idle and never evicted; demoted: idle and the first to go."""
_FREE, _COMPUTING, _READ, _IDLE, _PINNED, _DEMOTED = range(len(KINDS))

_CHUNK = 64  # items compared at once
_HOLDERS = ("name", "document", "session", "turn", "pin")  # who is told to own a block, first found
_NOBODY = -1


class Row(NamedTuple):
    """One block. owner: a number of `MapChanges.owners`, -1 for none; created, used: tenths of
    seconds of the engine's clock."""

    kind: int = _FREE
    owner: int = _NOBODY
    created: int = 0
    used: int = 0
    hits: int = 0


_EMPTY = Row()


@dataclass(slots=True)
class MapChanges:
    """What differs from the answer before. size: blocks on the map; now: tenths of seconds of the
    clock; rows: by place on the map; owners: names of numbers, new ones and those that changed."""

    size: int
    now: int
    rows: dict[int, Row] = field(default_factory=dict)
    owners: dict[int, str] = field(default_factory=dict)


class _Column:
    """A copy of a flat column: its bytes to compare, and its items."""

    __slots__ = ("items", "raw", "width")

    def __init__(self, source: array[Any] | bytearray) -> None:
        view: memoryview[Any] = memoryview(source)
        self.raw, self.width = bytes(view), view.itemsize
        self.items: memoryview[Any] = memoryview(self.raw).cast(cast("Any", view.format))

    def differing(self, before: _Column) -> Iterator[int]:
        """Items that are not those of `before`, which may be shorter, by number."""
        old, new = before.raw, self.raw
        if old == new:
            return
        step = _CHUNK * self.width
        for start in range(0, len(new), step):
            if old[start : start + step] != new[start : start + step]:
                first = start // self.width
                for item in range(first, min(first + _CHUNK, len(self.items))):
                    if item >= len(before.items) or before.items[item] != self.items[item]:
                        yield item


class _Columns(NamedTuple):
    """The first five have an item per block, the others one per node of the tree."""

    refs: _Column
    node: _Column
    hits: _Column
    rank: _Column
    pinned: _Column
    created: _Column
    used: _Column
    space: _Column
    labels: _Column


_BLOCK_COLUMNS = 5


class BlockMap:
    """For one onlooker. namespace None: of everybody, and owners are namespaces; else owners are
    claims, such as "session:s1", or "plain". whole: the onlooker may see all of the pool, block by
    block, and whom it belongs to where it is not the namespace."""

    def __init__(
        self,
        retention: Retention,
        leases: Collection[Lease],
        namespace: str | None,
        *,
        whole: bool = False,
    ) -> None:
        self._retention, self._leases, self._namespace = retention, leases, namespace
        self._whole = whole or namespace is None
        self._columns: _Columns | None = None
        self._before: _Columns | None = None
        self._now = 0.0
        self._mine: frozenset[int] = frozenset()  # blocks that own leases are filling
        self._were_mine = self._mine
        self._told: dict[int, Row] = {}  # by block
        self._spaces: dict[int, str | None] = {}  # None: two namespaces share the number
        self._names: set[str] = set()
        self._sets: dict[int, tuple[LabelSet, frozenset[Label]]] = {}
        self._epoch = -1
        self._owners: dict[int | str, int] = {}
        self._owner_names: dict[int, str] = {}
        self._places: dict[int, int] = {}  # by block, of one namespace
        self._vacant: list[int] = []

    # --- under the lock

    def read(self, reading: float) -> None:
        """Copy what the next `changes` is made of. reading: of the caller's clock."""
        retention = self._retention
        tree, pool, idle = retention.tree, retention.pools[0], retention.idle[0]
        self._now = retention.clock.read(reading)
        ranks, pinned = idle.class_columns()
        self._columns = _Columns(
            refs=_Column(pool.refs),
            node=_Column(pool.owner),
            hits=_Column(idle.hits),
            rank=_Column(ranks),
            pinned=_Column(pinned),
            created=_Column(tree.created),
            used=_Column(tree.used),
            space=_Column(tree.space),
            labels=_Column(retention.claims.set_of),
        )
        for name in tree.namespaces():
            if name not in self._names:
                self._names.add(name)
                space = tree.space_of(name)
                self._spaces[space] = None if space in self._spaces else name
        if not self._whole:
            self._were_mine, self._mine = (
                self._mine,
                frozenset(
                    block
                    for lease in self._leases
                    if lease.identity.namespace == self._namespace
                    for block in lease.every_block(0)
                    if pool.owner[block] < 0
                ),
            )

    # --- without it

    def changes(self) -> MapChanges:
        """Since the answer before; of the first one, everything that is not free."""
        columns, before = self._columns, self._before
        if columns is None:
            raise RuntimeError("changes: nothing was read")
        self._before = columns
        changes = MapChanges(0, int(self._now * 10))
        self._note_sets(changes)
        for block in self._candidates(before, columns):
            row = self._row(block, columns, changes)
            if row != self._told.get(block, _EMPTY):
                self._tell(block, row, changes)
        places = len(self._places) + len(self._vacant)
        changes.size = len(columns.refs.items) if self._whole else places
        return changes

    def _candidates(self, before: _Columns | None, after: _Columns) -> set[int]:
        """Blocks that may have changed."""
        if before is None:
            return set(range(len(after.refs.items)))
        blocks: set[int] = set()
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            if number < _BLOCK_COLUMNS:
                blocks.update(new.differing(old))
            else:
                payload = self._retention.tree.payload[0]
                blocks.update(payload[node] for node in new.differing(old))
        blocks.discard(_NOBODY)
        return blocks | self._mine | self._were_mine

    def _row(self, block: int, columns: _Columns, changes: MapChanges) -> Row:
        node, held = columns.node.items[block], columns.refs.items[block] > 0
        if node < 0:
            shown = held and (self._whole or block in self._mine)
            return Row(_COMPUTING) if shown else _EMPTY
        owner = self._owner(node, columns, changes)
        if owner is None:
            return _EMPTY
        if held:
            kind = _READ
        elif columns.pinned.items[block]:
            kind = _PINNED
        else:
            kind = _DEMOTED if columns.rank.items[block] == DEMOTED else _IDLE
        created, used = columns.created.items[node], columns.used.items[node]
        return Row(kind, owner, int(created * 10), int(used * 10), columns.hits.items[block])

    def _tell(self, block: int, row: Row, changes: MapChanges) -> None:
        if row == _EMPTY:
            self._told.pop(block, None)
        else:
            self._told[block] = row
        changes.rows[self._place(block, row)] = row

    def _place(self, block: int, row: Row) -> int:
        """Where the block lies on the map."""
        if self._whole:
            return block
        if row == _EMPTY:
            place = self._places.pop(block)
            heappush(self._vacant, place)
            return place
        place = self._places.get(block, -1)
        if place < 0:
            place = heappop(self._vacant) if self._vacant else len(self._places)
            self._places[block] = place
        return place

    # --- owners

    def _owner(self, node: int, columns: _Columns, changes: MapChanges) -> int | None:
        """None: it is not for this onlooker."""
        namespace = self._spaces.get(columns.space.items[node])
        if namespace != self._namespace:
            return self._number(namespace or "", namespace or "", changes) if self._whole else None
        labels = columns.labels.items
        number = labels[node] if node < len(labels) else 0
        of = self._retention.claims.sets[number]
        if number not in self._sets:
            self._sets[number] = of, of.labels
        return self._number(number, _holder(of), changes)

    def _number(self, key: int | str, name: str, changes: MapChanges) -> int:
        number = self._owners.setdefault(key, len(self._owners))
        if self._owner_names.get(number) != name:
            self._owner_names[number] = changes.owners[number] = name
        return number

    def _note_sets(self, changes: MapChanges) -> None:
        """A set of labels may say something else than before. Sets are read without the lock: one
        that changes meanwhile is noticed the next time."""
        claims = self._retention.claims
        ended, self._epoch = claims.epoch != self._epoch, claims.epoch
        for number, (of, labels) in self._sets.items():
            now = claims.sets[number]
            if ended or now is not of or now.labels is not labels:
                self._sets[number] = now, now.labels
                self._number(number, _holder(now), changes)


def _holder(of: LabelSet) -> str:
    """The claim that is told of a set: the most telling one."""
    labels = {label.kind: label for label in of.live_labels()}
    return next((labels[kind].text for kind in _HOLDERS if kind in labels), "plain")
