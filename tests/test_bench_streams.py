"""The benches of streams and modules: what they hand to the engine and how they read it."""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import joined
import modules
import modules_quality
import novel
import rows
import stream_long
import stream_quality
import watched

from kveik import LLM
from kveik.cache.window import StreamWindow
from kveik.kernels.reference import reference_ops

POOL = {"kv_memory": 8 * 2**20}
POOL_OF_WORDS = modules_quality.WordPool(
    ("harbour", "lantern", "garden", "river"), ("Helen", "Victor", "Agnes")
)


def text(count: int, seed: int = 0) -> list[int]:
    return [0, *random.Random(seed).choices(range(8, 4096), k=count - 1)]


@pytest.mark.parametrize("shape", [(4, 60), (0, 64), (2, 62, 16)])
def test_bare_rows_are_the_engine_s_stream(shape: tuple[int, ...]) -> None:
    window, ids = StreamWindow(*shape), text(300)
    found = rows.Rows(novel.EMBEDDED, len(ids)).losses(ids, rows.streaming(window))
    with LLM(**POOL) as llm:
        told = stream_quality.told(llm, ids, window)
    assert np.abs(found + told[:, 0]).max() < 1e-4


def test_original_positions_are_another_thing_only_where_there_are_sinks() -> None:
    ids = text(300)
    bare = rows.Rows(novel.EMBEDDED, len(ids))
    for sinks, equal in ((0, True), (4, False)):
        window = StreamWindow(sinks, 64 - sinks)
        ours = bare.losses(ids, rows.streaming(window))
        other = bare.losses(ids, rows.original_positions(window))
        assert np.array_equal(ours[:63], other[:63])
        assert np.array_equal(ours, other) == equal


def test_the_last_row_of_a_window_is_that_of_the_whole() -> None:
    ids = text(100)
    bare = rows.Rows(novel.EMBEDDED, len(ids))
    assert bare.last_loss(ids) == bare.losses(ids, rows.dense)[-1]


def test_a_watch_sees_what_the_engine_tells() -> None:
    ids = text(80)
    llm, watch = watched.watched(**POOL)
    joined.run(llm, joined.ordinary(ids))
    seen = watch.last(len(ids))
    llm.close()
    with LLM(**POOL) as plain:
        [told] = plain.score({"prompt_token_ids": ids})
    expected = [one for one in told.logprobs if one is not None]
    assert np.abs(seen[np.arange(79), ids[1:]] - expected).max() < 1e-4


def test_attention_mass_adds_up_and_is_the_kernel_s() -> None:
    mass = stream_quality.attention_mass(novel.EMBEDDED, [text(64), text(64, 1)])
    assert mass.shape == (6, 4, 64)
    assert np.allclose(mass.sum(-1), 1)
    assert mass[:, :, 0].max() > 0.1, "the sink that the model was trained with"


def test_queries_are_turned_as_the_kernel_turns_keys() -> None:
    """Scores of turned queries and the arena's keys depend on distances alone."""
    ops = reference_ops()
    bare = rows.Rows(novel.EMBEDDED, 32, ops)
    spec = bare.model.network.layers[0].attention  # type: ignore[attr-defined]
    x = np.random.default_rng(0).standard_normal((1, spec.num_heads, spec.head_dim))
    turned = stream_quality.turn(np.repeat(x, 12, 0), spec)
    scores = np.einsum("thd,shd->ts", turned, turned)
    assert scores[3, 1] == pytest.approx(scores[10, 8])
    assert np.allclose(turned[0], x[0])


def test_questions_of_a_record_stream_have_their_answers_behind_them() -> None:
    ids, asked = stream_quality.record_stream(random.Random(1), POOL_OF_WORDS, 60, 20)
    assert len(asked) == 5
    decode = novel.tokenizer_of(novel.EMBEDDED).decode
    for one in asked:
        line = decode(ids[one.start - one.reach :]).split("\n")[0]
        key, value = line.split(": ", 1)
        assert decode(ids[one.start : one.stop]) == f" The {key} is {value}.\n"
        between = decode(ids[one.start - one.reach : one.start])
        lines = [each for each in between.split("\n") if not each.startswith("Answer:")]
        assert sum(": " in each for each in lines) == 20


@pytest.mark.parametrize("length", [12_000, 20_000, 20_001])
@pytest.mark.parametrize("scored", [True, False])
def test_turns_cover_a_novel(length: int, scored: bool) -> None:
    turns = list(stream_long.pieces(length, scored))
    assert turns[0][0] == 0
    assert turns[-1][1] == length
    assert all(a[1] == b[0] for a, b in itertools.pairwise(turns))
    assert min(stop - start for start, stop in turns) >= 2
    inside = [start for start, _ in turns if start in stream_long.PASSAGE]
    assert len(inside) == (512 if scored else len(range(1, 3)))


def test_a_stream_reads_what_it_is_told() -> None:
    ids = text(1200)
    with LLM(kv_memory=16 * 2**20) as llm:
        stream = stream_long.Stream(llm)
        logprobs = [stream.read(ids[1 + at : 1 + at + 100]) for at in range(0, 1100, 100)]
        assert stream.tokens == 1101
        assert stream.evicted > 0
        told = stream_quality.told(llm, ids, StreamWindow(4, 1020))[:, 0]
    expected = [told[99 + at] for at in range(0, 1100, 100)]
    assert np.abs(np.array(logprobs) - expected).max() < 1e-4


def test_the_formula_gives_the_published_megabytes() -> None:
    for layers, width, published in modules.PUBLISHED.values():
        ours = modules.token_bytes(layers, width) / 2**20
        assert ours == pytest.approx(published, abs=0.01)


def test_joined_prompts_hold_their_modules_once_and_in_order() -> None:
    parts: list[Any] = [text(40, 1), text(40, 2)]
    layout = joined.prompt([0], parts, [9, 10, 11], before=[12])
    assert layout.token_ids == (0, 12, *parts[0], *parts[1], 9, 10, 11)
    assert joined.request(layout, "exact", 16).joined is None
    made = joined.request(layout, "link", 16).joined
    assert made is not None
    assert [stretch.length for stretch in made.reused] == [24, 24]


def test_ways_of_joining_are_compared_row_by_row() -> None:
    subject = modules_quality.Subject(*watched.watched(**POOL))
    layout = joined.prompt([0], [text(64, 1)[1:], text(64, 2)[1:]], text(20, 3)[1:])
    found = {how: subject.rows(layout, how, 19) for how in modules_quality.ALL}
    subject.llm.close()
    assert all(np.allclose(np.exp(one).sum(1), 1) for one in found.values())
    truth = found["exact"]
    loss = [float((np.exp(truth) * (truth - found[how])).sum()) for how in modules_quality.JOINS]
    assert min(loss) > 0
