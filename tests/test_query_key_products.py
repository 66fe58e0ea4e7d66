"""The article's count: query-key products per token, 1, 3, 6 without and 1, 2, 3 with the cache.

Counted where they happen: an Ops whose attention adds up what its rows see (last - first + 1 slots
per row and segment), in the engine itself. One head, one layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kveik.config import EngineConfig
from kveik.engine.engine import Engine
from kveik.engine.parts import EngineParts
from kveik.engine.request import Request, SamplingParams
from kveik.engine.tokenizer import Tokenizer
from kveik.kernels.ops import GroupBatch, Ops
from kveik.kernels.reference import reference_ops
from kveik.models import load_model


def counting(ops: Ops, counts: list[int]) -> Ops:
    """ops whose attention in layer 0 appends the number of query-key pairs of the step."""

    def paged_attention(q: Any, arena: Any, layer: int, group: GroupBatch, spec: Any) -> Any:
        if layer == 0:
            windows = ops.download(group.windows)
            counts.append(sum(max(0, last - first + 1) for _, first, last in windows))
        return ops.paged_attention(q, arena, layer, group, spec)

    return replace(ops, paged_attention=paged_attention)


@pytest.mark.parametrize(("use_cache", "expected"), [(True, [1, 2, 3]), (False, [1, 3, 6])])
def test_products_per_token(
    use_cache: bool, expected: list[int], tiny_folder: Callable[..., Path]
) -> None:
    counts: list[int] = []
    ops, folder = counting(reference_ops(), counts), tiny_folder()
    model = load_model(str(folder), ops, block_size=16).model
    engine = Engine(EngineParts(model, ops, Tokenizer.from_folder(folder), EngineConfig()))
    params = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True, use_cache=use_cache)
    engine.submit(Request((5,), params), lambda event: None)
    while engine.step():
        pass
    assert counts == expected
