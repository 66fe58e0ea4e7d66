"""The engine: one loop of plan, run, apply around the scheduler, runner and tokenizer.

Two ways to drive it: offline code calls `step()` until idle on its own thread; the server calls
`start()`, which runs the same loop on one background thread and makes texts on a second one.
`submit` and `abort` are safe from any thread: they go through an inbox and never wait for a step. A
fault in one request ends that request and no other (invariant 12).

    submit, abort -> inbox -> scheduler -> StepPlan -> runner -> StepResult -> scheduler
                       ^                                                tokens -> outbox
                       +-- a stop string was seen -- texts -> sinks <---------------+
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Literal, NamedTuple

from kveik.cache.curve import Curve
from kveik.cache.directive import PUBLIC, BlockView, Divergence, Receipt, Selector
from kveik.cache.manager import CacheManager, CacheStats, Match
from kveik.cache.relevance import TopicTracker
from kveik.cache.window import StreamWindow
from kveik.config import EngineConfig, parse_stream_window
from kveik.engine.delivery import Delivery
from kveik.engine.explain import Explanation, explain
from kveik.engine.history import Sessions
from kveik.engine.inspection import Inspection, inspect_prompt
from kveik.engine.journal import Journal, Outcome, Past, PastRequest
from kveik.engine.makers import check_shift
from kveik.engine.named import NamedCaches
from kveik.engine.named_records import Workshop
from kveik.engine.outbox import News, Outbox
from kveik.engine.partings import Partings
from kveik.engine.parts import (
    EngineInfo,
    EngineParts,
    Progress,
    engine_info,
    kv_specs,
    load_parts,
    model_facts,
)
from kveik.engine.plan import StepPlan
from kveik.engine.recorder import Recorder
from kveik.engine.request import (
    EventSink,
    Request,
    RequestAborted,
    RequestFailed,
    RequestFinished,
    SamplingParams,
)
from kveik.engine.resting import key_of
from kveik.engine.runner import Runner
from kveik.engine.savings import SavingsMeter
from kveik.engine.scheduler import Scheduler, SchedulerLimits, within
from kveik.engine.schemas import Schemas
from kveik.engine.sequence import (
    ChoiceEnded,
    Output,
    PromptComputed,
    Queues,
    RestingStream,
    TokenAccepted,
)
from kveik.engine.token_memory import TokenMemory
from kveik.engine.tokenizer import Tokenizer
from kveik.engine.watching import Inside, Watching
from kveik.errors import (
    ConfigError,
    Conflict,
    InvalidRequest,
    KveikError,
    Overloaded,
    Unavailable,
    UnsupportedFeature,
    fault,
)
from kveik.store.arena import KvStore

_log = logging.getLogger(__name__)

Clock = Callable[[], float]

CHECK_INTERVAL = 10.0
"""Seconds between two self-checks of an idle engine."""

_END_WITHIN = 4
"""Tokens of a new turn among which the end of the answer before is looked for."""

MIN_SLEEP = 0.01
"""Seconds that an idle engine waits at least; a deadline is met that much late at most."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since start and gauges now; the source of /metrics."""

    cache: CacheStats
    running: int
    waiting: int
    waiting_tokens: int
    preemptions: int
    prompt_tokens: int
    generation_tokens: int
    requests_finished: dict[str, int]  # by finish reason, "abort" and "error" included
    steps: int
    step_seconds: float
    stored_tokens: int  # prompt tokens that finished requests added to the cache
    named_caches: int
    open_streams: int  # that wait for the next request of their session
    conversations: int  # finished turns are kept of so many sessions
    conversation_bytes: int
    seconds_saved: float  # by hits, estimated (engine/savings.py)
    remembered_tokens: int  # ids of prompts that were not encoded again


class SessionView(NamedTuple):
    """A session that holds blocks. idle: seconds since its last use."""

    namespace: str
    session: str
    idle: float
    blocks: int
    tokens: int


