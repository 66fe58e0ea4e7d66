"""Exact by construction: the same token ids and log-probabilities, bit for bit, however a request
was computed. Random tiny weights, one full group and full + window groups; the reference kernels
and every level of native ones that this machine has, every kind of weights and K/V.

Every comparison is against the request computed cold and alone in one chunk.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blas
import grid
import pytest
from grid import BLOCK, engine, prompt, request, run

from kveik.engine.parts import EngineParts
from kveik.kernels.extension import native_extension

CHECKPOINTS = {
    "llama": {},
    "two groups": {
        "model_type": "qwen3",
        "use_sliding_window": True,
        "sliding_window": 40,
        "max_window_layers": 1,
    },
}
PROMPT = prompt(75)
REFERENCE = {"kernels": "reference"}
SUBJECTS = {  # (checkpoint, configuration)
    "reference": ("llama", REFERENCE),
    "reference, two groups": ("two groups", REFERENCE),
    "reference, bfloat16 KV": ("llama", {**REFERENCE, "kv_dtype": "bfloat16"}),
    "native": ("llama", {}),
    "native, one thread": ("llama", {"threads": 1}),
    "native, two groups": ("two groups", {}),
    "native, float32 KV": ("llama", {"kv_dtype": "float32"}),
    "native, int8": ("two groups", {"weights": "int8"}),
    "native, int4": ("llama", {"weights": "int4"}),
    "avx512_bf16": ("llama", {"kernels": "avx512_bf16"}),
    "avx512": ("two groups", {"kernels": "avx512"}),
    "avx2": ("llama", {"kernels": "avx2"}),
    "portable": ("llama", {"kernels": "portable"}),
}


def available(config: dict[str, Any]) -> bool:
    """Whether this machine has the kernels; reference kernels are everywhere."""
    module = native_extension().module
    level = config.get("kernels", "auto")
    return level == "reference" or (
        module is not None and (level == "auto" or level in module.levels())
    )


@pytest.fixture(scope="module", params=SUBJECTS)
def parts(request: pytest.FixtureRequest, tiny_folder: Callable[..., Path]) -> EngineParts:
    checkpoint, config = SUBJECTS[request.param]
    if not available(config):
        pytest.skip("this machine does not have these kernels")
    loaded = grid.parts_of(str(tiny_folder(**CHECKPOINTS[checkpoint])), **config)
    assert loaded.ops.name == ("reference" if config.get("kernels") == "reference" else "native")
    assert len(loaded.model.groups) == (2 if checkpoint == "two groups" else 1)
    return loaded


@pytest.fixture(scope="module")
def cold(parts: EngineParts) -> grid.Run:
    [alone] = run(engine(parts), [request(PROMPT, max_tokens=12)])
    assert alone.usage is not None
    assert alone.usage.cached_tokens == 0
    assert len(alone.chosen[0]) == 12
    return alone


def test_cold_twice_is_equal_and_another_seed_is_not(parts: EngineParts, cold: grid.Run) -> None:
    """The control: a difference would show."""
    [again] = run(engine(parts), [request(PROMPT, max_tokens=12)])
    [other] = run(engine(parts), [request(PROMPT, max_tokens=12, seed=12)])
    assert again.chosen == cold.chosen
    assert other.chosen != cold.chosen


@pytest.mark.parametrize("budget", [16, 17, 31, 48, 64, 512])
def test_any_chunk_size(parts: EngineParts, cold: grid.Run, budget: int) -> None:
    [chunked] = run(engine(parts, max_num_batched_tokens=budget), [request(PROMPT, max_tokens=12)])
    assert chunked.chosen == cold.chosen


def test_without_cache_and_without_prefix_caching(parts: EngineParts, cold: grid.Run) -> None:
    subject = engine(parts)
    [uncached] = run(subject, [request(PROMPT, max_tokens=12, use_cache=False)])
    assert uncached.chosen == cold.chosen
    assert uncached.usage is not None
    assert uncached.usage.computed_prompt_tokens == 12 * len(PROMPT)
    [chunked] = run(
        engine(parts, max_num_batched_tokens=32),
        [request(PROMPT, max_tokens=12, use_cache=False)],
    )
    assert chunked.chosen == cold.chosen
    subject = engine(parts, enable_prefix_caching=False)
    for _ in range(2):
        [alone] = run(subject, [request(PROMPT, max_tokens=12)])
        assert alone.chosen == cold.chosen
        assert alone.usage is not None
        assert alone.usage.cached_tokens == 0


@pytest.mark.parametrize("others", [1, 3, 7, 15])
@pytest.mark.parametrize("apart", [0, 2])
def test_any_batch(parts: EngineParts, cold: grid.Run, others: int, apart: int) -> None:
    company = [request(prompt(5 + 13 * k % 90, seed=k), temperature=0.8) for k in range(others)]
    middle = others // 2
    requests = [*company[:middle], request(PROMPT, max_tokens=12), *company[middle:]]
    subject = engine(parts, max_num_batched_tokens=96)
    assert run(subject, requests, apart=apart)[middle].chosen == cold.chosen


def test_after_preemption(parts: EngineParts) -> None:
    """34-token prompts, 35 new, block 16, 7 blocks (LMCache issue 1969)."""
    requests = [request(prompt(34, seed), max_tokens=35) for seed in (1, 2)]
    alone = [run(engine(parts), [one])[0] for one in requests]
    crowded = engine(parts, blocks=7)
    together = run(crowded, requests)
    assert crowded.stats().preemptions > 0
    for one, other in zip(together, alone, strict=True):
        assert one.chosen == other.chosen


def test_warm_at_every_split(parts: EngineParts, cold: grid.Run) -> None:
    """A first request leaves the prompt's head cached, cut at every block boundary and +-1."""
    boundaries = range(BLOCK, len(PROMPT), BLOCK)
    for cut in sorted({b + d for b in boundaries for d in (-1, 0, 1)} | {1, len(PROMPT)}):
        subject = engine(parts)
        run(subject, [request(PROMPT[:cut], max_tokens=1)])
        [warm] = run(subject, [request(PROMPT, max_tokens=12)])
        assert warm.usage is not None
        assert warm.usage.cached_tokens == min(cut, len(PROMPT) - 1)
        assert warm.chosen == cold.chosen, f"cut at {cut}"
        stats = subject.stats().cache
        assert stats.hit_tokens == warm.usage.cached_tokens > 0


