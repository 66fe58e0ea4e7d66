"""The simulator equals the engine: a trace through a model finds what its replay finds.

Sequential, 16 made-up tokens for each block of the trace, one token of answer; nothing that is not
a whole block is equal."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_llama
from traffic import chats, trace_of

from kveik.config import EngineConfig
from kveik.engine.engine import Engine
from kveik.engine.request import Request, RequestFinished, SamplingParams
from kveik.lab.replay import replay
from kveik.lab.trace import Trace

REQUESTS, SIZE, BLOCKS = 500, 16, 160
SPECIAL = 3  # ids of the tokenizer that are no plain tokens


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16}
    folder = tmp_path_factory.mktemp("tiny")
    return tiny_llama(folder, vocab_size=4096, max_position_embeddings=2048, **shape, **heads)


def engine_hits(trace: Trace, engine: Engine, time: list[float]) -> list[int]:
    """Cached tokens of every request."""
    found = []
    for request in trace.requests:
        time[0] = request.seconds + 1.0
        prompt = tuple(SPECIAL + block for block in request.blocks for _ in range(SIZE))
        events: list[object] = []
        engine.submit(Request(prompt, SamplingParams(max_tokens=1)), events.append)
        while engine.step():
            pass
        ended = events[-1]
        assert isinstance(ended, RequestFinished)
        found.append(ended.usage.cached_tokens)
    return found


@pytest.mark.parametrize("policy", ["lru", "cost", "s3fifo", "arc", "reuse-time"])
def test_the_engine_hits_what_the_replay_hits_block_for_block(policy: str, model: Path) -> None:
    prompts = [request.blocks for request in chats(REQUESTS - 50).requests]
    trace = trace_of(*prompts[:250], *prompts[200:]).resized(SIZE)  # fifty prompts twice
    config = EngineConfig(model=str(model), policy=policy, kv_memory=BLOCKS * SIZE * 64)
    time = [0.0]
    engine = Engine.load(config, clock=lambda: time[0])
    assert engine.info.pool_blocks == (BLOCKS,)
    found = engine_hits(trace, engine, time)
    engine.check()
    played = replay(trace, policy, BLOCKS)
    assert played.played.found == found
    assert [hit // SIZE for hit in played.played.found] == [tokens // SIZE for tokens in found]
    assert played.played.evicted == engine.stats().cache.evicted_blocks > 500
    assert 0.1 < played.block_hit_rate < 0.9
