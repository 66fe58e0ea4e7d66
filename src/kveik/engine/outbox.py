"""News of requests on the way from the engine's thread to whoever makes texts of it.

    engine's thread    add ... send       before and after the forward pass of a step
    texts' thread      tell(batch)        detokeniser, stop strings, sinks

An engine that its caller steps has no second thread: `send` tells at once. So is, always, what is
news of a request without text, such as the one that computes a named cache: whoever hears of it
may act before the next step; and of a stream that stays open and may stop at a string, for what
it computes behind that would stay in its window.

A second thread is woken at once where somebody waits for it: a request began or ended, or has stop
strings. Further tokens follow at most every `PACE` seconds, those of several steps together: with a
small model, waking threads and sockets for every token would cost more than computing it. Order is
kept within a request. A bounded number of steps may wait; then `send` does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from kveik.engine.delivery import Delivery, Told
from kveik.engine.sequence import TokenAccepted

PACE = 0.01
"""Seconds; steps that take longer are told one by one."""

MOST_BEHIND = 64
"""Steps whose texts may be behind."""


class News(NamedTuple):
    """What happened to one request."""

    handle: int
    delivery: Delivery
    told: Told

    @property
    def is_urgent(self) -> bool:
        return not isinstance(self.told, TokenAccepted) or self.delivery.may_stop


class Outbox:
    """See the module. tell never raises."""

    def __init__(self, tell: Callable[[list[News]], None]) -> None:
        self._tell = tell
        self._pending: list[News] = []  # added and not sent
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()  # guards the fields below
        self._sent: list[News] = []
        self._behind = 0  # steps in `_sent`
        self._hurry = False
        self._idle = False  # the thread waits for anything at all
        self._stopping = False

    def add(self, handle: int, delivery: Delivery, told: Told) -> None:
        self._pending.append(News(handle, delivery, told))

    def send(self) -> None:
        """Hand over what was added, in one piece. Hold no lock that a sink could want."""
        pending, self._pending = self._pending, []
        if self._thread is not None:
            texts = [news for news in pending if not news.delivery.at_once]
            pending = [news for news in pending if news.delivery.at_once]
            if texts:
                self._pass_on(texts)
        if pending:
            self._tell(pending)

    def _pass_on(self, texts: list[News]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._behind < MOST_BEHIND)
            self._sent += texts
            self._behind += 1
            self._hurry = self._hurry or any(news.is_urgent for news in texts)
            if self._hurry or self._idle or self._behind == MOST_BEHIND:
                self._changed.notify_all()

    def start(self) -> None:
        """From now on texts are made on a thread of their own."""
        self._thread = threading.Thread(target=self._loop, name="kveik-texts", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Tell what waits, and end the thread. Nothing is sent meanwhile."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if thread is not threading.current_thread():
            thread.join()

    def _loop(self) -> None:
        told_at = 0.0
        while batch := self._next(told_at + PACE):
            told_at = time.monotonic()
            self._tell(batch)

    def _next(self, earliest: float) -> list[News]:
        """What was sent, not before `earliest` unless it is urgent; [] when there is no more."""
        with self._changed:
            self._idle = True
            self._changed.wait_for(lambda: self._sent or self._stopping)
            self._idle = False
            self._changed.wait_for(self._is_due, max(0.0, earliest - time.monotonic()))
            batch, self._sent = self._sent, []
            self._behind, self._hurry = 0, False
            self._changed.notify_all()
            return batch

    def _is_due(self) -> bool:
        return self._hurry or self._stopping or self._behind == MOST_BEHIND
