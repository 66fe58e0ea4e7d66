"""Recall samples can be answered from their own text, and the answers are right."""

from itertools import pairwise
from random import Random

import pytest
from kveik_recipe.recall import (
    ANSWER_WEIGHT,
    RecallWriter,
    WordPool,
    collect_words,
    make_probe,
)

POOL = WordPool(
    ("harbour", "lantern", "garden", "window", "village", "river", "morning", "letter"),
    ("Harriet", "Edmund", "Rachel", "Walter", "Agnes", "Pip"),
)
PROSE = ["Nobody had seen the old man since the evening of the storm, nor heard of him."]


@pytest.mark.parametrize("seed", range(40))
def test_every_answer_stands_in_the_text_before_it(seed: int) -> None:
    writer = RecallWriter(Random(seed), POOL, PROSE)
    pieces = writer.sample(1500)
    text, asked = "", 0
    for before, piece in pairwise(pieces):
        text += before.text
        if piece.weight != ANSWER_WEIGHT or piece.text.strip() in PROSE:
            continue
        asked += 1
        key = max((key for key in writer.known if key in before.text), key=len, default=None)
        assert key is not None
        assert writer.known[key] in piece.text
        assert writer.known[key] in text
    assert asked > 0


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("distance", [1, 7, 30])
def test_a_probe_asks_for_the_record_at_its_distance(distance: int, chat: bool) -> None:
    pool = WordPool((*POOL.words, "anchor", "bridge", "candle", "dinner"), POOL.names)
    for seed in range(20):
        probe = make_probe(Random(seed), pool, PROSE[0], distance, chat)
        records = probe.prompt.split("\n\n")[0].splitlines()
        answer = probe.answer.strip().removesuffix("<|end|>").removesuffix(".")
        value = answer.split(" is ")[-1].split(": ")[-1]
        assert value in records[-distance]
        assert len(records) >= distance


def test_the_measured_words_are_never_trained_on() -> None:
    text = " ".join(f"{word} " * 30 for word in POOL.words + POOL.names)
    trained, measured = collect_words([text])
    assert set(trained.words).isdisjoint(measured.words)
    assert set(trained.names).isdisjoint(measured.names)
    assert set(POOL.words) <= {*trained.words, *measured.words}
    assert set(POOL.names) <= {*trained.names, *measured.names}
