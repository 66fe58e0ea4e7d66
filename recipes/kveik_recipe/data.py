"""Training samples from a folder of text: prose, recall, dialogue and repeated sequences.

Sample number i of step s depends on the seed, s and i alone, so a resumed run sees exactly
the samples of an unbroken one.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .dialogue import dialogue_sample, find_dialogues
from .recall import Piece, Probe, RecallWriter, WordPool, collect_words, make_probe
from .tokenizer import BEGIN, END, SPECIAL_TOKENS, special_id

VALIDATION_SHARE = 0.005
FLOWING_SHARE = 0.3
CHARACTERS_PER_TOKEN = 4
KINDS = ("prose", "recall", "dialogue", "repeat", "drill")
TRUE_MIX = (0.84, 0.10, 0.04, 0.01, 0.01)
# When, in units of the curriculum, the mix is which; linear between. English comes first; then
# the induction heads are planted and copying makes them good; then questions; then the true mix.
PLANTING = 1.0
COPYING = (1.0, 1.1)  # in a short context, where a match is easy to find
COPYING_MIX = (0.20, 0.0, 0.0, 0.50, 0.30)
MIXES = (
    (0.0, (0.90, 0.05, 0.04, 0.01, 0.0)),
    (0.99, (0.90, 0.05, 0.04, 0.01, 0.0)),
    (1.0, COPYING_MIX),
    (1.09, COPYING_MIX),
    (1.1, (0.42, 0.36, 0.04, 0.03, 0.15)),
    (2.0, (0.42, 0.36, 0.04, 0.03, 0.15)),
    (2.3, TRUE_MIX),
)

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
    measured_pool: WordPool  # words that no recall sample of the training holds


def build_corpus(texts: Sequence[str], tokenizer: Tokenizer) -> Corpus:
    train, validation = split_validation(texts)
    pool, measured_pool = collect_words(train)
    return Corpus(
        tokenizer=tokenizer,
        wrapped=_encode_texts(train, tokenizer),
        flowing=_encode_texts([flowing(text) for text in train], tokenizer),
        validation=_encode_texts(validation, tokenizer),
        paragraphs=tuple(
            part
            for text in train
            for view in (text, flowing(text))
            for part in find_paragraphs(view)
        ),
        dialogues=tuple(tuple(run) for text in train for run in find_dialogues(text)),
        pool=pool,
        measured_pool=measured_pool,
    )


def _encode_texts(texts: Sequence[str], tokenizer: Tokenizer) -> Tokens:
    end = special_id(tokenizer, END)
    rows = (encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False))
    return np.concatenate([np.array([*row, end], dtype=np.int64) for row in rows])


def mix_at(step: int, curriculum: int) -> tuple[float, ...]:
    """The shares of `KINDS` at a step, `TRUE_MIX` from the end of `MIXES` on."""
    now = step / curriculum if curriculum else float("inf")
    for (start, before), (end, after) in pairwise(MIXES):
        if now < end:
            part = (now - start) / (end - start)
            return tuple(a + (b - a) * part for a, b in zip(before, after, strict=True))
    return TRUE_MIX


def copying_at(step: int, curriculum: int) -> bool:
    """Whether a step belongs to the phase of copying in a short context."""
    start, end = COPYING
    return bool(curriculum) and start <= step / curriculum < end


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
        kind = rng.choices(KINDS, mix_at(step, self.curriculum))[0]
        if kind == "prose":
            return self._unweighted(self._prose(rng, length))
        if kind == "repeat":
            return self._repeat(rng, length)
        characters = length * CHARACTERS_PER_TOKEN
        if kind == "dialogue":
            return self._encode(dialogue_sample(rng, self.corpus.dialogues, characters), length)
        difficulty = min(1.0, step / (2.0 * self.curriculum)) if self.curriculum else 1.0
        writer = RecallWriter(rng, self.corpus.pool, self.corpus.paragraphs, difficulty)
        write = writer.drill if kind == "drill" else writer.sample
        return self._encode(write(characters), length)

    def opening_ids(self) -> list[int]:
        return [special_id(self.corpus.tokenizer, BEGIN)] if self.first_token else []

    def _prose(self, rng: Random, length: int) -> Tokens:
        view = self.corpus.flowing if rng.random() < FLOWING_SHARE else self.corpus.wrapped
        opening = self.opening_ids()
        take = length - len(opening)
        start = rng.randrange(max(1, len(view) - take))
        window = np.resize(view[start : start + take], take)
        return np.concatenate([np.array(opening, dtype=np.int64), window])

    def _repeat(self, rng: Random, length: int) -> tuple[Tokens, Weights]:
        """A few random phrases over and over in any order; what a seen phrase goes on with
        counts."""
        vocabulary = range(len(SPECIAL_TOKENS), self.corpus.tokenizer.get_vocab_size())
        letters = rng.sample(vocabulary, rng.randint(60, 200))
        phrases = [
            [letters.pop() for _ in range(rng.randint(2, 6))] for _ in range(rng.randint(2, 10))
        ]
        ids = self.opening_ids()
        weights = [0.0] * len(ids)
        seen: set[int] = set()
        while len(ids) < length:
            number = rng.randrange(len(phrases))
            ids += phrases[number]
            weights += [0.0] + [float(number in seen)] * (len(phrases[number]) - 1)
            seen.add(number)
        return np.array(ids[:length]), np.array(weights[:length], dtype=np.float32)

    def _encode(self, pieces: Sequence[Piece], length: int) -> tuple[Tokens, Weights]:
        """Pieces as one row; a row that the pieces leave short is filled without weight.

        They are encoded as one text, as a prompt is: a line's end before a word is another token
        than at the end of a text."""
        text = "".join(piece.text for piece in pieces)
        encoding = self.corpus.tokenizer.encode(text, add_special_tokens=False)
        ends = list(accumulate(len(piece.text) for piece in pieces))
        opening = self.opening_ids()
        ids = opening + encoding.ids
        weights = [0.0] * len(opening)
        weights += [pieces[bisect_right(ends, start)].weight for start, _ in encoding.offsets]
        missing = max(0, length - len(ids))
        ids += [special_id(self.corpus.tokenizer, END)] * missing
        weights += [0.0] * missing
        return np.array(ids[:length]), np.array(weights[:length], dtype=np.float32)

    def _unweighted(self, ids: Tokens) -> tuple[Tokens, Weights]:
        return ids, np.ones(len(ids), dtype=np.float32)

    def planting_rows(self, rows: int, length: int) -> tuple[Tokens, Tokens]:
        """Prose and random ids, each [rows, length], to plant induction heads with."""
        rng = Random(f"{self.seed} planting")
        vocabulary = range(len(SPECIAL_TOKENS), self.corpus.tokenizer.get_vocab_size())
        opening = self.opening_ids()
        prose = np.stack([self._prose(rng, length) for _ in range(rows)])
        ids = [opening + rng.choices(vocabulary, k=length - len(opening)) for _ in range(rows)]
        return prose, np.array(ids)

    def probes(self, count: int) -> list[Probe]:
        """Short recall questions from held-out words, the same on every call."""
        rng = Random(f"{self.seed} probes")
        pool = self.corpus.measured_pool
        return [
            make_probe(rng, pool, None, rng.randint(1, 12), chat=number % 2 == 1)
            for number in range(count)
        ]

    def probe_row(self, probe: Probe, length: int) -> tuple[Tokens, Weights]:
        """A probe as a training row: weight 1 on the answer's tokens only."""
        return self._encode([Piece(probe.prompt, 0.0), Piece(probe.answer, 1.0)], length)
