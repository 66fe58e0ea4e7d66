"""The step that is being planned. Standard library."""

from __future__ import annotations

from dataclasses import dataclass, field

from kveik.engine.plan import SequencePlan
from kveik.engine.sequence import Sequence


@dataclass(slots=True)
class Draft:
    """budget: token rows still free. flushed: the step before was launched for its fence only."""

    budget: int
    flushed: bool = False
    prefills: int = 0
    preempted: bool = False
    flush: bool = False  # launch the step even if it is empty
    plans: list[SequencePlan] = field(default_factory=list)
    rows: dict[int, tuple[Sequence, int]] = field(default_factory=dict)  # id -> (who, rows)

    def add(self, sequence: Sequence, count: int) -> None:
        """The next `count` rows of the sequence are computed in this step."""
        assert sequence.lease is not None
        work, first = sequence.work, sequence.done
        spans, token_ids = sequence.rows(first, count)
        wants = work.wants_prompt_rows
        owed = work.request.params.prompt_logprobs if wants else None
        ends = first + count == sequence.length
        plan = SequencePlan(
            sequence_id=sequence.sequence_id,
            spans=spans,
            token_ids=token_ids,
            tables=sequence.lease.tables,
            samples=sequence.sampling_plans() if ends else (),
            prompt_logprobs=owed,
            targets=sequence.targets(first, count) if owed is not None else (),
            stream=work.stream,
            pools=wants and work.request.embed,
        )
        self.plans.append(plan)
        self.rows[sequence.sequence_id] = (sequence, count)
        self.budget -= len(token_ids)
