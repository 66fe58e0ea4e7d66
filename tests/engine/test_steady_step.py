"""A decode step in the steady state: no array is made and no buffer moves, whatever runs."""

from __future__ import annotations

import ctypes
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grid
import numpy as np
import pytest
from toy import ByteTokenizer
from toy_model import ToyModel, toy_ops

from kveik.config import EngineConfig
from kveik.engine.engine import Engine
from kveik.engine.parts import EngineParts
from kveik.engine.request import Event, Request, SamplingParams
from kveik.kernels.extension import native_extension
from kveik.kernels.ops import Batch, Ops, Sampled, SampleRow

STEPS = 12  # less than a block: nobody needs a new one meanwhile
SEQUENCES = 5


@dataclass
class Uploads:
    """A backend that takes the runner's buffers as they are, and notes where they lie."""

    step: list[tuple[int, int]] = field(default_factory=list)  # (address, numbers) of each upload
    steps: list[list[tuple[int, int]]] = field(default_factory=list)

    def ops(self, base: Ops) -> Ops:
        def upload(values: Any, shape: tuple[int, ...]) -> Any:
            assert isinstance(values, memoryview)
            assert values.format == "q"
            assert values.contiguous
            assert len(values) == (shape[0] if len(shape) == 1 else shape[0] * shape[1])
            address = ctypes.addressof(ctypes.c_char.from_buffer(values))
            self.step.append((address, len(values)))
            return values

        def sample(logits: object, rows: Sequence[SampleRow]) -> list[Sampled]:
            self.steps.append(self.step)
            self.step = []
            return [Sampled(65, 0.0, 0, ()) for _ in rows]

        return replace(base, upload=upload, sample=sample)


@dataclass
class StillModel(ToyModel):
    """Computes nothing. arrays: how many a step makes."""

    arrays: int = 0

    def forward(self, batch: Batch, arenas: Sequence[Any]) -> Any:
        kept = [np.empty(1000) for _ in range(self.arrays)]
        return len(kept)


def decoding(model: StillModel, uploads: Uploads) -> Engine:
    """An engine whose sequences all decode, each at another place of its block."""
    parts = EngineParts(
        model=model,
        ops=uploads.ops(toy_ops(model.faults)),
        tokenizer=ByteTokenizer(),  # type: ignore[arg-type]
        config=EngineConfig(block_size=64),
        pool_blocks=(64,),
    )
    engine = Engine(parts, clock=lambda: 0.0)
    for index in range(SEQUENCES):
        prompt = tuple(range(index, index + 10 + 5 * index))
        engine.submit(Request(prompt, SamplingParams(max_tokens=100)), ignore)
    for _ in range(3):
        engine.step()
    return engine


def ignore(event: Event) -> None:
    """A sink."""


def numpy_calls(engine: Engine) -> set[str]:
    """The functions of numpy that one step calls, wherever they are called from."""
    seen: set[str] = set()

    def note(frame: Any, event: str, called: Any) -> None:
        if event == "c_call":
            owner = getattr(called, "__self__", None)
            module = getattr(called, "__module__", None) or type(owner).__module__
        else:
            module = frame.f_globals.get("__name__", "")
        if str(module).partition(".")[0] == "numpy":
            seen.add(getattr(called, "__name__", "") or frame.f_code.co_name)

    sys.setprofile(note)
    try:
        engine.step()
    finally:
        sys.setprofile(None)
    return seen


def test_every_array_of_a_step_lies_in_the_buffer_of_the_step_before() -> None:
    uploads = Uploads()
    engine = decoding(StillModel(), uploads)
    del uploads.steps[:]
    for _ in range(STEPS):
        engine.step()
    assert len(uploads.steps) == STEPS
    assert len(uploads.steps[0]) == 3 + 6  # ids, positions, rows; six of the group
    assert all(step == uploads.steps[0] for step in uploads.steps)
    addresses = [address for address, _ in uploads.steps[0]]
    assert len(set(addresses)) == len(addresses)  # none overwrites another of its step


def test_a_decode_step_calls_no_function_of_numpy() -> None:
    model = StillModel()
    engine = decoding(model, Uploads())
    assert [numpy_calls(engine) for _ in range(STEPS)] == [set()] * STEPS
    model.arrays = 1
    assert numpy_calls(engine) == {"empty"}  # the counting counts


def arrays_of_a_step(engine: Engine) -> tuple[int, set[int]]:
    """The most bytes of new numpy arrays that are alive when the logits of one of STEPS steps are
    read, and where those logits lay."""
    runner, places, largest = engine._runner, set(), 0
    ops = runner._ops

    def sample(logits: Any, rows: Sequence[SampleRow]) -> list[Sampled]:
        nonlocal largest
        arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
        made = tracemalloc.take_snapshot().filter_traces([arrays])
        largest = max(largest, sum(trace.size for trace in made.traces))
        places.add(logits.ctypes.data)
        return ops.sample(logits, rows)

    runner._ops = replace(ops, sample=sample)
    tracemalloc.start()
    try:
        for _ in range(STEPS):
            engine.step()
    finally:
        tracemalloc.stop()
        runner._ops = ops
    return largest, places


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_a_decode_step_of_the_native_kernels_makes_no_array(
    kernels: str, tiny_folder: Callable[..., Path]
) -> None:
    if kernels == "auto" and native_extension().module is None:
        pytest.skip("the native kernels are not built")
    engine = grid.engine(grid.parts_of(str(tiny_folder()), kernels=kernels))
    for index in range(SEQUENCES):
        engine.submit(grid.request(range(10 + index, 30), max_tokens=100, logprobs=None), ignore)
    for _ in range(3):
        engine.step()
    largest, places = arrays_of_a_step(engine)
    if kernels == "auto":
        assert (largest, len(places)) == (0, 1)
    else:
        assert largest > 0  # the counting counts
