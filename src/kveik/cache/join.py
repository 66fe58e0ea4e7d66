"""A prompt that is joined from parts (prompt modules): plain records, and what follows from them.

    tokens of the prompt   0 ........ first ............................................
    stretches              | computed | of unit 0 | computed | of unit 1 | computed ... answer
    runs                   | run 0    |           | run 1    |           | run 2     ...
    seen position          0 ........ seen ....  (gaps allowed, ascending)

A *unit* is an ordinary prompt of its own (the lead, then the text of a module): it is computed once
as an exact sequence and lies in the ordinary tree. A *stretch* of a unit is seen through its shift.
Where a session has forgotten a stretch of its middle, the conversation as it was is the unit, and
what stands behind the gap is a stretch of it. When it forgets again, what was computed since is a
run of a joined prompt: such a unit is that run.

A *run* is what is computed in this prompt between two stretches of units. Run 0, where it begins
at position 0, is an ordinary exact prefix. Every other run is a recipe: its keys and values depend
on all that it sees, so its lineage is a digest of that, in order, with the positions at which it is
seen. Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import NamedTuple

from kveik.cache.directive import PLAIN, Directive
from kveik.cache.prefix import pack_tokens
from kveik.cache.segments import EXACT

GAP = "forget"
"""The recipe of what is left of a session that has forgotten something."""

_ENDLESS = 1 << 60  # index behind the last token of the last run, which the answer extends


class Stretch(NamedTuple):
    """Tokens `first .. first + length` of the prompt, seen from position `seen` on. unit: whose
    tokens `offset .. offset + length` they are; -1: they are computed in this prompt."""

    first: int
    length: int
    seen: int
    unit: int = -1
    offset: int = 0


class Run(NamedTuple):
    """What is computed in the prompt without a break, in tokens and in seen positions. exact:
    it begins the prompt at position 0."""

    first: int
    length: int
    seen: int
    exact: bool = False


@dataclass(frozen=True)
class Unit:
    """tokens: the lead, which has `lead` of them, and the text of a module. directive: what becomes
    of what is computed; it holds for the text, not for the lead, which others share.

    joined: how these tokens are a joined prompt themselves; the unit is then its last run."""

    tokens: tuple[int, ...]
    lead: int = 0
    directive: Directive = PLAIN
    joined: JoinedPrompt | None = None

    @property
    def first(self) -> int:
        """The first token that it holds."""
        return self.run.first

    @property
    def lineage(self) -> bytes:
        return EXACT if self.joined is None else self._recipe

    @cached_property
    def _recipe(self) -> bytes:
        assert self.joined is not None
        return self.joined.lineages(self.tokens)[-1]

    @cached_property
    def depth(self) -> int:
        """How many joined prompts lie behind one another in it."""
        return 0 if self.joined is None else self.joined.depth

    @cached_property
    def run(self) -> Run:
        """What it holds, as a run."""
        if self.joined is None:
            return Run(0, len(self.tokens), 0, exact=True)
        return self.joined.runs[-1]


@dataclass(frozen=True)
class JoinedPrompt:
    """See the module. stretches: they cover the tokens of the prompt in order, and ascend in seen
    positions; the last one is computed here (invariant 4). recipe: how it was joined, in words that
    become part of every lineage."""

    stretches: tuple[Stretch, ...]
    units: tuple[Unit, ...]
    recipe: str

    def __post_init__(self) -> None:
        first = seen = 0
        for stretch in self.stretches:
            if stretch.first != first or stretch.seen < seen or stretch.length < 1:
                raise ValueError(f"{stretch} does not follow token {first}, position {seen}")
            first, seen = first + stretch.length, stretch.seen + stretch.length
            unit = self.units[stretch.unit] if stretch.unit >= 0 else None
            if unit is not None and not (
                unit.first <= stretch.offset <= len(unit.tokens) - stretch.length
            ):
                raise ValueError(
                    f"{stretch} reaches beyond tokens {unit.first} .. {len(unit.tokens)} of a unit"
                )
        if not self.stretches or self.stretches[-1].unit >= 0:
            raise ValueError("the last token of a prompt is computed in it")

    @property
    def seen_end(self) -> int:
        """The seen position behind the last token."""
        return self.stretches[-1].seen + self.stretches[-1].length

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        runs: list[Run] = []
        last: Stretch | None = None
        for stretch in self.stretches:
            follows = last is not None and last.unit < 0 and last.seen + last.length == stretch.seen
            if stretch.unit < 0 and follows:
                runs[-1] = runs[-1]._replace(length=runs[-1].length + stretch.length)
            elif stretch.unit < 0:
                runs.append(Run(stretch.first, stretch.length, stretch.seen, stretch.seen == 0))
            last = stretch
        return tuple(runs)

    @cached_property
    def reused(self) -> tuple[Stretch, ...]:
        """The stretches of units."""
        return tuple(stretch for stretch in self.stretches if stretch.unit >= 0)

    @cached_property
    def depth(self) -> int:
        """How many joined prompts lie behind one another, this one included."""
        return 1 + max((unit.depth for unit in self.units), default=0)

    @property
    def kept_tokens(self) -> int:
        """Token ids in its units, and in what those are runs of."""
        texts: dict[int, int] = {}
        rest = list(self.units)
        while rest:
            unit = rest.pop()
            if id(unit.tokens) not in texts:
                texts[id(unit.tokens)] = len(unit.tokens)
                rest += unit.joined.units if unit.joined is not None else ()
        return sum(texts.values())

    def blocks(self, block_size: int) -> int:
        """Blocks that hold the prompt, or one of those that its units are runs of, at most: every
        unit with a lead of its own."""
        lengths = [unit.run.length for unit in self.units]
        lengths += [run.length for run in self.runs]
        own = sum(-(-length // block_size) for length in lengths)
        behind = (unit.joined.blocks(block_size) for unit in self.units if unit.joined is not None)
        return max(own, *behind, 0)

    def lineages(self, tokens: Sequence[int]) -> list[bytes]:
        """The lineage of every run. tokens: of the prompt.

        It contains what the run sees, not what is in it: prompts that begin alike share it."""
        digest = blake2b(digest_size=32, person=b"kveik recipe")
        _absorb(digest, self.recipe.encode())
        lineages: list[bytes] = []
        runs = {run.first: run for run in self.runs}
        for stretch in self.stretches:
            run = runs.get(stretch.first)
            if run is not None:
                own = digest.copy()
                _absorb(own, run.seen.to_bytes(8, "big"))
                lineages.append(EXACT if run.exact else own.digest())
                _absorb(digest, b"run", _place(run.seen, 0, run.length))
                _absorb(digest, pack_tokens(tokens[run.first : run.first + run.length]))
            elif stretch.unit >= 0:
                place = _place(stretch.seen, stretch.offset, stretch.length)
                unit = self.units[stretch.unit]
                _absorb(digest, b"unit", place, unit.lineage, pack_tokens(unit.tokens))
        return lineages


def _absorb(digest: blake2b, *parts: bytes) -> None:
    """Each part behind its length, so that no two sequences of parts look alike."""
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)


def _place(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(8, "big") for number in numbers)


class Task(NamedTuple):
    """Tokens `first .. stop` that must be computed, the first of them at this seen position."""

    first: int
    stop: int
    seen: int


@dataclass(frozen=True, slots=True)
class Course:
    """Which tokens of a sequence get rows, in order: the runs without what the cache serves. The
    last task has no end, because the answer goes on behind it."""

    tasks: tuple[Task, ...]

    @classmethod
    def of(cls, runs: Sequence[Run], served: Sequence[int]) -> Course:
        """served: how many tokens of every run are there; fewer than all of the last."""
        tasks = []
        for run, there in zip(runs, served, strict=True):
            stop = _ENDLESS if run is runs[-1] else run.first + run.length
            if run.first + there < stop:
                tasks.append(Task(run.first + there, stop, run.seen + there))
        return cls(tuple(tasks))

    @property
    def start(self) -> int:
        """The first token that must be computed."""
        return self.tasks[0].first

    def pieces(self, first: int, count: int) -> list[tuple[int, int, int]]:
        """(first token, seen position, count) of the rows among tokens `first .. first + count`."""
        pieces = []
        for task in self.tasks:
            start, stop = max(first, task.first), min(first + count, task.stop)
            if start < stop:
                pieces.append((start, task.seen + start - task.first, stop - start))
        return pieces

    def reach(self, first: int, rows: int, end: int) -> int:
        """How far from `first`, at most to `end`, so many rows go."""
        for task in self.tasks:
            start, stop = max(first, task.first), min(end, task.stop)
            if start < stop:
                if stop - start > rows:
                    return start + rows
                rows -= stop - start
                first = stop
        return end
