"""The policy laboratory: does its simulator equal the engine, and what does a decision cost?

Equality: the first requests of a trace, one after the other, 16 made-up tokens for each of its
blocks, one token of answer, through the engine with a tiny random model; the same blocks must be
hits as in the replay, request by request, under every shipped policy. The pool is a tenth of the
blocks that these requests have, and never smaller than one of them.

Time: the thread's time in making room, divided by the blocks that went, over the whole trace:
everything that an eviction costs, the policy's part in it. Hit rates are printed beside it.

Without --trace: the made-up conversations of tests/lab/traffic.py.

Usage: python bench/policy_replay.py [--quick] [--trace FILE] [--blocks 4000]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from report import ROOT, Report, arguments

from kveik.cache.policy import SHIPPED
from kveik.config import EngineConfig
from kveik.engine.engine import Engine
from kveik.engine.request import Request, RequestFinished, SamplingParams
from kveik.lab.replay import replay
from kveik.lab.trace import Trace, read_trace

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests" / "lab"))
import tiny
import traffic

SIZE = 16  # tokens of a block
SPECIAL = 3  # ids of the tokenizer that are no plain tokens
BLOCK_BYTES = 2 * 2 * 16 * SIZE  # K and V, bfloat16, one head of 16


def made_model(folder: Path, trace: Trace) -> str:
    """A tiny model with a token for every block and room for the longest prompt."""
    blocks = max(max(request.blocks) for request in trace.requests) + 1
    longest = max(request.input_length for request in trace.requests)
    tiny.tiny_llama(
        folder,
        vocab_size=blocks + SPECIAL,
        max_position_embeddings=longest + SIZE,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
    )
    return str(folder)


def engine_finds(trace: Trace, model: str, policy: str, blocks: int) -> list[int]:
    """Prompt tokens that came from the cache, request by request."""
    now = [0.0]
    config = EngineConfig(model=model, policy=policy, kv_memory=blocks * BLOCK_BYTES)
    engine = Engine.load(config, clock=lambda: now[0])
    assert engine.info.pool_blocks == (blocks,), engine.info.pool_blocks
    found = []
    for request in trace.requests:
        now[0] = request.seconds + 1.0
        prompt = tuple(SPECIAL + block for block in request.blocks for _ in range(SIZE))
        events: list[object] = []
        engine.submit(Request(prompt, SamplingParams(max_tokens=1)), events.append)
        while engine.step():
            pass
        assert isinstance(events[-1], RequestFinished), events[-1]
        found.append(events[-1].usage.cached_tokens)
    return found


def equality(report: Report, trace: Trace) -> None:
    distinct = len({block for request in trace.requests for block in request.blocks})
    longest = max(len(request.blocks) for request in trace.requests)
    blocks = max(distinct // 10, longest)
    with tempfile.TemporaryDirectory() as folder:
        model = made_model(Path(folder), trace)
        for policy in SHIPPED:
            engine = engine_finds(trace, model, policy, blocks)
            played = replay(trace, policy, blocks)
            pairs = list(zip(engine, played.played.found, strict=True))
            report.figure(
                f"{policy}: requests whose hits differ from the engine's",
                sum(left != right for left, right in pairs),
                "requests",
                bar=0,
                sense="<=",
                requests=len(pairs),
                blocks=blocks,
                whole_blocks_of_the_engine=sum(left // SIZE for left, _ in pairs),
                whole_blocks_of_the_replay=sum(right // SIZE for _, right in pairs),
                prompt_blocks=trace.prompt_blocks,
            )


def decisions(report: Report, trace: Trace, blocks: int) -> None:
    for policy in SHIPPED:
        played = replay(trace, policy, blocks)
        report.figure(
            f"{policy}: time per eviction, {blocks:,} blocks of {trace.block_size}",
            played.eviction_us,
            "us",
            token_hit_rate=played.token_hit_rate,
            block_hit_rate=played.block_hit_rate,
            evicted=played.played.evicted,
        )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--trace", type=Path, help="of Mooncake, or written by --record")
    parser.add_argument("--blocks", type=int, default=4000)
    options = parser.parse_args()
    report = Report("policy_replay")
    trace = read_trace(options.trace) if options.trace else traffic.chats(20_000)
    equality(report, trace.first(50 if options.quick else 500).resized(SIZE))
    decisions(report, trace.first(500) if options.quick else trace, options.blocks)
    report.note(
        f"Policy replay: {trace.name}, {len(trace.requests):,} requests, "
        f"{trace.prompt_blocks:,} blocks of {trace.block_size} tokens."
    )
    report.finish()


if __name__ == "__main__":
    main()
