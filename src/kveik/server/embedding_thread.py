"""The embedding model's own thread, between the event loop and `engine.embedder`.

A request brings one batch at a time and waits for it, so that callers take turns and one that has
left costs no more than the batch that runs. What waits is bounded as everywhere.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from kveik.config import EngineConfig
from kveik.engine.embedder import Embedder
from kveik.errors import Overloaded
from kveik.server.bridge import ClientGoneError


class EmbeddingThread:
    """Event loop only."""

    def __init__(self, embedder: Embedder, limits: EngineConfig) -> None:
        self.embedder = embedder
        self._limits = limits
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kveik-embedder")
        self._requests = 0
        self._tokens = 0

    async def vectors(
        self, prompts: Sequence[Sequence[int]], gone: Callable[[], Awaitable[bool]]
    ) -> list[array[float]]:
        """The vectors of prompts that were checked. gone: whether the client has left, asked before
        every batch. Raises Overloaded where too much waits already, ClientGoneError."""
        loop, tokens = asyncio.get_running_loop(), sum(map(len, prompts))
        if (
            self._requests >= self._limits.max_queued_requests
            or self._tokens + tokens > self._limits.max_queued_tokens
        ):
            raise Overloaded("too many texts wait for the embedding model; try again later")
        self._requests += 1
        self._tokens += tokens
        found: list[array[float]] = []
        try:
            for batch in self.embedder.batches(prompts):
                if await gone():
                    raise ClientGoneError
                found += await loop.run_in_executor(self._thread, self.embedder.vectors, batch)
        finally:
            self._requests -= 1
            self._tokens -= tokens
        return found

    def close(self) -> None:
        """Nothing more begins; what is being computed ends."""
        self._thread.shutdown(wait=False, cancel_futures=True)
