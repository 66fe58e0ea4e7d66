"""Who computes what in the next step. Standard library; knows no tensor, socket, file or clock.

There are no phases: tokens catch up (computed < wanted). Each step has one token budget.

    1. sequences with one token missing get their row, oldest first; when blocks run out, the
       latest arrival gives its blocks up and computes again later (preemption by recompute:
       its text stays the same, because random numbers are keyed by seed, choice and position)
    2. prompts under way get chunks that end on the block grid
    3. waiting sequences are admitted by arrival, never by what they share with the cache, while
       one block stays free for the growth of each that runs (a third of the recomputation
       otherwise: admitted now, preempted in a moment)
    4. background work gets steps that nobody else needs, in small chunks, and gives up seat and
       blocks to whoever comes; when a request waits for what it computes, it is background no more

A sequence whose next block another one is computing stays waiting without blocks and does not
hold up those behind it. The oldest sequence can always progress: `max_tokens_for` refuses what
does not fit the pool alone. `apply` takes the result of the step and returns what happened.

    scheduling/capacity    what a request may be given at all       (max_tokens_for)
    scheduling/roster      where every sequence is                  (all of the others move them)
    scheduling/rows        1 and 2                                  (plan_step)
    scheduling/admission   3 and 4; opening: the leases for it      (plan_step)
    scheduling/acceptance  what a step brought for a sequence       (apply)
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable

from kveik.cache.manager import CacheManager
from kveik.engine.plan import SequenceResult, StepPlan, StepResult
from kveik.engine.request import Request
from kveik.engine.resting import StreamView, running_streams
from kveik.engine.scheduling.acceptance import Acceptance
from kveik.engine.scheduling.admission import Admission
from kveik.engine.scheduling.capacity import Capacity, SchedulerLimits
from kveik.engine.scheduling.draft import Draft
from kveik.engine.scheduling.roster import Roster
from kveik.engine.scheduling.rows import Rows
from kveik.engine.sequence import Output, RestingStream, Sequence, Work, WorkFailed
from kveik.errors import fault

__all__ = ["Scheduler", "SchedulerLimits"]

_log = logging.getLogger(__name__)
_LOST = "the step lost this request"


class Scheduler:
    """See the module. One thread; `plan_step` and `apply` alternate."""

    def __init__(
        self, cache: CacheManager, limits: SchedulerLimits, end_ids: Iterable[int] = ()
    ) -> None:
        self.limits = limits
        self.sweeping = False  # the cache has more to free than one step takes
        self._cache = cache
        self._roster = Roster(cache, end_ids)
        self.queues = self._roster.queues  # requests that never held a block
        self.streams = self._roster.streams
        self._capacity = Capacity(cache, limits, self._roster)
        self._rows = Rows(cache, limits, self._roster)
        self._admission = Admission(cache, limits, self._roster, self._capacity, self._rows)
        self._acceptance = Acceptance(cache, limits, self._roster)
        self._step: tuple[int, dict[int, tuple[Sequence, int]]] | None = None
        self._flushed = False  # the step before was launched for its fence only
        self._step_ids = itertools.count()

    # ---- requests in, requests out

    def max_tokens_for(self, request: Request) -> int:
        """Tokens the request may generate. Raises what could never finish, before any allocation:
        see Capacity."""
        return self._capacity.max_tokens_for(request)

    def add(
        self, handle: int, request: Request, seed: int, resting: RestingStream | None = None
    ) -> Work:
        """Queue a request that `max_tokens_for` accepts. resting: what it goes on from."""
        most = self._capacity.max_tokens_for(request)
        return self._roster.add(handle, request, seed, most, resting=resting)

    def abort(self, handle: int, now: float = 0.0) -> None:
        """End a request at once, in the queue or half computed, also while a step is running: its
        blocks are free after that step and what it had computed stays cached."""
        self._roster.abort(handle, now)

    def finish_choice(self, handle: int, choice: int, now: float = 0.0) -> None:
        """End one choice (a stop string was seen); unknown ones are ignored."""
        work = self._roster.works.get(handle)
        if work is not None and choice in work.sequences:
            self._roster.end(work.sequences[choice], now, finished=True)

    def is_over(self, handle: int) -> bool:
        """Every choice of the request has ended, in whatever way."""
        return handle not in self._roster.works

    def stream_views(self, namespace: str) -> list[StreamView]:
        """Open streams: those that run, then those that rest."""
        return running_streams(self._roster.running, namespace) + self.streams.views(namespace)

    @property
    def running(self) -> int:
        return len(self._roster.running)

    @property
    def preemptions(self) -> int:
        """How often a sequence gave its blocks up for another."""
        return self._roster.preemptions

    @property
    def has_work(self) -> bool:
        return bool(self._roster.works or self._roster.moves)

    # ---- plan

    def plan_step(self, now: float = 0.0) -> StepPlan | None:
        """The next step, or None when nothing can be computed. Its id is already announced to the
        cache; `apply` must follow. What was deleted is overwritten first of all."""
        if self._step is not None:
            raise RuntimeError("plan_step: the result of the step before was not applied")
        self.sweeping = self._cache.tick(now)
        self.streams.end_over(now)
        draft = Draft(self.limits.max_num_batched_tokens, self._flushed)
        self._rows.keep_promises(draft, now)
        for background in (False, True):
            if background and draft.plans:
                break
            if background:
                draft.budget = min(draft.budget, self.limits.background_tokens)
            self._rows.decodes(draft, now, background)
            self._rows.prefills(draft, background)
            if not draft.preempted or not draft.plans:
                self._admission.admit(draft, now, background)
        self._flushed = draft.flush
        moves = (*self._cache.take_erasures(), *self._roster.moves)
        if not (draft.plans or moves or draft.flush):
            return None
        step_id = next(self._step_ids)
        self._roster.moves.clear()
        self._step = (step_id, draft.rows)
        self._cache.launched(step_id)
        return StepPlan(step_id, tuple(draft.plans), moves)

    def take_failures(self) -> list[WorkFailed]:
        """Requests that ended while planning."""
        failures, self._roster.failures = self._roster.failures, []
        return failures

    # ---- apply

    def apply(self, result: StepResult, now: float = 0.0) -> list[Output]:
        """Take the tokens of a step. Results of sequences that ended meanwhile are dropped."""
        if self._step is None or self._step[0] != result.step_id:
            raise RuntimeError(f"apply: step {result.step_id} is not the one that was planned")
        _, rows = self._step
        self._step = None
        self._cache.acknowledge(result.step_id)
        outputs: list[Output] = []
        answered = {outcome.sequence_id: outcome for outcome in result.sequences}
        for sequence_id, (sequence, count) in rows.items():
            if sequence.lease is None or sequence.sequence_id != sequence_id:
                continue
            outcome = answered.get(sequence_id, SequenceResult(sequence_id, error=_LOST))
            try:
                if outcome.error is None:
                    outputs.extend(self._acceptance.accept(sequence, count, outcome, now))
                    continue
            except Exception as error:
                _log.error("a request failed while its tokens were taken: %s", fault(error))
                outcome = SequenceResult(sequence_id, error=f"{_LOST} ({type(error).__name__})")
            outputs.append(self._roster.fail(sequence.work, outcome.error or _LOST, now))
        return outputs
