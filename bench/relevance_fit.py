"""Fits the constants of kveik.cache.relevance (VOTES, COLD_VOTES, SIZES, COLD_SIZES), prints them.

    python bench/relevance_fit.py --texts FOLDER ... [--packages FOLDER] [--half 0|1] [--seed N]

Generated conversations are read with their true subjects: profiles learn what belongs to them, and
the newest turn, with and without its answer, and the newest two and three together are held against
every profile of the conversation. One logistic regression says which of them are about it. Rows
come from sessions that share a namespace and from sessions that know nothing of each other. Takes
about two minutes for 150 conversations. The judged texts must not be among these.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from conversations import Generator, read_novels, read_packages
from relevance import TOGETHER, Play, encoder, half, options, plays_of

from kveik.cache.relevance import FEW, KINDS, Features, Profile, Said, TopicSpace

PENALTY = 2.0


@dataclass(slots=True)
class Reader:
    """One conversation that is being read, with a profile for each of its subjects."""

    play: Play
    space: TopicSpace
    features: Features
    turn: int = 0
    profiles: dict[int, Profile] = field(default_factory=dict)

    def said(self, turn: int, *, answered: bool) -> Said:
        user, answer = self.play.users[turn], self.play.answers[turn]
        said = Said(self.features(user), len(user))
        return said + Said(self.features(answer), len(answer)) if answered else said

    def texts(self) -> Iterator[Said]:
        """What a tracker may hold against a topic at this turn, as long as the subject stays."""
        before: Said | None = None
        subjects = self.play.subjects
        for turn in range(self.turn, min(self.turn + 3, len(subjects))):
            if subjects[turn] != subjects[self.turn]:
                return
            for answered in (False, True):
                said = self.said(turn, answered=answered)
                yield said if before is None else before + said
            before = said if before is None else before + said

    def rows(self) -> Iterator[tuple[np.ndarray, bool]]:
        """Counts, and whether the text is about something else than the profile."""
        for text in self.texts():
            groups = self.space.groups(text.runs)
            for subject, profile in self.profiles.items():
                has = np.array([profile.has(group) for group in groups], dtype=float)
                lacks = np.array([len(group) for group in groups], dtype=float) - has
                counts = np.stack([lacks, has], 1)
                sizes = [counts[:KINDS].sum(), profile.tokens, profile.turns]
                yield (
                    design(counts, np.array(sizes), self.space.topics),
                    subject != self.play.subjects[self.turn],
                )

    def learn(self) -> None:
        subject = self.play.subjects[self.turn]
        if subject not in self.profiles:
            self.profiles[subject] = Profile()
            self.space.opened()
        self.space.add(self.profiles[subject].learn(self.said(self.turn, answered=True)))
        self.turn += 1


def design(counts: np.ndarray, sizes: np.ndarray, topics: int) -> np.ndarray:
    """Counts by group and (lacks, has), sizes: the row that the constants are multiplied with."""
    cold = FEW / (FEW + topics)
    orders = counts.reshape(-1, KINDS, 2).sum(1)
    more = np.append(np.log1p(sizes), 1.0)
    return np.concatenate(
        [
            (1 - cold) * np.log1p(counts).ravel(),
            cold * np.log1p(orders).ravel(),
            (1 - cold) * more,
            cold * more,
        ]
    )


def read(plays: Sequence[Play], seed: int, *, alone: bool) -> tuple[list[np.ndarray], list[bool]]:
    random_of, queue, features = random.Random(seed), list(plays), Features(bytes(range(64)))
    space, rows, answers = TopicSpace(), [], []
    reading: list[Reader] = []
    while queue or reading:
        while queue and len(reading) < TOGETHER:
            reading.append(Reader(queue.pop(0), TopicSpace() if alone else space, features))
        reader = random_of.choice(reading)
        for row, other in reader.rows():
            rows.append(row)
            answers.append(other)
        reader.learn()
        if reader.turn == len(reader.play.users):
            reading.remove(reader)
    return rows, answers


def logistic(rows: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Newton's method with a penalty on all but the constants."""
    weights = np.zeros(rows.shape[1])
    penalty = np.full(rows.shape[1], PENALTY)
    penalty[[-1, -5]] = 1e-6
    for _ in range(30):
        chance = 1 / (1 + np.exp(-np.clip(rows @ weights, -30, 30)))
        slope = rows.T @ (chance - answers) + penalty * weights
        curve = (rows.T * (chance * (1 - chance) + 1e-9)) @ rows + np.diag(penalty)
        step = np.linalg.solve(curve, slope)
        weights -= step * min(1.0, 2 / np.abs(step).max())
        if np.abs(step).max() < 1e-4:
            break
    return weights


def table(name: str, numbers: np.ndarray) -> str:
    rows = ", ".join("(" + ", ".join(f"{x:.2f}" for x in row) + ")" for row in numbers)
    return f"{name} = ({rows})"


def main() -> None:
    given = options(__doc__)
    generator = Generator(
        read_novels(given.texts), half(read_packages(given.packages), given.half), given.seed
    )
    plays = plays_of(generator, encoder("subword"), "usual", given.each)
    counted = [play for play in plays if play.said.counted]
    rows, answers = read(counted, given.seed, alone=False)
    more, also = read(counted[: len(counted) // 3], given.seed, alone=True)
    weights = logistic(np.array(rows + more), np.array(answers + also, dtype=float))
    votes, cold = 2 * 3 * KINDS, 2 * 3
    print(table("VOTES", weights[:votes].reshape(-1, 2)))
    print(table("COLD_VOTES", weights[votes : votes + cold].reshape(-1, 2)))
    print(table("SIZES", weights[votes + cold : votes + cold + 4].reshape(1, -1)))
    print(table("COLD_SIZES", weights[votes + cold + 4 :].reshape(1, -1)))


if __name__ == "__main__":
    main()
