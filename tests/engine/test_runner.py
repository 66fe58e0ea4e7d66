"""The runner: layout of a step, retries alone, refusals, and arrays touched only through Ops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grid
import pytest
from kernels.recording import recording
from toy_model import ToyModel, toy_ops, toy_text

import kveik.engine.parts
from kveik.cache.segments import CopyPrefix, Segment
from kveik.engine.plan import Pending, SamplingPlan, SequencePlan, StepPlan
from kveik.engine.runner import Runner, failed_result
from kveik.kernels.ops import KvSpec
from kveik.kernels.reference import reference_ops
from kveik.store.arena import KvStore


def toy_runner(model: ToyModel, block_size: int = 4, blocks: int = 8) -> Runner:
    ops = toy_ops(model.faults)
    specs = [KvSpec(1, blocks, block_size, 1, 1) for _ in model.groups]
    return Runner(model, ops, KvStore(ops, specs), block_size)


def plan(
    name: int, first: int, tokens: tuple[int | Pending, ...], segment: Segment, draws: int = 1
) -> SequencePlan:
    samples = tuple(SamplingPlan(0, choice, 0, temperature=0.0) for choice in range(draws))
    return SequencePlan(name, ((first, len(tokens)),), tokens, ((segment,),), samples)


def test_chunks_moves_and_decode_over_scattered_blocks() -> None:
    runner = toy_runner(ToyModel())
    head = plan(0, 0, tuple(range(10, 16)), Segment((6, 1), 0, 0, 0, 0), draws=0)
    first = runner.run(StepPlan(0, (head,)))
    assert first.sequences[0].tokens == ()
    shared = (CopyPrefix(0, 1, 3, 2),)
    rest = plan(0, 6, (16, 17), Segment((6, 1), 0, 0, 6, 0))
    fork = plan(1, 6, (18,), Segment((6, 3), 0, 0, 6, 0), draws=2)
    second = runner.run(StepPlan(1, (rest, fork), shared))
    assert second.step_id == 1
    [one] = second.sequences[0].tokens
    assert one.token_id == toy_text(range(10, 18), 1)[0]
    assert [token.token_id for token in second.sequences[1].tokens] == [
        toy_text([*range(10, 16), 18], 1)[0]
    ] * 2


def test_a_step_may_hold_nothing_but_moves() -> None:
    runner = toy_runner(ToyModel())
    assert runner.run(StepPlan(3, (), (CopyPrefix(0, 1, 2, 0),))).sequences == ()


def test_positions_that_cannot_shift_are_refused_for_that_request_alone() -> None:
    model = ToyModel(can_shift=False)
    good = plan(0, 0, (1, 2, 3), Segment((0,), 0, 0, 0, 0))
    shifted = plan(1, 7, (1, 2, 3), Segment((1,), 0, 0, 0, 7))
    results = toy_runner(model).run(StepPlan(0, (good, shifted))).sequences
    assert results[0].tokens[0].token_id == toy_text([1, 2, 3], 1)[0]
    assert results[1].error is not None
    assert "shift" in results[1].error
    model = ToyModel()
    results = toy_runner(model).run(StepPlan(0, (good, shifted))).sequences
    assert results[1].tokens == results[0].tokens  # distances are what the toy sees


def test_what_cannot_be_laid_out_fails_alone() -> None:
    good = plan(0, 0, (1, 2, 3), Segment((0,), 0, 0, 0, 0))
    pending = plan(1, 0, (1, Pending(0)), Segment((1,), 0, 0, 0, 0))
    roomless = plan(2, 0, (1, 2, 3, 4, 5), Segment((2,), 0, 0, 0, 0))
    results = toy_runner(ToyModel()).run(StepPlan(0, (good, pending, roomless))).sequences
    assert [result.error is None for result in results] == [True, False, False]
    assert [result.sequence_id for result in results] == [0, 1, 2]


def test_a_step_that_failed_as_a_whole_names_everyone() -> None:
    good = plan(4, 0, (1, 2, 3), Segment((0,), 0, 0, 0, 0))
    result = failed_result(StepPlan(9, (good,)), "gone")
    assert (result.step_id, result.sequences[0].sequence_id, result.sequences[0].error) == (
        9,
        4,
        "gone",
    )


def test_model_runner_and_store_touch_arrays_only_through_ops(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a backend that hands out tokens instead of arrays, the results are the same."""
    folder = str(tiny_folder())
    plain = grid.parts_of(folder, kernels="reference")
    ops, calls = recording(reference_ops())
    monkeypatch.setattr(kveik.engine.parts, "choose_ops", lambda config: ops)
    recorded = grid.parts_of(folder)
    requests = [
        grid.request(grid.prompt(40), n=2),
        grid.request(grid.prompt(21, 1), prompt_logprobs=2),
    ]
    wanted = grid.run(grid.engine(plain), requests)
    found = grid.run(grid.engine(recorded), requests)
    assert [(one.chosen, one.prompt) for one in found] == [
        (one.chosen, one.prompt) for one in wanted
    ]
    assert {"paged_attention", "copy_blocks", "upload", "sample"} <= set(calls)
