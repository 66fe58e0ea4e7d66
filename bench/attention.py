"""Attention over segments and blocks: what shifted segments, sinks and paging cost.

Three questions, on random weights of the 1.1B shape and the native kernels. Sides take turns; a
figure is the median of the ratios of the rounds.

    modules   64 new rows behind 5120 cached tokens in eight segments, each seen at another place
              than it was computed for (what prompt modules need), against one segment of that
              length; and against computing all of it cold, in steps of 1024 tokens
    stream    a token of an endless stream: 4 sinks and the last 1020 tokens, two segments, while
              the window moves on; against a plain token behind 1023
    paging    blocks of 16 scattered over the pool against contiguous memory, contexts 64 .. 8192,
              for one row and for the last 64 rows

"step" is the whole one, from a StepPlan to a token (engine/runner.py: layout, every layer, the
head, sampling). "attention" is the attention of every layer and nothing else, as one native call.

Contiguous memory is what is quickest of three: blocks of 16 in a row (keys and values lie in tile
order without a gap), blocks of 256 in a row (a split of the kernel is one piece of memory), one
block as long as the context (keys of one dimension side by side over the whole context).

Usage: python bench/attention.py [--quick]
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from random_model import Model, attention_of, checkpoints, decoder, fill, filled, kv_spec
from report import Report, arguments
from rounds import interleaved

from kveik.cache.segments import BlockTable, KvGroup, Segment
from kveik.cache.window import span_view
from kveik.engine.plan import SamplingPlan, SequencePlan, StepPlan
from kveik.engine.runner import Runner
from kveik.kernels.extension import native_extension
from kveik.kernels.ops import Arena, Batch, GroupBatch, Ops
from kveik.store.arena import KvStore

BLOCK = 16
CHUNK = 1024  # tokens of a step of a cold prefill, as the engine's default has it
FRESH = 64

# Modules end where their text ends, in the middle of a block. All were computed behind the same
# first tokens of a template, so they have one home and eight shifts.
MODULES = (601, 655, 640, 577, 703, 650, 622, 672)
HOME = 48

SINKS, WINDOW = 4, 1020  # with the query's own token
STREAM_STEPS = 16  # different places of the window on the grid of 256, one after the other
STREAM_START, STREAM_STRIDE = 3067, 17

CONTEXTS = (64, 256, 1024, 4096, 8192)
POOL = 16384  # tokens over which the blocks of a sequence are scattered
SPLIT = 256  # slots that the kernel takes at once


# ---- block tables -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """Rows first .. first + count of a sequence with this table."""

    table: BlockTable
    first: int
    count: int


def blocks_for(tokens: int, size: int = BLOCK) -> int:
    return -(-tokens // size)


def plain(first: int, count: int, blocks: Sequence[int]) -> Span:
    """An ordinary sequence: one segment, in its place."""
    return Span((Segment(tuple(blocks), 0, 0, first, 0),), first, count)


def modules(pool: Sequence[int]) -> Span:
    """FRESH rows behind MODULES, each in blocks of its own; the rows' own blocks come last."""
    free, table, seen = iter(pool), [], 0
    for length in MODULES:
        table.append(Segment(take(free, blocks_for(length)), HOME, 0, length, seen - HOME))
        seen += length
    table.append(Segment(take(free, blocks_for(FRESH)), seen, 0, 0, 0))
    return Span(tuple(table), seen, FRESH)


def stream(position: int, pool: Sequence[int]) -> Span:
    """The token at `position` of a stream: the sinks move along, the window stays where it is."""
    start = position - WINDOW + 1
    skip = start % BLOCK
    free = iter(pool)
    sinks = Segment(take(free, 1), 0, 0, SINKS, start - SINKS)
    window = Segment(take(free, blocks_for(skip + WINDOW)), start - skip, skip, WINDOW - 1, 0)
    return Span((sinks, window), position, 1)


def take(free: Iterator[int], count: int) -> tuple[int, ...]:
    return tuple(itertools.islice(free, count))


def attended(span: Span, group: KvGroup, block_size: int = BLOCK) -> list[int]:
    """Tokens that each row of the span sees."""
    view = span_view(group, span.table, span.first, span.count, block_size)
    windows = np.array(view.windows).reshape(span.count, -1, 3)
    return [int(n) for n in np.maximum(windows[:, :, 2] - windows[:, :, 1] + 1, 0).sum(axis=1)]


# ---- what is timed ------------------------------------------------------------------------------


