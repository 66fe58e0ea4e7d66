"""Conversations that change their subject: a generator from a seed and a folder of texts.

    python bench/conversations.py FOLDER --seed 7          prints one conversation of each kind

A text is a novel (`*.txt`) or a Python package (folders of `*.py`, by default those of the running
interpreter). A conversation is a list of turns; each has what the user says, what the assistant
answers, and the subject it is about. The user pastes a passage, asks about one (words of the
passage, 10 to 25 tokens), says something that could be said anywhere ("Go on."), or, rarely, asks
one thing that has nothing to do with the subject and comes back to it.

    kind      subjects, and what a switch is
    author    two novels of one author
    books     novels of different authors
    code      packages of Python's standard library
    mixed     a novel and a package
    chapters  places of one novel that are far apart: leaving one for another is a switch
    steady    one subject, no switch
    roaming   novels as a whole: every third turn jumps anywhere in the novel, and only another
              novel is a switch
    elsewhere as chapters, but one novel is one subject, so that nothing is a switch

A conversation about a novel reads on from some page, asks about what it read and goes back to it;
one about a package also jumps to other modules. Subjects alternate or return (A B, A B A, A B C A,
...). What a switch inside one book is has two readings. `chapters` takes the first: who leaves one
place for a far one leaves what was computed there, whatever the cover says, and that is a switch.
`roaming` and `elsewhere` take the second, the book is the subject; `elsewhere` says of the same
turns the opposite of `chapters`, so both are reported beside and not counted.

The headline is the style "usual" over the counted kinds: what a chat over documents or a coding
assistant sends. Most turns carry the passage that they are about, pasted by the user or put there
by retrieval (400 to 2400 characters); three of ten are bare questions, and of the turns that open a
subject or return to it one of ten, since who moves elsewhere usually shows where. Other styles are
reported beside: `questions` (three of four turns are bare questions, opening ones too), `hasty` (3
to 6 turns per subject) and `patient` (12 to 30), both with short passages and four bare questions
of ten, openings too, and `pages` (long passages).
"""

from __future__ import annotations

import argparse
import random
import re
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, get_args

