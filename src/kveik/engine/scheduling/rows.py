"""Rows of a step for sequences that run: one for each that decodes, chunks for prompts.

When blocks run out, the latest arrival gives its blocks up and computes again later. A stream never
does: nobody could compute it again (invariant 18). Standard library.
"""

from __future__ import annotations

from kveik.cache.joining import Joined
from kveik.cache.manager import CacheManager
from kveik.engine.scheduling.capacity import SchedulerLimits
from kveik.engine.scheduling.draft import Draft
from kveik.engine.scheduling.roster import Roster
from kveik.engine.sequence import Sequence

_PROMISE = "the stream found no room although its window was reserved"


class Rows:
    """See the module. Every call adds to the draft what its budget and the pool allow."""

    def __init__(self, cache: CacheManager, limits: SchedulerLimits, roster: Roster) -> None:
        self._cache = cache
        self._limits = limits
        self._roster = roster

    def keep_promises(self, draft: Draft, now: float) -> None:
        """Room for the next block of every running stream, before anybody has a row in this step:
        whoever stands in its way (by reading what it let go) computes again later."""
        for sequence in tuple(self._roster.running):
            if sequence.work.stream is None or sequence.lease is None or not sequence.missing:
                continue
            wanted = sequence.done + min(sequence.missing, self._limits.block_size)
            if not self._grow(sequence, wanted, draft, now):
                self._roster.fail_in_plan(sequence.work, _PROMISE, now)

    def decodes(self, draft: Draft, now: float, background: bool) -> None:
        """A row for every sequence that misses one token, oldest first."""
        for sequence in tuple(self._roster.running):
            if sequence.lease is None or sequence.missing != 1:
                continue
            if sequence.work.background is not background:
                continue
            if draft.budget > 0 and self._make_room(sequence, draft, now):
                draft.add(sequence, 1)

    def prefills(self, draft: Draft, background: bool) -> None:
        """A chunk for every sequence that misses more, oldest first."""
        for sequence in self._roster.running:
            if sequence.missing > 1 and sequence.work.background is background:
                self.chunk(sequence, draft)

    def chunk(self, sequence: Sequence, draft: Draft) -> None:
        """A chunk ends on the block grid unless it ends the sequence. Only the oldest prompt may
        take what is left of the budget when that is less than the way to the next block."""
        start, end = sequence.done, sequence.length
        if isinstance(sequence.lease, Joined):
            end = sequence.lease.course.reach(start, draft.budget, end) if draft.budget else start
        elif end - start > draft.budget:
            reach = start + draft.budget
            aligned = reach - reach % self._limits.block_size
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

    def _make_room(self, sequence: Sequence, draft: Draft, now: float) -> bool:
        """A slot for every wanted token; False when the sequence itself was the latest arrival.

        Sequences are served oldest first, so a victim never has a row in this step yet."""
        return self._grow(sequence, sequence.length, draft, now)

    def _grow(self, sequence: Sequence, wanted: int, draft: Draft, now: float) -> bool:
        """Preempt the latest arrivals until so many tokens fit; never a stream. False: there is
        nobody left, or the sequence was one."""
        assert sequence.lease is not None
        while sequence.lease.capacity < wanted and not self._cache.extend(sequence.lease, wanted):
            victims = [one for one in self._roster.running if one.work.stream is None]
            if not victims:
                return False
            self._roster.preempt(victims[-1], now)
            draft.preempted = True
            if victims[-1] is sequence:
                return False
        return True
