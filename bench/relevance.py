"""Contextual relevance: is it seen when a conversation changes its subject, and what does it save?

    python bench/relevance.py [--texts FOLDER ...] [--packages FOLDER [--half 0|1]] [--seed N]
                              [--each N] [--tokenizers subword word byte] [--quick]

Conversations come from `conversations.py`; texts default to the packages of the standard library
alone. Six run at a time and share a namespace; `alone` gives each its own, which knows nothing of
the others. Per conversation and turn, a block of K/V is stale when the subject that it was computed
for is not that of the turn.

    precision, recall   of the blocks called stale, summed over all turns
    delay               turns from a switch to its report, median; one not reported counts as never
    false switches      reports without a switch since the last one, per 200 turns

Beside it: a bag of names (a turn with at least two names, none of them known, switches), TTL-only
(a block is stale five turns after its last use by prompts without old subjects), LRU (the older
half).
The headline is the style `usual` over the counted kinds in subword tokens; the other styles and
kinds, word and byte tokens and `alone` are rows beside it.

The hit rate is that of the real cache manager, which keeps books and computes nothing, at equal
memory for all. Cases: branch (a prompt holds its own subject only) and resent (all of the history).
"""

from __future__ import annotations

import csv
import random
import re
import statistics
import time
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from conversations import (
    BESIDE,
    STYLES,
    Conversation,
    Encode,
    Generator,
    Source,
    byte_encoder,
    read_novels,
    read_packages,
    subword_encoder,
    word_encoder,
)
from report import RESULTS, ROOT, Report, arguments

from kveik.cache.directive import Directive, Ttl
from kveik.cache.manager import CacheManager, Opened
from kveik.cache.relevance import Features, TopicSpace, TopicTracker
from kveik.cache.segments import KvGroup

BLOCK = 16
TOGETHER = 6  # conversations at a time
NEVER = 10**6  # delay of a switch that was not reported
TTL_TURNS = 5
ASSETS = ROOT / "src" / "kveik" / "assets" / "default" / "tokenizer.json"


@dataclass(slots=True)
class Play:
    """A conversation in tokens, and what a strategy said of it, turn by turn."""

    said: Conversation
    style: str
    users: list[list[int]]
    answers: list[list[int]]
    topics: list[int] = field(default_factory=list)

    @property
    def subjects(self) -> list[int]:
        return [turn.subject for turn in self.said.turns]

    def blocks(self, turn: int) -> int:
        return -(-(len(self.users[turn]) + len(self.answers[turn])) // BLOCK)


# --- strategies: a topic for every turn


class ByTopics:
    """The tracker that kveik ships."""

    name = "topics"

    def __init__(self, *, alone: bool) -> None:
        self.features, self.space = Features(bytes(range(64))), None if alone else TopicSpace()

    def start(self) -> Callable[[Play, int], int]:
        tracker = TopicTracker(self.features, self.space or TopicSpace())

        def step(play: Play, turn: int) -> int:
            topic = tracker.turn(play.users[turn]).topic
            tracker.answer(play.answers[turn])
            return topic

        return step


class ByNames:
    """A bag of names: capitalised words and identifiers that the text itself shows."""

    name = "names"
    _NAME = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]{2,}|\w+_\w+|[a-z]+[A-Z]\w+")

    def start(self) -> Callable[[Play, int], int]:
        topics: OrderedDict[int, set[str]] = OrderedDict({1: set()})

        def step(play: Play, turn: int) -> int:
            names = set(self._NAME.findall(play.said.turns[turn].user))
            current = next(reversed(topics))
            if len(names) >= 2 and topics[current] and not names & topics[current]:
                best = max(topics, key=lambda topic: len(names & topics[topic]))
                current = best if names & topics[best] else len(topics) + 1
                topics.setdefault(current, set())
                topics.move_to_end(current)
            topics[current] |= names | set(self._NAME.findall(play.said.turns[turn].answer))
            return current

        return step


Strategy: TypeAlias = ByTopics | ByNames


def follow(plays: Sequence[Play], strategy: Strategy, seed: int) -> None:
    """Run the strategy over all conversations, some at a time; fills Play.topics."""
    random_of, queue = random.Random(seed), list(plays)
    for play in plays:
        play.topics = []
    running = [(play, strategy.start()) for play in queue[:TOGETHER]]
    queue = queue[TOGETHER:]
    while running:
        at = random_of.randrange(len(running))
        play, step = running[at]
        play.topics.append(step(play, len(play.topics)))
        if len(play.topics) == len(play.users):
            running.pop(at)
            if queue:
                running.append((queue.pop(0), strategy.start()))


