"""When does a conversation change its subject? Answered from token ids alone, without a model.

One seam: a `Tracker` per session. `turn(tokens)` takes what the user added and says which topic
it belongs to; `answer(tokens)` takes what was generated for it. `TopicTracker` is the one that is
shipped:

    features   hashed runs of one, two and three token ids, keyed with a secret of the process; no
               token can be read back from them
    profile    per topic, which features it had: one byte each in a table of fixed size, in which
               the new overwrites the old
    space      per namespace, in how many topics each feature occurs. Never shared
    votes      the distinct features of a text, grouped by length and by how common they are in the
               space; per group, how many the profile has and lacks. A logistic regression over the
               logarithms of these counts is the log-odds that the text is about the topic
               (`bench/relevance_fit.py` makes its constants again)
    belief     at each turn, the odds that the session stays, against having moved to a new topic or
               an earlier one with this turn, with the turn before it, or two turns ago. These last
               turns are learned late, so that what belongs to the next topic goes there, and a
               topic that was none (no turn of it was learned) is taken back without a trace
    odd        a short turn may be about nothing that went before, and nothing that follows

Everything is bounded: topics per session, bytes per topic, tokens looked at per turn, sessions,
namespaces. Standard library only; no clock, no text.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import chain, repeat
from operator import eq, or_
from typing import Protocol, TypeAlias

MAX_TOPICS = 6  # remembered per session
CELLS = 1 << 16  # bytes per topic
SPACE_CELLS = 1 << 17  # bytes per namespace, twice
MAX_SPACE_TOPICS = 100  # then all counts are halved
MAX_TOKENS = 512  # of one turn or answer are looked at
ORDERS = (1, 2, 3)  # lengths of runs
_MARKS = 255  # bytes but the one of an empty cell

# Log-odds that a turn is about something else than a topic, per e-fold of features that the profile
# lacks, and that it has. Per length of run: features that at most one topic of the namespace has,
# then those in topics up to these shares, then the rest.
COMMON = (0.05, 0.2, 0.7)
KINDS = len(COMMON) + 2
VOTES = (
    (0.62, -1.45),
    (0.40, -1.07),
    (1.08, -0.29),
    (1.20, 0.70),
    (-0.01, 3.89),
    (-0.91, -0.85),
    (-0.57, -1.08),
    (-0.82, -0.50),
    (-0.39, -0.60),
    (-0.37, 0.58),
    (1.38, -0.93),
    (1.22, -1.25),
    (0.68, 0.09),
    (0.30, 0.54),
    (0.13, 1.15),
)
# The same where the namespace has seen few topics, so that nobody knows what is common.
COLD_VOTES = ((1.94, 1.19), (-1.13, -3.18), (4.20, -0.70))
FEW = 6.0  # topics: with so many, half of each
# Per e-fold of single tokens that vote, of tokens and of turns that the profile has seen; one.
SIZES = (-5.05, 1.50, 0.81, -15.97)
COLD_SIZES = (-3.88, 1.59, 0.65, -5.48)


@dataclass(frozen=True, slots=True)
class Prior:
    """What is expected of conversations; see the module."""

    moves: float = 0.16  # chance that a turn leaves the topic
    new: float = 0.8  # for a new one; else for one of the earlier
    odd: float = 0.1  # odds that a short turn of the topic shows nothing of it
    short: int = 32  # tokens; of n times as many, n * n times less likely
    leave: float = 0.85  # belief in having moved at which it is reported
    late: int = 2  # turns of the current topic that are not learned yet
    look: float = 0.02  # odds of a new topic at which earlier ones are looked at


PRIOR = Prior()
_NEW = 0  # a topic that has no number yet
_MOST_ODDS = 50.0


@dataclass(frozen=True, slots=True)
class Turn:
    """topic: number within the session, from 1. switched: it is not the one of the turn before.
    returned: it is an earlier one of the session."""

    topic: int
    switched: bool = False
    returned: bool = False


class Tracker(Protocol):
    """Follows one session. Another scorer implements these two."""

    def turn(self, tokens: Sequence[int]) -> Turn: ...

    def answer(self, tokens: Sequence[int]) -> None: ...


Runs: TypeAlias = tuple[frozenset[int], ...]  # hashed, by the order of ORDERS


class Group:
    """Features that are equally common, and what a profile compares: a place in its table and the
    byte that it has there."""

    __slots__ = ("features", "marks", "slots")

    def __init__(self, features: list[int]) -> None:
        self.features = features
        self.slots = [feature & CELLS - 1 for feature in features]
        self.marks = [(feature >> 16) % _MARKS + 1 for feature in features]

    def __len__(self) -> int:
        return len(self.features)


class Features:
    """Keyed hashes of runs of token ids."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise ValueError("Features: secret must have at least 16 bytes")
        self._keys = (int.from_bytes(secret[:8], "big"), int.from_bytes(secret[8:16], "big"))

    def __call__(self, tokens: Sequence[int]) -> Runs:
        """The distinct runs; of a longer turn in its head and its tail, where the question is."""
        if len(tokens) > MAX_TOKENS:
            half = MAX_TOKENS // 2
            head, tail = self(tokens[:half]), self(tokens[-half:])
            return tuple(one | other for one, other in zip(head, tail, strict=True))
        first, last = self._keys
        return tuple(
            frozenset(
                map(
                    hash,
                    zip(
                        repeat(first), *(tokens[at:] for at in range(n)), repeat(last), strict=False
                    ),
                )
            )
            for n in ORDERS
        )


