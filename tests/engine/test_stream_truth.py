"""Logits of a stream against an independent version in torch, at positions up to 4,000,000.

The truth is StreamingLLM as its authors wrote it: keys are cached before RoPE, and for every query
the keys of the cache are turned to the positions 0 .. n-1 that they have inside it (Xiao et al.
2023). It knows no position in the stream, so one truth serves all of them. Modules and rotary
angles are those of transformers; the attention is written here.

At position 1000 the stream really has that many tokens. To 100,000 and 4,000,000 it is moved: its
sinks are computed at 0, its next token at that position, as if all between had been forgotten
(`Moved`); everything from there on is computed like in any stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grid
import numpy as np
import pytest

from kveik.cache.segments import BlockTable, Segment
from kveik.cache.window import StreamWindow
from kveik.config import EngineConfig
from kveik.engine.engine import Engine
from kveik.engine.plan import SequencePlan
from kveik.kernels.extension import native_extension

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
SIZE = grid.BLOCK
ROPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "yarn": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
}


@dataclass(frozen=True, slots=True)
class Moved(StreamWindow):
    """A stream whose first token behind the sinks stands at position `far`."""

    far: int = 0

    def evicted(self, position: int) -> int:
        if position < self.far:
            return 0
        return max(position + 1 - self.size, self.far - self.sinks)


def naive_caches(window: StreamWindow, rows: int) -> list[list[int]]:
    cache: list[int] = []
    caches = []
    for token in range(rows):
        while len(cache) + 1 > window.size:
            del cache[window.sinks : window.sinks + window.evict]
        cache.append(token)
        caches.append(list(cache))
    return caches


def rotate(x: Any, cos: Any, sin: Any) -> Any:
    """x [..., D] in the half-split layout; cos and sin [..., D]."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def truth(folder: Path, ids: list[int], window: StreamWindow) -> np.ndarray:
    """Logits [len(ids), V] of a stream of these tokens, all rows of a layer at once."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    caches = naive_caches(window, len(ids))
    most = window.size
    members = torch.tensor([cache + [0] * (most - len(cache)) for cache in caches])  # [T, C]
    lengths = torch.tensor([len(cache) for cache in caches])
    there = torch.arange(most) < lengths[:, None]
    with torch.no_grad():
        x = model.model.embed_tokens(torch.tensor(ids))
        cos, sin = model.model.rotary_emb(x[None], torch.arange(most)[None])
        cos, sin = cos[0], sin[0]  # [C, D]
        for layer in model.model.layers:
            x = x + attend(layer.self_attn, layer.input_layernorm(x), members, there, cos, sin)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        logits = model.lm_head(model.model.norm(x))
    return np.asarray(logits.numpy())


def attend(block: Any, x: Any, members: Any, there: Any, cos: Any, sin: Any) -> Any:
    rows, width = len(x), block.head_dim
    q = block.q_proj(x).view(rows, -1, width)
    k = block.k_proj(x).view(rows, -1, width)
    v = block.v_proj(x).view(rows, -1, width)
    if hasattr(block, "q_norm"):
        q, k = block.q_norm(q), block.k_norm(k)
    own = there.sum(dim=1) - 1  # position of the query inside its cache
    q = rotate(q, cos[own][:, None], sin[own][:, None])
    keys = rotate(k[members], cos[None, :, None], sin[None, :, None])  # [T, C, KV, D]
    share = q.shape[1] // k.shape[1]
    keys, values = (one.repeat_interleave(share, dim=2) for one in (keys, v[members]))
    scores = torch.einsum("thd,tchd->thc", q, keys) * width**-0.5
    scores = scores.masked_fill(~there[:, None], float("-inf"))
    seen = torch.einsum("thc,tchd->thd", scores.softmax(dim=-1), values)
    return block.o_proj(seen.reshape(rows, -1))


class Driver:
    """A runner, a ring of blocks, and the logits of every row of a stream."""

    def __init__(self, folder: Path, kernels: str) -> None:
        config = EngineConfig(
            model=str(folder), block_size=SIZE, kernels=kernels, kv_dtype="float32", dtype="float32"
        )
        self.engine = Engine.load(replace(config, kv_memory=16 << 20))
        self.runner = self.engine._runner

    def logits(self, ids: list[int], start: int, window: StreamWindow) -> np.ndarray:
        """Rows of tokens at positions start .. start + len(ids)."""
        rows = len(ids)
        plan = SequencePlan(
            0,
            ((start, rows),),
            tuple(ids),
            (self.table(start, rows, window),),
            stream=window,
        )
        batch = self.runner._batch([plan], list(range(rows)))
        found = self.runner._forward(batch, self.runner._store.arenas)
        return np.array(np.asarray(found), dtype=np.float32)

    def table(self, start: int, rows: int, window: StreamWindow) -> BlockTable:
        """As a lease names it: block number n of the sequence is n in the ring; sinks lie apart."""
        sink_blocks = -(-window.sinks // SIZE)
        first = window.first_recent(start) // SIZE
        numbers = range(first, -(-(start + rows) // SIZE))
        ring = self.engine.info.pool_blocks[0] - 16
        blocks = tuple(n if n < sink_blocks else 16 + n % ring for n in numbers)
        gone = window.evicted(start)
        if not gone:
            return (Segment(blocks, 0, 0, start, 0),)
        skip = window.first_recent(start) - first * SIZE
        recent = Segment(blocks, first * SIZE, skip, start - first * SIZE - skip, 0)
        return Segment(tuple(range(sink_blocks)), 0, 0, window.sinks, gone), recent


def kernels_here() -> list[str]:
    return ["reference", *(["auto"] if native_extension().module is not None else [])]


@pytest.fixture(params=kernels_here())
def kernels(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("evict", [1, 12])
def test_a_stream_of_a_thousand_tokens_equals_the_truth(
    tiny_folder: Callable[..., Path], rope: str, evict: int, kernels: str
) -> None:
    folder = tiny_folder(**ROPES[rope])
    window, ids = StreamWindow(4, 28, evict), grid.prompt(1003, seed=3)
    expected = truth(folder, ids, window)
    driver, start = Driver(folder, kernels), 0
    for chunk in (1, 40, 200, 3, 700, 59):
        found = driver.logits(ids[start : start + chunk], start, window)
        assert np.abs(found - expected[start : start + chunk]).max() < TOLERANCE
        start += chunk
    assert start == len(ids)


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("far", [100_003, 4_000_000])
def test_a_stream_far_out_equals_the_truth(
    tiny_folder: Callable[..., Path], rope: str, far: int, kernels: str
) -> None:
    folder = tiny_folder(**ROPES[rope])
    window, ids = Moved(4, 28, far=far), grid.prompt(4 + 150, seed=4)
    expected = truth(folder, ids, StreamWindow(4, 28))
    driver = Driver(folder, kernels)
    sinks = driver.logits(ids[:4], 0, window)
    assert np.abs(sinks - expected[:4]).max() < TOLERANCE
    start = 4
    for chunk in (1, 1, 20, 7, 100, 21):
        found = driver.logits(ids[start : start + chunk], far + start - 4, window)
        assert np.abs(found - expected[start : start + chunk]).max() < TOLERANCE
        start += chunk
    assert start == len(ids)


def test_the_engine_computes_that_stream(tiny_folder: Callable[..., Path]) -> None:
    """Scheduler, cache and runner together, by the log-probabilities of a thousand tokens."""
    folder = tiny_folder()
    window, ids = StreamWindow(4, 28), grid.prompt(1003, seed=3)
    logits = truth(folder, ids, window).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    parts = grid.parts_of(str(folder), kernels="reference")
    one = replace(grid.request(ids, prompt_logprobs=0), stream=window)
    [outcome] = grid.run(grid.engine(parts), [one])
    assert outcome.prompt is not None
    for position, row in enumerate(outcome.prompt[1:]):
        assert row is not None
        assert abs(row.logprob - expected[position, ids[position + 1]]) < TOLERANCE
