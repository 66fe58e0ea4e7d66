"""The kernels alone: the reference's ops of a step, and the native kernels against them, op by op.

    steps   milliseconds per op and step of the reference at the embedded model's shape: decode at
            batch 1 (three context lengths) and 16, prefill of 512 rows. An op's figure is the sum
            over all its calls in one step (median of steps); each step also has its total
    ops     the native kernels at the 1.1B shape, for 1, 16 and 1024 rows and every way of keeping
            weights, beside the reference on the same op and rows: GB/s of weights where rows are
            few (attention: of keys and values), TFLOP/s where they are many, else microseconds.
            Weights of few rows come from memory (kernel_chains.py)

Random weights, no scheduler, no tokenizer: what is left to tokens/s is the engine's own time.

Usage: python bench/kernels.py [--quick] [--kernels LEVEL]
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from kernel_chains import OTHERS, PRODUCTS, Chain, Other, Product, batch, product_chain
from report import Report, arguments
from rounds import interleaved

from kveik.kernels.extension import native_extension
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
ROWS = (1, 16, 1024)
BLAS_SPINS = 0.3  # seconds, more than its threads do
WIDTHS: tuple[Literal["bf16", "int8", "int4"], ...] = ("bf16", "int8", "int4")


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


def measure_steps(report: Report, quick: bool) -> None:
    """The reference, op by op, at the embedded model's shape."""
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


class NativeOps:
    """The native kernels of one level beside the reference."""

    def __init__(self, report: Report, level: str | None, quick: bool) -> None:
        from kveik.kernels.native import native_ops  # only where the extension is

        self._report, self._quick = report, quick
        self._reference = reference_ops()
        self._native: dict[str, Ops] = {width: native_ops(level, None, width) for width in WIDTHS}
        level = self._native["bf16"].level
        self._level = level.partition(",")[0]
        report.note(
            f"The 1.1B shape: native kernels, {level}, beside the reference in float32; both sides "
            "are milliseconds."
        )

    def measure(self) -> None:
        for rows in ROWS:
            for product in PRODUCTS[-2:] if self._quick else PRODUCTS:
                if rows <= product.most_rows:
                    self._products(product, rows)
            for other in OTHERS:
                if rows <= other.most_rows:
                    self._other(other, rows)

    def _products(self, product: Product, rows: int) -> None:
        chains = {w: product_chain(product, self._native[w], rows) for w in product.widths}
        found = self._seconds(chains, product_chain(product, self._reference, rows), rows)
        for width in product.widths:
            self._figure(f"{product.name}, {width}", rows, chains[width], found, width)

    def _other(self, other: Other, rows: int) -> None:
        chains = {"bf16": other.make(self._native["bf16"], rows)}
        found = self._seconds(chains, other.make(self._reference, rows), rows)
        self._figure(other.name, rows, chains["bf16"], found, "bf16")

    def _seconds(self, native: dict[str, Chain], reference: Chain, rows: int) -> dict[str, float]:
        """Of one link of each chain: the median of the rounds. The native ones take turns; then
        the reference, alone: the threads of a BLAS spin for a while when they have finished."""
        found = self._medians(native, rows) | self._medians({"reference": reference}, rows)
        time.sleep(BLAS_SPINS)
        return found

    def _medians(self, chains: dict[str, Chain], rows: int) -> dict[str, float]:
        def call(name: str, chain: Chain) -> Callable[[], object]:
            ops = self._reference if name == "reference" else self._native[name]
            one = batch(ops, rows, metadata)
            return lambda: chain.forward(one, [] if chain.arena is None else [chain.arena])

        sides = {name: call(name, chain) for name, chain in chains.items()}
        found = interleaved(sides, 2 if self._quick else 7, 0.005)
        return {
            name: statistics.median(times) / chains[name].times for name, times in found.items()
        }

    def _figure(
        self, name: str, rows: int, chain: Chain, found: dict[str, float], width: str
    ) -> None:
        """ours, other: milliseconds of the native kernels, of the reference."""
        value, unit = chain.rate(found[width], rows)
        ours, other = 1e3 * found[width], 1e3 * found["reference"]
        what = f"{self._level}, {rows} row{'s' * (rows > 1)}: {name}"
        self._report.figure(what, value, unit, ours=ours, other=other, faster=other / ours)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--kernels", metavar="LEVEL", help="of the native ones; default: the best")
    options = parser.parse_args()
    report = Report("kernels")
    measure_steps(report, options.quick)
    module, missing = native_extension()
    if module is None:
        report.note(f"no native kernels: {missing}")
    else:
        NativeOps(report, options.kernels, options.quick).measure()
    report.finish()


if __name__ == "__main__":
    main()