Kind: TypeAlias = Literal[
    "author", "books", "code", "mixed", "chapters", "steady", "roaming", "elsewhere"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
BESIDE = ("roaming", "elsewhere")  # reported, not counted
Say: TypeAlias = Literal["passage", "question", "anything", "odd"]

_GENERIC = (
    "Go on.",
    "Can you say that more briefly?",
    "Thanks. And then?",
    "Why do you think so?",
    "Please explain that once more, step by step.",
    "I don't understand the last part.",
    "Is that all?",
)
_ODD = (
    ("What's the weather like in Lisbon today?", "I can't look that up, but June is usually warm."),
    ("Remind me to call the dentist tomorrow at nine.", "I will remind you tomorrow at nine."),
    ("How do I convert 12 ounces to grams?", "Multiply by 28.35: twelve ounces are 340 grams."),
    ("Give me a recipe for pancakes.", "Whisk flour, two eggs, milk and salt; fry in butter."),
    ("Translate 'good evening' into Italian.", "In Italian that is 'buona sera'."),
)
_PASTE = (
    "Here is the passage:\n\n{text}\n\n{question}",
    "{question}\n\n{text}",
    "{text}\n\nSummarise this.",
    "Read this and tell me what matters in it:\n\n{text}",
)
_PASTE_CODE = (
    "```python\n{text}\n```\n{question}",
    "{question}\n\n{text}",
    "Review this code:\n\n{text}",
    "I am working on this:\n\n{text}\n\nIs there a bug?",
)
_ASK = (
    "What does it mean that {phrase}?",
    "Why {phrase}?",
    'Who says "{phrase}", and to whom?',
    "Tell me more about {name} where {phrase}.",
    "What happens after {phrase}?",
)
_ASK_CODE = (
    "What does {name} do with {other}?",
    "Where is {name} called, and can {other} be None there?",
    "Write a test for {name} that covers {other}.",
    "Rename {other} in {name} and show me the change.",
    "Why does {name} not handle {other}?",
)
_LEAD = ("", "In short: ", "As the passage says, ", "Here is what I find. ", "Yes. ")


@dataclass(frozen=True, slots=True)
class Source:
    """One novel or package. pieces: paragraphs of a novel, or runs of lines of its modules."""

    name: str
    author: str
    code: bool
    pieces: tuple[str, ...]
    ends: tuple[int, ...]  # characters up to the end of each piece

    @property
    def size(self) -> int:
        return self.ends[-1]


@dataclass(frozen=True, slots=True)
class Turn:
    user: str
    answer: str
    subject: int
    say: Say


@dataclass(frozen=True, slots=True)
class Conversation:
    kind: Kind
    turns: tuple[Turn, ...]
    counted: bool  # False: reported beside, see `elsewhere`


@dataclass(frozen=True, slots=True)
class Style:
    """What is varied between runs: shares of what the user says, sizes, lengths."""

    questions: float = 0.3  # of turns that are about the subject: questions without a passage
    opening: float = 0.1  # the same of turns that open a subject or return to one
    generic: float = 0.1
    odd: float = 0.03
    passage: tuple[int, int] = (400, 2400)  # characters
    stay: tuple[int, int] = (4, 12)  # turns about a subject before the next
    turns: tuple[int, int] = (16, 40)


STYLES = {
    "usual": Style(),
    "questions": Style(questions=0.75, opening=0.75, generic=0.15, passage=(200, 1600)),
    "pages": Style(questions=0.15, opening=0.15, passage=(800, 4000)),
    "hasty": Style(questions=0.4, opening=0.4, passage=(200, 1600), stay=(3, 6), turns=(12, 24)),
    "patient": Style(
        questions=0.4, opening=0.4, passage=(200, 1600), stay=(12, 30), turns=(40, 80)
    ),
}


# --- texts


def _novel(path: Path) -> Source | None:
    text = path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")
    start = re.search(r"\*\*\* ?START OF.*?\*\*\*", text)
    end = re.search(r"\*\*\* ?END OF", text)
    body = text[start.end() if start else 0 : end.start() if end else len(text)]
    author = re.search(r"^\s*(?:Author:|by)\s+([A-Z][^\n\[]{3,40})", text[:4000], re.I | re.M)
    pieces = [" ".join(p.split()) for p in re.split(r"\n\s*\n", body)]
    pieces = [p for p in pieces if len(p) > 60]
    if sum(map(len, pieces)) < 60_000:
        return None
    names = re.sub(r"[^\w ]", " ", author[1].split("/")[0]).lower().split() if author else []
    return _source(path.stem, names[-1] if names else path.stem, False, pieces)


def _package(name: str, files: Sequence[Path], random_of: random.Random) -> Source | None:
    pieces: list[str] = []
    for path in files:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        at = 0
        while at < len(lines):
            step = random_of.randint(4, 14)
            piece = "\n".join(lines[at : at + step]).strip("\n")
            if len(piece) > 40:
                pieces.append(piece)
            at += step
    return _source(name, name, True, pieces) if sum(map(len, pieces)) > 25_000 else None


def _source(name: str, author: str, code: bool, pieces: Sequence[str]) -> Source:
    ends, total = [], 0
    for piece in pieces:
        total += len(piece)
        ends.append(total)
    return Source(name, author, code, tuple(pieces), tuple(ends))


def read_novels(folders: Sequence[Path]) -> list[Source]:
    """Every `*.txt` of at least 60,000 characters, by name."""
    paths = sorted({path for folder in folders for path in folder.rglob("*.txt")})
    return [novel for path in paths if (novel := _novel(path)) is not None]


def read_packages(folder: Path | None = None) -> list[Source]:
    """Folders with Python modules below `folder` (default: the standard library), by name."""
    root = folder or Path(sysconfig.get_paths()["stdlib"])
    found = []
    for package in sorted(path for path in root.iterdir() if path.is_dir()):
        if package.name in {"test", "site-packages", "encodings", "lib2to3", "pydoc_data"}:
            continue
        files = [
            path
            for path in sorted(package.rglob("*.py"))
            if not {"test", "tests", "__pycache__", "idle_test"} & set(path.parts)
        ]
        source = _package(package.name, files, random.Random(package.name))
        if source is not None:
            found.append(source)
    return found


# --- one subject of one conversation


@dataclass(slots=True)
class _Subject:
    """A place in a source, and the width around it that the conversation ranges over."""

    source: Source
    random_of: random.Random
    low: int  # pieces low .. high - 1
    high: int
    at: int = 0
    jumps: float = 0.15  # share of the passages that do not follow the one before
    roams: bool = False  # a jump may lead anywhere within the width; or else back to what was read
    read: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def asked_about(self, characters: int) -> str:
        """The passage that a question is about: mostly one of the last few that were shown."""
        if self.read and self.random_of.random() < 0.8:
            return self.random_of.choice(self.read[-3:])
        return self.passage(characters)

    def passage(self, characters: int) -> str:
        """Reads on from where it was, or jumps within the width."""
        if self.at >= self.high or self.random_of.random() < self.jumps:
            self.at = self._elsewhere()
        self.places.append(self.at)
        parts: list[str] = []
        while self.at < len(self.source.pieces) and sum(map(len, parts)) < characters:
            parts.append(self.source.pieces[self.at])
            self.at += 1
        joined = ("\n" if self.source.code else "\n\n").join(parts)
        if len(joined) > characters * 2:
            cut = self.random_of.randrange(len(joined) - characters)
            joined = joined[cut : cut + characters]
        self.read.append(joined)
        return joined

    def _elsewhere(self) -> int:
        if self.roams or not self.places:
            return self.random_of.randrange(self.low, self.high)
        back = self.random_of.choice(self.places) + self.random_of.randint(-2, 2)
        return min(max(back, self.low), self.high - 1)

    def question(self, passage: str) -> str:
        if self.source.code:
            return self._question_on_code(passage)
        words = passage.split()
        count = min(len(words), self.random_of.randint(4, 10))
        starts = [self.random_of.randrange(max(1, len(words) - count)) for _ in range(3)]
        phrases = [" ".join(words[at : at + count]).strip(" ,.;:!?\"'“”") for at in starts]
        phrase = max(phrases, key=lambda text: sum(len(word) > 5 for word in text.split()))
        names = re.findall(r"(?<=[a-z,] )[A-Z][a-z]{2,}(?: [A-Z][a-z]+)*", passage)
        name = self.random_of.choice(names) if names else "the one"
        return self.random_of.choice(_ASK).format(phrase=phrase, name=name)

    def _question_on_code(self, passage: str) -> str:
        names = sorted(set(re.findall(r"[A-Za-z_][A-Za-z0-9_]{3,}", passage))) or ["it"]
        drawn = [self.random_of.choice(names) for _ in range(6)]
        name, other = max(drawn[:3], key=len), max(drawn[3:], key=len)
        return self.random_of.choice(_ASK_CODE).format(name=name, other=other)

    def answer(self, passage: str) -> str:
        if self.source.code:
            lines = passage.split("\n")
            first = self.random_of.randrange(max(1, len(lines) - 3))
            text = "\n".join(lines[first : first + self.random_of.randint(2, 10)])
        else:
            sentences = re.split(r"(?<=[.!?]) ", passage)
            first = self.random_of.randrange(len(sentences))
            text = " ".join(sentences[first : first + self.random_of.randint(1, 3)])[:700]
        return self.random_of.choice(_LEAD) + text


def _place(
    source: Source, random_of: random.Random, width: int, far_from: Sequence[_Subject] = ()
) -> _Subject:
    """A stretch of about `width` characters; of one novel, a tenth of it away from the others."""
    width = min(width, source.size)
    taken = [s for s in far_from if s.source is source]
    for _ in range(200):
        start = random_of.randrange(max(1, source.size - width))
        low = next(i for i, end in enumerate(source.ends) if end > start)
        high = next((i for i, end in enumerate(source.ends) if end >= start + width), low) + 1
        gap = source.size // 10
        if all(
            source.ends[low] > source.ends[s.high - 1] + gap
            or source.ends[high - 1] < source.ends[s.low] - gap
            for s in taken
        ):
            break
    return _Subject(source, random_of, low, high, random_of.randrange(low, high))


# --- conversations


class Generator:
    """Conversations over these sources. The same seed and sources give the same conversations."""

    def __init__(self, novels: Sequence[Source], packages: Sequence[Source], seed: int) -> None:
        self.novels, self.packages, self.seed = list(novels), list(packages), seed

    def kinds(self) -> list[Kind]:
        """Those that the sources allow."""
        authors = [novel.author for novel in self.novels]
        able: dict[Kind, bool] = {
            "author": len(set(authors)) < len(authors),
            "books": len(set(authors)) > 1,
            "code": len(self.packages) > 1,
            "mixed": bool(self.novels and self.packages),
            "chapters": bool(self.novels),
            "steady": bool(self.novels or self.packages),
            "roaming": len(self.novels) > 1,
            "elsewhere": bool(self.novels),
        }
        return [kind for kind in KINDS if able[kind]]

    def conversation(self, kind: Kind, number: int, style: Style) -> Conversation:
        random_of = random.Random(f"{self.seed} {kind} {number}")
        subjects = self._subjects(kind, random_of)
        turns: list[Turn] = []
        total = random_of.randint(*style.turns)
        for subject in self._order(len(subjects), random_of, total, style):
            after = turns[-1].subject if turns else -1
            turns.append(self._turn(subjects, subject, style, random_of, opens=subject != after))
        if kind == "elsewhere":
            turns = [Turn(t.user, t.answer, 0, t.say) for t in turns]
        return Conversation(kind, tuple(turns), kind not in BESIDE)

    def _order(
        self, subjects: int, random_of: random.Random, total: int, style: Style
    ) -> list[int]:
        """The subject of each turn: stays of random length; a later stay may return."""
        order: list[int] = []
        seen = 0
        while len(order) < total:
            before = order[-1] if order else -1
            fresh = seen < subjects and (seen < 2 or random_of.random() < 0.5)
            old = [s for s in range(seen) if s != before]
            following = seen if fresh or not old else random_of.choice(old)
            if following >= subjects:
                following = before
            seen = max(seen, following + 1)
            order += [following] * random_of.randint(*style.stay)
        return order[:total]

    def _turn(
        self,
        subjects: list[_Subject],
        index: int,
        style: Style,
        random_of: random.Random,
        *,
        opens: bool,
    ) -> Turn:
        """A turn that opens a subject is about it; what it says may be a question only."""
        subject, draw = subjects[index], random_of.random()
        if not opens and draw < style.odd:
            return Turn(*random_of.choice(_ODD), index, "odd")
        characters = random_of.randint(*style.passage)
        if not opens and draw < style.odd + style.generic:
            answer = subject.answer(subject.asked_about(characters))
            return Turn(random_of.choice(_GENERIC), answer, index, "anything")
        if random_of.random() < (style.opening if opens else style.questions):
            passage = subject.asked_about(characters)
            return Turn(subject.question(passage), subject.answer(passage), index, "question")
        passage = subject.passage(characters)
        question, answer = subject.question(passage), subject.answer(passage)
        frame = random_of.choice(_PASTE_CODE if subject.source.code else _PASTE)
        return Turn(frame.format(text=passage, question=question), answer, index, "passage")

    def _subjects(self, kind: Kind, random_of: random.Random) -> list[_Subject]:
        width = 10_000_000 if kind == "roaming" else random_of.choice((10_000, 20_000, 40_000))
        if kind in ("chapters", "elsewhere"):
            novel = random_of.choice(self.novels)
            places: list[_Subject] = []
            for _ in range(random_of.choice((2, 2, 3))):
                places.append(_place(novel, random_of, width // 2, places))
            return places
        places = [_place(source, random_of, width) for source in self._sources(kind, random_of)]
        for place in places:
            place.roams = place.source.code or kind == "roaming"
            place.jumps = 0.35 if kind == "roaming" else place.jumps
        return places

    def _sources(self, kind: Kind, random_of: random.Random) -> list[Source]:
        if kind == "steady":
            return [random_of.choice(self.novels + self.packages)]
        if kind == "code":
            count = min(len(self.packages), random_of.choice((2, 2, 3)))
            return random_of.sample(self.packages, count)
        if kind == "mixed":
            pair = [random_of.choice(self.novels), random_of.choice(self.packages)]
            random_of.shuffle(pair)
            return pair
        novels = random_of.sample(self.novels, len(self.novels))
        if kind == "author":
            for first in novels:
                same = [n for n in novels if n.author == first.author and n is not first]
                if same:
                    return [first, random_of.choice(same)]
        if kind == "roaming":
            return novels[:2]
        others = [n for n in novels if n.author != novels[0].author]
        return [novels[0], *others[: random_of.choice((1, 1, 2))]]


# --- tokens

Encode: TypeAlias = Callable[[str], list[int]]


def subword_encoder(path: Path) -> Encode:
    """A `tokenizer.json`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def byte_encoder() -> Encode:
    return lambda text: list(text.encode())


def word_encoder() -> Encode:
    """Whole words and single signs, numbered as they come."""
    numbers: dict[str, int] = {}
    return lambda text: [
        numbers.setdefault(word, len(numbers)) for word in re.findall(r"\w+|[^\w\s]", text)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="One conversation of each kind")
    parser.add_argument("folders", nargs="*", type=Path, help="novels, as *.txt")
    parser.add_argument("--packages", type=Path, help="default: Python's standard library")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = Generator(
        read_novels(options.folders), read_packages(options.packages), options.seed
    )
    for kind in generator.kinds():
        print(f"--- {kind}")
        for turn in generator.conversation(kind, 0, Style()).turns[:12]:
            print(f"[{turn.subject} {turn.say}] {turn.user[:160]!r} -> {turn.answer[:80]!r}")


if __name__ == "__main__":
    main()
