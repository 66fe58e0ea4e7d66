"""Generated recall samples: records, perhaps prose, and questions that the records answer.

A sample is a list of pieces of text, each with the weight of its loss: the answers weigh much,
the records, which nobody could predict, weigh little. Keys are unique within a sample, so that
every question has one answer. A tenth of the words is kept for measuring only.
"""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from .tokenizer import ASSISTANT, END, SYSTEM, USER

RECORD_WEIGHT = 0.1
ANSWER_WEIGHT = 3.0
PROSE_WEIGHT = 1.0


@dataclass(frozen=True)
class Piece:
    """Text and the weight of the loss on its tokens."""

    text: str
    weight: float


@dataclass(frozen=True)
class WordPool:
    """Ordinary words and names to build keys and values from."""

    words: tuple[str, ...]
    names: tuple[str, ...]


# These join the words of the texts, so that a small folder has enough of either kind.
COMMON_WORDS = [
    "harbour",
    "lantern",
    "garden",
    "window",
    "village",
    "river",
    "morning",
    "letter",
    "dinner",
    "engine",
]
COMMON_NAMES = [
    "Harriet",
    "Edmund",
    "Rachel",
    "Walter",
    "Agnes",
    "Oliver",
    "Helen",
    "Victor",
    "Emily",
]


def collect_words(texts: Sequence[str]) -> tuple[WordPool, WordPool]:
    """The frequent words and names of the texts, and a tenth of them held out for measuring."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(re.findall(r"\b[A-Za-z]{3,11}\b", text))
    counts.update(dict.fromkeys((*COMMON_WORDS, *COMMON_NAMES), 20))
    words = [w for w, n in counts.items() if w.islower() and n >= 20]
    names = [w for w, n in counts.items() if w.istitle() and n >= 5 and counts[w.lower()] * 10 < n]
    return (
        WordPool(tuple(filter(_kept, words)), tuple(filter(_kept, names))),
        WordPool(tuple(w for w in words if not _kept(w)), tuple(w for w in names if not _kept(w))),
    )


def _kept(word: str) -> bool:
    return zlib.crc32(word.encode()) % 10 != 0


def make_key(rng: Random, pool: WordPool) -> str:
    """A key: a word, a name, two words, a name's thing, or a numbered thing."""
    word, name = rng.choice(pool.words), rng.choice(pool.names)
    kind = rng.random()
    if kind < 0.4:
        return word
    if kind < 0.6:
        return name
    if kind < 0.75:
        return f"{word} {rng.choice(pool.words)}"
    if kind < 0.88:
        return f"{name}'s {word}"
    return f"{word} {rng.randint(1, 99)}"


def make_value(rng: Random, pool: WordPool) -> str:
    """A value: words, names, numbers, codes, times or prices."""
    word, name = rng.choice(pool.words), rng.choice(pool.names)
    makers: tuple[Callable[[], str], ...] = (
        lambda: word,
        lambda: word,
        lambda: name,
        lambda: f"{name} {rng.choice(pool.names)}",
        lambda: f"{word} {rng.choice(pool.words)}",
        lambda: f"{word} {rng.choice(pool.words)} {rng.choice(pool.words)}",
        lambda: str(rng.randint(0, 10 ** rng.randint(1, 6))),
        lambda: str(rng.randint(10, 9999)),
        lambda: f"{_capitals(rng)}-{rng.randint(10, 9999)}",
        lambda: f"{rng.randint(0, 23)}:{rng.randint(0, 59):02d}",
        lambda: f"${rng.randint(1, 999)}.{rng.randint(0, 99):02d}",
    )
    return rng.choice(makers)()


def _capitals(rng: Random) -> str:
    return "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(1, 3)))


RECORD_FORMS = (
    "{key}: {value}",
    "{key}: {value}",
    "{key}: {value}",
    "{key}: {value}",
    "- {key}: {value}",
    "{key} = {value}",
    "The {key} is {value}.",
)
# A question and its answer meet at the bar; the value follows, then the answer's end.
PLAIN_FORMS = (
    "What is the {key}?\nAnswer:| The {key} is {value}.",
    "Question: What is the {key}?\nAnswer:| The {key} is {value}.",
    "Q: What is {key}?\nA:| The {key} is {value}.",
    "Question: {key}?\nAnswer:| The {key} is {value}.",
    "{key}:| {value}",
    "The {key} is| {value}.",
)
CHAT_QUESTIONS = (
    "What is the {key}?",
    "What is {key}?",
    "{key}?",
    "Tell me the {key}.",
    "Look up {key}.",
)
CHAT_ANSWER = "The {key} is {value}."
BARE_ANSWER = "{key}: {value}"  # names the key with the tokens of a question that begins with it
RECORD_OPENINGS = ("", "", "Records:\n", "Here are some facts.\n", "Remember this:\n", "Notes:\n")
CHAT_CLOSINGS = ("", "", "\nAnswer from the records.", "\nUse these records.")


