"""Python and scheduling alone: a step of a model that costs nothing, split into its parts.

The engine, scheduler, cache manager, runner and tokenizer are the real ones; the forward pass
returns what lies ready and sampling takes prepared tokens. So a step's time is what the engine adds
to that of the kernels.

    plan     inbox, deadlines, StepPlan            run      batch layout, sampling rows, results
    apply    tokens accepted, blocks published     deliver  texts and sinks (a server makes them
                                                            on another thread)

Time per step is the mean over whole blocks of tokens (what happens at the end of a block is in
it), the best of several runs; each sequence has a prompt of its own, so nothing is shared.

Usage: python bench/overheads.py [--quick]
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from report import Report, arguments

from kveik.cache.segments import KvGroup
from kveik.config import DEFAULT_MODEL_PATH, EngineConfig
from kveik.engine.engine import Engine
from kveik.engine.parts import EngineParts
from kveik.engine.request import Event, PromptReady, Request, SamplingParams
from kveik.engine.tokenizer import Tokenizer
from kveik.kernels.ops import Batch, Ops, Sampled, SampleRow

BLOCK = 16
BARS = {1: 1.0, 16: 3.0}  # sequences -> milliseconds per step
CONTEXTS = (100, 2000, 8000)
SEQUENCES = (1, 4, 16, 64)
TEXT = "Once upon a time a small miller lived beside a river, and every morning he said: good day! "


@dataclass
class FreeModel:
    """Costs `work()` per step, and nothing by default."""

    vocab_size: int
    work: Callable[[], None] = lambda: None
    groups: tuple[KvGroup, ...] = (KvGroup((0,), bytes_per_block=64),)
    num_kv_heads: int = 1
    head_dim: int = 1
    max_position: int = 16384
    can_shift: bool = True
    fingerprint: bytes = b"free"
    logits: object = field(default_factory=object)

    def forward(self, batch: Batch, arenas: Sequence[Any]) -> object:
        self.work()
        return self.logits

    hidden = forward


def free_ops(tokens: Sequence[int]) -> Ops:
    """Nothing is computed; sampling says `tokens`, one after another."""
    ready = [Sampled(token, 0.0, 0, ()) for token in tokens]
    steps = iter(range(1 << 60))

    def sample(logits: object, rows: Sequence[SampleRow]) -> list[Sampled]:
        now = next(steps)
        return [ready[(now + row.row) % len(ready)] for row in rows]

    table: dict[str, Any] = dict.fromkeys(field.name for field in fields(Ops))
    table |= {
        "name": "free",
        "level": "free (nothing is computed)",
        "numerics_version": "free",
        "allocate_kv": lambda spec: None,
        "upload": lambda values, shape: values,
        "download": lambda array: array,
        "sample": sample,
        "copy_blocks": lambda arena, moves: None,
        "erase_blocks": lambda arena, blocks: None,
        "capture": lambda forward, bucket: forward,
    }
    return Ops(**table)


def free_engine(work: Callable[[], None] = lambda: None) -> Engine:
    """An engine whose steps cost `work()` and what the engine itself costs; real tokenizer."""
    tokenizer = Tokenizer.from_folder(DEFAULT_MODEL_PATH)
    parts = EngineParts(
        model=FreeModel(tokenizer.vocab_size, work),
        ops=free_ops(tokenizer.encode(TEXT, add_special_tokens=False)),
        tokenizer=tokenizer,
        config=EngineConfig(block_size=BLOCK, max_num_seqs=SEQUENCES[-1]),
        end_ids=tokenizer.eos_token_ids,
        model_id="free",
        pool_blocks=(SEQUENCES[-1] * (CONTEXTS[-1] + 1024) // BLOCK,),
    )
    return Engine(parts)


class Stopwatch:
    """Adds up the seconds that calls of wrapped functions take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def wrap(self, owner: object, name: str, label: str) -> None:
        inner = getattr(owner, name)

        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            result = inner(*args)
            self.seconds[label] = self.seconds.get(label, 0.0) + time.perf_counter() - start
            return result

        setattr(owner, name, timed)


def steady(engine: Engine, sequences: int, context: int, generator: random.Random) -> None:
    """Step until `sequences` sequences decode behind `context` tokens each."""
    params = SamplingParams(max_tokens=4000, ignore_eos=True, temperature=0.8, top_p=0.95)
    vocabulary, ready = engine.info.vocab_size, 0

    def sink(event: Event) -> None:
        nonlocal ready
        ready += isinstance(event, PromptReady)

    for _ in range(sequences):
        prompt = tuple(generator.choices(range(8, vocabulary), k=context))
        engine.submit(Request(prompt, params), sink)
    while ready < sequences:
        engine.step()


def run_of(engine: Engine, watch: Stopwatch, steps: int) -> tuple[float, float, dict[str, float]]:
    """Mean and largest seconds of a step, and the parts of the mean."""
    watch.seconds.clear()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - start)
    parts = {name: seconds / steps for name, seconds in watch.seconds.items()}
    mean = sum(times) / steps
    parts["plan"] = mean - parts["run"] - parts["apply"] - parts["deliver"]
    return mean, max(times), parts


def measure(report: Report, sequences: int, context: int, steps: int, rounds: int) -> None:
    engine, watch = free_engine(), Stopwatch()
    steady(engine, sequences, context, random.Random(sequences + context))
    watch.wrap(engine._runner, "run", "run")
    watch.wrap(engine._scheduler, "apply", "apply")
    watch.wrap(engine._outbox, "send", "deliver")
    mean, largest, parts = min(run_of(engine, watch, steps) for _ in range(rounds))
    report.figure(
        f"step at b={sequences}, {context} tokens each",
        1e3 * mean,
        "ms",
        bar=BARS.get(sequences),
        sense="<=",
        largest_ms=1e3 * largest,
        parts_ms={name: 1e3 * seconds for name, seconds in parts.items()},
    )


def main() -> None:
    quick = arguments(__doc__).parse_args().quick
    report = Report("overheads")
    blocks, rounds = (2, 2) if quick else (8, 5)
    for sequences in SEQUENCES:
        for context in CONTEXTS:
            measure(report, sequences, context, blocks * BLOCK, rounds)
    report.note(
        "Temperature 0.8, top-p 0.95; sampling from logits belongs to the kernels. `plan` is "
        "what the other three parts leave of the step."
    )
    report.finish()


if __name__ == "__main__":
    main()
