"""Texts, samples and the mix."""

from pathlib import Path

import numpy as np
import pytest
from kveik_recipe.data import (
    TRUE_MIX,
    EmptyCorpusError,
    Sampler,
    build_corpus,
    flowing,
    mix_at,
    read_texts,
)
from kveik_recipe.dialogue import find_dialogues
from kveik_recipe.recall import Piece
from kveik_recipe.tokenizer import BEGIN, train_tokenizer


def test_flowing_joins_lines_and_sets_typographic_marks() -> None:
    text = "He said--\n\"It's the\n'end'.\"\n\nNo."
    assert flowing(text) == "He said— “It’s the ‘end’.”\n\nNo."


def test_dialogues_are_neighbouring_speeches() -> None:
    text = 'A walk.\n\n“Well,” said he, “come.”\n\n"Never," she\nsaid.\n\nSilence.\n\n“Oh.”'
    assert list(find_dialogues(text)) == [["Well, come.", "Never."]]


def test_an_empty_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(EmptyCorpusError, match="no text to train on"):
        read_texts(tmp_path)


def test_the_mix_adds_up_and_arrives() -> None:
    for step in (0, 50, 100, 105, 150, 215, 500):
        assert sum(mix_at(step, 100)) == pytest.approx(1.0)
    assert mix_at(230, 100) == pytest.approx(TRUE_MIX)
    assert mix_at(0, 0) == pytest.approx(TRUE_MIX)


@pytest.mark.parametrize("first_token", [True, False])
def test_samples_depend_on_their_number_alone(corpus_folder: Path, first_token: bool) -> None:
    texts = read_texts(corpus_folder)
    tokenizer = train_tokenizer(texts, 320, first_token)
    corpus = build_corpus(texts, tokenizer)
    sampler = Sampler(corpus, seed=3, first_token=first_token, curriculum=10)
    again = Sampler(corpus, seed=3, first_token=first_token, curriculum=10)
    for step in (0, 5, 20):
        inputs, targets, weights = sampler.batch(step, rows=8, length=48)
        for left, right in zip((inputs, targets, weights), again.batch(step, 8, 48), strict=True):
            np.testing.assert_array_equal(left, right)
        assert inputs.shape == targets.shape == weights.shape == (8, 48)
        np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
        opened = inputs[:, 0] == tokenizer.token_to_id(BEGIN)
        assert opened.all() if first_token else not opened.any()
        assert (inputs[:, 1:] != tokenizer.token_to_id(BEGIN)).all()


def test_pieces_are_encoded_as_the_prompts_they_teach(corpus_folder: Path) -> None:
    """The tokens of a sample are those of its whole text, with the weights of its pieces."""
    texts = read_texts(corpus_folder)
    tokenizer = train_tokenizer(texts, 320)
    sampler = Sampler(build_corpus(texts, tokenizer), seed=1)
    pieces = [Piece("key: value\n", 0.5), Piece("\nSome prose.\n\n", 1.0), Piece("What?", 3.0)]
    ids, weights = sampler._encode(pieces, 64)
    text = "".join(piece.text for piece in pieces)
    whole = tokenizer.encode(text, add_special_tokens=False)
    assert list(ids[1 : 1 + len(whole.ids)]) == whole.ids
    ends = [text.index("\nSome"), text.index("What?")]
    expected = [0.5 if s < ends[0] else 1.0 if s < ends[1] else 3.0 for s, _ in whole.offsets]
    assert list(weights[1 : 1 + len(expected)]) == expected
    assert not weights[1 + len(expected) :].any()
