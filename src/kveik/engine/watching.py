"""What somebody who watches the engine is told, and what may be done to a place of the tree.

Every look takes the state lock for a bounded moment and puts its answer together outside of it, on
the onlooker's thread. A namespace sees itself only; None is everybody, in sizes and times: whose
words these are is told to nobody but their owner.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from kveik.cache.block_map import BlockMap, MapChanges
from kveik.cache.directive import Receipt, Selector
from kveik.cache.manager import CacheManager
from kveik.cache.outline import OutlineRow
from kveik.cache.prefix import unpack_tokens
from kveik.engine.explain import Explanation, explain
from kveik.engine.journal import PastRequest
from kveik.engine.partings import Parting
from kveik.engine.parts import EngineInfo
from kveik.engine.resting import StreamView
from kveik.engine.scheduler import Scheduler
from kveik.engine.tokenizer import Tokenizer
from kveik.errors import NotFound

__all__ = [
    "Inside",
    "MapChanges",
    "TreeRow",
    "Watching",
]

Deed = Literal["pin", "unpin", "expire", "evict"]

_PLACES = 20_000  # rows of the tree that can be named
_SHOWN = 4000  # characters of a row's text


class TreeRow(NamedTuple):
    """A row of the tree with its name, by which it can be opened and acted on, and its text."""

    place: str
    row: OutlineRow
    tokens: int
    text: str
    cut: bool  # there is more text


class _Place(NamedTuple):
    namespace: str
    first: int
    last: int
    keys: tuple[bytes, bytes]
    created: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Inside:
    """What is looked at. lock: of cache and scheduler; changing: the same and the time, for who
    changes the books; invalidate: of the engine, for its other books too."""

    cache: CacheManager
    scheduler: Scheduler
    lock: AbstractContextManager[Any]
    clock: Callable[[], float]
    tokenizer: Tokenizer
    info: EngineInfo
    changing: Callable[[], AbstractContextManager[float]]
    invalidate: Callable[[Selector], Receipt]


class Watching:
    """See the module."""

    def __init__(self, inside: Inside) -> None:
        self._inside = inside
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._names: dict[_Place, str] = {}

    # --- the pool

    def block_map(self, namespace: str | None, *, whole: bool = False) -> Callable[[], MapChanges]:
        """A function whose every call says what changed on the map since the one before. whole: of
        all of the pool; see BlockMap."""
        inside = self._inside
        with inside.lock:
            made: BlockMap = inside.cache.block_map(namespace, whole=whole)

        def changes() -> MapChanges:
            with inside.lock:
                made.read(inside.clock())
            return made.changes()

        return changes

    def streams(self, namespace: str) -> list[StreamView]:
        """The open streams of a namespace, those that a request works on first."""
        with self._inside.lock:
            return self._inside.scheduler.stream_views(namespace)

    # --- the tree

    def tree(self, namespace: str, place: str | None, most: int) -> tuple[list[TreeRow], int]:
        """Rows below a place (None: at the start of prompts), the one used last first, and how
        many there are. Raises NotFound where the place is gone."""
        inside = self._inside
        with inside.lock:
            outline = inside.cache.outline(inside.clock())
            if place is None:
                rows, count = outline.tops(namespace, most)
            else:
                rows, count = outline.below(self._node(namespace, place).last, most)
            named = [(self._name(namespace, row), row) for row in rows]
        return [self._told(place, row) for place, row in named], count

    def _told(self, place: str, row: OutlineRow) -> TreeRow:
        ids = unpack_tokens(row.tokens)
        text = self._inside.tokenizer.decode(list(ids[:_SHOWN]), skip_special_tokens=False)
        cut = len(ids) > _SHOWN or len(text) > _SHOWN
        return TreeRow(place, row, len(ids), text[:_SHOWN], cut)

    def act(self, namespace: str, place: str, deed: Deed) -> Receipt:
        """pin, unpin: the way to the end of the row. expire: the row and what hangs below it is
        deleted and overwritten now. evict: what is idle of it makes room. Raises NotFound,
        PinBudgetExceeded."""
        inside = self._inside
        with inside.changing() as now:
            node = self._node(namespace, place)
            hand = inside.cache.by_hand(now)
            if deed == "pin":
                return hand.pin(namespace, node.last)
            if deed == "unpin":
                return hand.unpin(node.last)
            if deed == "evict":
                return hand.evict(node.first)
            path = unpack_tokens(inside.cache.tree.path(node.first))
            return inside.invalidate(Selector(namespace, prefix=path))

    # --- names of places: nothing about others follows from them

    def _name(self, namespace: str, row: OutlineRow) -> str:
        tree = self._inside.cache.tree
        ends = row.first, row.last
        place = _Place(
            namespace,
            *ends,
            (tree.key(row.first), tree.key(row.last)),
            (tree.created[row.first], tree.created[row.last]),
        )
        name = self._names.get(place)
        if name is None:
            name = self._names[place] = secrets.token_hex(8)
            self._places[name] = place
            if len(self._places) > _PLACES:
                _, oldest = self._places.popitem(last=False)
                del self._names[oldest]
        return name

    def _node(self, namespace: str, name: str) -> _Place:
        """The place of that name, if it is there still. Raises NotFound."""
        place = self._places.get(name)
        if place is None or place.namespace != namespace or not self._is_there(place):
            raise NotFound(
                "node: there is no such place in the tree now; look at the tree again",
                param="node",
            )
        return place

    def _is_there(self, place: _Place) -> bool:
        ends = zip((place.first, place.last), place.keys, place.created, strict=True)
        cache = self._inside.cache
        return all(cache.node_of(place.namespace, *end) for end in ends)

    # --- requests

    def in_words(self, past: PastRequest, parting: Parting) -> Explanation:
        """Where a request that ended left the cache, why, and what to do about it."""
        divergence, before = parting.divergence, parting.before
        unknown = (0,) * (divergence.position - len(before))
        found = explain(
            divergence,
            (*unknown, *before, *divergence.wanted),
            self._inside.tokenizer,
            cached_tokens=past.cached_tokens,
            block_size=self._inside.info.block_size,
        )
        return replace(
            found, prompt_tokens=past.prompt_tokens, levels=(("states", past.cached_tokens),)
        )
