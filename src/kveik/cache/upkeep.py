"""What time brings: deadlines, idle sessions, maxima of shares, and the sweep's next piece.

Every call does a bounded amount of work, so that no step waits long for it. Standard library only.
"""

from __future__ import annotations

from kveik.cache.invalidation import Invalidation
from kveik.cache.names import Names
from kveik.cache.reclaim import Reclaimer
from kveik.cache.shares import Shares

_DUE = 2  # nodes that a deadline counts for
_SESSION_END = 8  # nodes that ending a session counts for


class Upkeep:
    """See the module; the caller has read the clock before."""

    def __init__(
        self,
        invalidation: Invalidation,
        reclaim: Reclaimer,
        names: Names,
        shares: Shares,
    ) -> None:
        self.invalidation, self.reclaim = invalidation, reclaim
        self.names, self.shares = names, shares
        self.retention, self.sweeper = invalidation.retention, invalidation.sweeper
        self.table = invalidation.sessions

    def tick(self, budget: int) -> bool:
        """See CacheManager.tick."""
        deadlines, now = self.retention.deadlines, self.retention.clock.now
        left = self.sweeper.advance(budget)
        self._trim(budget)
        while left > 0:
            node = deadlines.take_due(now)
            if node >= 0:
                self._come_due(node)
                left = self.sweeper.advance(left - _DUE)
                continue
            idle = self.table.next_idle(now)
            if idle is None:
                break
            self.invalidation.end_session(*idle, "expired")
            left -= _SESSION_END
        return bool(self.sweeper.jobs) or deadlines.is_due(now) or self.table.sweeping

    def _trim(self, budget: int) -> None:
        """What a namespace keeps beyond its maximum goes."""
        for g, account, above in self.shares.above_maximum():
            self.reclaim.trim(g, min(above, budget), self.retention.clock.now, account)

    def _come_due(self, node: int) -> None:
        """A deadline of this node may have passed."""
        retention, now = self.retention, self.retention.clock.now
        if retention.overdue(node):
            self.sweeper.bury_top(node, "expired")
            return
        if retention.is_read(node):
            retention.tree.used[node] = now
        if retention.deadlines.demote_at(node) <= now:
            retention.fade(node)
        retention.deadlines.wait(node, demoted=retention.is_faded(node))

    def next_deadline(self) -> float | None:
        """See CacheManager.next_deadline."""
        clock = self.retention.clock
        if self.sweeper.jobs or self.retention.tree.orphans or self.retention.recipes.fallen:
            return clock.as_read(clock.now)
        moments = (
            self.retention.deadlines.next(),
            self.names.next_deadline(),
            self.table.next_deadline(),
        )
        known = [moment for moment in moments if moment is not None]
        return clock.as_read(min(known)) if known else None