# --- how good were they


@dataclass(slots=True)
class Score:
    rightly: int = 0  # block x turn
    wrongly: int = 0
    missed: int = 0
    turns: int = 0
    false: int = 0
    delays: list[int] = field(default_factory=list)

    @property
    def precision(self) -> float:
        return self.rightly / max(1, self.rightly + self.wrongly)

    @property
    def recall(self) -> float:
        return self.rightly / max(1, self.rightly + self.missed)

    @property
    def delay(self) -> float:
        return statistics.median_low(self.delays) if self.delays else 0

    @property
    def false_per_200(self) -> float:
        return 200 * self.false / max(1, self.turns)

    def blocks(self, play: Play, turn: int, called: Iterable[int]) -> None:
        """At this turn the blocks of the turns `called` are said to be stale."""
        gone, now = set(called), play.subjects[turn]
        for earlier in range(turn):
            stale, blocks = play.subjects[earlier] != now, play.blocks(earlier)
            if stale and earlier in gone:
                self.rightly += blocks
            elif earlier in gone:
                self.wrongly += blocks
            elif stale:
                self.missed += blocks

    def switches(self, play: Play) -> None:
        self.turns += len(play.topics)
        open_since = -1
        for turn in range(1, len(play.topics)):
            if play.subjects[turn] != play.subjects[turn - 1]:
                if open_since >= 0:
                    self.delays.append(NEVER)
                open_since = turn
            if play.topics[turn] != play.topics[turn - 1]:
                if open_since >= 0:
                    self.delays.append(turn - open_since)
                else:
                    self.false += 1
                open_since = -1
        if open_since >= 0:
            self.delays.append(NEVER)


def by_topic(play: Play, turn: int) -> list[int]:
    return [t for t in range(turn) if play.topics[t] != play.topics[turn]]


def last_uses(play: Play, turn: int) -> list[int]:
    """When each earlier turn was in a prompt last, where prompts hold their own subject only."""
    return [
        max(u for u in range(t, turn + 1) if play.subjects[u] == play.subjects[t])
        for t in range(turn)
    ]


def by_age(play: Play, turn: int) -> list[int]:
    return [t for t, used in enumerate(last_uses(play, turn)) if turn - used > TTL_TURNS]