class Steps:
    """Whole steps of the model over a pool of `tokens` tokens."""

    def __init__(self, model: Model, ops: Ops, tokens: int) -> None:
        spec = kv_spec(model.architecture, blocks_for(tokens), BLOCK, ops)
        store = KvStore(ops, (spec,))
        (self.arena,) = store.arenas
        fill(ops, self.arena, spec)
        self._runner = Runner(model.network, ops, store, BLOCK)
        self.pool = scattered(spec.num_blocks)

    def step(self, span: Span, *, sample: bool = True) -> Callable[[], None]:
        """Computes the span's rows and draws a token behind the last."""
        draws = (SamplingPlan(seed=0, choice=0, position=span.first + span.count, temperature=0.0),)
        ids = tuple(3 + (7 * row) % 1000 for row in range(span.count))
        one = SequencePlan(
            0, ((span.first, span.count),), ids, (span.table,), draws if sample else ()
        )

        def run() -> None:
            (result,) = self._runner.run(StepPlan(0, (one,))).sequences
            if result.error is not None:
                raise RuntimeError(result.error)

        return run

    def cold(self, tokens: int) -> Callable[[], None]:
        """The prompt of so many tokens in steps of CHUNK."""
        blocks = self.pool[: blocks_for(tokens)]
        starts = range(0, tokens, CHUNK)
        spans = [plain(start, min(CHUNK, tokens - start), blocks) for start in starts]
        steps = [self.step(span, sample=span is spans[-1]) for span in spans]

        def run() -> None:
            for step in steps:
                step()

        return run


class Alone:
    """The attention of every layer, one native call."""

    def __init__(self, model: Model, ops: Ops) -> None:
        self._ops = ops
        (self._group,) = model.network.groups
        self._forward = ops.capture(model.network.forward, 0)

    def call(self, arena: Arena, span: Span, block_size: int = BLOCK) -> Callable[[], None]:
        batch = self._batch(span, block_size)
        return lambda: self._forward(batch, [arena])

    def _batch(self, span: Span, block_size: int) -> Batch:
        upload = self._ops.upload
        view = span_view(self._group, span.table, span.first, span.count, block_size)
        blocks: list[int] = []
        segments: list[int] = []
        for segment in span.table:
            segments += (len(blocks), len(segment.blocks), segment.home)
            blocks += segment.blocks
        group = GroupBatch(
            slots=upload(view.slots, (span.count,)),
            key_positions=upload(view.key_positions, (span.count,)),
            spans=upload([0, span.count, 0, len(span.table)], (1, 4)),
            segments=upload(segments, (len(span.table), 3)),
            blocks=upload(blocks, (len(blocks),)),
            windows=upload(view.windows, (span.count * len(span.table), 3)),
            block_size=block_size,
        )
        rows = upload(range(span.count), (span.count,))
        return Batch(rows, rows, upload([], (0,)), (group,))


def in_turn(calls: Sequence[Callable[[], None]]) -> Callable[[], None]:
    """The next of the calls each time, round and round."""
    following = itertools.cycle(calls)
    return lambda: next(following)()


def scattered(blocks: int) -> tuple[int, ...]:
    """Every block of a pool, in an order without any order."""
    return tuple(int(block) for block in np.random.default_rng(2).permutation(blocks))


