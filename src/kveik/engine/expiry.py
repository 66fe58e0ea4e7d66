"""What is kept for a time only, beside the blocks themselves: it goes when a step begins."""

from __future__ import annotations

import math

from kveik.cache.manager import CacheManager
from kveik.engine.history import Sessions
from kveik.engine.named import NamedCaches
from kveik.engine.partings import Partings
from kveik.engine.stream_sessions import StreamSessions
from kveik.engine.token_memory import TokenMemory


class Expiry:
    """See the module. Blocks are deleted by the scheduler's look at the cache, in the same step."""

    def __init__(
        self,
        cache: CacheManager,
        named: NamedCaches,
        history: Sessions,
        streams: StreamSessions,
        token_memory: TokenMemory,
        partings: Partings,
    ) -> None:
        self._cache = cache
        self._named = named
        self._history = history
        self._streams = streams
        self._token_memory = token_memory
        self._partings = partings

    def tick(self, now: float) -> None:
        """Delete what is over."""
        self._named.tick()
        self._history.tick()
        self._streams.end_forgotten(now)
        self._token_memory.prune()
        self._partings.prune()

    def next_deadline(self) -> float:
        """When the next thing is over, of blocks too; infinity: nothing will be."""
        deadlines = (
            self._cache.next_deadline(),
            self._named.next_deadline(),
            self._history.next_deadline(),
            self._token_memory.next_deadline(),
            self._partings.next_deadline(),
        )
        return min((one for one in deadlines if one is not None), default=math.inf)
