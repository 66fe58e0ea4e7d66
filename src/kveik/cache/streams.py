"""Room for streams: what each open one may hold, so that none ever waits for a block.

A stream has dropped tokens and cannot be computed again (invariant 18): it is admitted only when
its whole window fits, and what it has not taken yet is promised to it. Others grow into promised
blocks never; a lease that shares a block which a stream lets go may still stand in its way, and is
preempted then. So it suffices that the windows of all streams fit beside what cannot be taken
away: pinned blocks and what other namespaces have reserved.

    held by a stream   sinks | front of the window ... end of the window + a chunk of one block
                       each of the three may be partly used

Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable

from kveik.cache.lease import Lease
from kveik.cache.window import StreamWindow


class StreamBooks:
    """total: blocks of the smallest pool. taken: blocks that no stream can have, for a namespace:
    pinned ones and what is reserved for others."""

    def __init__(self, block_size: int, total: int, taken: Callable[[str], int]) -> None:
        self._size, self.total, self._taken = block_size, total, taken
        self._open: set[Lease] = set()

    def blocks_for(self, stream: StreamWindow) -> int:
        """Blocks that a stream holds at most, of every group, while it computes a chunk of one
        block; longer chunks use what is free."""
        sinks = -(-stream.sinks // self._size)
        return sinks + -(-(stream.window - 1 + self._size) // self._size) + 1

    @property
    def reserved(self) -> int:
        """Blocks of all open streams, held or promised."""
        return sum(self._of(lease) for lease in self._open)

    @property
    def kept(self) -> int:
        """Those of streams that outlive their request."""
        return sum(self._of(lease) for lease in self._open if lease.directive.session is not None)

    def fits(self, stream: StreamWindow, namespace: str) -> bool:
        """May another stream be opened beside the open ones?"""
        wanted = self.reserved + self.blocks_for(stream)
        return wanted + self._taken(namespace) <= self.total

    def promised(self, group: int, besides: Lease | None = None) -> int:
        """Blocks that open streams may still take, but for this one."""
        return sum(
            max(self._of(lease) - lease.held(group), 0)
            for lease in self._open
            if lease is not besides
        )

    def add(self, lease: Lease) -> None:
        if lease.stream is not None:
            self._open.add(lease)

    def discard(self, lease: Lease) -> None:
        self._open.discard(lease)

    def _of(self, lease: Lease) -> int:
        assert lease.stream is not None
        return self.blocks_for(lease.stream)
