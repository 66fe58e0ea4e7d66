"""The tracker of topics: which turns go where, what the votes say, how much is kept."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import kveik
from kveik.cache import relevance
from kveik.cache.relevance import (
    CELLS,
    KINDS,
    MAX_TOKENS,
    MAX_TOPICS,
    ORDERS,
    PRIOR,
    VOTES,
    Features,
    Group,
    Profile,
    Said,
    TopicSpace,
    TopicTracker,
    Turn,
    log_odds,
)

SECRET = bytes(range(64))
SOURCE = Path(kveik.__file__).parent


# --- which turns go where: subjects have words of their own, which plain overlap tells apart


def by_overlap(
    profile: Profile, later: Sequence[Said], groups: Sequence[Group], topics: int
) -> float:
    known = frozenset[int]().union(*(runs for said in later for runs in said.runs))
    single = sum(map(len, groups[:KINDS]))
    there = sum(profile.has(group, known) for group in groups[:KINDS])
    return 12 * there / single - 6 if single else 0.0


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relevance, "log_odds", by_overlap)


class Writer:
    def __init__(self, seed: int) -> None:
        self.random_of = random.Random(seed)

    def turn(self, subject: int, length: int = 120) -> list[int]:
        return self.random_of.choices(range(100 * subject, 100 * subject + 40), k=length)


def follow(tracker: TopicTracker, writer: Writer, subjects: Sequence[int]) -> list[Turn]:
    turns = []
    for subject in subjects:
        turns.append(tracker.turn(writer.turn(subject)))
        tracker.answer(writer.turn(subject, 60))
    return turns


def fresh(seed: int) -> tuple[TopicTracker, Writer]:
    return TopicTracker(Features(SECRET), TopicSpace()), Writer(seed)


@pytest.mark.usefixtures("plain")
class TestWhichTurnsGoWhere:
    def test_a_switch_is_seen_at_once_and_a_return_is_known(self) -> None:
        turns = follow(*fresh(1), [1] * 6 + [2] * 6 + [1] * 4 + [3] * 4 + [2] * 4)
        assert [turn.topic for turn in turns] == [1] * 6 + [2] * 6 + [1] * 4 + [3] * 4 + [2] * 4
        assert [number for number, turn in enumerate(turns) if turn.switched] == [6, 12, 16, 20]
        assert [turn.returned for turn in turns if turn.switched] == [False, True, False, True]

    def test_a_long_stay_is_no_switch(self) -> None:
        assert not any(turn.switched for turn in follow(*fresh(2), [1] * 30))

    def test_a_short_odd_turn_is_forgotten(self) -> None:
        tracker, writer = fresh(3)
        follow(tracker, writer, [1] * 5)
        odd = tracker.turn(list(range(40_000, 40_008)))
        tracker.answer(list(range(41_000, 41_008)))
        after = follow(tracker, writer, [1] * 4)
        assert {odd.topic, *(turn.topic for turn in after)} == {1}

    def test_a_long_one_is_not_odd(self) -> None:
        tracker, writer = fresh(3)
        follow(tracker, writer, [1] * 5)
        assert tracker.turn(list(range(40_000, 40_120))).topic == 2

    def test_nothing_new_is_no_news(self) -> None:
        tracker, writer = fresh(4)
        follow(tracker, writer, [1] * 4)
        assert tracker.turn([]) == Turn(1)
        tracker.answer([])
        assert not any(turn.switched for turn in follow(tracker, writer, [1] * 4))

    def test_one_turn_elsewhere_is_left_again(self) -> None:
        tracker, writer = fresh(7)
        follow(tracker, writer, [1] * 6)
        away, back = follow(tracker, writer, [2, 1])
        assert away == Turn(2, switched=True)
        assert back == Turn(1, switched=True, returned=True)
        assert not any(turn.switched for turn in follow(tracker, writer, [1] * 4))

    def test_going_back_and_forth_among_many_topics_forgets_the_ones_left_longest(self) -> None:
        """With as many topics as are remembered, a young one is left for the oldest."""
        tracker, writer = fresh(9)
        oldest_first = [subject for subject in range(1, MAX_TOPICS + 1) for _ in range(4)]
        follow(tracker, writer, oldest_first)
        young, back = follow(tracker, writer, [MAX_TOPICS + 1, 1])
        assert (young.topic, back.topic) == (MAX_TOPICS + 1, 1)
        assert 1 in tracker._topics
        assert 2 not in tracker._topics
        assert follow(tracker, writer, [1])[0].topic == 1

    def test_a_turn_before_the_report_goes_to_the_topic_that_it_began(self) -> None:
        """A bare question about the next subject, which its answer and the next turn show."""
        tracker, writer = fresh(8)
        follow(tracker, writer, [1] * 6)
        asked = tracker.turn([*writer.turn(2, 3), *writer.turn(1, 3)])
        tracker.answer(writer.turn(2, 60))
        later = follow(tracker, writer, [2] * 4)
        assert asked.topic == 1
        assert {turn.topic for turn in later} == {2}
        assert tracker._topics[1].turns == 6
        assert tracker._topics[2].turns + len(tracker._late) == 5

    def test_memory_is_bounded(self) -> None:
        tracker, writer = fresh(6)
        subjects = [subject for subject in range(1, 2 * MAX_TOPICS) for _ in range(4)]
        assert follow(tracker, writer, subjects)[-1].topic == 2 * MAX_TOPICS - 1
        assert len(tracker._topics) == MAX_TOPICS
        assert all(len(profile._cells) == CELLS for profile in tracker._topics.values())
        assert len(tracker._late) <= PRIOR.late + 1


# --- what the votes say


@pytest.fixture(scope="module")
def subjects() -> dict[str, list[int]]:
    """Prose and code of this project, in its own subwords."""
    tokenizer = Tokenizer.from_file(str(SOURCE / "assets" / "default" / "tokenizer.json"))
    texts = {
        "prose": (SOURCE.parents[1] / "ARCHITECTURE.md").read_text(),
        "code": (SOURCE / "cache" / "manager.py").read_text(),
        "other code": (SOURCE / "server" / "protocol.py").read_text(),
    }
    return {name: list(tokenizer.encode(text).ids) for name, text in texts.items()}


def text(features: Features, tokens: Sequence[int]) -> Said:
    return Said(features(tokens), len(tokens))


def test_what_the_profile_has_seen_speaks_for_its_topic(subjects: dict[str, list[int]]) -> None:
    space, features, profiles = TopicSpace(), Features(SECRET), {}
    for name, tokens in subjects.items():
        profiles[name] = Profile()
        space.opened()
        for start in range(0, 3200, 400):
            space.add(profiles[name].learn(text(features, tokens[start : start + 400])))
    for name, tokens in subjects.items():
        groups = space.groups(features(tokens[3200:3600]))
        odds = {of: log_odds(profile, (), groups, space.topics) for of, profile in profiles.items()}
        assert max(odds, key=odds.__getitem__) == name, odds


def test_turns_that_are_not_learned_count_as_if_they_were(subjects: dict[str, list[int]]) -> None:
    space, features, tokens = TopicSpace(), Features(SECRET), subjects["prose"]
    turns = [text(features, tokens[at : at + 200]) for at in range(0, 600, 200)]
    groups = space.groups(features(tokens[600:800]))
    learned, late = Profile(), Profile()
    for turn in turns:
        learned.learn(turn)
    late.learn(turns[0])
    one = log_odds(learned, (), groups, space.topics)
    assert log_odds(late, turns[1:], groups, space.topics) == pytest.approx(one, abs=0.2)
    assert log_odds(late, (), groups, space.topics) != pytest.approx(one, abs=0.2)


def test_features_are_grouped_by_how_many_topics_have_them() -> None:
    space, features = TopicSpace(), Features(SECRET)
    everywhere, rare = [1, 2, 3], [4, 5, 6]
    for topic in range(20):
        space.opened()
        space.add(Profile().learn(text(features, everywhere if topic else everywhere + rare)))
    groups = space.groups(features(everywhere + rare))
    assert len(groups) == len(VOTES) == len(ORDERS) * KINDS
    assert [len(group) for group in groups[:KINDS]] == [3, 0, 0, 0, 3]


def test_a_namespace_forgets_slowly() -> None:
    space, feature = TopicSpace(), 2**63 + 12345

    def commonness() -> list[int]:
        groups = space.groups((frozenset([feature]), frozenset(), frozenset()))
        return [len(group) for group in groups[:KINDS]]

    for _ in range(100):
        space.opened()
        space.add([feature])
    assert (space.topics, commonness()) == (100, [0, 0, 0, 0, 1])
    space.opened()
    assert space.topics == 50
    for _ in range(40):  # topics without it
        space.opened()
    assert (space.topics, commonness()) == (90, [0, 0, 0, 1, 0])


# --- what is kept


def test_features_are_keyed() -> None:
    words = list(range(100, 160))
    one, other = Features(SECRET)(words), Features(SECRET[::-1])(words)
    assert one == Features(SECRET)(words)
    for runs, others in zip(one, other, strict=True):
        assert not runs & others
        assert not runs & set(words)
    with pytest.raises(ValueError, match="16 bytes"):
        Features(b"short")


def test_of_a_long_turn_head_and_tail_are_looked_at() -> None:
    features, most = Features(SECRET), MAX_TOKENS // 2
    words = list(range(10 * MAX_TOKENS))
    head, tail = features(words[:most]), features(words[-most:])
    assert features(words) == tuple(one | other for one, other in zip(head, tail, strict=True))


def test_the_new_overwrites_the_old() -> None:
    features, profile = Features(SECRET), Profile()
    first = text(features, range(500))
    profile.learn(first)
    every = Group([one for runs in first.runs for one in runs])
    assert profile.has(every) > 1450  # of 1497
    for start in range(10_000, 10_000 + CELLS, 500):
        profile.learn(text(features, range(start, start + 500)))
    assert profile.has(every) < 300
    assert len(profile._cells) == CELLS
