"""The background thread of an engine: it steps while there is work, and sleeps until there is."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from kveik.cache.manager import CacheManager
from kveik.engine.expiry import Expiry
from kveik.engine.inbox import Inbox
from kveik.engine.outbox import Outbox
from kveik.engine.stats import Totals
from kveik.engine.stepping import Stepping
from kveik.errors import fault

_log = logging.getLogger(__name__)

CHECK_INTERVAL = 10.0
"""Seconds between two self-checks of an idle engine."""

MIN_SLEEP = 0.01
"""Seconds that an idle engine waits at least; a deadline is met that much late at most."""


class EngineThread:
    """See the module. An engine that is never started has no thread: its caller steps it, and
    `stop` steps what is left."""

    def __init__(
        self,
        lock: AbstractContextManager[Any],
        clock: Callable[[], float],
        *,
        stepping: Stepping,
        inbox: Inbox,
        outbox: Outbox,
        expiry: Expiry,
        cache: CacheManager,
        totals: Totals,
    ) -> None:
        self._lock = lock
        self._clock = clock
        self._stepping = stepping
        self._inbox = inbox
        self._outbox = outbox
        self._expiry = expiry
        self._cache = cache
        self._totals = totals
        self._thread: threading.Thread | None = None
        self._checked_at = clock()
        self._checked_steps = 0

    def start(self) -> None:
        """See Engine.start."""
        if self._thread is None:
            self._outbox.start()
            self._thread = threading.Thread(target=self._loop, name="kveik-engine", daemon=True)
            self._thread.start()

    def stop(self, drain_seconds: float) -> None:
        """See Engine.stop."""
        self._inbox.close()
        if self._thread is not None:
            self._inbox.wait_until_ended(drain_seconds)
        else:
            deadline = self._clock() + drain_seconds
            while self._inbox.deliveries and self._clock() < deadline:
                self._stepping.step()
        for handle in tuple(self._inbox.deliveries):
            self._inbox.abort(handle)
        self._inbox.stop()
        if self._thread is None:
            self._stepping.step()
        elif self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None
            self._outbox.stop()

    def _loop(self) -> None:
        while True:
            if self._stepping.step():
                continue
            self._check_when_due()
            if not self._inbox.wait(self._idle_seconds()):
                return

    def _idle_seconds(self) -> float:
        """How long there is nothing to do but to wait for requests: until a deadline at most."""
        with self._lock:
            first = self._expiry.next_deadline()
            return min(CHECK_INTERVAL, max(MIN_SLEEP, first - self._clock()))

    def _check_when_due(self) -> None:
        """The idle self-check. A violation is logged and shows in the metrics; it never exits."""
        now = self._clock()
        with self._lock:
            steps = self._totals.steps
            if steps == self._checked_steps or now - self._checked_at < CHECK_INTERVAL:
                return
            self._checked_at, self._checked_steps = now, steps
            try:
                self._cache.check()
            except AssertionError as error:
                _log.error("the books of the KV cache do not add up: %s: %s", error, fault(error))
