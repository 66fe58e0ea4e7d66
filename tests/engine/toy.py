"""Toys for the engine room: a model whose K/V can be read by eye, and a byte tokenizer.

The K/V of token p is a digest of all tokens up to p. `ToyRunner` computes it from the slot of token
p - 1, which it finds through the block table of the plan, as a kernel would; the sampled token is a
digest of the last slot. A slot that was never written, was overwritten, or belongs to another
prefix therefore changes the text, and `expected_text` knows the text without any cache.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from kveik.cache.manager import CacheManager
from kveik.cache.segments import BlockTable, Erase, KvGroup
from kveik.engine.plan import (
    SampledToken,
    SamplingPlan,
    SequencePlan,
    SequenceResult,
    StepPlan,
    StepResult,
    TokenLogprobs,
)
from kveik.engine.request import Request, SamplingParams
from kveik.engine.scheduler import Scheduler, SchedulerLimits
from kveik.engine.sequence import ChoiceEnded, Output, TokenAccepted, WorkFailed

VOCABULARY = 1000
BLOCK = 16
_OF_REQUEST = ("directive", "salt", "background", "joined", "stream")


def absorb(state: bytes, token: int) -> bytes:
    return blake2b(state + token.to_bytes(8, "little"), digest_size=8).digest()


def draw(state: bytes, seed: int, choice: int, position: int) -> int:
    key = f"{seed},{choice},{position}".encode()
    return int.from_bytes(blake2b(state + key, digest_size=8).digest(), "little") % VOCABULARY


def expected_text(prompt: Sequence[int], count: int, seed: int = 0, choice: int = 0) -> list[int]:
    """What a request must generate, whatever the cache did."""
    state = b""
    for token in prompt:
        state = absorb(state, token)
    tokens: list[int] = []
    for _ in range(count):
        tokens.append(draw(state, seed, choice, len(prompt) + len(tokens)))
        state = absorb(state, tokens[-1])
    return tokens


class ToyRunner:
    """Computes plans over `{(group, flat slot): digest}`; faults: sequence ids that fail."""

    def __init__(self, groups: int = 1, block_size: int = BLOCK) -> None:
        self.slots: dict[tuple[int, int], bytes] = {}
        self.groups = groups
        self.block_size = block_size
        self.faulty: Callable[[SequencePlan], bool] = lambda plan: False
        self.rows = 0

    def run(self, plan: StepPlan) -> StepResult:
        for move in plan.moves:
            if isinstance(move, Erase):
                for offset in range(self.block_size):
                    self.slots.pop((move.group, move.block * self.block_size + offset), None)
                continue
            for offset in range(move.count):
                source = (move.group, move.src * self.block_size + offset)
                target = (move.group, move.dst * self.block_size + offset)
                self.slots[target] = self.slots[source]
        return StepResult(plan.step_id, tuple(self._sequence(one) for one in plan.sequences))

    def _sequence(self, plan: SequencePlan) -> SequenceResult:
        if self.faulty(plan):
            return SequenceResult(plan.sequence_id, error="planted fault")
        tokens = iter(plan.token_ids)
        state = b""
        for first, count in plan.spans:
            for position in range(first, first + count):
                token = next(tokens)
                assert isinstance(token, int)
                state = self._row(plan.tables, position, token)
                self.rows += 1
        draws = tuple(self._draw(state, sampling) for sampling in plan.samples)
        rows = tuple(TokenLogprobs(token, -1.0, 1) for token in plan.targets if token >= 0)
        return SequenceResult(plan.sequence_id, draws, rows)

    def _row(self, tables: Sequence[BlockTable], position: int, token: int) -> bytes:
        states = set()
        for group, table in enumerate(tables):
            before = self.slots[group, self.slot(table, position - 1)] if position else b""
            self.slots[group, self.slot(table, position)] = absorb(before, token)
            states.add(absorb(before, token))
        assert len(states) == 1, f"groups disagree at position {position}"
        return states.pop()

    def slot(self, table: BlockTable, position: int) -> int:
        for segment in table:
            end = segment.seen_end if segment is not table[-1] else position + 1
            if segment.seen_start <= position < end:
                index, offset = divmod(position - segment.shift - segment.home, self.block_size)
                return segment.blocks[index] * self.block_size + offset
        raise AssertionError(f"position {position} has no slot in {table}")

    @staticmethod
    def _draw(state: bytes, plan: SamplingPlan) -> SampledToken:
        return SampledToken(draw(state, plan.seed, plan.choice, plan.position))


@dataclass
class Bench:
    """A scheduler over a real cache manager and the toy runner; `step` checks the books."""

    blocks: int = 64
    max_num_seqs: int = 16
    budget: int = 64
    context: int = 1024
    groups: tuple[KvGroup, ...] = (KvGroup((0,)),)
    caching: bool = True
    end_ids: tuple[int, ...] = ()
    check: bool = True
    texts: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    finished: dict[tuple[int, int], str] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    plans: list[StepPlan] = field(default_factory=list)
    served: list[list[int]] = field(default_factory=list)  # handles in each plan

    def __post_init__(self) -> None:
        self.cache = CacheManager(
            self.groups,
            [self.blocks] * len(self.groups),
            BLOCK,
            enable_prefix_caching=self.caching,
        )
        limits = SchedulerLimits(BLOCK, self.max_num_seqs, self.budget, self.context)
        self.scheduler = Scheduler(self.cache, limits, self.end_ids)
        self.runner = ToyRunner(len(self.groups))
        self.works = {}

    def add(self, handle: int, prompt: Iterable[int], namespace: str = "", **params: object):
        """params: of SamplingParams, and those _OF_REQUEST."""
        named = {name: params.pop(name) for name in _OF_REQUEST if name in params}
        given = {"max_tokens": 4, "seed": 0, **params}
        request = Request(tuple(prompt), SamplingParams(**given), namespace, **named)  # type: ignore[arg-type]
        self.works[handle] = self.scheduler.add(handle, request, seed=given["seed"])
        return self.works[handle]

    def plan(self) -> StepPlan | None:
        plan = self.scheduler.plan_step()
        for failure in self.scheduler.take_failures():
            self.failures[failure.handle] = failure.message
        if plan is not None:
            self.plans.append(plan)
            rows = self.scheduler._step[1].values()
            self.served.append([sequence.work.handle for sequence, _ in rows])
        return plan

    def finish(self, plan: StepPlan) -> list[Output]:
        outputs = self.scheduler.apply(self.runner.run(plan))
        for output in outputs:
            if isinstance(output, TokenAccepted):
                place = (output.handle, output.choice)
                self.texts.setdefault(place, []).append(output.token.token_id)
                if output.finish:
                    self.finished[place] = output.finish
            elif isinstance(output, ChoiceEnded):
                self.finished[output.handle, output.choice] = output.finish
            elif isinstance(output, WorkFailed):
                self.failures[output.handle] = output.message
        if self.check:
            self.cache.check()
        return outputs

    def step(self) -> StepPlan | None:
        plan = self.plan()
        if plan is not None:
            self.finish(plan)
        return plan

    def drain(self, limit: int = 10_000) -> None:
        """Step until idle."""
        for _ in range(limit):
            if self.step() is None and not self.scheduler.has_work:
                return
        raise AssertionError(f"still busy after {limit} steps")

    def rows(self, plan: StepPlan) -> list[tuple[int, int]]:
        """(first, count) of every sequence of a plan, in order."""
        return [sequence.spans[0] for sequence in plan.sequences]


class ByteTokenizer:
    """Ids 0..255 are bytes; 256 ends a text. The surface of engine/tokenizer.py."""

    vocab_size = 257
    bos_token_id = None
    eos_token_ids = (256,)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(token for token in token_ids if token < 256).decode(errors="replace")

    def detokenizer(
        self, *, skip_special_tokens: bool = True, prompt_token_ids: Sequence[int] = ()
    ) -> ByteDetokenizer:
        return ByteDetokenizer()


class ByteDetokenizer:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(bytes([token_id])) if token_id < 256 else ""

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)
