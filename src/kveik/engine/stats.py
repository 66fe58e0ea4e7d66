"""What an engine counts, and what it says of itself. Standard library."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from kveik.cache.manager import CacheStats


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
class Totals:
    """Counters since start; written by the engine's thread."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    computed_tokens: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    stored_tokens: int = 0
    seconds_saved: float = 0.0

    def retry_after(self, tokens: int) -> int:
        """Seconds until about so many tokens are computed, at the speed seen so far."""
        seconds = tokens * self.step_seconds / max(1, self.computed_tokens)
        return max(1, min(60, math.ceil(seconds)))
