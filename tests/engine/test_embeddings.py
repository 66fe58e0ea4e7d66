"""Sums of hidden states: the same integers however the prompt was computed, and nobody beside it
notices."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grid
import pytest
from grid import Run, engine, prompt, request, run
from test_exactness import SUBJECTS, available
from toy import absorb
from toy_model import ToyModel, toy_engine

from kveik.cache.directive import Directive
from kveik.engine.engine import Engine
from kveik.engine.pooling import unit_vector
from kveik.engine.request import (
    Event,
    PromptReady,
    Request,
    RequestFailed,
    RequestFinished,
    SamplingParams,
    Usage,
)

PROMPT = prompt(75)
KERNELS = ("reference", "native", "native, two groups", "native, int8", "native, int4", "portable")


def embedding(tokens: list[int]) -> Request:
    return Request(tuple(tokens), SamplingParams(max_tokens=0), embed=True)


class Sums:
    """An event sink that keeps the sum of hidden states."""

    def __init__(self) -> None:
        self.pooled: tuple[int, ...] = ()
        self.error: Exception | None = None
        self.usage: Usage | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, PromptReady):
            self.pooled = event.pooled
        elif isinstance(event, RequestFinished):
            self.usage = event.usage
        elif isinstance(event, RequestFailed):
            self.error = event.error


def sums_of(subject: Engine, *prompts: list[int]) -> list[tuple[int, ...]]:
    """Computed beside each other."""
    sinks = [Sums() for _ in prompts]
    for tokens, sink in zip(prompts, sinks, strict=True):
        subject.submit(embedding(tokens), sink)
    while subject.step():
        pass
    subject.check()
    return [sink.pooled for sink in sinks]


@pytest.mark.parametrize("name", KERNELS)
def test_chunks_company_and_cache_leave_no_trace(
    name: str, tiny_folder: Callable[..., Path]
) -> None:
    checkpoint, config = SUBJECTS[name]
    if not available(config):
        pytest.skip("this machine does not have these kernels")
    overrides: dict[str, Any] = {}
    if checkpoint == "two groups":
        overrides = {
            "model_type": "qwen3",
            "use_sliding_window": True,
            "sliding_window": 40,
            "max_window_layers": 1,
        }
    parts = grid.parts_of(str(tiny_folder(**overrides)), **config)
    [alone] = sums_of(engine(parts), PROMPT)
    assert len(alone) == 64
    assert len(set(alone)) == 64
    for budget in (16, 33, 50):
        assert sums_of(engine(parts, max_num_batched_tokens=budget), PROMPT) == [alone], budget
    assert sums_of(engine(parts), prompt(40, 1), PROMPT, prompt(9, 2))[1] == alone
    warm = engine(parts)
    run(warm, [request(PROMPT)])
    assert sums_of(warm, PROMPT) == [alone]
    assert sums_of(warm, [*PROMPT[:-1], 5]) != [alone]


@pytest.mark.parametrize("name", ["reference", "native", "native, int8"])
def test_texts_beside_embeddings_are_the_same_bits(
    name: str, tiny_folder: Callable[..., Path]
) -> None:
    checkpoint, config = SUBJECTS[name]
    if not available(config):
        pytest.skip("this machine does not have these kernels")
    overrides = {} if checkpoint == "llama" else {"model_type": "qwen3"}
    parts = grid.parts_of(str(tiny_folder(**overrides)), **config)
    texts = [request(prompt(40, 3)), request(prompt(20, 4), n=2, prompt_logprobs=1)]
    alone = [run(engine(parts), [one])[0] for one in texts]
    subject = engine(parts, max_num_batched_tokens=32)
    together = [Run(one, [[] for _ in range(one.params.n)]) for one in texts]
    for one in together:
        subject.submit(one.request, one)
    while not all(one.chosen[-1] for one in together):
        subject.step()
    sinks = [Sums() for _ in range(6)]  # from now on three rows of logits stand beside them
    for number, sink in enumerate(sinks):
        subject.submit(embedding(prompt(60, 10 + number)), sink)
    while subject.step():
        pass
    for one, wanted in zip(together, alone, strict=True):
        assert (one.chosen, one.prompt) == (wanted.chosen, wanted.prompt)
    assert all(sink.pooled for sink in sinks)


def toy_sum(tokens: list[int]) -> int:
    """Of the toy's states at every token, from their definition."""
    total = 0
    for last in range(len(tokens)):
        state = b""
        for position in range(last + 1):
            state = absorb(state, tokens[position] * 1000 + last - position)
        total += int.from_bytes(state, "big")
    return total


def test_what_is_preempted_begins_its_sum_again() -> None:
    subject = toy_engine(blocks=11, block_size=4, max_num_batched_tokens=4)
    growing, sink = list(range(40, 52)), Sums()
    params = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
    subject.submit(Request(tuple(growing), params), Sums())
    while not subject.stats().generation_tokens:
        subject.step()
    tokens = list(range(100, 124))
    subject.submit(embedding(tokens), sink)
    while subject.step():
        pass
    assert subject.stats().preemptions > 0
    assert sink.usage is not None
    assert sink.usage.computed_prompt_tokens > len(tokens)
    assert sink.pooled == (toy_sum(tokens),)
    subject.check()


def test_every_token_is_computed_and_what_is_kept_is_the_directive_s_to_say() -> None:
    tokens = list(range(60, 80))
    for write, stored in (("all", 20), ("none", 0)):
        subject, sinks = toy_engine(block_size=4), [Sums(), Sums()]
        for sink in sinks:
            one = replace(embedding(tokens), directive=Directive(write=write))
            subject.submit(one, sink)
            while subject.step():
                pass
            assert sink.usage is not None
            assert (sink.usage.cached_tokens, sink.usage.computed_prompt_tokens) == (0, 20)
        assert sinks[0].usage is not None
        assert sinks[0].usage.stored_tokens == stored
        assert sinks[0].pooled == sinks[1].pooled == (toy_sum(tokens),)


def test_a_fault_of_one_embedding_is_its_own() -> None:
    model = ToyModel()
    subject, bad, good = toy_engine(model), Sums(), Sums()

    def fault(token_ids: list[int]) -> None:
        if 77 in token_ids:
            raise FloatingPointError("hidden states are not finite")

    model.faults.forward = fault
    subject.submit(embedding([1, 77]), bad)
    subject.submit(embedding([1, 2, 3]), good)
    while subject.step():
        pass
    assert bad.error is not None
    assert good.pooled == (toy_sum([1, 2, 3]),)


def test_a_unit_vector_is_the_direction_of_the_sum() -> None:
    vector = unit_vector([3 * 2**60, -4 * 2**60])
    assert vector.tolist() == pytest.approx([0.6, -0.8], abs=1e-7)
    assert math.hypot(*unit_vector(range(1, 4000))) == pytest.approx(1.0, abs=1e-6)
    assert unit_vector([0, 0]).tolist() == [0.0, 0.0]
