"""What other threads ask of the engine's thread, and whom the engine still owes an ending.

    submit, abort, a stop string was seen -> entries -> drain, once a step

One condition guards all of it and is held for moments only: nobody waits here for a step. A request
is in `deliveries` from its acceptance until its ending is told, and is counted under one reason
then. It counts as queued here until the scheduler counts it.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter, deque
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple, TypeAlias

from kveik.config import EngineConfig
from kveik.engine.delivery import Delivery
from kveik.engine.request import Request
from kveik.engine.sequence import Queues, RestingStream
from kveik.errors import Overloaded, Unavailable


class Arrival(NamedTuple):
    """A request to add."""

    handle: int
    delivery: Delivery
    seed: int
    resting: RestingStream | None = None  # the open stream that it goes on from


class Abort(NamedTuple):
    """End a request, and say so."""

    handle: int


class Over(NamedTuple):
    """The text of a choice is complete; choice None: of the whole request, whose listener knows."""

    handle: int
    choice: int | None


Entry: TypeAlias = Arrival | Abort | Over


class Inbox:
    """See the module. waiting: what the scheduler has in its queues; retry_after: seconds until
    about so many prompt tokens are computed. deliveries: changed here only."""

    def __init__(
        self,
        config: EngineConfig,
        clock: Callable[[], float],
        waiting: Queues,
        retry_after: Callable[[int], int],
    ) -> None:
        self._config = config
        self._clock = clock
        self._waiting = waiting
        self._retry_after = retry_after
        self._changed = threading.Condition()  # guards the fields below
        self.deliveries: dict[int, Delivery] = {}  # accepted and not yet ended
        self.accepting = True
        self.failure: str | None = None  # why the engine serves nobody any more
        self._entries: deque[Entry] = deque()
        self._queues = Queues()  # of the entries
        self._finished: Counter[str] = Counter()  # by finish reason
        self._disturbed = False  # a verb may have left something to do
        self._stopping = False
        self._handles = itertools.count()

    # ---- any thread

    def accept(self, delivery: Delivery, resting: RestingStream | None) -> int:
        """Queue a request. Its handle; Unavailable or Overloaded where it is not taken."""
        request = delivery.request
        with self._changed:
            if not self.accepting:
                raise Unavailable(self.failure or "the engine is stopping")
            self._check_queue(request)
            delivery.accepted(self._clock())
            handle = next(self._handles)
            self.deliveries[handle] = delivery
            seed = _seed(request, self._config.seed, handle)
            self._entries.append(Arrival(handle, delivery, seed, resting))
            self._queues.of(request).add(len(request.prompt_token_ids))
            self._changed.notify_all()
        return handle

    def _check_queue(self, request: Request) -> None:
        """Bounded by count and by tokens; an empty queue takes any prompt that fits the pool. Live
        requests and background work are counted apart: neither takes a place of the other."""
        inbox, waiting = self._queues.of(request), self._waiting.of(request)
        count, tokens = inbox.requests + waiting.requests, inbox.tokens + waiting.tokens
        prompt = len(request.prompt_token_ids)
        too_many = count >= self._config.max_queued_requests
        too_long = count > 0 and tokens + prompt > self._config.max_queued_tokens
        if too_many or too_long:
            raise Overloaded(
                f"the queue holds {count} requests with {tokens} prompt tokens (limits: "
                f"{self._config.max_queued_requests} requests, {self._config.max_queued_tokens} "
                "tokens): try again later",
                retry_after=self._retry_after(tokens + prompt),
            )

    def abort(self, handle: int) -> None:
        """Unknown or ended handles are ignored."""
        with self._changed:
            if handle in self.deliveries:
                self._entries.append(Abort(handle))
                self._changed.notify_all()

    def report(self, over: Over) -> None:
        """Let the engine know that nobody waits for more."""
        with self._changed:
            if self.failure is None:
                self._entries.append(over)
                self._changed.notify_all()

    def ended(self, handle: int, reason: str, *, instead: str | None = None) -> None:
        """The request has ended for this reason; instead: it was counted under another one."""
        with self._changed:
            if instead is not None:
                self._finished[instead] -= 1
            elif self.deliveries.pop(handle, None) is None:
                return
            self._finished[reason] += 1
            self._changed.notify_all()

    def disturb(self) -> None:
        """There may be something to do: an idle engine looks."""
        with self._changed:
            self._disturbed = True
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing is accepted from now on."""
        with self._changed:
            self.accepting = False

    def wait_until_ended(self, seconds: float) -> None:
        """Until every request has ended, for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self.deliveries, seconds)

    def stop(self) -> None:
        """`wait` is to say that there is no more."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    @property
    def queued(self) -> Queues:
        """What the scheduler has not been told of yet."""
        return self._queues

    def finished(self) -> dict[str, int]:
        """Requests that ended, by finish reason."""
        with self._changed:
            return dict(+self._finished)

    # ---- the engine's thread

    def drain(self, arrive: Callable[[Arrival], None]) -> list[Entry]:
        """All entries, in order. The arrivals among them are handed to `arrive` here, so that none
        is counted twice, or not at all."""
        with self._changed:
            entries = list(self._entries)
            self._entries.clear()
            self._queues = Queues()
            for entry in entries:
                if isinstance(entry, Arrival):
                    arrive(entry)
        return entries

    def break_down(self, failure: str) -> dict[int, Delivery]:
        """Nothing is accepted or done any more. Whoever waits for an ending: the caller tells it,
        and each is counted as an error."""
        with self._changed:
            self.failure = failure
            self.accepting = False
            deliveries = dict(self.deliveries)
            self.deliveries.clear()
            self._finished["error"] += len(deliveries)
            self._entries.clear()
            self._queues = Queues()
            self._changed.notify_all()
        return deliveries

    def wait(self, seconds: float) -> bool:
        """Until there is something to do, for so long at most. False: there will be nothing."""
        with self._changed:
            if self._stopping and not self._entries:
                return False
            if not (self._entries or self._stopping or self._disturbed):
                self._changed.wait(seconds)
            self._disturbed = False
        return True


def _seed(request: Request, engine_seed: int, handle: int) -> int:
    """The request's seed, or one drawn from the engine's seed and the arrival number."""
    if request.params.seed is not None:
        return request.params.seed
    digest = blake2b(f"{engine_seed},{handle}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
