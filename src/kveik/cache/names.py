"""Named caches and pins: claims that hold the whole path of a prompt, with a deadline of their own.

The time to live of a name belongs to its label and not to blocks, so that it is renewed or changed
in O(1); when it ends in mode "delete", everything that carries the label is dead at once. Pins have
a budget, a share of the pool. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from kveik.cache.claims import Label
from kveik.cache.deadlines import NEVER
from kveik.cache.directive import Ttl
from kveik.cache.retention import Retention
from kveik.cache.streams import StreamBooks
from kveik.cache.sweep import Arrange, Drain, Sweeper
from kveik.errors import PinBudgetExceeded


@dataclass(slots=True)
class Name:
    """One named cache: when it was made and last used, in whole or in part. held: tokens up to the
    end of its last whole block (text behind a name may change the tokens of its tail), or of its
    tail where there is none; hits, hit: requests that found all of that, and when the last one did.
    over: its time was up (mode demote)."""

    label: Label
    first: float
    last: float
    held: int = 0
    hits: int = 0
    hit: float | None = None
    ttl: Ttl | None = None
    over: bool = False

    def deadline(self) -> float:
        if self.ttl is None:
            return NEVER
        return (self.first if self.ttl.clock == "first_use" else self.last) + self.ttl.seconds


class Names:
    """budget: blocks (of every group) that may be pinned; streams: those that share it. stop:
    called with a label that ended, for the leases that would still write it."""

    def __init__(
        self, retention: Retention, sweeper: Sweeper, budget: int, stop: Callable[[Label], None]
    ) -> None:
        self.retention, self.sweeper, self.budget = retention, sweeper, budget
        self._stop = stop
        self.claims = retention.claims
        self._names: dict[Label, Name] = {}
        self._heap: list[tuple[float, int, Name]] = []
        self._count = 0
        self.streams: StreamBooks | None = None

    # --- time

    def renew(self, namespace: str, name: str, ttl: Ttl | None) -> Name:
        """The named cache begins anew, as a claim without blocks when there was none."""
        self.retention.activate()
        now = self.retention.clock.now
        label = self.claims.label(namespace, "name", name)
        entry = self._names.get(label)
        if entry is None:
            entry = self._names[label] = Name(label, now, now)
            self.claims.hold((label,))
        self._change(entry, ttl)
        return entry

    def claim(
        self, namespace: str, name: str, ttl: Ttl | None, path: list[int], missing: int | None
    ) -> None:
        """The name begins anew and holds these nodes. missing: blocks of its path that are not
        there and will be pinned besides; None: it does not pin. PinBudgetExceeded, and nothing
        changed, when they do not fit."""
        if missing is not None:
            fresh = sum(not self.retention.set_of(node).pinned for node in path)
            self.check_pin(fresh + max(missing, 0))
        entry = self.renew(namespace, name, ttl)
        self.set_pin(namespace, name, missing is not None)
        label = frozenset((entry.label,))
        for node in path:
            self.retention.add_labels(node, label, namespace)
            self.retention.used(node)
        tree = self.retention.tree
        whole = [node for node in path if tree.length[node] == tree.block_size]
        entry.held = tree.depth[(whole or path)[-1]] if path else 0

    def set_ttl(self, namespace: str, name: str, ttl: Ttl | None) -> None:
        label = self.claims.find(namespace, "name", name)
        if label in self._names:
            self._change(self._names[label], ttl)

    def _change(self, entry: Name, ttl: Ttl | None) -> None:
        entry.first = entry.last = self.retention.clock.now
        entry.ttl = ttl
        if entry.over:
            self._demote(entry, over=False)
        self._wait(entry)

    def _wait(self, entry: Name) -> None:
        if entry.ttl is None:
            return
        if len(self._heap) > 2 * len(self._names) + 64:
            self._heap = [item for item in self._heap if item[0] == item[2].deadline()]
            heapify(self._heap)
        self._count += 1
        heappush(self._heap, (entry.deadline(), self._count, entry))

    def used(self, reached: Mapping[Label, int], own: str | None) -> None:
        """A request found blocks with these labels, the last one of each ending at so many tokens.
        own: the name that the request computes, which is no hit of it."""
        now = self.retention.clock.now
        for label, end in reached.items():
            entry = self._names.get(label)
            if entry is not None:
                entry.last = now
                if 0 < entry.held <= end and label.key != own:
                    entry.hits, entry.hit = entry.hits + 1, now
                if entry.over and entry.ttl is not None and entry.ttl.clock == "last_use":
                    self._demote(entry, over=False)
                    self._wait(entry)

    def hits(self, namespace: str, name: str) -> tuple[int, float | None]:
        """How many requests found all that the name holds; seconds since the last one did."""
        label = self.claims.find(namespace, "name", name)
        entry = None if label is None else self._names.get(label)
        if entry is None or entry.hit is None:
            return 0, None
        return entry.hits, self.retention.clock.now - entry.hit

    def left(self, namespace: str, name: str) -> float | None:
        """Seconds until its time is up; None: there is no such name."""
        label = self.claims.find(namespace, "name", name)
        entry = None if label is None else self._names.get(label)
        return None if entry is None else max(0.0, entry.deadline() - self.retention.clock.now)

    def next_deadline(self) -> float | None:
        return self._heap[0][0] if self._heap else None

    def expire(self) -> None:
        """End the names whose time is up. Costs nothing while none is."""
        now = self.retention.clock.now
        while self._heap and self._heap[0][0] <= now:
            _, _, entry = heappop(self._heap)
            if entry.deadline() > now:
                if self._names.get(entry.label) is entry and not entry.over:
                    self._wait(entry)
            elif self._names.get(entry.label) is entry and entry.ttl is not None:
                if entry.ttl.mode == "delete":
                    self.forget(entry.label)
                    sets = self.claims.kill(entry.label, "expired")
                    self._stop(entry.label)
                    self.sweeper.add(Drain(sets))
                else:
                    self._demote(entry, over=True)

    def _demote(self, entry: Name, *, over: bool) -> None:
        """What the name alone holds is the first to be evicted, or is so no longer."""
        entry.over = over
        sets = [of for of in entry.label.sets if of.holders() == [entry.label]]
        for of in sets:
            of.away = over
        self.sweeper.add(Arrange(sets))

    def time_left(self, labels: Iterable[Label]) -> float:
        """Until the first of these names ends in mode delete."""
        now = self.retention.clock.now
        entries = (self._names.get(label) for label in labels)
        return min(
            (
                entry.deadline() - now
                for entry in entries
                if entry is not None and entry.ttl is not None and entry.ttl.mode == "delete"
            ),
            default=NEVER,
        )

    def forget(self, label: Label) -> None:
        """The name ends, or is invalidated."""
        if self._names.pop(label, None) is not None:
            self.claims.let_go((label,))

    def forget_ended(self) -> None:
        """After an invalidation."""
        for label in [label for label in self._names if label.ended]:
            self.forget(label)

    # --- pins

    def pinned(self) -> int:
        return sum(of.count for of in self.claims.pinning)

    def room_for_pins(self) -> int:
        """Blocks that may be pinned beside what is, and beside the windows of streams that outlive
        their request; no pin takes what a running stream was promised."""
        pinned, streams = self.pinned(), self.streams
        if streams is None:
            return self.budget - pinned
        most = min(self.budget - streams.kept, streams.total - streams.reserved)
        return most - pinned

    def check_pin(self, blocks: int) -> None:
        """Raise PinBudgetExceeded unless that many more may be pinned."""
        left = self.room_for_pins()
        if blocks > left:
            raise PinBudgetExceeded(
                f"pin: {blocks} more blocks are asked for and {max(left, 0)} are left in the "
                "budget of pins: unpin another cache, or raise --pin-share or --kv-memory",
                param="pin",
            )

    def set_pin(self, namespace: str, name: str, pinned: bool) -> None:
        """Pin what the name holds, or no longer."""
        label = self.claims.find(namespace, "name", name)
        if label is None or label.pins is pinned:
            return
        if pinned:
            self.check_pin(sum(of.count for of in label.sets if not of.pinned))
        self._pin(label, pinned)

    def keep_budget(self, written: Iterable[Label]) -> None:
        """A pinned name that grew beyond the budget, by what was written for it, pins no longer."""
        for label in written:
            if label.kind == "name" and label.pins and self.pinned() > self.budget:
                self._pin(label, False)

    def _pin(self, label: Label, pinned: bool) -> None:
        label.pins = pinned
        for of in label.sets:
            self.claims.note_pin(of)
            if pinned:  # at once, so that nobody counts on evicting what lies above a pinned block
                for node in self.claims.nodes(of):
                    self.retention.arrange(node)
        if not pinned:
            self.sweeper.add(Arrange(label.sets))

    def set_tags(self, namespace: str, name: str, tags: tuple[str, ...]) -> None:
        """What the name alone holds carries these tags instead; what others hold too, besides."""
        label = self.claims.find(namespace, "name", name)
        if label is None:
            return
        new = frozenset(self.claims.label(namespace, "tag", tag) for tag in tags)
        self.claims.hold(new)
        for of in list(label.sets):
            if self.claims.why_dead(of.number):
                continue  # it keeps the labels that it died of
            labels = of.live_labels()
            if of.holders() == [label]:
                labels = frozenset(each for each in labels if each.kind != "tag")
            self.claims.relabel(of, labels | new)
        self.claims.let_go(new)