def by_recency(play: Play, turn: int) -> list[int]:
    order = sorted(enumerate(last_uses(play, turn)), key=lambda pair: pair[1])
    return [t for t, _ in order[: turn // 2]]


def judge(
    plays: Iterable[Play], calls: Callable[[Play, int], list[int]], *, switches: bool
) -> Score:
    score = Score()
    for play in plays:
        for turn in range(1, len(play.users)):
            score.blocks(play, turn, calls(play, turn))
        if switches:
            score.switches(play)
    return score


# --- what it saves


def directive(strategy: str, play: Play, turn: int, session: str) -> Directive:
    if strategy == "ttl":
        return Directive(session=session, ttl=Ttl(float(TTL_TURNS * TOGETHER), mode="demote"))
    if strategy == "lru":
        return Directive(session=session, relevance="off")
    topic = play.subjects[turn] if strategy == "announced" else play.topics[turn]
    return Directive(session=session, context=f"c{topic}")


def prompt_of(play: Play, turn: int, *, resent: bool) -> list[int]:
    """Everything said before that the client sends again, and what the user says now."""
    tokens: list[int] = []
    for t in range(turn):
        if resent or play.subjects[t] == play.subjects[turn]:
            tokens += play.users[t] + play.answers[t]
    return tokens + play.users[turn]


def hit_rate(
    plays: Sequence[Play], strategy: str, blocks: int, seed: int, *, resent: bool
) -> float:
    """Share of prompt tokens that the cache served; one turn per second, in random order."""
    manager = CacheManager([KvGroup((0,))], [blocks], BLOCK)
    random_of, queue = random.Random(seed), list(enumerate(plays))
    running = [[number, play, 0] for number, play in queue[:TOGETHER]]
    queue, asked, served, step = queue[TOGETHER:], 0, 0, 0
    while running:
        entry = random_of.choice(running)
        number, play, turn = entry
        prompt = prompt_of(play, turn, resent=resent)
        whole = prompt + play.answers[turn]
        step += 1
        manager.tick(float(step), 10**6)
        opened = manager.open(
            prompt,
            len(whole),
            now=float(step),
            directive=directive(strategy, play, turn, str(number)),
        )
        if isinstance(opened, Opened):
            asked, served = asked + len(prompt), served + opened.lease.cached_tokens
            manager.launched(step)
            manager.acknowledge(step)
            manager.commit(opened.lease, whole, float(step))
            manager.release(opened.lease, keep=True, finished=True, now=float(step))
            manager.take_erasures()
        entry[2] += 1
        if entry[2] == len(play.users):
            manager.end_session("", str(number), float(step))
            running.remove(entry)
            if queue:
                running.append([*queue.pop(0), 0])
    return served / asked


# --- the whole


@dataclass(frozen=True, slots=True)
class Setting:
    """One set of conversations: how people talk, how texts become tokens, and what sessions know
    of each other."""

    style: str
    tokenizer: str
    alone: bool = False

    @property
    def name(self) -> str:
        return f"{self.style}, {self.tokenizer}" + (", alone" if self.alone else "")


def encoder(name: str) -> Encode:
    if name == "subword":
        return subword_encoder(ASSETS)
    return byte_encoder() if name == "byte" else word_encoder()


def plays_of(generator: Generator, encode: Encode, style: str, each: int) -> list[Play]:
    """`each` conversations of every kind, in random order."""
    found = []
    for kind in generator.kinds():
        for number in range(each):
            said = generator.conversation(kind, number, STYLES[style])
            users = [encode(f"<user> {turn.user} <assistant> ") for turn in said.turns]
            answers = [encode(f"{turn.answer} <end> ") for turn in said.turns]
            found.append(Play(said, style, users, answers))
    random.Random(generator.seed).shuffle(found)
    return found


def headline(setting: Setting, plays: Sequence[Play], seed: int) -> list[dict[str, object]]:
    """All strategies over the counted kinds, and topics over each kind."""
    counted = [play for play in plays if play.said.counted]
    rows = []
    for name, calls in (("ttl", by_age), ("lru", by_recency)):
        rows.append(line(setting, name, "counted", judge(counted, calls, switches=False)))
    for strategy in (ByNames(), ByTopics(alone=setting.alone)):
        follow(counted, strategy, seed)
        score = judge(counted, by_topic, switches=True)
        rows.append(line(setting, strategy.name, "counted", score))
    follow([play for play in plays if not play.said.counted], strategy, seed)
    for kind in sorted({play.said.kind for play in plays}):
        some = [play for play in plays if play.said.kind == kind]
        beside = f"{kind} (not counted)" if kind in BESIDE else kind
        rows.append(line(setting, "topics", beside, judge(some, by_topic, switches=True)))
    return rows


def beside(setting: Setting, plays: Sequence[Play], seed: int) -> dict[str, object]:
    """Topics over the counted kinds of another style or of other tokens."""
    counted = [play for play in plays if play.said.counted]
    follow(counted, ByTopics(alone=setting.alone), seed)
    return line(setting, "topics", "counted", judge(counted, by_topic, switches=True))


def line(setting: Setting, strategy: str, kind: str, score: Score) -> dict[str, object]:
    said = bool(score.turns)
    return {
        "setting": setting.name,
        "strategy": strategy,
        "kind": kind,
        "precision": round(score.precision, 3),
        "recall": round(score.recall, 3),
        "delay": ("never" if score.delay == NEVER else score.delay) if said else "",
        "reported": sum(delay != NEVER for delay in score.delays) if said else "",
        "switches": len(score.delays) if said else "",
        "false_per_200": round(score.false_per_200, 2) if said else "",
        "turns": score.turns if said else "",
    }


def savings(report: Report, plays: Sequence[Play], seed: int) -> list[dict[str, object]]:
    """Hit rates at equal memory; follows the plays anew, so that topics are those of the method."""
    counted = [play for play in plays if play.said.counted]
    rows = []
    follow(counted, ByNames(), seed)
    names = [play.topics for play in counted]
    follow(counted, ByTopics(alone=False), seed)
    topics = [play.topics for play in counted]
    for case, resent in (("branch", False), ("resent", True)):
        longest = max(len(prompt_of(p, len(p.users) - 1, resent=resent)) for p in counted)
        mean = statistics.mean(sum(map(p.blocks, range(len(p.users)))) for p in counted)
        blocks = max(longest // BLOCK + 64, int(mean * TOGETHER * 0.4))
        rates: dict[str, float] = {}
        for strategy in ("lru", "ttl", "names", "topics", "announced"):
            for play, said in zip(counted, names if strategy == "names" else topics, strict=True):
                play.topics = said
            rates[strategy] = hit_rate(counted, strategy, blocks, seed, resent=resent)
            rows.append({"case": case, "strategy": strategy, "hit_rate": round(rates[strategy], 4)})
        if case == "branch":
            report.figure(
                f"hit rate, {case}: topics - LRU",
                100 * (rates["topics"] - rates["lru"]),
                "points",
                bar=0.01,
                lru=rates["lru"],
                topics=rates["topics"],
            )
        for strategy, rate in rates.items():
            report.figure(f"hit rate, {case}: {strategy}", 100 * rate, "%", blocks=blocks)
    return rows


def bars(report: Report, plays: Sequence[Play]) -> None:
    score = judge([p for p in plays if p.said.counted], by_topic, switches=True)
    report.figure("precision of stale blocks", score.precision, "", bar=0.9)
    report.figure("recall of stale blocks", score.recall, "", bar=0.8)
    report.figure("median delay", min(score.delay, 99), "turns", bar=1, sense="<=")
    report.figure("false switches per 200 turns", score.false_per_200, "", bar=1, sense="<=")


def cost(report: Report) -> None:
    """CPU time of a turn of 500 tokens in a session with six topics, which the engine waits for."""
    random_of = random.Random(1)
    subjects = [[random_of.randrange(60_000) for _ in range(300)] for _ in range(7)]
    for name, order in (("stays", [n // 20 for n in range(140)]), ("moves", [*range(7)] * 20)):
        tracker, spent = TopicTracker(Features(bytes(64)), TopicSpace()), []
        for subject in [*range(7)] * 2 + order:
            turn = random_of.choices(subjects[subject], k=500)
            start = time.process_time()
            tracker.turn(turn)
            spent.append(time.process_time() - start)
            tracker.answer(turn[:100])
        report.figure(f"a turn of 500 tokens that {name}", 1e6 * statistics.median(spent), "us")


def write_csv(name: str, rows: Sequence[dict[str, object]]) -> None:
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def options(about: str | None = __doc__) -> Namespace:
    parser = arguments(about)
    parser.add_argument("--texts", nargs="*", type=Path, default=[], help="folders of *.txt")
    parser.add_argument("--packages", type=Path, help="default: Python's standard library")
    parser.add_argument("--half", type=int, choices=(0, 1), help="of the packages, by name")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--each", type=int, default=10, help="conversations per kind")
    parser.add_argument("--tokenizers", nargs="*", default=["subword", "word", "byte"])
    return parser.parse_args()


def half(packages: Sequence[Source], number: int | None) -> list[Source]:
    return [
        package
        for package in packages
        if number is None or sum(map(ord, package.name)) % 2 == number
    ]


def main() -> None:
    given = options()
    report = Report("relevance")
    novels, packages = read_novels(given.texts), half(read_packages(given.packages), given.half)
    generator = Generator(novels, packages, given.seed)
    first, *others = given.tokenizers[: 1 if given.quick else None]
    each = 1 if given.quick else given.each
    plays = plays_of(generator, encoder(first), "usual", each)
    rows = headline(Setting("usual", first), plays, given.seed)
    bars(report, plays)
    cost(report)
    write_csv("relevance_hit_rates.csv", savings(report, plays, given.seed))
    rows += headline(Setting("usual", first, alone=True), plays, given.seed)
    few = max(1, each // 3)
    for style in [style for style in STYLES if style != "usual"]:
        some = plays_of(generator, encoder(first), style, few)
        rows += [beside(Setting(style, first, alone), some, given.seed) for alone in (False, True)]
    for other in others:
        some = plays_of(generator, encoder(other), "usual", few)
        rows += [
            beside(Setting("usual", other, alone), some, given.seed) for alone in (False, True)
        ]
    write_csv("relevance.csv", rows)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    names = [source.name for source in (*novels, *packages)]
    report.note(f"Texts: {', '.join(names)}. Seed {given.seed}. Kinds: see bench/conversations.py.")
    report.finish()


if __name__ == "__main__":
    main()
