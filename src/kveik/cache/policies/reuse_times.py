"""How long it takes until blocks of a kind come back: a sample, and counts by octaves of age.

The age of a block is how many blocks were let go since it was, so a busy hour and a quiet one look
the same. Standard library only.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple

_POOLS = 16  # that a sample looks back
_LEAST_WINDOW = 1 << 15  # blocks that it looks back at least
_MOST_SAMPLED = 1 << 14  # blocks of one window that are in the sample
_FADE = 4  # times that counts are halved in a window


class Last(NamedTuple):
    """The last time that a block of the sample was let go. used: BlockFacts.last_used."""

    kind: int
    clock: int
    used: int


class Sample:
    """Every n-th block by its mark, cached or not, in the order of their last use.

    Of a pool under LRU the same share would be in the sample: the `recent` ones. Blocks of one use
    come one after the other, and all were found, or not, before room was made for any."""

    def __init__(self, capacity: int) -> None:
        self.window = max(_POOLS * capacity, _LEAST_WINDOW)
        self.one_in = 1
        while self.window > _MOST_SAMPLED * self.one_in:
            self.one_in *= 2
        self._capacity = capacity
        self._recent: OrderedDict[int, Last] = OrderedDict()
        self._older: OrderedDict[int, Last] = OrderedDict()
        self._used = -1  # the last use

    def __len__(self) -> int:
        return len(self._recent) + len(self._older)

    def takes(self, mark: int) -> bool:
        return not mark & (self.one_in - 1)

    def use(self, mark: int, kind: int, clock: int, used: int) -> tuple[Last | None, bool]:
        """It is let go now; the time before (None: unknown), and whether LRU would have kept it
        since."""
        if used != self._used:
            self._used = used
            self._forget(clock)
        before = self._recent.pop(mark, None)
        recent = before is not None
        if before is None:
            before = self._older.pop(mark, None)
        self._recent[mark] = Last(kind, clock, used)
        if before is not None and clock - before.clock > self.window:
            return None, False
        return before, recent

    def _forget(self, clock: int) -> None:
        """What LRU would have evicted is not recent; what left the window is nothing."""
        while len(self._recent) * self.one_in > self._capacity:
            oldest, last = self._recent.popitem(last=False)
            self._older[oldest] = last
        while self._older and clock - next(iter(self._older.values())).clock > self.window:
            self._older.popitem(last=False)


class ReuseTimes:
    """came[kind][octave]: blocks that came back at that age; reached[kind][octave]: that were let
    go so long ago. Octave n is the ages from 2^n to 2^(n+1), the first one begins at 0. Both fade.

    step: blocks let go that are counted as if they had been at once."""

    def __init__(self, kinds: int, window: int, step: int) -> None:
        octaves = window.bit_length() + 1
        self.came = [[0.0] * octaves for _ in range(kinds)]
        self.reached = [[0.0] * octaves for _ in range(kinds)]
        self._kinds, self._window, self._step = kinds, window, step
        self._cohorts: deque[tuple[int, list[int]]] = deque()  # (begins, blocks by kind)
        self._first = 0  # number of the oldest cohort
        self._next = [0] * octaves  # number of the cohort that reaches this octave next
        self._next_fade = window // _FADE

    def left(self, kind: int, clock: int) -> None:
        """A block was let go."""
        if not self._cohorts or self._cohorts[-1][0] + self._step <= clock:
            self._cohorts.append((clock, [0] * self._kinds))
        self._cohorts[-1][1][kind] += 1

    def came_back(self, kind: int, age: int) -> None:
        """A block came back that was let go as this kind."""
        self.came[kind][min(max(age, 1).bit_length() - 1, len(self._next) - 1)] += 1.0

    def advance(self, clock: int) -> None:
        """So late it is. Only what has passed the beginning of an octave counts as having reached
        it, so what was never seen to come back is never hoped for."""
        complete = self._first + len(self._cohorts) - 1
        for octave, number in enumerate(self._next):
            begins = (1 << octave) if octave else 0
            while number < complete:
                start, blocks = self._cohorts[number - self._first]
                if clock - start < begins:
                    break
                for kind, count in enumerate(blocks):
                    self.reached[kind][octave] += count
                number += 1
            self._next[octave] = number
        while self._cohorts and clock - self._cohorts[0][0] > self._window:
            self._cohorts.popleft()
            self._first += 1
        self._next = [max(number, self._first) for number in self._next]
        if clock >= self._next_fade:
            self._next_fade = clock + self._window // _FADE
            for rows in (self.came, self.reached):
                rows[:] = [[count / 2 for count in row] for row in rows]
