"""The reference kernels alone: milliseconds per op and step at the embedded model's shape.

Decode at batch 1 (three context lengths) and 16, and prefill of 512 rows, on random weights. An
op's figure is the sum over all its calls in one step (median of steps); each step also has its
total. No scheduler, no tokenizer: what is left to tokens/s is the engine's own time.

Usage: python bench/kernels.py [--quick]
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from report import Report, arguments

from kveik.kernels.ops import AttentionSpec, GroupBatch, KvSpec, Ops, RopeSpec, SampleRow
from kveik.kernels.reference import reference_ops

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCABULARY = 6, 256, 4, 2, 64, 768, 4096
BLOCK = 16
EPSILON = 1e-5
STEPS = (  # name, sequences, tokens in the cache, new rows per sequence, repetitions
    ("decode b=1, context 64", 1, 64, 1, 200),
    ("decode b=1, context 512", 1, 512, 1, 200),
    ("decode b=1, context 1000", 1, 1000, 1, 200),
    ("decode b=16, context 600", 16, 600, 1, 50),
    ("prefill 512 rows", 1, 0, 512, 7),
    ("prefill 512 rows behind 512", 1, 512, 512, 7),
)


@dataclass
class Stopwatch:
    """Runs ops and adds up their seconds by name, step after step."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    step: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def run(self, name: str, op: Callable[..., Any], *args: Any) -> Any:
        start = time.perf_counter()
        result = op(*args)
        self.step[name] += time.perf_counter() - start
        return result

    def close_step(self, total: float) -> None:
        for name, value in {**self.step, "whole step": total}.items():
            self.seconds[name].append(value)
        self.step.clear()


class Decoder:
    """A Llama-shaped decoder of random weights, written as timed op calls."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops
        generator = np.random.default_rng(0)

        def pack(kind: str, *shape: int) -> Any:
            values = 0.05 * generator.standard_normal(shape, dtype=np.float32)
            return ops.pack_weight(values, kind, None)  # type: ignore[arg-type]

        outputs = {
            "q": (HEADS * HEAD_DIM, HIDDEN),
            "k": (KV_HEADS * HEAD_DIM, HIDDEN),
            "v": (KV_HEADS * HEAD_DIM, HIDDEN),
            "o": (HIDDEN, HEADS * HEAD_DIM),
            "gate": (INNER, HIDDEN),
            "up": (INNER, HIDDEN),
            "down": (HIDDEN, INNER),
        }
        self._layers = [{n: pack("linear", *s) for n, s in outputs.items()} for _ in range(LAYERS)]
        self._norm = pack("vector", HIDDEN)
        self._table = pack("embedding", VOCABULARY, HIDDEN)
        self._head = pack("linear", VOCABULARY, HIDDEN)
        self._arena = ops.allocate_kv(KvSpec(LAYERS, 16 * 80, BLOCK, KV_HEADS, HEAD_DIM))
        half = HEAD_DIM // 2
        rope = RopeSpec(tuple(10000.0 ** (-i / half) for i in range(half)))
        self._spec = AttentionSpec(HEADS, KV_HEADS, HEAD_DIM, HEAD_DIM**-0.5, rope)

    def step(self, watch: Stopwatch, sequences: int, cached: int, rows: int) -> None:
        ops, run = self._ops, watch.run
        batch = metadata(sequences, cached, rows)
        start = time.perf_counter()
        ids = np.arange(sequences * rows) % VOCABULARY
        x, stream = run("embed", ops.embed, self._table, ids), None
        for index, weights in enumerate(self._layers):
            h, stream = run("rms_norm", ops.rms_norm, x, self._norm, None, EPSILON, stream)
            q, k, v = (run("linear", ops.linear, h, weights[name], None) for name in "qkv")
            where = (self._arena, index, batch, self._spec)
            run("rope_write_kv", ops.rope_write_kv, k, v, *where)
            x = run("paged_attention", ops.paged_attention, q, *where)
            x = run("linear", ops.linear, x, weights["o"], None)
            h, stream = run("rms_norm", ops.rms_norm, x, self._norm, None, EPSILON, stream)
            gate, up = (run("linear", ops.linear, h, weights[n], None) for n in ("gate", "up"))
            x = run("silu_mul", ops.silu_mul, gate, up)
            x = run("linear", ops.linear, x, weights["down"], None)
        h, _ = run("rms_norm", ops.rms_norm, x, self._norm, None, EPSILON, stream)
        last = np.arange(sequences) * rows + rows - 1
        logits = run("logits", ops.logits, run("take_rows", ops.take_rows, h, last), self._head)
        draws = [SampleRow(row, 0.5, 0.8, top_p=0.95) for row in range(sequences)]
        run("sample (T=0.8, top_p=0.95)", ops.sample, logits, draws)
        watch.close_step(time.perf_counter() - start)


def metadata(sequences: int, cached: int, rows: int) -> GroupBatch:
    """Each sequence in its own scattered blocks, its last `rows` tokens new."""
    count = -(-(cached + rows) // BLOCK)
    positions = np.arange(cached, cached + rows)
    blocks = np.random.default_rng(1).permutation(sequences * count).reshape(sequences, count)
    windows = np.stack((positions, np.zeros(rows, np.int64), positions), axis=1)
    numbers = range(sequences)
    return GroupBatch(
        slots=(blocks[:, positions // BLOCK] * BLOCK + positions % BLOCK).reshape(-1),
        key_positions=np.tile(positions, sequences),
        spans=np.array([(n * rows, rows, n, 1) for n in numbers]),
        segments=np.array([(n * count, count, 0) for n in numbers]),
        blocks=blocks.reshape(-1),
        windows=np.tile(windows, (sequences, 1)),
        block_size=BLOCK,
    )


def main() -> None:
    quick = arguments(__doc__).parse_args().quick
    report = Report("kernels")
    ops = reference_ops()
    decoder = Decoder(ops)
    for name, sequences, cached, rows, repetitions in STEPS:
        decoder.step(Stopwatch(), sequences, cached, rows)
        watch = Stopwatch()
        for _ in range(3 if quick else repetitions):
            decoder.step(watch, sequences, cached, rows)
        for op, seconds in watch.seconds.items():
            report.figure(f"{name}: {op}", 1e3 * statistics.median(seconds), "ms")
    report.note(f"{ops.name} {ops.level}, numerics {ops.numerics_version}")
    report.note(f"{LAYERS} layers, hidden {HIDDEN}, {HEADS}/{KV_HEADS} heads of {HEAD_DIM}")
    report.finish()


if __name__ == "__main__":
    main()