@dataclass
class RecallWriter:
    """Writes one sample, remembering which keys it has used.

    `difficulty` from 0 to 1 opens up the number of records and the prose between.
    """

    rng: Random
    pool: WordPool
    prose: Sequence[str]
    difficulty: float = 1.0
    known: dict[str, str] = field(default_factory=dict)

    def sample(self, characters: int) -> list[Piece]:
        """Pieces of about `characters` characters in all, as plain text or as a chat."""
        write = self.chat_part if self.rng.random() < 0.5 else self.plain_part
        pieces: list[Piece] = []
        while sum(len(piece.text) for piece in pieces) < characters:
            pieces += write(first=not pieces)
        return pieces

    def plain_part(self, first: bool = True) -> list[Piece]:
        del first
        pieces = [Piece(self._records() + "\n", RECORD_WEIGHT)]
        if self._prose_between():
            pieces.append(Piece("\n" + self.rng.choice(self.prose) + "\n\n", PROSE_WEIGHT))
        form = self.rng.choice(PLAIN_FORMS)
        for key in self._asked():
            pieces += plain_question(form, key, self.known[key])
        return pieces

    def chat_part(self, first: bool = True) -> list[Piece]:
        records = self._records()
        if first and self.rng.random() < 0.3:
            closing = self.rng.choice(CHAT_CLOSINGS)
            pieces = [Piece(f"{SYSTEM}{records}{closing}{END}{USER}", RECORD_WEIGHT)]
        else:
            pieces = [Piece(f"{USER}{records}\n", RECORD_WEIGHT)]
        if self._prose_between():
            pieces.append(Piece("\n" + self.rng.choice(self.prose) + "\n\n", PROSE_WEIGHT))
        for number, key in enumerate(self._asked()):
            opening = USER if number else ""
            pieces += chat_question(opening, self.rng.choice(CHAT_QUESTIONS), key, self.known[key])
        return pieces

    def drill(self, characters: int) -> list[Piece]:
        """A few records over and over in any order: every line but the first ones is an answer."""
        form = self.rng.choice([form for form in RECORD_FORMS if form.startswith("{key}")])
        most = 2 + round(min(14, characters / 60) * self.rng.random() ** 2)
        records = {
            make_key(self.rng, self.pool): make_value(self.rng, self.pool) for _ in range(most)
        }
        seen: set[str] = set()
        pieces: list[Piece] = []
        length = 0
        while length < characters:
            key = self.rng.choice(list(records))
            line = form.format(key=key, value=records[key]) + "\n"
            cut = line.index(key) + len(key)
            weight = PROSE_WEIGHT if key in seen else RECORD_WEIGHT
            pieces += [Piece(line[:cut], RECORD_WEIGHT), Piece(line[cut:], weight)]
            seen.add(key)
            length += len(line)
        return pieces

    def _prose_between(self) -> bool:
        return bool(self.prose) and self.rng.random() < 0.4 * self.difficulty

    def _records(self) -> str:
        most = round(4 + 26 * self.difficulty * self.rng.random())
        form = self.rng.choice(RECORD_FORMS)
        lines = []
        for _ in range(self.rng.randint(2, most)):
            key = make_key(self.rng, self.pool)
            if key in self.known:
                continue
            self.known[key] = make_value(self.rng, self.pool)
            lines.append(form.format(key=key, value=self.known[key]))
        return self.rng.choice(RECORD_OPENINGS) + "\n".join(lines)

    def _asked(self) -> list[str]:
        keys = list(self.known)
        return self.rng.sample(keys, min(len(keys), self.rng.randint(1, 10)))


def plain_question(form: str, key: str, value: str) -> list[Piece]:
    """A question of a plain text and its answer, up to the line's end."""
    asked, answered = form.format(key=key, value=value).split("|")
    return [Piece(asked, RECORD_WEIGHT), Piece(answered + "\n", ANSWER_WEIGHT)]


def chat_question(opening: str, form: str, key: str, value: str) -> list[Piece]:
    """A user's question and the assistant's answer, up to the end of its turn."""
    bare = form.startswith("{key}")
    answer = (BARE_ANSWER if bare else CHAT_ANSWER).format(key=key, value=value)
    return [
        Piece(f"{opening}{form.format(key=key)}{END}{ASSISTANT}", RECORD_WEIGHT),
        Piece(f"{answer}{END}", ANSWER_WEIGHT),
    ]


@dataclass(frozen=True)
class Probe:
    """One measured question: the record lies `distance` lines before it."""

    prompt: str
    answer: str


def make_probe(rng: Random, pool: WordPool, prose: str | None, distance: int, chat: bool) -> Probe:
    """A fresh sample with one question, whose answer is in the `distance`-th line from the end."""
    records: dict[str, str] = {}
    while len(records) < distance + rng.randint(0, 3):
        records[make_key(rng, pool)] = make_value(rng, pool)
    form = rng.choice(RECORD_FORMS)
    lines = [form.format(key=key, value=value) for key, value in records.items()]
    key = list(records)[-distance]
    text = "\n".join(lines) + "\n" + (f"\n{prose}\n\n" if prose else "")
    if chat:
        asked, answered = chat_question("", rng.choice(CHAT_QUESTIONS), key, records[key])
        return Probe(USER + text + asked.text, answered.text)
    asked, answered = plain_question(rng.choice(PLAIN_FORMS), key, records[key])
    return Probe(text + asked.text, answered.text)
