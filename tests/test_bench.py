"""The benchmarks' own arithmetic: what two sides share, who begins, how ratios are taken."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import attention
import cache_on_off
import kernel_chains
import random_model
import report
import rounds
import run_all
import streams
import table
from report import Report

from kveik.cache.segments import KvGroup
from kveik.kernels.ops import KvSpec
from kveik.kernels.reference import reference_ops
from kveik.models.architecture import read_architecture
from kveik.models.gpt2 import tensor_shapes

FULL = KvGroup((0,))
TINY = random_model.checkpoints.SHAPES["160m"] | {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 1100,
}


def tokens_of(span: attention.Span) -> int:
    return sum(segment.length for segment in span.table)


def blocks_of(span: attention.Span) -> list[int]:
    return [block for segment in span.table for block in segment.blocks]


def test_eight_modules_and_one_segment_attend_to_the_same_number_of_tokens() -> None:
    eight = attention.modules(range(400))
    cached = tokens_of(eight)
    one = attention.plain(cached, attention.FRESH, range(400))
    assert cached == 5120
    assert attention.attended(eight, FULL) == attention.attended(one, FULL)
    assert attention.attended(one, FULL)[0] == cached + 1
    *modules, fresh = eight.table
    assert len({segment.shift for segment in modules}) == len(modules) == 8
    assert all(segment.shift for segment in modules)
    assert all(a.seen_end == b.seen_start for a, b in itertools.pairwise(eight.table))
    assert (fresh.seen_start, fresh.shift) == (cached, 0)
    assert len(set(blocks_of(eight))) == len(blocks_of(eight))


@pytest.mark.parametrize("step", range(attention.STREAM_STEPS))
def test_a_stream_attends_to_as_many_tokens_as_plain_decoding(step: int) -> None:
    position = attention.STREAM_START + step * attention.STREAM_STRIDE
    span = attention.stream(position, range(100))
    plain = attention.plain(1023, 1, range(100))
    assert attention.attended(span, FULL) == attention.attended(plain, FULL) == [1024]
    sinks, window = span.table
    assert sinks.length == 4
    assert sinks.seen_end == window.seen_start
    assert window.seen_end == position
    assert len(set(blocks_of(span))) == len(blocks_of(span))


def test_a_stream_is_measured_all_over_the_grid_of_the_kernel() -> None:
    stride, steps = attention.STREAM_STRIDE, attention.STREAM_STEPS
    spans = [
        attention.stream(attention.STREAM_START + n * stride, range(100)) for n in range(steps)
    ]
    starts = {span.table[1].seen_start % 256 for span in spans}
    assert {start // 16 for start in starts} == {start % 16 for start in starts} == set(range(16))


def test_segments_and_paging_run_on_a_tiny_model() -> None:
    ops = reference_ops()
    steps = attention.Steps(random_model.decoder(TINY, ops, 16), ops, 5600)
    steps.step(attention.modules(steps.pool))()
    steps.step(attention.stream(3000, steps.pool))()
    alone = attention.Alone(random_model.attention_of(TINY, ops, 16), ops)
    alone.call(steps.arena, attention.modules(steps.pool))()
    bad = attention.plain(64, 1, [10**6] * 5)
    with pytest.raises(RuntimeError):
        steps.step(bad)()


def test_paged_memory_is_scattered_and_every_slot_is_written() -> None:
    blocks = attention.scattered(100)
    assert sorted(blocks) == list(range(100))
    assert sum(b - a == 1 for a, b in itertools.pairwise(blocks)) < 10
    ops = reference_ops()
    arena = random_model.filled(ops, KvSpec(2, 3, 16, 1, 32))
    assert all((np.asarray(plane) != 0).mean() > 0.99 for plane in (arena.keys, arena.values))


def test_sides_take_turns_and_another_one_begins_each_round() -> None:
    calls: list[str] = []
    sides = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    found = rounds.interleaved(sides, 3, shortest=0)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(times) for name, times in found.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_ratio_is_taken_in_each_round() -> None:
    report = Report("none")
    report.rounds("slow rounds cancel out", [2.0, 20.0, 4.0], [1.0, 10.0, 4.0], bar=1.5, sense="<=")
    (figure,) = report.figures
    assert (figure["value"], figure["holds"]) == (2.0, False)
    assert (figure["lower_quartile"], figure["upper_quartile"], figure["rounds"]) == (1.5, 2.0, 3)
    assert (figure["ours"], figure["other"]) == (4.0, 4.0)
    report.rounds("one round", [3.0], [2.0])
    assert report.figures[1]["value"] == 1.5


def test_paging_is_compared_with_the_quickest_contiguous_layout() -> None:
    report = Report("none")
    bench = attention.Bench(report, reference_ops(), TINY, 1)
    found = {"paged": [1.0, 1.0, 1.1], "one block": [2.0] * 3, "in a row": [1.0] * 3}
    bench._report_paging(64, 1, found)
    (figure,) = report.figures
    assert (figure["value"], figure["contiguous"], figure["holds"]) == (1.0, "in a row", True)


def test_both_doors_get_the_prompts_of_a_round_and_the_first_round_is_left_out() -> None:
    calls: list[tuple[str, int]] = []

    def door(name: str) -> Any:
        def ask(ids: Any) -> float:
            calls.append((name, ids))
            return float(ids)

        return ask

    found = streams.alternating(door("http"), door("offline"), [0, 1, 2])  # type: ignore[list-item]
    assert found == ([1.0, 2.0], [1.0, 2.0])
    assert [name for name, ids in calls if ids] == ["http", "offline", "offline", "http"]


@pytest.mark.parametrize(("shape", "parameters"), [("125m", 125198592), ("1.3b", 1315575808)])
def test_gpt_neo_has_the_size_of_the_published_one(
    shape: str, parameters: int, tmp_path: Path
) -> None:
    config = cache_on_off.config_of(shape)
    (tmp_path / "config.json").write_text(cache_on_off.json.dumps(config))
    shapes = tensor_shapes(read_architecture(tmp_path))
    assert sum(int(np.prod(one)) for one in shapes.values()) == parameters


def test_a_chain_applies_its_product_to_weights_of_its_own() -> None:
    ops = reference_ops()
    product = kernel_chains.Product("tiny", ((8, 8),), kernel_chains._one, width=8, chained=True)
    chain = kernel_chains.product_chain(product, ops, kernel_chains.MANY)
    assert chain.times == 2
    batch = kernel_chains.Batch(np.arange(3), np.arange(3), np.array([2]), ())
    first = ops.embed(kernel_chains._table(ops, kernel_chains.MANY, 8, 0), np.array([2]))
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((8, 8), dtype=np.float32) * np.float32(8**-0.5)
    expected = np.asarray(first) @ matrix.T @ matrix.T
    assert np.allclose(np.asarray(chain.forward(batch, [])), expected, atol=1e-5)


def test_what_the_benches_share_is_not_run_as_a_benchmark() -> None:
    paths = Path(run_all.__file__).parent.glob("*.py")
    shared = {path.stem for path in paths if "if __name__" not in path.read_text()}
    assert shared <= run_all.NOT_BENCHMARKS
    assert {"rounds", "random_model", "kernel_chains"} <= shared


def test_a_page_keeps_the_sections_that_were_not_measured_again() -> None:
    machine = {"cpu": "x", "cores": 2, "memory_gib": 1, "python": "3", "numpy": "2"}
    result = {
        "benchmark": "memory",
        "command": "python bench/memory.py",
        "commit": "new",
        "date": "today",
        "machine": machine | {"load_1min": 0},
        "figures": [],
        "notes": [],
    }
    before = "# Benchmarks\n\nold head\n\n## memory\n\nold\n\n## embedded\n\nkept\n"
    page = table.page(before, [result])
    assert page.startswith(table.HEAD.strip() + "\n\n## embedded\n\nkept\n\n## memory\n\n")
    assert "commit new" in page
    assert "\nold" not in page
    assert table.page(page, []) == page


def test_a_result_names_no_folder_of_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench/x.py", "--text", "/some/where/novel.txt", "--quick"])
    report.Report("x").finish(quiet=True)
    written = (tmp_path / "x.json").read_text()
    assert "novel.txt --quick" in written
    assert "/some/where" not in written
