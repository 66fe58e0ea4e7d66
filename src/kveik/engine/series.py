"""Counts in steps of ten seconds over the last hours, and by day: rings of fixed size.

Standard library only; time is handed in as seconds of the wall clock.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass
from datetime import date

STEP = 10
"""Seconds of one step."""

KEPT_STEPS = 2160
"""Steps that are kept: six hours."""

KEPT_DAYS = 31


@dataclass(frozen=True, slots=True)
class Counts:
    """What some requests brought. Tokens but for: requests whose prompt was computed, those of
    them that found something in the cache, and the seconds of computation that this saved."""

    requests: float = 0
    hit_requests: float = 0
    prompt_tokens: float = 0
    cached_tokens: float = 0
    approximate_tokens: float = 0
    generated_tokens: float = 0
    seconds_saved: float = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) + getattr(other, name) for name in COUNTED))


COUNTED = tuple(Counts.__dataclass_fields__)


class Series:
    """Columns of numbers, one for each step. `summed` columns begin each step at zero; `held` ones
    keep the last value that was set."""

    def __init__(self, summed: tuple[str, ...], held: tuple[str, ...] = ()) -> None:
        self._summed, self._held = summed, held
        self._columns = {name: array("d", bytes(8 * KEPT_STEPS)) for name in (*summed, *held)}
        self._step: int | None = None  # the newest one
        self._first = 0  # the oldest of which anything is known

    def add(self, now: float, **amounts: float) -> None:
        place = self._at(now)
        for name, amount in amounts.items():
            self._columns[name][place] += amount

    def hold(self, now: float, **values: float) -> None:
        place = self._at(now)
        for name, value in values.items():
            self._columns[name][place] = value

    def last(self, steps: int, now: float) -> tuple[int, dict[str, list[float]]]:
        """When the first of the last `steps` steps began, and the columns; fewer where less is
        known. The last step is the one that is under way."""
        self._at(now)
        assert self._step is not None
        count = min(steps, self._step - self._first + 1)
        begin = self._step - count + 1
        places = [step % KEPT_STEPS for step in range(begin, self._step + 1)]
        columns = {
            name: [column[place] for place in places] for name, column in self._columns.items()
        }
        return begin * STEP, columns

    def _at(self, now: float) -> int:
        """The place of the step of this moment; a clock that was set back stays in the newest."""
        step = int(now // STEP)
        if self._step is None:
            self._step = self._first = step
        if step - self._step > KEPT_STEPS:  # everything is older than what is kept
            for name in self._held:
                column = self._columns[name]
                column[step % KEPT_STEPS] = column[self._step % KEPT_STEPS]
            self._step = step - KEPT_STEPS
        while self._step < step:
            before, self._step = self._step % KEPT_STEPS, self._step + 1
            for name in self._summed:
                self._columns[name][self._step % KEPT_STEPS] = 0.0
            for name in self._held:
                self._columns[name][self._step % KEPT_STEPS] = self._columns[name][before]
        self._first = max(self._first, self._step - KEPT_STEPS + 1)
        return self._step % KEPT_STEPS


class Days:
    """Counts by day of the machine's calendar, the oldest first."""

    def __init__(self) -> None:
        self._days: deque[tuple[date, Counts]] = deque(maxlen=KEPT_DAYS)

    def add(self, now: float, counts: Counts) -> None:
        today, before = date.fromtimestamp(now), Counts()
        if self._days and self._days[-1][0] >= today:  # or the clock was set back
            today, before = self._days.pop()
        self._days.append((today, before + counts))

    def all(self, now: float) -> list[tuple[date, Counts]]:
        """Days on which there was something, and today."""
        today, days = date.fromtimestamp(now), list(self._days)
        if not days or days[-1][0] < today:
            days.append((today, Counts()))
        return days