# ---- the three questions ------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """What all of them need. config: the shape, as in checkpoints.SHAPES."""

    report: Report
    ops: Ops
    config: dict[str, Any]
    rounds: int

    def compare_modules(self, steps: Steps, alone: Alone, arena: Arena) -> None:
        cached = sum(MODULES)
        one = plain(cached, FRESH, steps.pool[: blocks_for(cached + FRESH)])
        spans = {"eight": modules(steps.pool), "one": one}
        name = f"{FRESH} rows behind {cached} tokens, eight shifted segments / one"
        sides = {key: steps.step(span) for key, span in spans.items()}
        self._compare(f"{name}: step", sides, 1.15)
        sides = {key: alone.call(arena, span) for key, span in spans.items()}
        self._compare(f"{name}: attention", sides)
        self._compare_cold(steps, spans["eight"])

    def _compare_cold(self, steps: Steps, span: Span) -> None:
        tokens = span.first + span.count
        sides = {"cold": steps.cold(tokens), "eight": steps.step(span)}
        found = interleaved(sides, max(1, self.rounds // 5))
        self.report.rounds(
            f"{tokens} tokens cold / {FRESH} of them behind eight segments: step",
            found["cold"],
            found["eight"],
            published="Prompt Cache: 20 to 70 on CPUs",
        )

    def compare_stream(self, steps: Steps, alone: Alone, arena: Arena) -> None:
        tokens = SINKS + WINDOW
        places = [STREAM_START + STREAM_STRIDE * n for n in range(STREAM_STEPS)]
        spans = {
            "two": [stream(place, steps.pool) for place in places],
            "one": [plain(tokens - 1, 1, steps.pool[: blocks_for(tokens)])],
        }
        name = f"a token behind {SINKS} sinks + {WINDOW - 1} in two segments / {tokens - 1} in one"
        sides = {key: in_turn([steps.step(s) for s in those]) for key, those in spans.items()}
        self._compare(f"{name}: step", sides, 1.05)
        sides = {
            key: in_turn([alone.call(arena, s) for s in those]) for key, those in spans.items()
        }
        self._compare(f"{name}: attention", sides)

    def compare_paging(self, alone: Alone, model: Model, contexts: Sequence[int]) -> None:
        pool = kv_spec(model.architecture, blocks_for(POOL), BLOCK, self.ops)
        split = kv_spec(model.architecture, blocks_for(max(contexts), SPLIT), SPLIT, self.ops)
        arenas = {BLOCK: filled(self.ops, pool), SPLIT: filled(self.ops, split)}
        for context in contexts:
            one = kv_spec(model.architecture, 1, context, self.ops)
            whole = filled(self.ops, one)
            for rows in (1, FRESH):
                sides = self._layouts(alone, arenas, whole, context, rows)
                found = interleaved(sides, self.rounds)
                self._report_paging(context, rows, found)

    def _layouts(
        self, alone: Alone, arenas: dict[int, Arena], whole: Arena, context: int, rows: int
    ) -> dict[str, Callable[[], None]]:
        def call(arena: Arena, blocks: Sequence[int], size: int) -> Callable[[], None]:
            return alone.call(arena, plain(context - rows, rows, blocks), size)

        count = blocks_for(context)
        return {
            "paged": call(arenas[BLOCK], scattered(POOL // BLOCK)[:count], BLOCK),
            "blocks of 16 in a row": call(arenas[BLOCK], range(count), BLOCK),
            "blocks of 256 in a row": call(arenas[SPLIT], range(blocks_for(context, SPLIT)), SPLIT),
            "one block": call(whole, [0], context),
        }

    def _report_paging(self, context: int, rows: int, found: dict[str, list[float]]) -> None:
        medians = {name: statistics.median(times) for name, times in found.items()}
        best = min((name for name in medians if name != "paged"), key=medians.__getitem__)
        what = "one row" if rows == 1 else f"{rows} rows"
        self.report.rounds(
            f"{what}, context {context}: paged / contiguous attention",
            found["paged"],
            found[best],
            bar=1.05,
            sense="<=",
            contiguous=best,
            milliseconds={name: 1e3 * median for name, median in medians.items()},
        )

    def _compare(
        self, name: str, sides: dict[str, Callable[[], None]], bar: float | None = None
    ) -> None:
        """The first side against the second."""
        ours, other = interleaved(sides, self.rounds).values()
        self.report.rounds(name, ours, other, bar=bar, sense="<=")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shape", choices=sorted(checkpoints.SHAPES), help="default: 1.1b")
    options = parser.parse_args()
    report = Report("attention")
    module, missing = native_extension()
    if module is None:
        report.note(f"nothing was measured: native kernels {missing}")
    else:
        measure(report, options.shape, options.quick)
    report.finish()


def measure(report: Report, shape: str | None, quick: bool) -> None:
    from kveik.kernels.native import native_ops  # only where the extension is

    shape = shape or ("160m" if quick else "1.1b")
    config = checkpoints.SHAPES[shape] | ({"num_hidden_layers": 4} if quick else {})
    bench = Bench(report, native_ops(), config, 3 if quick else 15)
    report.note(
        f"{shape} shape, {config['num_hidden_layers']} layers, random bfloat16 weights; native "
        f"kernels, {bench.ops.level}; blocks of {BLOCK}. Both sides of a ratio are seconds."
    )
    model = attention_of(config, bench.ops, BLOCK)
    alone = Alone(model, bench.ops)
    run_segments(bench, alone)
    bench.compare_paging(alone, model, CONTEXTS[1:3] if quick else CONTEXTS)


def run_segments(bench: Bench, alone: Alone) -> None:
    """Modules and streams share one pool; it and the weights are given back before paging."""
    model = decoder(bench.config, bench.ops, BLOCK)
    tokens = 2 * (sum(MODULES) + FRESH)
    steps = Steps(model, bench.ops, tokens)
    bench.compare_modules(steps, alone, steps.arena)
    bench.compare_stream(steps, alone, steps.arena)


if __name__ == "__main__":
    main()
