"""The engine: its parts, and the doors to them.

Two ways to drive it: offline code calls `step()` until idle on its own thread; the server calls
`start()`, which runs the same loop on one background thread and makes texts on a second one.
`submit` and `abort` are safe from any thread: they go through an inbox and never wait for a step. A
fault in one request ends that request and no other (invariant 12).

    submit, abort -> inbox -> scheduler -> StepPlan -> runner -> StepResult -> scheduler
                       ^                                                tokens -> outbox
                       +-- a stop string was seen -- texts -> sinks <---------------+

    inbox            what other threads ask, and who is still to have an ending
    stepping         plan, run, apply: the middle line of the drawing; engine_thread repeats it
    outcomes         what a step brought: to the outbox, and into the books
    telling          the last line: from the outbox to sinks
    stream_sessions  which open stream a request goes on from
    deletion         verbs that delete, from every book at once; expiry: what time deletes
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from kveik.cache.curve import Curve
from kveik.cache.directive import PUBLIC, BlockView, Divergence, Receipt, Selector
from kveik.cache.manager import CacheManager, Match
from kveik.cache.relevance import TopicTracker
from kveik.cache.window import StreamWindow
from kveik.config import EngineConfig
from kveik.engine.checks import check_ids, check_positions
from kveik.engine.deletion import Deletion
from kveik.engine.delivery import Delivery
from kveik.engine.engine_thread import EngineThread
from kveik.engine.expiry import Expiry
from kveik.engine.explain import Explanation, explain
from kveik.engine.history import Sessions
from kveik.engine.inbox import Inbox
from kveik.engine.inspection import Inspection, inspect_prompt
from kveik.engine.journal import Journal, Past, PastRequest
from kveik.engine.named import NamedCaches
from kveik.engine.named_records import Workshop
from kveik.engine.outbox import Outbox
from kveik.engine.outcomes import Books
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
from kveik.engine.recorder import Recorder
from kveik.engine.request import EventSink, Request, SamplingParams
from kveik.engine.runner import Runner
from kveik.engine.savings import SavingsMeter
from kveik.engine.scheduler import Scheduler, SchedulerLimits
from kveik.engine.scheduling.opening import within
from kveik.engine.schemas import Schemas
from kveik.engine.sequence import RestingStream
from kveik.engine.stats import EngineStats, SessionView, Totals
from kveik.engine.stepping import Stepping
from kveik.engine.stream_sessions import StreamSessions
from kveik.engine.telling import Telling
from kveik.engine.token_memory import TokenMemory
from kveik.engine.tokenizer import Tokenizer
from kveik.engine.watching import Inside, Watching
from kveik.store.arena import KvStore

__all__ = ["Clock", "Engine", "EngineStats", "SessionView"]

Clock = Callable[[], float]


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
        self.config = config = parts.config
        self.tokenizer = parts.tokenizer
        self.embedder = parts.embedder
        self.info = engine_info(parts)
        self._clock = clock
        self._state = threading.RLock()  # scheduler, cache, books: held around plan and apply
        self._cache = CacheManager(
            parts.model.groups,
            self.info.pool_blocks,
            config.block_size,
            policy=config.policy,
            enable_prefix_caching=config.enable_prefix_caching,
            session_idle=config.session_idle,
            pin_share=config.pin_share,
            relevance=config.relevance,
            tracker=TopicTracker if config.follow_topics else None,
        )
        self._scheduler = Scheduler(self._cache, self._limits(), parts.end_ids)
        if progress is not None:
            progress("allocating the KV pool", 0.0)
        store = KvStore(parts.ops, kv_specs(parts.model, self.info))
        self._runner = Runner(parts.model, parts.ops, store, config.block_size)
        if progress is not None:
            progress("allocating the KV pool", 1.0)
        self._totals = Totals()
        self._inbox = Inbox(config, clock, self._scheduler.queues, self._totals.retry_after)
        self._outbox = Outbox(Telling(self._inbox).tell)
        self._build_books()
        self._build_loop()
        self._recorder = None
        if config.record is not None:
            self._recorder = Recorder(Path(config.record), self.info.block_size, clock)

    def _limits(self) -> SchedulerLimits:
        return SchedulerLimits(
            block_size=self.config.block_size,
            max_num_seqs=self.config.max_num_seqs,
            max_num_batched_tokens=self.config.max_num_batched_tokens,
            max_model_len=self.info.max_model_len,
        )

    def _build_books(self) -> None:
        """What is known beside the blocks: of sessions, texts and names, and of the past."""
        parts, clock, idle = self._parts, self._clock, self.config.session_idle
        windows = [one.window for one in parts.model.groups if one.window]
        sees = min([self.info.max_model_len, *windows])
        forgotten: deque[tuple[str, str]] = deque()  # sessions that history let go
        self.history = Sessions(idle, clock, lambda *session: forgotten.append(session))
        streams = self._scheduler.streams
        self._streams = StreamSessions(
            parts, sees, streams, self.history, forgotten, self._state, clock
        )
        self.token_memory = TokenMemory(parts.tokenizer, idle_seconds=idle, clock=clock)
        self.partings = Partings(clock, idle)
        self.named = NamedCaches(self._cache, self.tokenizer, self._state, self._workshop())
        self.schemas = Schemas(parts.tokenizer, self.info.max_model_len, time.time)
        self._journal = Journal(time.time, lambda: self._cache.memory()[:2])
        self._deletion = Deletion(
            self._cache,
            streams,
            self.named,
            self.history,
            forget_texts=self.forget_texts,
            lock=self._state,
            clock=clock,
            disturb=self._inbox.disturb,
        )
        self.watching = Watching(
            Inside(
                self._cache,
                self._scheduler,
                self._state,
                clock,
                self.tokenizer,
                self.info,
                self._deletion.changing,
                self.invalidate,
            )
        )

    def _workshop(self) -> Workshop:
        return Workshop(
            submit=self.submit,
            abort=self.abort,
            clock=self._clock,
            wall=time.time,
            block_size=self.config.block_size,
            block_bytes=sum(group.bytes_per_block for group in self._parts.model.groups),
            public=PUBLIC,
            forget_texts=self.forget_texts,
        )

    def _build_loop(self) -> None:
        """What happens in a step, and the thread that steps."""
        savings = SavingsMeter(model_facts(self._parts))
        expiry = Expiry(
            self._cache,
            self.named,
            self.history,
            self._streams,
            self.token_memory,
            self.partings,
        )
        self._stepping = Stepping(
            self._state,
            self._clock,
            inbox=self._inbox,
            scheduler=self._scheduler,
            runner=self._runner,
            outbox=self._outbox,
            books=Books(self._totals, savings, self._journal, self.partings),
            expiry=expiry,
        )
        self._thread = EngineThread(
            self._state,
            self._clock,
            stepping=self._stepping,
            inbox=self._inbox,
            outbox=self._outbox,
            expiry=expiry,
            cache=self._cache,
            totals=self._totals,
        )

    # ---- requests

    def submit(self, request: Request, sink: EventSink) -> int:
        """Check everything, then queue. Raises InvalidRequest, ContextLengthExceeded,
        PromptTooLarge, PinBudgetExceeded, Overloaded, Conflict (the stream that it resumes is
        gone) or Unavailable before anything is allocated. Returns a handle for `abort`. Events
        come as `EventSink` says."""
        check_ids(request, self.info.vocab_size)
        if self._recorder is not None:
            sink = self._recorder.listen(request, sink)
        if not request.resumes:
            return self._submit(request, sink)
        resting = self._streams.take(request)
        try:
            return self._submit(self._streams.behind(request, resting), sink, resting)
        except BaseException:
            self._streams.put_back(request, resting)
            raise

    def _submit(
        self, request: Request, sink: EventSink, resting: RestingStream | None = None
    ) -> int:
        check_positions(request, self._parts.model.can_shift)
        with contextlib.nullcontext() if request.stream is None else self._state:
            self._scheduler.max_tokens_for(request)
        if request.directive.pin:
            with self._state:
                self._cache.check_pin(len(request.prompt_token_ids))
        delivery = Delivery(request, sink, self.tokenizer, self.history)
        return self._inbox.accept(delivery, resting)

    def abort(self, handle: int) -> None:
        """End a request: its blocks are free after the running step, its computed prefix stays
        cached. Unknown or ended handles are ignored."""
        self._inbox.abort(handle)

    def stream_for(
        self, asked: StreamWindow | Literal[False] | None, params: SamplingParams
    ) -> StreamWindow | None:
        """The window of a request: what it asks for; where it says nothing (None) what the engine
        was configured with, unless it wants what no stream can give; False: none."""
        return self._streams.window_for(asked, params)

    @property
    def longest_window(self) -> StreamWindow:
        """The configured window, or 4 sinks and as much as the model sees at once."""
        return self._streams.longest_window

    def has_stream(self, namespace: str, session: str | None) -> bool:
        """Does the session have an open stream, to be gone on from?"""
        return self._streams.has(namespace, session)

    # ---- the loop

    def step(self) -> bool:
        """One plan, run, apply. False when there was nothing to do.

        What has expired is deleted here: an engine that nobody steps deletes when it is stepped
        again (and never serves what has expired)."""
        return self._stepping.step()

    def start(self) -> None:
        """Run the loop on a background thread. A second call does nothing."""
        self._thread.start()

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Refuse new requests, let running ones finish for up to drain_seconds, abort the rest."""
        self._thread.stop(drain_seconds)
        if self._recorder is not None:
            self._recorder.close()

    # ---- what is cached: prompts

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
        check_ids(Request(tuple(token_ids), SamplingParams()), self.info.vocab_size)
        return inspect_prompt(self._parts, self.info, token_ids)

    # ---- what is cached: verbs

    def reset_cache(self, namespace: str | None = None) -> bool:
        """Forget everything cached. False, and nothing changed, while requests hold blocks."""
        return self._deletion.reset(namespace)

    def invalidate(self, selector: Selector) -> Receipt:
        """Forget what the selector names: blocks, names and conversations. Nothing of it is found
        by any request from now on; its bytes are overwritten in the next steps."""
        return self._deletion.invalidate(selector)

    def end_session(self, namespace: str, session: str) -> Receipt | None:
        """What only this conversation computed goes; None: there is no such session."""
        return self._deletion.end_session(namespace, session)

    def announce_document(self, namespace: str, document: str, version: str) -> Receipt:
        """What came from another version of the document goes, and only that."""
        return self._deletion.announce_document(namespace, document, version)

    def forget_texts(self, namespace: str | None) -> None:
        """Nothing that can be read is left of the texts of a namespace (None: of all)."""
        self.token_memory.forget(namespace)
        self.partings.forget(namespace)

    def set_shares(self, shares: Mapping[str, tuple[int, int | None]]) -> None:
        """Reserved and maximum bytes of cached K/V per namespace, instead of those before; all
        others share the rest. ConfigError, and nothing changed, when the pool is too small."""
        with self._state:
            self._cache.set_shares(shares)

    # ---- what is cached: reports

    def stats(self) -> EngineStats:
        with self._state:
            totals, scheduler = self._totals, self._scheduler
            inbox, queues = self._inbox.queued, scheduler.queues
            conversations, conversation_bytes = self.history.sizes()
            return EngineStats(
                cache=self._cache.stats(),
                running=scheduler.running,
                waiting=inbox.requests + queues.requests,
                waiting_tokens=inbox.tokens + queues.tokens,
                preemptions=scheduler.preemptions,
                prompt_tokens=totals.prompt_tokens,
                generation_tokens=totals.generation_tokens,
                requests_finished=self._inbox.finished(),
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

    def cache_usage(self, namespace: str) -> tuple[int, int, int, int | None]:
        """See CacheManager.usage."""
        with self._state:
            return self._cache.usage(namespace)

    def cache_memory(self) -> tuple[int, int, int]:
        """See CacheManager.memory."""
        with self._state:
            return self._cache.memory()

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

    def curve(self) -> Curve:
        """What pools of other sizes would have served of the same prompts; see Curve."""
        with self._state:
            return self._cache.curve()

    def check(self) -> None:
        """Conservation of blocks (CacheManager.check); called when idle."""
        with self._state:
            self._cache.check()
