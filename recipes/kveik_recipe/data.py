"""Training samples from a folder of text: prose, recall, dialogue and repeated sequences.

Sample number i of step s depends on the seed, s and i alone, so a resumed run sees exactly
the samples of an unbroken one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .dialogue import dialogue_sample, find_dialogues
from .recall import Piece, RecallWriter, WordPool, collect_words
from .tokenizer import BEGIN, END

VALIDATION_SHARE = 0.005
FLOWING_SHARE = 0.3
CHARACTERS_PER_TOKEN = 4
TRUE_MIX = {"prose": 0.84, "recall": 0.11, "dialogue": 0.04, "repeat": 0.01}
FIRST_MIX = {"prose": 0.45, "recall": 0.38, "dialogue": 0.02, "repeat": 0.15}

Tokens = NDArray[np.int64]
Weights = NDArray[np.float32]


class EmptyCorpusError(ValueError):
    """The folder holds no text to train on."""


def read_texts(folder: Path) -> list[str]:
    """The text files of a folder, in the order of their names."""
    files = sorted(path for path in folder.rglob("*.txt") if path.is_file())
    texts = [text for path in files if (text := path.read_text(encoding="utf-8").strip())]
    if not texts:
        raise EmptyCorpusError(f"no text to train on: {folder} holds no .txt file with content")
    return texts


def split_validation(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """All but the end of each text, and the ends, which only the validation loss sees."""
    cuts = [round(len(text) * (1.0 - VALIDATION_SHARE)) for text in texts]
    pairs = list(zip(texts, cuts, strict=True))
    return [text[:cut] for text, cut in pairs], [text[cut:] for text, cut in pairs]


def flowing(text: str) -> str:
    """The text with paragraphs on one line and with typographic quotes and dashes."""
    text = re.sub(r"(?<=\S)\n(?=\S)", " ", text).replace("--", "—")
    text = re.sub(r'(^|[\s(—‘])"', r"\1“", text).replace('"', "”")
    return re.sub(r"(^|[\s(—“])'", r"\1‘", text).replace("'", "’")


def find_paragraphs(text: str) -> list[str]:
    """Prose paragraphs of 100 to 800 characters, on one line each."""
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return [part for part in paragraphs if 100 <= len(part) <= 800]


@dataclass(frozen=True)
class Corpus:
    """What samples are drawn from."""

    tokenizer: Tokenizer
    wrapped: Tokens  # the texts as they are, each closed by END
    flowing: Tokens  # the same texts, flowing
    validation: Tokens
    paragraphs: tuple[str, ...]
    dialogues: tuple[tuple[str, ...], ...]
    pool: WordPool


def build_corpus(texts: Sequence[str], tokenizer: Tokenizer) -> Corpus:
    train, validation = split_validation(texts)
    pool, _ = collect_words(train)
    return Corpus(
        tokenizer=tokenizer,
        wrapped=_encode_texts(train, tokenizer),
        flowing=_encode_texts([flowing(text) for text in train], tokenizer),
        validation=_encode_texts(validation, tokenizer),
        paragraphs=tuple(part for text in train for part in find_paragraphs(text)),
        dialogues=tuple(tuple(run) for text in train for run in find_dialogues(text)),
        pool=pool,
    )


def _encode_texts(texts: Sequence[str], tokenizer: Tokenizer) -> Tokens:
    end = tokenizer.token_to_id(END)
    rows = (encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False))
    return np.concatenate([np.array([*row, end], dtype=np.int64) for row in rows])


def mix_at(step: int, curriculum: int) -> dict[str, float]:
    """Shares of the kinds of samples: from `FIRST_MIX` to `TRUE_MIX` in `curriculum` steps."""
    progress = min(1.0, step / curriculum) if curriculum else 1.0
    return {k: FIRST_MIX[k] + (TRUE_MIX[k] - FIRST_MIX[k]) * progress for k in TRUE_MIX}


@dataclass(frozen=True)
class Sampler:
    """Draws weighted token rows for a step."""

    corpus: Corpus
    seed: int
    first_token: bool = True
    curriculum: int = 0

    def batch(self, step: int, rows: int, length: int) -> tuple[Tokens, Tokens, Weights]:
        """Inputs, targets and loss weights of a step, each [rows, length]."""
        drawn = [self._row(step, number, length + 1) for number in range(rows)]
        tokens = np.stack([ids for ids, _ in drawn])
        weights = np.stack([row for _, row in drawn])
        return tokens[:, :-1], tokens[:, 1:], weights[:, 1:]

    def _row(self, step: int, number: int, length: int) -> tuple[Tokens, Weights]:
        rng = Random(f"{self.seed} {step} {number}")
        mix = mix_at(step, self.curriculum)
        kind = rng.choices(list(mix), list(mix.values()))[0]
        if kind == "prose":
            return self._unweighted(self._prose(rng, length))
        if kind == "repeat":
            return self._repeat(rng, length)
        if kind == "recall":
            difficulty = min(1.0, step / self.curriculum) if self.curriculum else 1.0
            writer = RecallWriter(rng, self.corpus.pool, self.corpus.paragraphs, difficulty)
            return self._encode(writer.sample(length * CHARACTERS_PER_TOKEN), length)
        pieces = dialogue_sample(rng, self.corpus.dialogues, length * CHARACTERS_PER_TOKEN)
        return self._encode(pieces, length)

    def opening_ids(self) -> list[int]:
        return [self.corpus.tokenizer.token_to_id(BEGIN)] if self.first_token else []

    def _prose(self, rng: Random, length: int) -> Tokens:
        view = self.corpus.flowing if rng.random() < FLOWING_SHARE else self.corpus.wrapped
        opening = self.opening_ids()
        take = length - len(opening)
        start = rng.randrange(max(1, len(view) - take))
        window = np.resize(view[start : start + take], take)
        return np.concatenate([np.array(opening, dtype=np.int64), window])

    def _repeat(self, rng: Random, length: int) -> tuple[Tokens, Weights]:
        """A random sequence over and over; only its repetitions count."""
        period = rng.randint(8, 64)
        vocabulary = self.corpus.tokenizer.get_vocab_size()
        unit = [rng.randrange(6, vocabulary) for _ in range(period)]
        opening = self.opening_ids()
        ids = np.concatenate([opening, np.resize(unit, length - len(opening))]).astype(np.int64)
        weights = np.ones(length, dtype=np.float32)
        weights[: len(opening) + period + 1] = 0.0
        return ids, weights

    def _encode(self, pieces: Sequence[Piece], length: int) -> tuple[Tokens, Weights]:
        """Pieces as one row; a row that the pieces leave short is filled without weight."""
        encodings = self.corpus.tokenizer.encode_batch(
            [piece.text for piece in pieces], add_special_tokens=False
        )
        ids = self.opening_ids()
        weights = [0.0] * len(ids)
        for piece, encoding in zip(pieces, encodings, strict=True):
            ids += encoding.ids
            weights += [piece.weight] * len(encoding.ids)
        missing = max(0, length - len(ids))
        ids += [self.corpus.tokenizer.token_to_id(END)] * missing
        weights += [0.0] * missing
        return np.array(ids[:length]), np.array(weights[:length], dtype=np.float32)

    def _unweighted(self, ids: Tokens) -> tuple[Tokens, Weights]:
        return ids, np.ones(len(ids), dtype=np.float32)
