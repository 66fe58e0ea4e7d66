"""What a step brought for one sequence: K/V for its rows, tokens, perhaps its end.

Standard library.
"""

from __future__ import annotations

from kveik.cache.manager import CacheManager
from kveik.engine.plan import SampledToken, SequenceResult
from kveik.engine.request import FinishReason
from kveik.engine.scheduling.capacity import SchedulerLimits
from kveik.engine.scheduling.roster import Roster
from kveik.engine.sequence import ChoiceEnded, Output, PromptComputed, Sequence, TokenAccepted


class Acceptance:
    """See the module."""

    def __init__(self, cache: CacheManager, limits: SchedulerLimits, roster: Roster) -> None:
        self._cache = cache
        self._limits = limits
        self._roster = roster

    def accept(
        self, sequence: Sequence, count: int, outcome: SequenceResult, now: float
    ) -> list[Output]:
        """The next `count` rows of a sequence that runs are computed, and `outcome` says what they
        brought. Whatever it raises is a fault of this request alone."""
        assert sequence.lease is not None
        work, first, size = sequence.work, sequence.done, self._limits.block_size
        if first // size != (first + count) // size:  # a block became whole
            self._roster.note_progress()
        offset = len(sequence.computed)
        _, of_prompt = sequence.rows(first, work.prompt_rows(first, count))
        sequence.computed.extend(sequence.tokens[offset : offset + count])
        work.computed_prompt_tokens += len(of_prompt)
        work.note_rows(outcome)
        if sequence.lease.evicted:
            self._cache.append(sequence.lease, sequence.computed[offset:], now)
        else:
            self._cache.commit(sequence.lease, sequence.computed, now)
        if work.stream is not None:
            work.evicted = work.stream.evicted(sequence.done - 1)
            sequence.forget()
        if work.max_tokens == 0 and sequence.missing == 0:
            return self._end_prompt(sequence, now)
        if not outcome.tokens:
            return []
        if work.prompt_done:
            return [self._accept_token(sequence, outcome.tokens[0], now)]
        return self._accept_prompt(sequence, outcome.tokens, now)

    def _end_prompt(self, sequence: Sequence, now: float) -> list[Output]:
        """The prompt is computed, and nothing else was asked for."""
        work = sequence.work
        work.prompt_done = True
        self._roster.end(sequence, now, finished=True)
        return [
            PromptComputed(work.handle),
            ChoiceEnded(work.handle, sequence.choice, "length"),
        ]

    def _accept_prompt(
        self, sequence: Sequence, tokens: tuple[SampledToken, ...], now: float
    ) -> list[Output]:
        """The prompt is computed once; every further choice forks its blocks. A choice that finds
        no seat or no block for the fork waits, and computes the same bits for itself later."""
        work = sequence.work
        work.prompt_done = True
        outputs: list[Output] = [PromptComputed(work.handle)]
        prompt, new = list(sequence.tokens), self._roster.new_sequence
        children = [new(work, k, list(prompt)) for k in range(1, len(tokens))]
        for child, token in zip(children, tokens[1:], strict=True):
            self._fork(sequence, child)
            outputs.append(self._accept_token(child, token, now))
        outputs.insert(1, self._accept_token(sequence, tokens[0], now))
        return outputs

    def _fork(self, parent: Sequence, child: Sequence) -> None:
        assert parent.lease is not None
        roster = self._roster
        forked = None
        if parent.work.request.params.use_cache and len(roster.running) < self._limits.seats:
            forked = self._cache.fork(parent.lease)
        if forked is None:
            roster.enqueue(child)
            return
        child.lease, moves = forked
        child.computed = list(parent.computed)
        roster.moves.extend(moves)
        roster.run(child)

    def _accept_token(self, sequence: Sequence, token: SampledToken, now: float) -> TokenAccepted:
        work = sequence.work
        sequence.tokens.append(token.token_id)
        work.completion_tokens += 1
        finish, reason = _finish(sequence, token.token_id)
        if finish is not None:
            self._roster.end(sequence, now, finished=True)
        elif not work.request.params.use_cache and sequence.lease is not None:
            self._roster.give_up_blocks(sequence, now)
            self._roster.enqueue(sequence)
        return TokenAccepted(work.handle, sequence.choice, token, finish, reason)


def _finish(sequence: Sequence, token_id: int) -> tuple[FinishReason | None, int | None]:
    """Finish reason and stop token id. Before min_tokens, ends are never sampled."""
    work = sequence.work
    if token_id in work.end_ids:
        return "stop", None
    if token_id in work.request.params.stop_token_ids:
        return "stop", token_id
    if sequence.generated >= work.max_tokens:
        return "length", None
    return None, None
