"""The engine: one loop of plan, run, apply around the scheduler, runner and tokenizer.

Two ways to drive it: offline code calls `step()` until idle on its own thread; the server calls
`start()`, which runs the same loop on one background thread. `submit` and `abort` are safe from
any thread. A fault in one request ends that request and no other (invariant 12).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kveik.cache.manager import CacheStats, Match
from kveik.config import EngineConfig
from kveik.engine.request import EventSink, Request
from kveik.engine.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Sizes found at start-up."""

    model_id: str
    architecture: str
    parameters: int
    dtype: str
    kv_dtype: str
    kernel: str  # "reference (numpy float32)"
    max_model_len: int
    vocab_size: int
    block_size: int
    pool_blocks: tuple[int, ...]
    pool_tokens: int
    pool_bytes: int
    kv_bytes_per_token: int
    defaults: dict[str, float]  # sampling defaults of generation_config.json


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


class Engine:
    info: EngineInfo
    config: EngineConfig
    tokenizer: Tokenizer

    @classmethod
    def load(
        cls, config: EngineConfig, *, progress: Callable[[str, float], None] | None = None
    ) -> Engine:
        """Load the model and build the pool. progress(stage, share done 0..1)."""
        raise NotImplementedError

    def submit(self, request: Request, sink: EventSink) -> int:
        """Check everything, then queue. Raises InvalidRequest, ContextLengthExceeded,
        PromptTooLarge, Overloaded or Unavailable before anything is allocated. Returns a handle
        for `abort`. Events arrive on the engine's thread."""
        raise NotImplementedError

    def abort(self, handle: int) -> None:
        """End a request: its blocks are free after the running step, its computed prefix stays
        cached. Unknown or ended handles are ignored."""
        raise NotImplementedError

    def step(self) -> bool:
        """One plan, run, apply. False when there was nothing to do."""
        raise NotImplementedError

    def start(self) -> None: ...

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Refuse new requests, let running ones finish for up to drain_seconds, abort the rest."""

    def stats(self) -> EngineStats:
        raise NotImplementedError

    def explain(self, token_ids: Sequence[int], namespace: str = "") -> Match:
        raise NotImplementedError

    def reset_cache(self, namespace: str | None = None) -> bool:
        raise NotImplementedError

    def check(self) -> None:
        """Conservation of blocks (CacheManager.check); called when idle."""
