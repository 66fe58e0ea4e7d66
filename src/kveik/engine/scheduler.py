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
"""

from __future__ import annotations

import itertools
import logging
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from operator import attrgetter

from kveik.cache.directive import Directive, Divergence
from kveik.cache.joining import Joined, Missing
from kveik.cache.manager import CacheManager, Lease, Miss, NoRoom, Opened, OpenResult, Wait
from kveik.cache.segments import Move
from kveik.cache.window import StreamWindow
from kveik.engine.makers import Makers, check_joined
from kveik.engine.plan import (
    SampledToken,
    SequencePlan,
    SequenceResult,
    StepPlan,
    StepResult,
)
from kveik.engine.request import FinishReason, Request
from kveik.engine.resting import RestingStreams, StreamView, key_of, running_streams
from kveik.engine.sequence import (
    ChoiceEnded,
    Output,
    PromptComputed,
    Queues,
    RestingStream,
    Sequence,
    TokenAccepted,
    Work,
    WorkFailed,
)
from kveik.errors import (
    Conflict,
    ContextLengthExceeded,
    InvalidRequest,
    KveikError,
    PinBudgetExceeded,
    PromptTooLarge,
    fault,
)

ENDLESS = 1 << 62
"""Tokens that a stream may generate where the request names no limit."""

_log = logging.getLogger(__name__)
_order = attrgetter("order")
_LOST = "the step lost this request"
_PROMISE = "the stream found no room although its window was reserved"
STREAM_GONE = "the stream of this session has ended: begin another one"


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """block_size and budgets in tokens; max_num_seqs in sequences that hold blocks."""

    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int

    @property
    def seats(self) -> int:
        """Sequences that may hold blocks: each decoding one needs a row of every step."""
        return min(self.max_num_seqs, self.max_num_batched_tokens)

    @property
    def background_tokens(self) -> int:
        """Budget of a step of background work: whoever arrives meanwhile waits for a short one."""
        return max(self.block_size, self.max_num_batched_tokens // 8)


@dataclass(slots=True)
class _Draft:
    """The step being planned: the rows still free and the rows given out."""

    budget: int
    prefills: int = 0
    preempted: bool = False
    flush: bool = False  # launch the step even if it is empty
    plans: list[SequencePlan] = field(default_factory=list)
    rows: dict[int, tuple[Sequence, int]] = field(default_factory=dict)  # id -> (who, rows)

    def add(self, sequence: Sequence, count: int) -> None:
        assert sequence.lease is not None
        work, first = sequence.work, sequence.done
        spans, token_ids = sequence.rows(first, count)
        wants = work.wants_prompt_rows
        owed = work.request.params.prompt_logprobs if wants else None
        ends = first + count == sequence.length
        plan = SequencePlan(
            sequence_id=sequence.sequence_id,
            spans=spans,
            token_ids=token_ids,
            tables=sequence.lease.tables,
            samples=sequence.sampling_plans() if ends else (),
            prompt_logprobs=owed,
            targets=sequence.targets(first, count) if owed is not None else (),
            stream=work.stream,
            pools=wants and work.request.embed,
        )
        self.plans.append(plan)
        self.rows[sequence.sequence_id] = (sequence, count)
        self.budget -= len(token_ids)


class Scheduler:
    """See the module. One thread; `plan_step` and `apply` alternate."""

    def __init__(
        self, cache: CacheManager, limits: SchedulerLimits, end_ids: Iterable[int] = ()
    ) -> None:
        self.limits = limits
        self.preemptions = 0
        self.sweeping = False  # the cache has more to free than one step takes
        self.queues = Queues()  # requests that never held a block
        self._cache = cache
        self._end_ids = frozenset(end_ids)
        self._works: dict[int, Work] = {}
        self._running: list[Sequence] = []  # hold a lease; by order
        self._waiting: list[Sequence] = []  # hold nothing; by order
        self._moves: list[Move] = []  # of leases opened or forked since the last plan
        self._failures: list[WorkFailed] = []
        self._step: tuple[int, dict[int, tuple[Sequence, int]]] | None = None
        self._flushed = False  # the step before was launched for its fence only
        self.streams = RestingStreams(cache, self._note_progress)
        self._progress = 0  # counts whatever may turn a Wait into something else
        self._makers = Makers()
        self._arrivals = itertools.count()
        self._sequence_ids = itertools.count()
        self._step_ids = itertools.count()

    # ---- requests in, requests out

    def max_tokens_for(self, request: Request) -> int:
        """Tokens the request may generate. Raises what could never finish, before any allocation.

        The last sampled token needs no slot, so prompt + max_tokens - 1 slots suffice."""
        prompt, wanted = len(request.prompt_token_ids), request.params.max_tokens
        slots, joined = prompt, request.joined
        if joined is not None:
            if request.stream is not None:
                raise InvalidRequest(
                    "stream_window: a prompt that is joined from parts (modules, or what is left "
                    "of a session that forgets) is not streamed; leave one of them out",
                    param="stream_window",
                )
            check_joined(request, joined, self._cache, self.limits.max_model_len)
            prompt = joined.seen_end
            slots = joined.blocks(self.limits.block_size) * self.limits.block_size
        least = 1 if wanted is None else wanted
        if prompt == 0:
            raise InvalidRequest("prompt: is empty; at least one token is needed", param="prompt")
        if request.stream is not None:
            return self._stream_tokens(request, request.stream)
        context = self.limits.max_model_len
        asked = "not set" if wanted is None else wanted
        if prompt + least > context:
            raise ContextLengthExceeded(
                f"the prompt has {prompt} tokens and max_tokens is {asked}, but the "
                f"context of this model is {context} tokens: shorten one of the two",
                param="prompt",
            )
        capacity = self._cache.capacity_tokens(request.namespace)
        allowed = min(context - prompt, capacity + 1 - slots)
        if slots > capacity or allowed < least:
            raise PromptTooLarge(
                f"the prompt has {prompt} tokens and max_tokens is {asked}, but the "
                f"KV pool holds {capacity} tokens: shorten one of the two or give the "
                "engine more --kv-memory",
                param="prompt",
            )
        most = allowed if wanted is None else wanted
        if request.params.min_tokens > most:
            raise InvalidRequest(
                f"min_tokens: {request.params.min_tokens} is more than max_tokens {most}",
                param="min_tokens",
            )
        return most

    def _stream_tokens(self, request: Request, stream: StreamWindow) -> int:
        """The same of a stream, which has no longest length. Raises InvalidRequest for what one
        window cannot serve."""
        params = request.params
        refused = {
            "n": params.n > 1,
            "use_cache": not params.use_cache,
            "prompt_logprobs": request.resumes and params.prompt_logprobs is not None,
            "max_tokens": params.max_tokens == 0,
        }
        for name, wrong in refused.items():
            if wrong:
                raise InvalidRequest(
                    f"{name}: {getattr(params, name)} cannot be had of a stream, which is one "
                    "continuation in one window: leave it out, or send no stream_window",
                    param=name,
                )
        if stream.size > self.limits.max_model_len:
            raise InvalidRequest(
                f"stream_window: sinks + window are {stream.size} tokens, and the context of this "
                f"model is {self.limits.max_model_len}: ask for a smaller window",
                param="stream_window",
            )
        if not request.resumes:
            stays = request.directive.session is not None
            stays = stays and not self.streams.has(key_of(request))
            waiting = self._promised() if stays else 0
            self._cache.check_stream(stream, request.namespace, stays=stays, waiting=waiting)
        return ENDLESS if params.max_tokens is None else params.max_tokens

    def _promised(self) -> int:
        """Blocks of streams that will stay open and have not begun."""
        return sum(
            self._cache.stream_blocks(work.stream)
            for work in self._works.values()
            if work.stream and work.request.directive.session and not work.started
        )

    def add(
        self, handle: int, request: Request, seed: int, resting: RestingStream | None = None
    ) -> Work:
        """Queue a request that `max_tokens_for` accepts. resting: what it goes on from."""
        return self._add(handle, request, seed, next(self._arrivals), resting)

    def _add(
        self,
        handle: int,
        request: Request,
        seed: int,
        arrival: int,
        resting: RestingStream | None = None,
    ) -> Work:
        end_ids = frozenset() if request.params.ignore_eos else self._end_ids
        work = Work(
            handle,
            request,
            arrival,
            seed,
            self.max_tokens_for(request),
            end_ids,
            background=request.background,
        )
        self._works[handle] = work
        if resting is None and request.stream is not None:  # the session begins anew
            self.streams.end((key_of(request),), 0.0)
        tokens = list(request.prompt_token_ids)
        if resting is not None:
            work.resting, work.prompt_start = resting, resting.start + len(resting.tokens)
            tokens = resting.tokens + tokens
        sequence = self._new_sequence(work, 0, tokens)
        if resting is not None:
            sequence.start = resting.start
        self._enqueue(sequence)
        self.queues.of(request).add(work.prompt_length)
        return work

    def abort(self, handle: int, now: float = 0.0) -> None:
        """End a request at once, in the queue or half computed, also while a step is running: its
        blocks are free after that step and what it had computed stays cached."""
        work = self._works.get(handle)
        if work is not None:
            for sequence in list(work.sequences.values()):
                self._end(sequence, now, finished=False)

    def finish_choice(self, handle: int, choice: int, now: float = 0.0) -> None:
        """End one choice (a stop string was seen); unknown ones are ignored."""
        work = self._works.get(handle)
        if work is not None and choice in work.sequences:
            self._end(work.sequences[choice], now, finished=True)

    def is_over(self, handle: int) -> bool:
        """Every choice of the request has ended, in whatever way."""
        return handle not in self._works

    def stream_views(self, namespace: str) -> list[StreamView]:
        """Open streams: those that run, then those that rest."""
        return running_streams(self._running, namespace) + self.streams.views(namespace)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def has_work(self) -> bool:
        return bool(self._works or self._moves)

    # ---- plan

    def plan_step(self, now: float = 0.0) -> StepPlan | None:
        """The next step, or None when nothing can be computed. Its id is already announced to the
        cache; `apply` must follow. What was deleted is overwritten first of all."""
        if self._step is not None:
            raise RuntimeError("plan_step: the result of the step before was not applied")
        self.sweeping = self._cache.tick(now)
        self.streams.end_over(now)
        draft = _Draft(self.limits.max_num_batched_tokens)
        self._keep_promises(draft, now)
        for background in (False, True):
            if background and draft.plans:
                break
            if background:
                draft.budget = min(draft.budget, self.limits.background_tokens)
            self._plan_decodes(draft, now, background)
            self._plan_prefills(draft, background)
            if not draft.preempted or not draft.plans:
                self._admit(draft, now, background)
        self._flushed = draft.flush
        moves = (*self._cache.take_erasures(), *self._moves)
        if not (draft.plans or moves or draft.flush):
            return None
        step_id = next(self._step_ids)
        self._moves.clear()
        self._step = (step_id, draft.rows)
        self._cache.launched(step_id)
        return StepPlan(step_id, tuple(draft.plans), moves)

    def take_failures(self) -> list[WorkFailed]:
        """Requests that ended while planning."""
        failures, self._failures = self._failures, []
        return failures

    def _plan_decodes(self, draft: _Draft, now: float, background: bool) -> None:
        for sequence in tuple(self._running):
            if sequence.lease is None or sequence.missing != 1:
                continue
            if sequence.work.background is not background:
                continue
            if draft.budget > 0 and self._make_room(sequence, draft, now):
                draft.add(sequence, 1)

    def _keep_promises(self, draft: _Draft, now: float) -> None:
        """Room for the next block of every running stream, before anybody has a row in this step:
        whoever stands in its way (by reading what it let go) computes again later."""
        for sequence in tuple(self._running):
            if sequence.work.stream is None or sequence.lease is None or not sequence.missing:
                continue
            wanted = sequence.done + min(sequence.missing, self.limits.block_size)
            if not self._grow(sequence, wanted, draft, now):
                self._failures.append(self._fail(sequence.work, _PROMISE, now))

    def _make_room(self, sequence: Sequence, draft: _Draft, now: float) -> bool:
        """A slot for every wanted token; False when the sequence itself was the latest arrival.

        Sequences are served oldest first, so a victim never has a row in this step yet."""
        return self._grow(sequence, sequence.length, draft, now)

    def _grow(self, sequence: Sequence, wanted: int, draft: _Draft, now: float) -> bool:
        """Preempt the latest arrivals until so many tokens fit; never a stream, which nobody could
        compute again (invariant 18). False: there is nobody left, or the sequence was one."""
        assert sequence.lease is not None
        while sequence.lease.capacity < wanted and not self._cache.extend(sequence.lease, wanted):
            victims = [one for one in self._running if one.work.stream is None]
            if not victims:
                return False
            self._preempt(victims[-1], now)
            draft.preempted = True
            if victims[-1] is sequence:
                return False
        return True

    def _plan_prefills(self, draft: _Draft, background: bool) -> None:
        for sequence in self._running:
            if sequence.missing > 1 and sequence.work.background is background:
                self._add_chunk(sequence, draft)

    def _add_chunk(self, sequence: Sequence, draft: _Draft) -> None:
        """A chunk ends on the block grid unless it ends the sequence. Only the oldest prompt may
        take what is left of the budget when that is less than the way to the next block."""
        start, end = sequence.done, sequence.length
        if isinstance(sequence.lease, Joined):
            end = sequence.lease.course.reach(start, draft.budget, end) if draft.budget else start
        elif end - start > draft.budget:
            reach = start + draft.budget
            aligned = reach - reach % self.limits.block_size
            if aligned <= start and draft.prefills:
                return
            end = aligned if aligned > start else reach
        if sequence.work.stream is not None:
            end = self._stream_chunk(sequence, start, end)
        if end > start:
            draft.add(sequence, end - start)
            draft.prefills += 1

    def _stream_chunk(self, sequence: Sequence, start: int, end: int) -> int:
        """Where the chunk of a stream ends that finds room beside its window."""
        lease = sequence.lease
        assert lease is not None
        while end > start and not self._cache.extend(lease, end):
            end = max(lease.capacity, start + (end - start) // 2)
        return end

    def _admit(self, draft: _Draft, now: float, background: bool) -> None:
        index = 0
        while index < len(self._waiting):
            sequence = self._waiting[index]
            useful = min(self.limits.block_size, len(sequence.tokens)) if draft.prefills else 1
            if draft.budget < useful or sequence.work.background > background:
                break
            if sequence.asked_at == self._progress or sequence.work.background is not background:
                index += 1
                continue
            if len(self._running) >= self.limits.seats and not self._push_out(sequence, now):
                break
            result = self._open(sequence, now, reuse=not sequence.work.wants_prompt_rows)
            if isinstance(result, Wait | Missing):
                sequence.asked_at = self._progress
                index += 1
                if isinstance(result, Wait):
                    self._lend_rank(sequence, result.leader, draft)
                elif not self._make(sequence.work, result, now):
                    index -= 1  # it has failed, and waits no more
            elif isinstance(result, Opened):
                self._add_chunk(sequence, draft)
            elif not self._push_out(sequence, now):
                break
        waiting = (one for one in self._waiting if one.asked_at != self._progress)
        first = None if self._running else next(waiting, None)
        if first is not None and first.work.background is background and not draft.flush:
            self._admit_alone(first, draft, now)

    def _make(self, work: Work, missing: Missing, now: float) -> bool:
        """Have the units of a joined prompt computed; they come before whoever arrived later.
        False: they cannot be, and the request has failed."""
        why = self._makers.hopeless(work, missing)
        if why is not None:
            self._failures.append(self._fail(work, why, now))
            return False
        for handle in self._makers.making(work, missing):
            self._hurry(self._works[handle], work)
        for handle, request in self._makers.requests(work, missing):
            try:
                self._add(handle, request, 0, work.arrival)
            except InvalidRequest as error:  # the shares of the pool are others by now
                self._makers.ended(handle)
                self._failures.append(self._fail(work, error.message, now))
                return False
        return True

    def _hurry(self, made: Work, work: Work) -> bool:
        """Nobody waits for background work: what a live request needs is computed as if it were
        its own."""
        if not made.background or work.background:
            return False
        made.background = False
        self._running.sort(key=_order)
        self._waiting.sort(key=_order)
        return True

    def _push_out(self, sequence: Sequence, now: float) -> bool:
        """Background work gives its seat and its blocks to a sequence that is none."""
        last = self._running[-1] if self._running else None
        if last is None or last.work.background <= sequence.work.background or last.work.stream:
            return False
        self._preempt(last, now)
        return True

    def _lend_rank(self, follower: Sequence, leader: Lease, draft: _Draft) -> None:
        for sequence in self._running:
            if _computes(sequence.lease, leader):
                hurried = self._hurry(sequence.work, follower.work)
                if hurried and draft.budget > 0 and sequence.sequence_id not in draft.rows:
                    self._add_chunk(sequence, draft)
                return

    def _admit_alone(self, sequence: Sequence, draft: _Draft, now: float) -> None:
        """Nothing runs, yet the oldest was not admitted. Without reuse it fits, once the blocks
        that were given up before their first step have passed one; or else it never will."""
        if isinstance(self._open(sequence, now, reuse=False), Opened):
            self._add_chunk(sequence, draft)
        elif not self._flushed or self.streams.end_oldest(now):
            draft.flush = True
        elif isinstance(self._open(sequence, now, reuse=False, last_resort=True), Opened):
            self._add_chunk(sequence, draft)
        else:
            self._failures.append(self._fail_without_room(sequence.work, now))

    def _open(
        self, sequence: Sequence, now: float, *, reuse: bool, last_resort: bool = False
    ) -> OpenResult | Missing:
        """Open a lease for all wanted tokens; of a stream, for its window."""
        work = sequence.work
        if work.resting is not None:
            return self._resume(sequence, work.resting, now)
        if work.request.explain and not work.started:
            work.divergence = self._cache.divergence(
                sequence.tokens,
                namespace=work.request.namespace,
                salt=work.request.salt,
                now=now,
            )
            if work.stream is not None:
                work.divergence = within(work.divergence, work.stream)
        result = self._lease(sequence, now, reuse=reuse, last_resort=last_resort)
        if isinstance(result, Opened):
            lease = result.lease
            sequence.lease = lease
            sequence.computed = sequence.tokens[: lease.committed]
            self._moves.extend(result.moves)
            self._begin_running(sequence)
            if not work.started:
                self._leave_queue(work)
                work.note_opened(lease)
        return result

    def _begin_running(self, sequence: Sequence) -> None:
        self._waiting.remove(sequence)
        insort(self._running, sequence, key=_order)

    def _resume(self, sequence: Sequence, resting: RestingStream, now: float) -> Opened | NoRoom:
        """Go on from an open stream, unless it has ended meanwhile."""
        work, lease = sequence.work, resting.lease
        if not self._cache.resume(lease, now):
            self._failures.append(self._fail(work, STREAM_GONE, now, Conflict))
            return NoRoom()
        work.resting, work.miss = None, Miss(0, "new")
        if work.request.explain:
            work.divergence = Divergence(0, "new")
        sequence.lease, sequence.computed = lease, resting.computed
        self._begin_running(sequence)
        self._leave_queue(work)
        return Opened(lease, ())

    def _lease(
        self, sequence: Sequence, now: float, *, reuse: bool, last_resort: bool
    ) -> OpenResult | Missing:
        request, tokens = sequence.work.request, sequence.tokens
        if request.joined is not None:
            return self._cache.open_joined(
                tokens,
                len(tokens),
                request.joined,
                namespace=request.namespace,
                salt=request.salt,
                directive=self._directive(sequence),
                spare=self._rivals(sequence.work),
                now=now,
                last_resort=last_resort,
            )
        return self._cache.open(
            tokens,
            len(tokens),
            namespace=request.namespace,
            salt=request.salt,
            directive=self._directive(sequence),
            store=request.params.use_cache,
            reuse=reuse and request.params.use_cache and request.reuse,
            spare=self._rivals(sequence.work),
            now=now,
            last_resort=last_resort,
            stream=request.stream,
        )

    def _directive(self, sequence: Sequence) -> Directive:
        """What the request asks of the cache, without a pin for which the budget is gone since it
        was accepted: its usage says so."""
        directive = sequence.work.request.directive
        if directive.pin:
            try:
                self._cache.check_pin(len(sequence.tokens))
            except PinBudgetExceeded:
                return replace(directive, pin=False)
        return directive

    def _rivals(self, work: Work) -> int:
        """Running sequences that would not give up their blocks for this work."""
        return sum(one.work.background <= work.background for one in self._running)

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
                    outputs.extend(self._accept(sequence, count, outcome, now))
                    continue
            except Exception as error:
                _log.error("a request failed while its tokens were taken: %s", fault(error))
                outcome = SequenceResult(sequence_id, error=f"{_LOST} ({type(error).__name__})")
            outputs.append(self._fail(sequence.work, outcome.error or _LOST, now))
        return outputs

    def _accept(
        self, sequence: Sequence, count: int, outcome: SequenceResult, now: float
    ) -> list[Output]:
        assert sequence.lease is not None
        work, first, size = sequence.work, sequence.done, self.limits.block_size
        self._progress += first // size != (first + count) // size  # a block became whole
        offset = len(sequence.computed)
        _, of_prompt = sequence.rows(first, work.prompt_rows(first, count))
        sequence.computed.extend(sequence.tokens[offset : offset + count])
        work.computed_prompt_tokens += len(of_prompt)
        work.note_rows(outcome)
        if sequence.lease.evicted:
            self._cache.append(sequence.lease, sequence.computed[offset:], now)
        else:
            self._cache.commit(sequence.lease, sequence.computed, now)
        if work.stream is not None:
            work.evicted = work.stream.evicted(sequence.done - 1)
            sequence.forget()
        if work.max_tokens == 0 and sequence.missing == 0:
            return self._end_prompt(sequence, now)
        if not outcome.tokens:
            return []
        if work.prompt_done:
            return [self._accept_token(sequence, outcome.tokens[0], now)]
        return self._accept_prompt(sequence, outcome.tokens, now)

    def _end_prompt(self, sequence: Sequence, now: float) -> list[Output]:
        """The prompt is computed, and nothing else was asked for."""
        work = sequence.work
        work.prompt_done = True
        self._end(sequence, now, finished=True)
        return [
            PromptComputed(work.handle),
            ChoiceEnded(work.handle, sequence.choice, "length"),
        ]

    def _accept_prompt(
        self, sequence: Sequence, tokens: tuple[SampledToken, ...], now: float
    ) -> list[Output]:
        """The prompt is computed once; every further choice forks its blocks. A choice that finds
        no seat or no block for the fork waits, and computes the same bits for itself later."""
        work = sequence.work
        work.prompt_done = True
        outputs: list[Output] = [PromptComputed(work.handle)]
        prompt = list(sequence.tokens)
        children = [self._new_sequence(work, k, list(prompt)) for k in range(1, len(tokens))]
        for child, token in zip(children, tokens[1:], strict=True):
            self._fork(sequence, child)
            outputs.append(self._accept_token(child, token, now))
        outputs.insert(1, self._accept_token(sequence, tokens[0], now))
        return outputs

    def _fork(self, parent: Sequence, child: Sequence) -> None:
        assert parent.lease is not None
        forked = None
        if parent.work.request.params.use_cache and len(self._running) < self.limits.seats:
            forked = self._cache.fork(parent.lease)
        if forked is None:
            self._enqueue(child)
            return
        child.lease, moves = forked
        child.computed = list(parent.computed)
        self._moves.extend(moves)
        insort(self._running, child, key=_order)

    def _accept_token(self, sequence: Sequence, token: SampledToken, now: float) -> TokenAccepted:
        work = sequence.work
        sequence.tokens.append(token.token_id)
        work.completion_tokens += 1
        finish, reason = self._finish(sequence, token.token_id)
        if finish is not None:
            self._end(sequence, now, finished=True)
        elif not work.request.params.use_cache and sequence.lease is not None:
            self._give_up_blocks(sequence, now)
            self._enqueue(sequence)
        return TokenAccepted(work.handle, sequence.choice, token, finish, reason)

    @staticmethod
    def _finish(sequence: Sequence, token_id: int) -> tuple[FinishReason | None, int | None]:
        """Finish reason and stop token id. Before min_tokens, ends are never sampled."""
        work = sequence.work
        if token_id in work.end_ids:
            return "stop", None
        if token_id in work.request.params.stop_token_ids:
            return "stop", token_id
        if sequence.generated >= work.max_tokens:
            return "length", None
        return None, None

    # ---- sequences between waiting, running and gone

    def _new_sequence(self, work: Work, choice: int, tokens: list[int]) -> Sequence:
        sequence = Sequence(work, choice, next(self._sequence_ids), tokens)
        work.sequences[choice] = sequence
        return sequence

    def _enqueue(self, sequence: Sequence) -> None:
        insort(self._waiting, sequence, key=_order)

    def _preempt(self, sequence: Sequence, now: float) -> None:
        self.preemptions += 1
        self._give_up_blocks(sequence, now)
        if sequence.work.wants_prompt_rows:
            sequence.work.forget_rows()
        self._enqueue(sequence)

    def _give_up_blocks(
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
        self._running.remove(sequence)
        self._progress += 1

    def _end(self, sequence: Sequence, now: float, *, finished: bool) -> None:
        work = sequence.work
        if sequence.lease is not None:
            if finished and self.streams.rest(sequence, now):
                self._lay_down(sequence)
            else:
                self._give_up_blocks(sequence, now, finished=finished)
        else:
            self._waiting.remove(sequence)
            if work.resting is not None:  # it has not gone on yet: the turn never was
                self.streams.put_back(key_of(work.request), work.resting, now)
        del work.sequences[sequence.choice]
        if not work.sequences:
            if not work.started:
                self._leave_queue(work)
            del self._works[work.handle]
            self._makers.ended(work.handle)

    def _lay_down(self, sequence: Sequence) -> None:
        """Its stream rests: the lease is another's to release."""
        assert sequence.lease is not None
        if not sequence.work.prompt_start:
            sequence.work.note_stored(sequence.lease.stored)
        sequence.lease = None
        self._running.remove(sequence)
        self._progress += 1

    def _note_progress(self) -> None:
        self._progress += 1

    def _leave_queue(self, work: Work) -> None:
        work.started = True
        self.queues.of(work.request).drop(work.prompt_length)

    def _fail_without_room(self, work: Work, now: float) -> WorkFailed:
        """Nothing else runs. A window that fitted when it was accepted may not beside what was
        pinned meanwhile."""
        if work.stream is not None:
            try:
                self._cache.check_stream(work.stream, work.request.namespace, stays=False)
            except KveikError as error:
                return self._fail(work, error.message, now, type(error))
        return self._fail(work, "no room in an empty KV pool", now)

    def _fail(
        self, work: Work, message: str, now: float, kind: type[KveikError] = KveikError
    ) -> WorkFailed:
        self._makers.failed(work.handle, message)
        self.abort(work.handle, now)
        return WorkFailed(work.handle, message, kind)


def within(divergence: Divergence, stream: StreamWindow) -> Divergence:
    """As a stream meets it: what it computes behind its first eviction has another past."""
    if divergence.position < stream.size - 1:
        return divergence
    return Divergence(stream.size - 1, "too_short")


def _computes(lease: Lease | None, leader: Lease) -> bool:
    """Is the leader this lease, or a part of it?"""
    return lease is leader or (isinstance(lease, Joined) and leader in lease.own)
