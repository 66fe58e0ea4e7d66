"""One step of the engine: plan, run, apply, and what goes before and behind it.

    inbox -> scheduler -> StepPlan -> runner -> StepResult -> scheduler -> outcomes -> outbox

The lock of the engine's state is held around plan and apply, and never while a step computes or
events are sent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from kveik.engine.expiry import Expiry
from kveik.engine.inbox import Abort, Arrival, Inbox, Over
from kveik.engine.outbox import Outbox
from kveik.engine.outcomes import Books, Outcomes
from kveik.engine.request import RequestFailed
from kveik.engine.runner import Runner
from kveik.engine.scheduler import Scheduler
from kveik.engine.telling import as_told
from kveik.errors import KveikError, fault

_log = logging.getLogger(__name__)


class Stepping:
    """See the module. Every request that the inbox accepted ends in exactly one finished, failed
    or aborted, whatever a step raises."""

    def __init__(
        self,
        lock: AbstractContextManager[Any],
        clock: Callable[[], float],
        *,
        inbox: Inbox,
        scheduler: Scheduler,
        runner: Runner,
        outbox: Outbox,
        books: Books,
        expiry: Expiry,
    ) -> None:
        self._lock = lock
        self._clock = clock
        self._inbox = inbox
        self._scheduler = scheduler
        self._runner = runner
        self._outbox = outbox
        self._books = books
        self._expiry = expiry
        self._outcomes = Outcomes(scheduler, inbox, outbox, books, clock)

    def step(self) -> bool:
        """See Engine.step."""
        if self._inbox.failure is not None:
            return False
        try:
            return self._step()
        except Exception as error:
            self._break_down(error)
            return False

    def _step(self) -> bool:
        started = self._clock()
        with self._lock:
            drained = self._drain(started)
            self._expiry.tick(started)
            plan = self._scheduler.plan_step(started)
            failures = self._scheduler.take_failures()
            self._outcomes.collect(failures)
        self._outbox.send()
        if plan is None:
            return drained or bool(failures) or self._scheduler.sweeping
        launched = self._clock()
        result = self._runner.run(plan)
        with self._lock:
            now = self._clock()
            self._books.note_step(plan, now - launched, now - started)
            self._outcomes.collect(self._scheduler.apply(result, now))
        self._outbox.send()
        return True

    def _drain(self, now: float) -> bool:
        """Do what the inbox holds. False: it was empty."""
        entries = self._inbox.drain(self._arrive)
        for entry in entries:
            if isinstance(entry, Abort):
                self._abort(entry.handle, now)
            elif isinstance(entry, Over):
                self._end(entry, now)
        return bool(entries)

    def _arrive(self, entry: Arrival) -> None:
        """Room that was there when it was accepted may have been pinned or reserved meanwhile."""
        delivery = entry.delivery
        request = delivery.request
        if self._books.partings.wants(request.namespace):
            request = replace(request, explain=True)
        try:
            delivery.work = self._scheduler.add(entry.handle, request, entry.seed, entry.resting)
        except KveikError as error:
            self._outcomes.failed(entry.handle, delivery, error)

    def _abort(self, handle: int, now: float) -> None:
        delivery = self._inbox.deliveries.get(handle)
        self._scheduler.abort(handle, now)
        if delivery is not None:
            self._outcomes.aborted(handle, delivery)

    def _end(self, over: Over, now: float) -> None:
        """What the scheduler did not know to be over. It may have computed tokens meanwhile."""
        if self._scheduler.is_over(over.handle):
            return
        if over.choice is None:
            self._scheduler.abort(over.handle, now)
            return
        self._scheduler.finish_choice(over.handle, over.choice, now)
        self._outcomes.choice_ended(over.handle)

    def _break_down(self, error: Exception) -> None:
        """A fault outside every request: all end with an error and nothing new is accepted."""
        _log.error("the engine failed and accepts no more requests: %s", fault(error))
        failure = f"the engine failed ({type(error).__name__}); restart it"
        for handle, delivery in self._inbox.break_down(failure).items():
            self._outbox.add(handle, delivery, RequestFailed(as_told(error)))
        self._outbox.send()