@dataclass(slots=True)
class _Totals:
    """Counters since start."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    computed_tokens: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    stored_tokens: int = 0
    seconds_saved: float = 0.0


class _Arrival(NamedTuple):
    """An inbox entry: a request to add."""

    handle: int
    delivery: Delivery
    seed: int
    resting: RestingStream | None = None  # the open stream that it goes on from


class _Abort(NamedTuple):
    """An inbox entry: end a request, and say so."""

    handle: int


class _Over(NamedTuple):
    """An inbox entry: the text of a choice is complete; choice None: of the whole request, whose
    listener knows."""

    handle: int
    choice: int | None


class Engine:
    """See the module. `info` holds the sizes found at start-up; `config` is what was asked for."""

    info: EngineInfo
    config: EngineConfig
    tokenizer: Tokenizer

    @classmethod
    def load(
        cls,
        config: EngineConfig,
        *,
        clock: Clock = time.monotonic,
        progress: Progress | None = None,
    ) -> Engine:
        """Load the model and build the pool. progress(stage, share done 0..1)."""
        return cls(load_parts(config, progress), clock=clock, progress=progress)

    def __init__(
        self,
        parts: EngineParts,
        *,
        clock: Clock = time.monotonic,
        progress: Progress | None = None,
    ) -> None:
        """Build the pool around parts that are loaded already."""
        self._parts = parts
        self.config = parts.config
        self.tokenizer = parts.tokenizer
        self.embedder = parts.embedder
        self.info = engine_info(parts)
        self._clock = clock
        self._can_shift = parts.model.can_shift
        self._cache = CacheManager(
            parts.model.groups,
            self.info.pool_blocks,
            parts.config.block_size,
            policy=parts.config.policy,
            enable_prefix_caching=parts.config.enable_prefix_caching,
            session_idle=parts.config.session_idle,
            pin_share=parts.config.pin_share,
            relevance=parts.config.relevance,
            tracker=TopicTracker if parts.config.follow_topics else None,
        )
        self._scheduler = Scheduler(self._cache, self._limits(), parts.end_ids)
        if progress is not None:
            progress("allocating the KV pool", 0.0)
        store = KvStore(parts.ops, kv_specs(parts.model, self.info))
        self._runner = Runner(parts.model, parts.ops, store, parts.config.block_size)
        if progress is not None:
            progress("allocating the KV pool", 1.0)
        self._can_shift = parts.model.can_shift
        windows = [one.window for one in parts.model.groups if one.window]
        self._sees = min([self.info.max_model_len, *windows])
        self._window = _default_window(parts, self._sees)
        self._end_ids = frozenset(parts.end_ids)
        self._forgotten: deque[tuple[str, str]] = deque()  # sessions that history let go
        self.history = Sessions(
            parts.config.session_idle, clock, lambda *session: self._forgotten.append(session)
        )
        self.token_memory = TokenMemory(
            parts.tokenizer, idle_seconds=parts.config.session_idle, clock=clock
        )
        self.partings = Partings(clock, parts.config.session_idle)
        self._state = threading.RLock()  # scheduler, cache, totals: held around plan and apply
        self._inbox_changed = threading.Condition()  # guards the fields from here to _failure
        self._inbox: deque[_Arrival | _Abort | _Over] = deque()
        self._deliveries: dict[int, Delivery] = {}  # accepted and not yet ended
        self._finished: Counter[str] = Counter()  # by finish reason
        self._queues = Queues()  # of the inbox
        self._disturbed = False  # a verb may have left something to do
        self._accepting = True
        self._stopping = False
        self._failure: str | None = None
        self._thread: threading.Thread | None = None
        self._handles = itertools.count()
        self._outbox = Outbox(self._tell)
        self.named = self._named_caches(parts)
        self.schemas = Schemas(parts.tokenizer, self.info.max_model_len, time.time)
        self.watching = Watching(
            Inside(
                self._cache,
                self._scheduler,
                self._state,
                clock,
                self.tokenizer,
                self.info,
                self._changing,
                self.invalidate,
            )
        )
        self._totals = _Totals()
        self._savings = SavingsMeter(model_facts(parts))
        self._journal = Journal(time.time, lambda: self._cache.memory()[:2])
        self._checked_at = clock()
        self._checked_steps = 0
        self._recorder = None
        if parts.config.record is not None:
            self._recorder = Recorder(Path(parts.config.record), self.info.block_size, clock)

    def _named_caches(self, parts: EngineParts) -> NamedCaches:
        workshop = Workshop(
            submit=self.submit,
            abort=self.abort,
            clock=self._clock,
            wall=time.time,
            block_size=parts.config.block_size,
            block_bytes=sum(group.bytes_per_block for group in parts.model.groups),
            public=PUBLIC,
            forget_texts=self.forget_texts,
        )
        return NamedCaches(self._cache, self.tokenizer, self._state, workshop)

    def _limits(self) -> SchedulerLimits:
        return SchedulerLimits(
            block_size=self.config.block_size,
            max_num_seqs=self.config.max_num_seqs,
            max_num_batched_tokens=self.config.max_num_batched_tokens,
            max_model_len=self.info.max_model_len,
        )

    # ---- any thread

    def submit(self, request: Request, sink: EventSink) -> int:
        """Check everything, then queue. Raises InvalidRequest, ContextLengthExceeded,
        PromptTooLarge, PinBudgetExceeded, Overloaded, Conflict (the stream that it resumes is
        gone) or Unavailable before anything is allocated. Returns a handle for `abort`. Events
        come as `EventSink` says."""
        _check_ids(request, self.info.vocab_size)
        if self._recorder is not None:
            sink = self._recorder.listen(request, sink)
        if not request.resumes:
            return self._submit(request, sink)
        resting = self._take_stream(request)
        try:
            return self._submit(_behind(request, resting, self._end_ids), sink, resting)
        except BaseException:
            with self._state:
                self._scheduler.streams.put_back(key_of(request), resting, self._clock())
            raise

    def _submit(
        self, request: Request, sink: EventSink, resting: RestingStream | None = None
    ) -> int:
        if request.stream is not None and not self._can_shift:
            raise UnsupportedFeature(
                "stream_window: positions of this model are part of its hidden state, or its "
                "rotary base depends on the length, so that it cannot forget a middle: send no "
                "stream_window, or serve a model with plain rotary embeddings",
                param="stream_window",
            )
        if request.joined is not None:
            check_shift(request.joined, self._can_shift)
        with contextlib.nullcontext() if request.stream is None else self._state:
            self._scheduler.max_tokens_for(request)
        if request.directive.pin:
            with self._state:
                self._cache.check_pin(len(request.prompt_token_ids))
        delivery = Delivery(request, sink, self.tokenizer, self.history)
        with self._inbox_changed:
            if not self._accepting:
                raise Unavailable(self._failure or "the engine is stopping")
            self._check_queue(request)
            delivery.accepted(self._clock())
            handle = next(self._handles)
            self._deliveries[handle] = delivery
            seed = self._seed(request, handle)
            self._inbox.append(_Arrival(handle, delivery, seed, resting))
            self._queues.of(request).add(len(request.prompt_token_ids))
            self._inbox_changed.notify_all()
        return handle

    def stream_for(
        self, asked: StreamWindow | Literal[False] | None, params: SamplingParams
    ) -> StreamWindow | None:
        """The window of a request: what it asks for; where it says nothing (None) what the engine
        was configured with, unless it wants what no stream can give; False: none."""
        if asked is not None:
            return asked or None
        apt = params.n == 1 and params.use_cache and params.max_tokens != 0
        return self._window if apt else None

    @property
    def longest_window(self) -> StreamWindow:
        """The configured window, or 4 sinks and as much as the model sees at once."""
        return self._window or StreamWindow(4, max(self._sees - 4, 1))

    def has_stream(self, namespace: str, session: str | None) -> bool:
        """Does the session have an open stream, to be gone on from?"""
        with self._state:
            self._end_expired()
            return self._scheduler.streams.has((namespace, session or ""))

    def _end_expired(self) -> None:
        """Streams whose time was up while nobody stepped."""
        self.history.tick()
        self._end_forgotten(self._clock())

    def _take_stream(self, request: Request) -> RestingStream:
        """The open stream that the request goes on from; Conflict where there is none."""
        session = request.directive.session
        with self._state:
            self._end_expired()
            resting = self._scheduler.streams.take(key_of(request))
            if resting is not None and resting.salt != request.salt:
                self._scheduler.streams.put_back(key_of(request), resting, self._clock())
                resting = None
        if resting is None:
            raise Conflict(
                f"kveik.continue: the session {session!r} has no open stream: it ended, was cut "
                "in the middle of an answer, or is answering now; begin another one without "
                "continue",
                param="kveik.continue",
            )
        return resting

    def abort(self, handle: int) -> None:
        """End a request: its blocks are free after the running step, its computed prefix stays
        cached. Unknown or ended handles are ignored."""
        with self._inbox_changed:
            if handle in self._deliveries:
                self._inbox.append(_Abort(handle))
                self._inbox_changed.notify_all()

    def stats(self) -> EngineStats:
        with self._state:
            totals, scheduler = self._totals, self._scheduler
            conversations, conversation_bytes = self.history.sizes()
            with self._inbox_changed:
                finished = dict(+self._finished)
            return EngineStats(
                cache=self._cache.stats(),
                running=scheduler.running,
                waiting=self._queues.requests + scheduler.queues.requests,
                waiting_tokens=self._queues.tokens + scheduler.queues.tokens,
                preemptions=scheduler.preemptions,
                prompt_tokens=totals.prompt_tokens,
                generation_tokens=totals.generation_tokens,
                requests_finished=finished,
                steps=totals.steps,
                step_seconds=totals.step_seconds,
                stored_tokens=totals.stored_tokens,
                named_caches=len(self.named),
                open_streams=len(scheduler.streams),
                conversations=conversations,
                conversation_bytes=conversation_bytes,
                seconds_saved=totals.seconds_saved,
                remembered_tokens=self.token_memory.remembered_tokens,
            )

    def explain(self, token_ids: Sequence[int], namespace: str = "", salt: str = "") -> Match:
        """What a request with this prompt would find now, and why not more."""
        with self._state:
            now = self._clock()
            return self._cache.explain(token_ids, namespace=namespace, salt=salt, now=now)

    def divergence(
        self, token_ids: Sequence[int], namespace: str = "", salt: str = ""
    ) -> Divergence:
        """Where this prompt leaves what is cached, and how the nearest cached prompt goes on."""
        with self._state:
            now = self._clock()
            return self._cache.divergence(token_ids, namespace=namespace, salt=salt, now=now)

    def explain_prompt(
        self,
        token_ids: Sequence[int],
        namespace: str = "",
        salt: str = "",
        remembered: int = 0,
        stream: StreamWindow | None = None,
    ) -> Explanation:
        """Where this prompt would stop being cached, why, and what to do about it. remembered:
        token ids that the token memory knew; stream: the window in which it would be computed. The
        texts are read outside of the lock."""
        divergence = self.divergence(token_ids, namespace, salt)
        if stream is not None:
            divergence = within(divergence, stream)
        return explain(
            divergence,
            token_ids,
            self.tokenizer,
            remembered=remembered,
            block_size=self.info.block_size,
            evicted=None if stream is None else stream.evicted(len(token_ids) - 1),
        )

    def inspect(self, token_ids: Sequence[int]) -> Inspection:
        """Keys, values and attention of a prompt; see Inspection. Computed on the caller's thread:
        nobody may step the engine meanwhile."""
        _check_ids(Request(tuple(token_ids), SamplingParams()), self.info.vocab_size)
        return inspect_prompt(self._parts, self.info, token_ids)

    def reset_cache(self, namespace: str | None = None) -> bool:
        """Forget everything cached. False, and nothing changed, while requests hold blocks."""
        with self._changing() as now:
            done = self._cache.reset(namespace)
            if done:
                self._scheduler.streams.end_of(namespace, now)
                self.history.reset(namespace)
                self.forget_texts(namespace)
            return done

    def invalidate(self, selector: Selector) -> Receipt:
        """Forget what the selector names: blocks, names and conversations. Nothing of it is found
        by any request from now on; its bytes are overwritten in the next steps."""
        with self._changing() as now:
            receipt = self._cache.invalidate(selector, now)
            self.named.invalidate(selector)
            self.history.invalidate(selector)
            self.forget_texts(selector.namespace)
            return receipt

    def set_shares(self, shares: Mapping[str, tuple[int, int | None]]) -> None:
        """Reserved and maximum bytes of cached K/V per namespace, instead of those before; all
        others share the rest. ConfigError, and nothing changed, when the pool is too small."""
        with self._state:
            self._cache.set_shares(shares)

    def cache_usage(self, namespace: str) -> tuple[int, int, int, int | None]:
        """See CacheManager.usage."""
        with self._state:
            return self._cache.usage(namespace)

    def end_session(self, namespace: str, session: str) -> Receipt | None:
        """What only this conversation computed goes; None: there is no such session."""
        with self._changing() as now:
            receipt = self._cache.end_session(namespace, session, now)
            known = self.history.end(namespace, session)
            self.forget_texts(namespace)
            return Receipt() if receipt is None and known else receipt

    def announce_document(self, namespace: str, document: str, version: str) -> Receipt:
        """What came from another version of the document goes, and only that."""
        with self._changing() as now:
            receipt = self._cache.announce_document(namespace, document, version, now)
            others = Selector(namespace, document=document, not_version=version)
            self.named.invalidate(others)
            self.history.invalidate(others)
            self.forget_texts(namespace)
            return receipt

    def forget_texts(self, namespace: str | None) -> None:
        """Nothing that can be read is left of the texts of a namespace (None: of all)."""
        self.token_memory.forget(namespace)
        self.partings.forget(namespace)

    def cache_listing(
        self, namespace: str | None = None, *, top: int = 100, with_path: bool = False
    ) -> list[BlockView]:
        """Cached blocks, the hottest first; None: of every namespace."""
        with self._state:
            return self._cache.listing(namespace, self._clock(), top, with_path)

    def sessions(self, namespace: str | None = None) -> list[SessionView]:
        """The sessions that hold blocks; None: of every namespace."""
        with self._state:
            found = self._cache.sessions(namespace, self._clock())
            return [SessionView(*one) for one in found]

    def past(self, namespace: str | None = None, *, steps: int = 360) -> Past:
        """What the cache did in the last `steps` steps and days; None: for all namespaces."""
        with self._state:
            return self._journal.past(namespace, steps)

    def past_requests(self, namespace: str | None = None, *, top: int = 100) -> list[PastRequest]:
        """The last requests that ended, the newest first; None: of all namespaces."""
        with self._state:
            return self._journal.requests(namespace, top)

    def cache_memory(self) -> tuple[int, int, int]:
        """See CacheManager.memory."""
        with self._state:
            return self._cache.memory()

    def curve(self) -> Curve:
        """What pools of other sizes would have served of the same prompts; see Curve."""
        with self._state:
            return self._cache.curve()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[float]:
        """The books are about to change: the lock, the time, and a nudge for an idle engine."""
        with self._state:
            yield self._clock()
        with self._inbox_changed:
            self._disturbed = True
            self._inbox_changed.notify_all()

    def check(self) -> None:
        """Conservation of blocks (CacheManager.check); called when idle."""
        with self._state:
            self._cache.check()

    def _seed(self, request: Request, handle: int) -> int:
        """The request's seed, or one drawn from the engine's seed and the arrival number."""
        if request.params.seed is not None:
            return request.params.seed
        digest = blake2b(f"{self.config.seed},{handle}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)

    def _check_queue(self, request: Request) -> None:
        """Bounded by count and by tokens; an empty queue takes any prompt that fits the pool. Live
        requests and background work are counted apart: neither takes a place of the other."""
        inbox, waiting = self._queues.of(request), self._scheduler.queues.of(request)
        count, tokens = inbox.requests + waiting.requests, inbox.tokens + waiting.tokens
        prompt = len(request.prompt_token_ids)
        too_many = count >= self.config.max_queued_requests
        too_long = count > 0 and tokens + prompt > self.config.max_queued_tokens
        if too_many or too_long:
            raise Overloaded(
                f"the queue holds {count} requests with {tokens} prompt tokens (limits: "
                f"{self.config.max_queued_requests} requests, {self.config.max_queued_tokens} "
                "tokens): try again later",
                retry_after=self._retry_after(tokens + prompt),
            )

    def _retry_after(self, tokens: int) -> int:
        """Seconds until about so many tokens are computed, at the speed seen so far."""
        totals = self._totals
        seconds = tokens * totals.step_seconds / max(1, totals.computed_tokens)
        return max(1, min(60, math.ceil(seconds)))

    # ---- the engine's thread

    def step(self) -> bool:
        """One plan, run, apply. False when there was nothing to do.

        What has expired is deleted here: an engine that nobody steps deletes when it is stepped
        again (and never serves what has expired)."""
        if self._failure is not None:
            return False
        try:
            return self._step()
        except Exception as error:
            self._break_down(error)
            return False

    def _step(self) -> bool:
        started = self._clock()
        with self._state:
            drained = self._drain_inbox(started)
            self.named.tick()
            self.history.tick()
            self._end_forgotten(started)
            self.token_memory.prune()
            self.partings.prune()
            plan = self._scheduler.plan_step(started)
            failures = self._scheduler.take_failures()
            self._collect(failures)
        self._outbox.send()
        if plan is None:
            return drained or bool(failures) or self._scheduler.sweeping
        launched = self._clock()
        result = self._runner.run(plan)
        with self._state:
            now = self._clock()
            self._measure(plan, now - launched)
            self._totals.steps += 1
            self._totals.step_seconds += now - started
            self._totals.computed_tokens += sum(len(one.token_ids) for one in plan.sequences)
            self._collect(self._scheduler.apply(result, now))
        self._outbox.send()
        return True

    def _end_forgotten(self, now: float) -> None:
        """What history let go, by its time to live or an invalidation, has no open stream."""
        gone = set()
        while self._forgotten:
            gone.add(self._forgotten.popleft())
        if gone:
            self._scheduler.streams.end(gone, now)

    def _drain_inbox(self, now: float) -> bool:
        """Hand arrivals to the scheduler. Each counts as queued until the scheduler counts it."""
        with self._inbox_changed:
            entries = list(self._inbox)
            self._inbox.clear()
            self._queues = Queues()
            for entry in entries:
                if isinstance(entry, _Arrival):
                    self._arrive(entry)
        for entry in entries:
            if isinstance(entry, _Abort):
                self._abort_now(entry.handle, now)
            elif isinstance(entry, _Over):
                self._end_now(entry, now)
        return bool(entries)

    def _arrive(self, entry: _Arrival) -> None:
        """Room that was there when it was accepted may have been pinned or reserved meanwhile."""
        delivery = entry.delivery
        request = delivery.request
        if self.partings.wants(request.namespace):
            request = replace(request, explain=True)
        try:
            delivery.work = self._scheduler.add(entry.handle, request, entry.seed, entry.resting)
        except KveikError as error:
            self._note_ended(delivery, "failed")
            self._outbox.add(entry.handle, delivery, RequestFailed(error))

    def _abort_now(self, handle: int, now: float) -> None:
        delivery = self._deliveries.get(handle)
        self._scheduler.abort(handle, now)
        if delivery is not None and delivery.work is not None:
            self._note_ended(delivery, "aborted")
            self._outbox.add(handle, delivery, RequestAborted(delivery.work.usage()))

    def _end_now(self, over: _Over, now: float) -> None:
        """What the scheduler did not know to be over. It may have computed tokens meanwhile."""
        if self._scheduler.is_over(over.handle):
            return
        if over.choice is None:
            self._scheduler.abort(over.handle, now)
            return
        self._scheduler.finish_choice(over.handle, over.choice, now)
        self._collect_ending(over.handle)

    def _collect(self, outputs: Sequence[Output]) -> None:
        """Put what became of requests into the outbox."""
        ended: dict[int, None] = {}  # handles in order
        for output in outputs:
            handle, delivery = output.handle, self._deliveries.get(output.handle)
            if delivery is None:
                continue
            if isinstance(output, TokenAccepted):
                self._totals.generation_tokens += 1
                self._outbox.add(handle, delivery, output)
                if output.finish is not None:
                    ended[handle] = None
            elif isinstance(output, PromptComputed):
                self._collect_prompt(handle, delivery)
            elif isinstance(output, ChoiceEnded):
                self._outbox.add(handle, delivery, output)
                ended[handle] = None
            else:
                error = output.kind(output.message)
                self._note_ended(delivery, "failed")
                self._outbox.add(handle, delivery, RequestFailed(error))
        for handle in ended:
            self._collect_ending(handle)

    def _collect_prompt(self, handle: int, delivery: Delivery) -> None:
        work = delivery.work
        assert work is not None
        self._totals.prompt_tokens += work.prompt_length
        reused = work.cached_tokens + work.approximate_tokens
        work.savings = self._savings.savings(work.prompt_length, reused)
        self._totals.seconds_saved += work.savings.seconds
        self._journal.computed(work.request, work.usage())
        self._outbox.add(handle, delivery, work.ready())

    def _collect_ending(self, handle: int) -> None:
        """A choice ended: was it the last one?"""
        delivery = self._deliveries.get(handle)
        if delivery is not None and self._scheduler.is_over(handle):
            assert delivery.work is not None
            usage = delivery.work.usage()
            self._totals.stored_tokens += usage.stored_tokens
            self._note_ended(delivery, "finished")
            self._outbox.add(handle, delivery, RequestFinished(usage))

    def _note_ended(self, delivery: Delivery, outcome: Outcome) -> None:
        work = delivery.work
        if work is not None:
            seconds = self._clock() - delivery.accepted_at
            past = self._journal.ended(work.request, work.usage(), work.missed, outcome, seconds)
            self.partings.note(past.number, work.request, work.divergence, delivery.accepted_at)

    def _measure(self, plan: StepPlan, seconds: float) -> None:
        """What a step took, for the estimate of what hits save."""
        spans = [span for sequence in plan.sequences for span in sequence.spans]
        prompts = [span for span in spans if span[1] > 1]
        self._savings.observe(prompts, len(spans) - len(prompts), seconds)

    def _break_down(self, error: Exception) -> None:
        """A fault outside every request: all end with an error and nothing new is accepted."""
        _log.error("the engine failed and accepts no more requests: %s", fault(error))
        with self._inbox_changed:
            self._failure = f"the engine failed ({type(error).__name__}); restart it"
            self._accepting = False
            deliveries = dict(self._deliveries)
            self._deliveries.clear()
            self._finished["error"] += len(deliveries)
            self._inbox.clear()
            self._queues = Queues()
            self._inbox_changed.notify_all()
        for handle, delivery in deliveries.items():
            self._outbox.add(handle, delivery, RequestFailed(_as_told(error)))
        self._outbox.send()

    # ---- the thread that makes texts: the engine's own where its caller steps it

    def _tell(self, batch: Sequence[News]) -> None:
        """Send events. Here is the exception boundary of one request: what its text or its sink
        raises ends it alone."""
        for handle, delivery, told in batch:
            reason = delivery.reason(told)
            if reason is not None:  # counted first: whoever hears of the ending finds it counted
                self._forget(handle, reason)
            try:
                choice = delivery.tell(told)
                if choice is not None:
                    self._report(_Over(handle, choice))
            except Exception as error:
                _log.error("a request failed while its events were sent: %s", fault(error))
                self._forget(handle, "error", instead=reason)
                self._report(_Over(handle, None))
                _try_to_fail(delivery, error)

    def _report(self, over: _Over) -> None:
        """Let the engine know that nobody waits for more."""
        with self._inbox_changed:
            if self._failure is None:
                self._inbox.append(over)
                self._inbox_changed.notify_all()

    def _forget(self, handle: int, reason: str, *, instead: str | None = None) -> None:
        """The request has ended for this reason; instead: it was counted under another one."""
        with self._inbox_changed:
            if instead is not None:
                self._finished[instead] -= 1
            elif self._deliveries.pop(handle, None) is None:
                return
            self._finished[reason] += 1
            self._inbox_changed.notify_all()

    # ---- the background thread

    def start(self) -> None:
        """Run the loop on a background thread. A second call does nothing."""
        if self._thread is None:
            self._outbox.start()
            self._thread = threading.Thread(target=self._loop, name="kveik-engine", daemon=True)
            self._thread.start()

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Refuse new requests, let running ones finish for up to drain_seconds, abort the rest."""
        with self._inbox_changed:
            self._accepting = False
            if self._thread is not None:
                self._inbox_changed.wait_for(lambda: not self._deliveries, drain_seconds)
        if self._thread is None:
            deadline = self._clock() + drain_seconds
            while self._deliveries and self._clock() < deadline:
                self.step()
        for handle in tuple(self._deliveries):
            self.abort(handle)
        with self._inbox_changed:
            self._stopping = True
            self._inbox_changed.notify_all()
        if self._thread is None:
            self.step()
        elif self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None
            self._outbox.stop()
        if self._recorder is not None:
            self._recorder.close()

    def _loop(self) -> None:
        while True:
            if self.step():
                continue
            self._check_when_due()
            idle = self._idle_seconds()
            with self._inbox_changed:
                if self._stopping and not self._inbox:
                    return
                if not (self._inbox or self._stopping or self._disturbed):
                    self._inbox_changed.wait(idle)
                self._disturbed = False

    def _idle_seconds(self) -> float:
        """How long there is nothing to do but to wait for requests: until a deadline at most."""
        with self._state:
            deadlines = (
                self._cache.next_deadline(),
                self.named.next_deadline(),
                self.history.next_deadline(),
                self.token_memory.next_deadline(),
                self.partings.next_deadline(),
            )
            first = min((one for one in deadlines if one is not None), default=math.inf)
            return min(CHECK_INTERVAL, max(MIN_SLEEP, first - self._clock()))

    def _check_when_due(self) -> None:
        """The idle self-check. A violation is logged and shows in the metrics; it never exits."""
        now = self._clock()
        with self._state:
            steps = self._totals.steps
            if steps == self._checked_steps or now - self._checked_at < CHECK_INTERVAL:
                return
            self._checked_at, self._checked_steps = now, steps
            try:
                self._cache.check()
            except AssertionError as error:
                _log.error("the books of the KV cache do not add up: %s: %s", error, fault(error))


