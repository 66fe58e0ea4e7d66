"""Where every sequence is: it waits without blocks, runs with a lease, or is gone.

    add -> waiting -- begin -> running -- end -> gone, or its stream rests
              ^                   |
              +---- preempt ------+

Whoever moves a sequence does it here, so that a lease is held by exactly those that run (and by
streams at rest), and a request that is over left nothing behind. Standard library.
"""

from __future__ import annotations

import itertools
from bisect import insort
from collections.abc import Iterable
from operator import attrgetter

from kveik.cache.manager import CacheManager
from kveik.cache.segments import Move
from kveik.engine.makers import Makers
from kveik.engine.request import Request
from kveik.engine.resting import RestingStreams, key_of
from kveik.engine.sequence import Queues, RestingStream, Sequence, Work, WorkFailed
from kveik.errors import KveikError

_order = attrgetter("order")


class Roster:
    """See the module. The lists are there to be read by the rest of this package; nobody else adds
    to `running` and `waiting`, or takes from them."""

    def __init__(self, cache: CacheManager, end_ids: Iterable[int]) -> None:
        self.works: dict[int, Work] = {}  # requests that are not over, by handle
        self.running: list[Sequence] = []  # hold a lease; by order
        self.waiting: list[Sequence] = []  # hold nothing; by order
        self.queues = Queues()  # requests that never held a block
        self.streams = RestingStreams(cache, self.note_progress)
        self.makers = Makers()
        self.moves: list[Move] = []  # of leases opened or forked since the last plan
        self.failures: list[WorkFailed] = []  # of requests that ended while planning
        self.preemptions = 0
        self.progress = 0  # counts whatever may turn a Wait into something else
        self._cache = cache
        self._end_ids = frozenset(end_ids)
        self._arrivals = itertools.count()
        self._sequence_ids = itertools.count()

    # ---- in

    def add(
        self,
        handle: int,
        request: Request,
        seed: int,
        max_tokens: int,
        *,
        arrival: int | None = None,
        resting: RestingStream | None = None,
    ) -> Work:
        """Queue a request. arrival: the place among the others (None: behind all); resting: what
        it goes on from."""
        end_ids = frozenset() if request.params.ignore_eos else self._end_ids
        work = Work(
            handle,
            request,
            next(self._arrivals) if arrival is None else arrival,
            seed,
            max_tokens,
            end_ids,
            background=request.background,
        )
        self.works[handle] = work
        if resting is None and request.stream is not None:  # the session begins anew
            self.streams.end((key_of(request),), 0.0)
        tokens = list(request.prompt_token_ids)
        if resting is not None:
            work.resting, work.prompt_start = resting, resting.start + len(resting.tokens)
            tokens = resting.tokens + tokens
        sequence = self.new_sequence(work, 0, tokens)
        if resting is not None:
            sequence.start = resting.start
        self.enqueue(sequence)
        self.queues.of(request).add(work.prompt_length)
        return work

    def new_sequence(self, work: Work, choice: int, tokens: list[int]) -> Sequence:
        """One more choice of the request, which neither waits nor runs yet."""
        sequence = Sequence(work, choice, next(self._sequence_ids), tokens)
        work.sequences[choice] = sequence
        return sequence

    def enqueue(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_order)

    # ---- waiting to running

    def begin(self, sequence: Sequence) -> None:
        """It waited, and has its lease now."""
        self.waiting.remove(sequence)
        self.run(sequence)

    def run(self, sequence: Sequence) -> None:
        """It did not wait, and has a lease."""
        insort(self.running, sequence, key=_order)

    def leave_queue(self, work: Work) -> None:
        """The first blocks of the request are held, or never will be."""
        work.started = True
        self.queues.of(work.request).drop(work.prompt_length)

    def rivals(self, work: Work) -> int:
        """Running sequences that would not give up their blocks for this work."""
        return sum(one.work.background <= work.background for one in self.running)

    def hurry(self, made: Work, work: Work) -> bool:
        """Nobody waits for background work: what a live request needs is computed as if it were
        its own."""
        if not made.background or work.background:
            return False
        made.background = False
        self.running.sort(key=_order)
        self.waiting.sort(key=_order)
        return True

    def note_progress(self) -> None:
        """Something happened that may let somebody run who could not."""
        self.progress += 1

    # ---- running to waiting

    def preempt(self, sequence: Sequence, now: float) -> None:
        """It gives its blocks up and computes again later."""
        self.preemptions += 1
        self.give_up_blocks(sequence, now)
        if sequence.work.wants_prompt_rows:
            sequence.work.forget_rows()
        self.enqueue(sequence)

    def give_up_blocks(
        self, sequence: Sequence, now: float, *, finished: bool | None = None
    ) -> None:
        """Release the lease; what was committed stays cached. Only what finished belongs to its
        session: a cut turn does not (False), nor, until then, one that goes on later (None)."""
        assert sequence.lease is not None
        self._cache.release(sequence.lease, keep=True, finished=finished, now=now)
        sequence.work.note_stored(sequence.lease.stored)
        sequence.work.pinned |= sequence.lease.pinned
        sequence.lease = None
        sequence.computed = []
        sequence.sequence_id = next(self._sequence_ids)
        sequence.asked_at = -1
        self.running.remove(sequence)
        self.progress += 1

    # ---- out

    def end(self, sequence: Sequence, now: float, *, finished: bool) -> None:
        """The choice is over, and with the last one its request."""
        work = sequence.work
        if sequence.lease is not None:
            if finished and self.streams.rest(sequence, now):
                self._lay_down(sequence)
            else:
                self.give_up_blocks(sequence, now, finished=finished)
        else:
            self.waiting.remove(sequence)
            if work.resting is not None:  # it has not gone on yet: the turn never was
                self.streams.put_back(key_of(work.request), work.resting, now)
        del work.sequences[sequence.choice]
        if not work.sequences:
            if not work.started:
                self.leave_queue(work)
            del self.works[work.handle]
            self.makers.ended(work.handle)

    def _lay_down(self, sequence: Sequence) -> None:
        """Its stream rests: the lease is another's to release."""
        assert sequence.lease is not None
        if not sequence.work.prompt_start:
            sequence.work.note_stored(sequence.lease.stored)
        sequence.lease = None
        self.running.remove(sequence)
        self.progress += 1

    def abort(self, handle: int, now: float) -> None:
        """End every choice of a request; unknown ones are ignored."""
        work = self.works.get(handle)
        if work is not None:
            for sequence in list(work.sequences.values()):
                self.end(sequence, now, finished=False)

    def fail(
        self, work: Work, message: str, now: float, kind: type[KveikError] = KveikError
    ) -> WorkFailed:
        """End a request with an error, which the caller reports."""
        self.makers.failed(work.handle, message)
        self.abort(work.handle, now)
        return WorkFailed(work.handle, message, kind)

    def fail_in_plan(
        self, work: Work, message: str, now: float, kind: type[KveikError] = KveikError
    ) -> None:
        """The same while a step is planned: it is reported with the others of the step."""
        self.failures.append(self.fail(work, message, now, kind))
