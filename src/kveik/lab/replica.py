"""One replica in time: a queue before a machine that does one thing at a time.

It either computes the prompt of one request, whole and in the order of arrival, or one step of all
running sequences. A prompt goes before the next step, as long as fewer than `batch` sequences run.
Standard library only.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush

from kveik.lab.service import ServiceTimes


@dataclass(slots=True)
class Job:
    """A request at its replica. Seconds of the simulated clock; tokens. begun, first, finished: its
    prompt's computation begins, its first token is there, its last one is; infinite until then."""

    arrival: float
    length: int
    cached: int
    output: int
    begun: float = math.inf
    first: float = math.inf
    finished: float = math.inf


class Replica:
    """due: when what it does now ends; infinite while it does nothing. busy: seconds of work that
    is over."""

    def __init__(self, service: ServiceTimes) -> None:
        self.due = math.inf
        self.busy = 0.0
        self._service = service
        self._waiting: deque[Job] = deque()
        self._running: list[tuple[int, int, Job]] = []  # heap: (last step, serial, job)
        self._prefilling: Job | None = None
        self._since = 0.0  # when it began what it does now
        self._planned = 0  # steps that it does now
        self._steps = 0  # steps that are over
        self._serial = 0

    @property
    def load(self) -> int:
        """Requests that are here and not over."""
        return len(self._waiting) + len(self._running) + (self._prefilling is not None)

    def advance(self, now: float) -> None:
        """Do everything that ends until now."""
        while self.due <= now:
            clock = self.due
            self._complete(clock)
            self._begin(clock)

    def submit(self, job: Job, now: float) -> None:
        """A request arrives. The replica has advanced to now."""
        self._waiting.append(job)
        if self.due == math.inf:
            self._begin(now)
        elif self._prefilling is None and len(self._running) < self._service.batch:
            self._interrupt(now)

    def _interrupt(self, now: float) -> None:
        """The prompt that came goes before the steps that have not begun."""
        seconds = self._service.step(len(self._running))
        if seconds:
            begun = min(math.ceil((now - self._since) / seconds), self._planned)
            self._planned = begun
            self.due = self._since + begun * seconds

    def _begin(self, clock: float) -> None:
        self._since = clock
        if self._waiting and len(self._running) < self._service.batch:
            job = self._prefilling = self._waiting.popleft()
            job.begun = clock
            self.due = clock + self._service.prefill(job.cached, job.length)
        elif self._running:
            self._planned = self._running[0][0] - self._steps  # until one of them is over
            self.due = clock + self._planned * self._service.step(len(self._running))
        else:
            self.due = math.inf

    def _complete(self, clock: float) -> None:
        self.busy += clock - self._since
        self._steps += self._planned
        self._planned = 0
        if self._prefilling is not None:
            job, self._prefilling = self._prefilling, None
            job.first = clock
            self._serial += 1
            last = self._steps + max(job.output - 1, 0)
            heappush(self._running, (last, self._serial, job))
        while self._running and self._running[0][0] <= self._steps:
            heappop(self._running)[2].finished = clock
