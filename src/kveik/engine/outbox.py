"""News of requests on the way from the engine's thread to whoever makes texts of it.

    engine's thread    add ... send       before and after the forward pass of a step
    texts' thread      tell(batch)        detokeniser, stop strings, sinks; one batch per send

An engine that its caller steps has no second thread: `send` tells at once. So is, always, what is
news of a request without text, such as the one that computes a named cache: whoever hears of it
may act before the next step. Order is kept within a request. A bounded number of batches may wait;
then `send` does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Queue
from typing import NamedTuple

from kveik.engine.delivery import Delivery, Told

BATCHES = 64
"""Steps whose texts may be behind."""


class News(NamedTuple):
    """What happened to one request."""

    handle: int
    delivery: Delivery
    told: Told


class Outbox:
    """See the module. tell never raises."""

    def __init__(self, tell: Callable[[list[News]], None]) -> None:
        self._tell = tell
        self._pending: list[News] = []
        self._batches: Queue[list[News] | None] = Queue(BATCHES)
        self._thread: threading.Thread | None = None

    def add(self, handle: int, delivery: Delivery, told: Told) -> None:
        self._pending.append(News(handle, delivery, told))

    def send(self) -> None:
        """Hand over what was added, in one piece. Hold no lock that a sink could want."""
        pending, self._pending = self._pending, []
        if self._thread is not None:
            texts = [news for news in pending if news.delivery.has_text]
            if texts:
                self._batches.put(texts)
            pending = [news for news in pending if not news.delivery.has_text]
        if pending:
            self._tell(pending)

    def start(self) -> None:
        """From now on texts are made on a thread of their own."""
        self._thread = threading.Thread(target=self._loop, name="kveik-texts", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Tell what waits, and end the thread. Nothing is sent meanwhile."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._batches.put(None)
            if thread is not threading.current_thread():
                thread.join()

    def _loop(self) -> None:
        while (batch := self._batches.get()) is not None:
            self._tell(batch)
