"""Leases for waiting sequences: on all wanted tokens; of a stream, on its window. Standard library.

What the cache says when it has none (wait, no room, units are missing) goes back to whoever asked.
"""

from __future__ import annotations

from dataclasses import replace

from kveik.cache.directive import Directive, Divergence
from kveik.cache.joining import Missing
from kveik.cache.manager import CacheManager, Miss, NoRoom, Opened, OpenResult
from kveik.cache.window import StreamWindow
from kveik.engine.scheduling.roster import Roster
from kveik.engine.sequence import RestingStream, Sequence
from kveik.errors import Conflict, PinBudgetExceeded

STREAM_GONE = "the stream of this session has ended: begin another one"


class Opener:
    """See the module. A sequence with a lease runs."""

    def __init__(self, cache: CacheManager, roster: Roster) -> None:
        self._cache = cache
        self._roster = roster

    def open(
        self, sequence: Sequence, now: float, *, reuse: bool, last_resort: bool = False
    ) -> OpenResult | Missing:
        """Have a waiting sequence run, if the cache has a lease for it. reuse: what is cached may
        be taken; last_resort: see CacheManager.open."""
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
            self._roster.moves.extend(result.moves)
            self._roster.begin(sequence)
            if not work.started:
                self._roster.leave_queue(work)
                work.note_opened(lease)
        return result

    def _resume(self, sequence: Sequence, resting: RestingStream, now: float) -> Opened | NoRoom:
        """Go on from an open stream, unless it has ended meanwhile."""
        work, lease = sequence.work, resting.lease
        if not self._cache.resume(lease, now):
            self._roster.fail_in_plan(work, STREAM_GONE, now, Conflict)
            return NoRoom()
        work.resting, work.miss = None, Miss(0, "new")
        if work.request.explain:
            work.divergence = Divergence(0, "new")
        sequence.lease, sequence.computed = lease, resting.computed
        self._roster.begin(sequence)
        self._roster.leave_queue(work)
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
                spare=self._roster.rivals(sequence.work),
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
            spare=self._roster.rivals(sequence.work),
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


def within(divergence: Divergence, stream: StreamWindow) -> Divergence:
    """As a stream meets it: what it computes behind its first eviction has another past."""
    if divergence.position < stream.size - 1:
        return divergence
    return Divergence(stream.size - 1, "too_short")