class TopicSpace:
    """In how many topics of a namespace each feature occurs: two rows of counters (count-min with
    conservative update), halved now and then so that the namespace's past fades."""

    _HALVES = bytes(n // 2 for n in range(256))

    def __init__(self) -> None:
        self.topics = 0
        self._rows = (bytearray(SPACE_CELLS), bytearray(SPACE_CELLS))

    def opened(self) -> None:
        """A session began a topic."""
        self.topics += 1
        if self.topics > MAX_SPACE_TOPICS:
            self.topics //= 2
            self._rows = (
                self._rows[0].translate(self._HALVES),
                self._rows[1].translate(self._HALVES),
            )

    def add(self, features: Iterable[int]) -> None:
        """A topic has these, which it had not before."""
        one, other = self._rows
        mask = SPACE_CELLS - 1
        for feature in features:
            i, j = feature >> 24 & mask, feature >> 44 & mask
            a, b = one[i], other[j]
            if a <= b and a < 255:
                one[i] = a + 1
            if b <= a and b < 255:
                other[j] = b + 1

    def groups(self, runs: Runs) -> list[Group]:
        """The features by order and commonness."""
        one, other = self._rows
        mask = SPACE_CELLS - 1
        rank = self._ranks()
        found: list[Group] = []
        for features in runs:
            kinds: list[list[int]] = [[] for _ in range(KINDS)]
            for feature in features:
                a, b = one[feature >> 24 & mask], other[feature >> 44 & mask]
                kinds[rank[a if a < b else b]].append(feature)
            found += map(Group, kinds)
        return found

    def _ranks(self) -> bytes:
        """Number of topics -> group."""
        bounds = [1.0, *(max(1.0, share * self.topics) for share in COMMON)]
        return bytes(bisect_left(bounds, n) for n in range(256))


class Profile:
    """Which features a topic had: a byte for each, at a place that the feature says, so that a
    later one may take it. tokens, turns: what it has seen."""

    __slots__ = ("_cells", "tokens", "turns")

    def __init__(self) -> None:
        self.tokens = 0
        self.turns = 0
        self._cells = bytearray(CELLS)

    def has(self, group: Group, also: Set[int] = frozenset()) -> int:
        """How many features of the group it, or `also`, has."""
        there = map(eq, map(self._cells.__getitem__, group.slots), group.marks)
        return sum(map(or_, there, map(also.__contains__, group.features)) if also else there)

    def learn(self, said: Said) -> list[int]:
        """Those features that it had not."""
        self.turns += 1
        self.tokens += said.tokens
        cells, new = self._cells, []
        for feature in chain.from_iterable(said.runs):
            slot, mark = feature & CELLS - 1, (feature >> 16) % _MARKS + 1
            if cells[slot] != mark:
                cells[slot] = mark
                new.append(feature)
        return new


@dataclass(frozen=True, slots=True)
class Said:
    """A turn, with its answer once there is one."""

    runs: Runs
    tokens: int

    def __add__(self, other: Said) -> Said:
        runs = tuple(a | b for a, b in zip(self.runs, other.runs, strict=True))
        return Said(runs, self.tokens + other.tokens)


def log_odds(
    profile: Profile, later: Sequence[Said], groups: Sequence[Group], topics: int
) -> float:
    """That a text with these features, grouped by the space, is about the topic. later: turns of
    the topic that the profile has not learned."""
    known = frozenset[int]().union(*(runs for said in later for runs in said.runs))
    counts = [(len(group), profile.has(group, known)) for group in groups]
    orders = [
        (sum(n for n, _ in kinds), sum(there for _, there in kinds))
        for kinds in (counts[at : at + KINDS] for at in range(0, len(counts), KINDS))
    ]
    tokens = profile.tokens + sum(said.tokens for said in later)
    turns = profile.turns + len(later)
    size = math.log1p(orders[0][0]), math.log1p(tokens), math.log1p(turns), 1.0
    cold = FEW / (FEW + topics)
    warm = _votes(VOTES, counts) + _product(SIZES, size)
    few = _votes(COLD_VOTES, orders) + _product(COLD_SIZES, size)
    return -((1 - cold) * warm + cold * few)


def _product(weights: Sequence[float], sizes: Sequence[float]) -> float:
    return sum(weight * size for weight, size in zip(weights, sizes, strict=True))


def _votes(table: Sequence[tuple[float, float]], counts: Sequence[tuple[int, int]]) -> float:
    return sum(
        lacks * math.log1p(n - there) + has * math.log1p(there)
        for (lacks, has), (n, there) in zip(table, counts, strict=True)
    )


class TopicTracker:
    """The tracker that is shipped; see the module."""

    def __init__(self, features: Features, space: TopicSpace, prior: Prior = PRIOR) -> None:
        self._features, self._space, self._prior = features, space, prior
        self._topics: OrderedDict[int, Profile] = OrderedDict()  # moved to last: the last
        self._current = self._opened = 1
        self._left = _NEW  # the topic before the current one
        self._late: list[Said] = []  # newest turns of the current topic, which it has not learned

    def turn(self, tokens: Sequence[int]) -> Turn:
        if len(self._late) > self._prior.late:
            self._learn(1)
        self._late.append(Said(self._features(tokens), len(tokens)))
        moves = self._moves()
        away = sum(moves.values())
        if away / (1 + away) < self._prior.leave:
            return Turn(self._current)
        likely: dict[int, float] = {}
        for (topic, _), odds in moves.items():
            likely[topic] = likely.get(topic, 0.0) + odds
        topic = max(likely, key=likely.__getitem__)
        turns = max((n for to, n in moves if to == topic), key=lambda n: moves[topic, n])
        self._move(topic, turns)
        return Turn(self._current, switched=True, returned=topic != _NEW)

    def answer(self, tokens: Sequence[int]) -> None:
        if self._late:
            self._late[-1] += Said(self._features(tokens), len(tokens))

    def _moves(self) -> dict[tuple[int, int], float]:
        """Odds, against staying, that the last so many turns are about another topic."""
        prior, space = self._prior, self._space
        current, found = self._topics.get(self._current), {}
        new = prior.moves * prior.new
        text = Said((frozenset(),) * len(ORDERS), 0)
        for turns in range(1, len(self._late) + 1):
            text += self._late[-turns]
            earlier, groups = self._late[:-turns], space.groups(text.runs)
            if current is not None or earlier:
                stay = (1 - prior.moves) * (
                    _odds(current or Profile(), earlier, groups, space.topics)
                    + prior.odd * min(1.0, (prior.short / max(1, text.tokens)) ** 2)
                )
                found[_NEW, turns] = new / stay
            else:
                stay = new  # nothing but these turns is known of the current topic: is it one?
            if new / stay > prior.look:
                for number, chance in self._others(it_is_one=stay != new):
                    odds = _odds(self._topics[number], (), groups, space.topics)
                    found[number, turns] = chance * odds / stay
        return found

    def _others(self, *, it_is_one: bool) -> Iterator[tuple[int, float]]:
        """Earlier topics, and the chance of going back to each."""
        prior = self._prior
        others = [number for number in self._topics if number != self._current]
        for number in others:
            never_left = number == self._left and not it_is_one
            back = prior.moves * (1 - prior.new) / len(others)
            yield number, 1 - prior.moves if never_left else back

    def _move(self, topic: int, turns: int) -> None:
        """The last so many turns are about another topic."""
        if topic != _NEW:
            self._topics.move_to_end(topic)  # so that it makes no room for the one that is left
        self._learn(len(self._late) - turns)
        if self._current in self._topics:
            self._left = self._current
        if topic == _NEW:
            self._opened += 1
        self._current = topic or self._opened

    def _learn(self, turns: int) -> None:
        """The first of the late turns."""
        if turns and self._current not in self._topics:
            self._topics[self._current] = Profile()
            self._space.opened()
            if len(self._topics) > MAX_TOPICS:
                self._topics.popitem(last=False)
        for said in self._late[:turns]:
            self._space.add(self._topics[self._current].learn(said))
        del self._late[:turns]


def _odds(profile: Profile, later: Sequence[Said], groups: Sequence[Group], topics: int) -> float:
    return math.exp(min(_MOST_ODDS, log_odds(profile, later, groups, topics)))