def _try_to_fail(delivery: Delivery, error: Exception) -> None:
    """Tell a request that it failed; a sink that raises again is left alone."""
    try:
        delivery.fail(_as_told(error))
    except Exception as second:
        _log.debug("the sink of a failed request failed too: %s", fault(second))


def _as_told(error: Exception) -> KveikError:
    """The error itself where it is meant for callers."""
    if isinstance(error, KveikError):
        return error
    return KveikError(f"the request failed ({type(error).__name__})")


def _default_window(parts: EngineParts, sees: int) -> StreamWindow | None:
    """The configured window; ConfigError where a model that sees so much cannot stream in it."""
    if parts.config.stream_window is None:
        return None
    window = StreamWindow(*parse_stream_window(parts.config.stream_window, "stream_window"))
    if not parts.model.can_shift or window.size > sees:
        raise ConfigError(
            f"stream_window: this model cannot stream in {window.sinks}+{window.window} tokens: "
            f"it sees {sees} at once"
            + ("" if parts.model.can_shift else ", and its positions cannot shift"),
            param="stream_window",
        )
    return window


def _behind(request: Request, resting: RestingStream, end_ids: frozenset[int]) -> Request:
    """The request in the window of the stream that it goes on from. An end of text that the model
    sampled is not said twice. InvalidRequest where it asks for another window."""
    if request.stream not in (None, resting.stream):
        raise InvalidRequest(
            f"stream_window: this stream keeps {resting.stream.sinks}+{resting.stream.window}, "
            f"{resting.stream.evict} at a time; send the same, or none, with continue",
            param="stream_window",
        )
    prompt, last = request.prompt_token_ids, resting.tokens[-1]
    if last in end_ids and last in prompt[:_END_WITHIN]:
        prompt = prompt[prompt.index(last) + 1 :] or prompt
    return replace(request, stream=resting.stream, prompt_token_ids=prompt)


def _check_ids(request: Request, vocab_size: int) -> None:
    """InvalidRequest unless every token id of the request lies in the vocabulary."""
    params = request.params
    places: tuple[tuple[str, Sequence[int]], ...] = (
        ("prompt_token_ids", request.prompt_token_ids),
        ("stop_token_ids", params.stop_token_ids),
        ("logit_bias", tuple(params.logit_bias)),
    )
    for name, ids in places:
        if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
            wrong = next(token for token in ids if not 0 <= token < vocab_size)
            raise InvalidRequest(
                f"{name}: token id {wrong} is outside the vocabulary 0 .. {vocab_size - 1}",
                param=name,
            )
