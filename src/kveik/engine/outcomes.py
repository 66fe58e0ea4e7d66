"""What became of requests: it goes to whoever listens, and into the books.

The engine's thread, under the lock of its state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kveik.engine.delivery import Delivery
from kveik.engine.inbox import Inbox
from kveik.engine.journal import Journal, Outcome
from kveik.engine.outbox import Outbox
from kveik.engine.partings import Partings
from kveik.engine.plan import StepPlan
from kveik.engine.request import RequestAborted, RequestFailed, RequestFinished
from kveik.engine.savings import SavingsMeter
from kveik.engine.scheduler import Scheduler
from kveik.engine.sequence import ChoiceEnded, Output, PromptComputed, TokenAccepted
from kveik.engine.stats import Totals
from kveik.errors import KveikError


@dataclass(frozen=True, slots=True)
class Books:
    """What is written down of steps and requests."""

    totals: Totals
    savings: SavingsMeter
    journal: Journal
    partings: Partings

    def note_step(self, plan: StepPlan, run_seconds: float, step_seconds: float) -> None:
        """A step was computed. run_seconds: what its forward pass took, from which the estimate
        of what hits save is made."""
        spans = [span for sequence in plan.sequences for span in sequence.spans]
        prompts = [span for span in spans if span[1] > 1]
        self.savings.observe(prompts, len(spans) - len(prompts), run_seconds)
        self.totals.steps += 1
        self.totals.step_seconds += step_seconds
        self.totals.computed_tokens += sum(len(one.token_ids) for one in plan.sequences)


class Outcomes:
    """See the module. A request that the inbox has no delivery for has ended: nothing is said."""

    def __init__(
        self,
        scheduler: Scheduler,
        inbox: Inbox,
        outbox: Outbox,
        books: Books,
        clock: Callable[[], float],
    ) -> None:
        self._scheduler = scheduler
        self._deliveries = inbox.deliveries
        self._outbox = outbox
        self._books = books
        self._clock = clock

    def collect(self, outputs: Sequence[Output]) -> None:
        """What a step, or the planning of one, brought."""
        ended: dict[int, None] = {}  # handles in order
        for output in outputs:
            handle, delivery = output.handle, self._deliveries.get(output.handle)
            if delivery is None:
                continue
            if isinstance(output, TokenAccepted):
                self._books.totals.generation_tokens += 1
                self._outbox.add(handle, delivery, output)
                if output.finish is not None:
                    ended[handle] = None
            elif isinstance(output, PromptComputed):
                self._computed(handle, delivery)
            elif isinstance(output, ChoiceEnded):
                self._outbox.add(handle, delivery, output)
                ended[handle] = None
            else:
                self.failed(handle, delivery, output.kind(output.message))
        for handle in ended:
            self.choice_ended(handle)

    def _computed(self, handle: int, delivery: Delivery) -> None:
        work, books = delivery.work, self._books
        assert work is not None
        books.totals.prompt_tokens += work.prompt_length
        reused = work.cached_tokens + work.approximate_tokens
        work.savings = books.savings.savings(work.prompt_length, reused)
        books.totals.seconds_saved += work.savings.seconds
        books.journal.computed(work.request, work.usage())
        self._outbox.add(handle, delivery, work.ready())

    def choice_ended(self, handle: int) -> None:
        """A choice ended: was it the last one?"""
        delivery = self._deliveries.get(handle)
        if delivery is not None and self._scheduler.is_over(handle):
            assert delivery.work is not None
            usage = delivery.work.usage()
            self._books.totals.stored_tokens += usage.stored_tokens
            self._note(delivery, "finished")
            self._outbox.add(handle, delivery, RequestFinished(usage))

    def failed(self, handle: int, delivery: Delivery, error: KveikError) -> None:
        """The request is over with this error."""
        self._note(delivery, "failed")
        self._outbox.add(handle, delivery, RequestFailed(error))

    def aborted(self, handle: int, delivery: Delivery) -> None:
        """Somebody ended the request."""
        if delivery.work is not None:
            self._note(delivery, "aborted")
            self._outbox.add(handle, delivery, RequestAborted(delivery.work.usage()))

    def _note(self, delivery: Delivery, outcome: Outcome) -> None:
        work, books = delivery.work, self._books
        if work is not None:
            seconds = self._clock() - delivery.accepted_at
            past = books.journal.ended(work.request, work.usage(), work.missed, outcome, seconds)
            books.partings.note(past.number, work.request, work.divergence, delivery.accepted_at)
