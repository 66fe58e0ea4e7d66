"""A prompt without a stretch of its middle, whose keys and values were computed with it.

    the conversation   | before the gap | forgotten | behind the gap ....... | new message
    the prompt         | before the gap | behind the gap ....... | new message
    as stretches       | run 0, exact   | of unit 0, seen nearer | last run, a recipe

The prompt is that of the shorter conversation, token by token: where its tokens are those of the
conversation that was (from both ends), they are laid out as there, and the rest is computed. So
nothing is assumed about a chat template, and a token that grew together over the gap is a run of
one. Unit 0 is the conversation as it was, up to where its keys and values exist (`settled`). When
something is forgotten again, what was computed behind the first gap is a unit of its own: a run of
the prompt before (`Unit.joined`). Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from operator import eq
from typing import NamedTuple

from kveik.cache.directive import Directive
from kveik.cache.join import GAP, JoinedPrompt, Stretch, Unit

DEEPEST = 8
"""How often a session forgets before its conversation is computed anew. What a prompt needs to be
computed again grows with every gap, and so does what its keys and values still owe to what is
forgotten."""


class Laid(NamedTuple):
    """Tokens of a prompt and how they are laid out; every one is seen where it stands."""

    tokens: Sequence[int]
    stretches: tuple[Stretch, ...]
    units: tuple[Unit, ...] = ()

    @classmethod
    def plain(cls, tokens: Sequence[int]) -> Laid:
        return cls(tokens, (Stretch(0, len(tokens), 0),))


class Piece(NamedTuple):
    """Tokens `first .. first + length` of the shorter prompt are those from `source` on of the
    longer one; -1: they stand in the shorter one alone."""

    first: int
    length: int
    source: int


def followed(before: Laid, tokens: Sequence[int]) -> Laid:
    """A prompt that goes on from another one: laid out alike as far as the tokens are the same."""
    same = min(_common(before.tokens, tokens), len(tokens) - 1)
    rest = Stretch(same, len(tokens) - same, same)
    return Laid(tokens, (*_cut(before.stretches, 0, same), rest), before.units)


def aligned(longer: Sequence[int], shorter: Sequence[int]) -> list[Piece]:
    """The common beginning, what stands in the shorter prompt alone, the common end."""
    size = len(shorter)
    start = min(_common(longer, shorter), size - 1)
    end = min(_common(longer[::-1], shorter[::-1]), size - start)
    pieces = [
        Piece(0, start, 0),
        Piece(start, size - end - start, -1),
        Piece(size - end, end, len(longer) - end),
    ]
    return [piece for piece in pieces if piece.length]


def through(pieces: Sequence[Piece], more: Sequence[Piece]) -> list[Piece]:
    """From the shortest prompt to the longest: `more` is of the shortest and the one between,
    `pieces` of that one and the longest."""
    found = []
    for piece in more:
        if piece.source < 0:
            found.append(piece)
            continue
        for one in pieces:
            low = max(one.first, piece.source)
            high = min(one.first + one.length, piece.source + piece.length)
            if low < high:
                source = -1 if one.source < 0 else one.source + low - one.first
                found.append(Piece(piece.first + low - piece.source, high - low, source))
    return found


def closed(
    whole: Laid,
    pieces: Sequence[Piece],
    settled: int,
    directive: Directive,
) -> JoinedPrompt | None:
    """The prompt that `pieces` make of `whole`; None: an ordinary one, all of which is computed.

    settled: tokens of `whole` whose keys and values exist, or may be made; fewer than all.
    directive: what becomes of units, its documents in tokens of `whole`."""
    closing = _Closing(whole, settled, directive)
    for piece in pieces:
        closing.add(piece)
    return closing.prompt()


class _Closing:
    """The stretches of the shorter prompt, from its beginning on."""

    def __init__(self, whole: Laid, settled: int, directive: Directive) -> None:
        self._whole, self._settled, self._directive = whole, settled, directive
        self._stretches: list[Stretch] = []
        documents = [one.directive.documents for one in whole.units]
        self._units = [
            replace(unit, directive=replace(directive, documents=labels))
            for unit, labels in zip(whole.units, documents, strict=True)
        ]
        self._unit_of: dict[int, int] = {}  # by the first token of a run
        self._as_it_was = True

    def add(self, piece: Piece) -> None:
        self._as_it_was = self._as_it_was and piece.source == piece.first
        if piece.source < 0:
            self._stretches.append(Stretch(piece.first, piece.length, piece.first))
            return
        nearer = piece.source - piece.first
        for one in _cut(self._whole.stretches, piece.source, piece.source + piece.length):
            if self._as_it_was or one.unit >= 0:
                first = one.first - nearer
                self._stretches.append(one._replace(first=first, seen=first))
            else:
                self._reuse(one, nearer)

    def _reuse(self, one: Stretch, nearer: int) -> None:
        """A stretch that was computed in the longer prompt, as far as it is settled."""
        first, there = one.first - nearer, min(max(self._settled - one.first, 0), one.length)
        if there:
            unit = self._unit(one.first)
            self._stretches.append(Stretch(first, there, first, unit, one.first))
        if there < one.length:
            rest = first + there
            self._stretches.append(Stretch(rest, one.length - there, rest))

    def _unit(self, token: int) -> int:
        """The number of the unit that is the run of the longer prompt with this token in it."""
        whole = self._whole
        runs = JoinedPrompt(whole.stretches, whole.units, GAP).runs
        run = next(one for one in runs if one.first <= token < one.first + one.length)
        if run.first not in self._unit_of:
            end = min(run.first + run.length, self._settled)
            before = None
            if not run.exact:
                before = _prompt(_cut(whole.stretches, 0, end), whole.units)
            documents = tuple(one for one in self._directive.documents if one.start < end)
            own = replace(self._directive, documents=documents)
            self._unit_of[run.first] = len(self._units)
            self._units.append(Unit(tuple(whole.tokens[:end]), 0, own, before))
        return self._unit_of[run.first]

    def prompt(self) -> JoinedPrompt | None:
        if all(one.unit < 0 for one in self._stretches):
            return None
        prompt = _prompt(self._stretches, self._units)
        return prompt if prompt.depth <= DEEPEST else None


def _prompt(stretches: Sequence[Stretch], units: Sequence[Unit]) -> JoinedPrompt:
    """With the units that stand in it."""
    used = list(dict.fromkeys(one.unit for one in stretches if one.unit >= 0))
    numbered = tuple(
        one if one.unit < 0 else one._replace(unit=used.index(one.unit)) for one in stretches
    )
    return JoinedPrompt(numbered, tuple(units[number] for number in used), GAP)


def _cut(stretches: Sequence[Stretch], start: int, end: int) -> list[Stretch]:
    """What lies of them in tokens `start .. end`."""
    found = []
    for one in stretches:
        low, high = max(one.first, start), min(one.first + one.length, end)
        if low < high:
            skipped = low - one.first
            offset = one.offset + skipped if one.unit >= 0 else 0
            found.append(Stretch(low, high - low, one.seen + skipped, one.unit, offset))
    return found


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    return sum(1 for _ in takewhile(bool, map(eq, left, right)))
