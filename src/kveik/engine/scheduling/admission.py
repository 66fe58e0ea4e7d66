"""Who of those that wait may begin, and in which order. Standard library.

By arrival, never by what a sequence shares with the cache. One whose next block another computes
stays waiting and does not hold up those behind it; so does a joined prompt whose units are missing,
which are computed for it meanwhile. Background work gives up seat and blocks to whoever comes, and
is background no more when a live request waits for what it computes.
"""

from __future__ import annotations

from kveik.cache.joining import Joined, Missing
from kveik.cache.manager import CacheManager, Lease, Opened, Wait
from kveik.engine.scheduling.capacity import Capacity, SchedulerLimits
from kveik.engine.scheduling.draft import Draft
from kveik.engine.scheduling.opening import Opener
from kveik.engine.scheduling.roster import Roster
from kveik.engine.scheduling.rows import Rows
from kveik.engine.sequence import Sequence, Work
from kveik.errors import InvalidRequest, KveikError


class Admission:
    """See the module."""

    def __init__(
        self,
        cache: CacheManager,
        limits: SchedulerLimits,
        roster: Roster,
        capacity: Capacity,
        rows: Rows,
    ) -> None:
        self._cache = cache
        self._limits = limits
        self._roster = roster
        self._capacity = capacity
        self._rows = rows
        self._opener = Opener(cache, roster)

    def admit(self, draft: Draft, now: float, background: bool) -> None:
        """Begin what seats, blocks and the budget of the step allow."""
        roster, index = self._roster, 0
        while index < len(roster.waiting):
            sequence = roster.waiting[index]
            useful = min(self._limits.block_size, len(sequence.tokens)) if draft.prefills else 1
            if draft.budget < useful or sequence.work.background > background:
                break
            if sequence.asked_at == roster.progress or sequence.work.background is not background:
                index += 1
                continue
            if len(roster.running) >= self._limits.seats and not self._push_out(sequence, now):
                break
            result = self._opener.open(sequence, now, reuse=not sequence.work.wants_prompt_rows)
            if isinstance(result, Wait | Missing):
                sequence.asked_at = roster.progress
                index += 1
                if isinstance(result, Wait):
                    self._lend_rank(sequence, result.leader, draft)
                elif not self._make(sequence.work, result, now):
                    index -= 1  # it has failed, and waits no more
            elif isinstance(result, Opened):
                self._rows.chunk(sequence, draft)
            elif not self._push_out(sequence, now):
                break
        waiting = (one for one in roster.waiting if one.asked_at != roster.progress)
        first = None if roster.running else next(waiting, None)
        if first is not None and first.work.background is background and not draft.flush:
            self._admit_alone(first, draft, now)

    def _make(self, work: Work, missing: Missing, now: float) -> bool:
        """Have the units of a joined prompt computed; they come before whoever arrived later.
        False: they cannot be, and the request has failed."""
        roster = self._roster
        why = roster.makers.hopeless(work, missing)
        if why is not None:
            roster.fail_in_plan(work, why, now)
            return False
        for handle in roster.makers.making(work, missing):
            roster.hurry(roster.works[handle], work)
        for handle, request in roster.makers.requests(work, missing):
            try:
                most = self._capacity.max_tokens_for(request)
            except InvalidRequest as error:  # the shares of the pool are others by now
                roster.makers.ended(handle)
                roster.fail_in_plan(work, error.message, now)
                return False
            roster.add(handle, request, 0, most, arrival=work.arrival)
        return True

    def _push_out(self, sequence: Sequence, now: float) -> bool:
        """Background work gives its seat and its blocks to a sequence that is none."""
        running = self._roster.running
        last = running[-1] if running else None
        if last is None or last.work.background <= sequence.work.background or last.work.stream:
            return False
        self._roster.preempt(last, now)
        return True

    def _lend_rank(self, follower: Sequence, leader: Lease, draft: Draft) -> None:
        """Whoever computes what a sequence waits for is as urgent as that one."""
        for sequence in self._roster.running:
            if _computes(sequence.lease, leader):
                hurried = self._roster.hurry(sequence.work, follower.work)
                if hurried and draft.budget > 0 and sequence.sequence_id not in draft.rows:
                    self._rows.chunk(sequence, draft)
                return

    def _admit_alone(self, sequence: Sequence, draft: Draft, now: float) -> None:
        """Nothing runs, yet the oldest was not admitted. Without reuse it fits, once the blocks
        that were given up before their first step have passed one; or else it never will."""
        opener = self._opener
        if isinstance(opener.open(sequence, now, reuse=False), Opened):
            self._rows.chunk(sequence, draft)
        elif not draft.flushed or self._roster.streams.end_oldest(now):
            draft.flush = True
        elif isinstance(opener.open(sequence, now, reuse=False, last_resort=True), Opened):
            self._rows.chunk(sequence, draft)
        else:
            self._fail_without_room(sequence.work, now)

    def _fail_without_room(self, work: Work, now: float) -> None:
        """Nothing else runs. A window that fitted when it was accepted may not beside what was
        pinned meanwhile."""
        if work.stream is not None:
            try:
                self._cache.check_stream(work.stream, work.request.namespace, stays=False)
            except KveikError as error:
                self._roster.fail_in_plan(work, error.message, now, type(error))
                return
        self._roster.fail_in_plan(work, "no room in an empty KV pool", now)


def _computes(lease: Lease | None, leader: Lease) -> bool:
    """Is the leader this lease, or a part of it?"""
    return lease is leader or (isinstance(lease, Joined) and leader in lease.own)