def test_warm_by_outputs_of_an_earlier_turn(parts: EngineParts, cold: grid.Run) -> None:
    """What one turn generated is the prompt of the next."""
    ids = [*PROMPT, *(chosen.token_id for chosen in cold.chosen[0]), *prompt(9, seed=5)]
    [fresh] = run(engine(parts), [request(ids)])
    subject = engine(parts)
    run(subject, [request(PROMPT, max_tokens=12)])
    [warm] = run(subject, [request(ids)])
    assert warm.usage is not None
    assert warm.usage.cached_tokens == len(PROMPT) + 11
    assert warm.chosen == fresh.chosen


def test_several_choices_equal_separate_requests(parts: EngineParts) -> None:
    [together] = run(engine(parts), [request(PROMPT, n=4)])
    for choice in range(4):
        [alone] = run(engine(parts), [request(PROMPT, first_choice=choice)])
        assert alone.chosen[0] == together.chosen[choice]
    assert len({str(chosen) for chosen in together.chosen}) == 4
    [crowded] = run(engine(parts, blocks=7), [request(PROMPT, n=4)])
    assert crowded.chosen == together.chosen


def test_followers_of_one_prefix(parts: EngineParts) -> None:
    requests = [request([*PROMPT, *prompt(5, seed=k)]) for k in range(4)]
    alone = [run(engine(parts), [one])[0] for one in requests]
    subject = engine(parts, max_num_batched_tokens=64)
    for one, other in zip(run(subject, requests), alone, strict=True):
        assert one.chosen == other.chosen
    assert subject.stats().cache.hit_tokens > 0


@pytest.mark.parametrize("budget", [16, 512])
def test_prompt_log_probabilities(parts: EngineParts, cold: grid.Run, budget: int) -> None:
    """Equal in chunks and over a warm cache, and they are the log-probabilities of generation."""
    [whole] = run(engine(parts), [request(PROMPT, prompt_logprobs=5, max_tokens=12)])
    assert whole.chosen == cold.chosen
    subject = engine(parts, max_num_batched_tokens=budget)
    run(subject, [request(PROMPT)])
    [warm] = run(subject, [request(PROMPT, prompt_logprobs=5, max_tokens=12)])
    assert warm.prompt == whole.prompt
    assert warm.chosen == cold.chosen
    ids = [*PROMPT, *(chosen.token_id for chosen in cold.chosen[0])]
    [scored] = run(subject, [request(ids, prompt_logprobs=5, max_tokens=1)])
    assert scored.prompt is not None
    assert list(scored.prompt[len(PROMPT) :]) == cold.chosen[0]


KERNELS = [(core, threads) for core in blas.NEEDS for threads in ("1", "2")]


@pytest.mark.parametrize(("core", "threads"), KERNELS)
def test_under_every_blas_kernel(core: str, threads: str, tiny_folder: Callable[..., Path]) -> None:
    """BLAS sums in another order per kernel, row count and thread count; the bits must not."""
    environment = {**os.environ, **blas.environment(core), "OPENBLAS_NUM_THREADS": threads}
    folder = tiny_folder(**CHECKPOINTS["two groups"])
    script = Path(grid.__file__)
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
