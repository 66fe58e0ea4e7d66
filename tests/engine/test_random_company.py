"""Two hundred prompts in random company: each has the bits that it has alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grid
import pytest
from grid import engine, prompt, request, run

from kveik.kernels.extension import native_extension

PROMPTS = 200


def asked(rng: random.Random) -> list[dict[str, Any]]:
    """Prompts of 5 to 150 tokens; two in three begin with one of four heads."""
    heads = [prompt(length, seed=1000 + length) for length in (16, 37, 64, 90)]
    drawn = []
    for number in range(PROMPTS):
        head = rng.choice(heads) if rng.random() < 2 / 3 else []
        tokens = [*head, *prompt(rng.randrange(5, 60), seed=number)]
        drawn.append({"prompt": tokens, "max_tokens": rng.randrange(1, 9), "seed": number})
    return drawn


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_company_leaves_no_trace(weights: str, tiny_folder: Callable[..., Path]) -> None:
    if native_extension().module is None:
        pytest.skip(native_extension().missing)
    parts = grid.parts_of(str(tiny_folder()), weights=weights)
    rng = random.Random(7)
    requests = [request(**fields) for fields in asked(rng)]
    alone = [run(engine(parts), [one])[0] for one in requests]
    order = list(range(PROMPTS))
    rng.shuffle(order)
    crowded = engine(parts, blocks=180, max_num_seqs=24, max_num_batched_tokens=100)
    together = run(crowded, [requests[number] for number in order], apart=1)
    for number, found in zip(order, together, strict=True):
        assert found.chosen == alone[number].chosen, number
    stats = crowded.stats()
    assert stats.cache.hit_tokens > 0
