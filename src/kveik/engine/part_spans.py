"""Where the chosen content parts of a chat stand in its rendered text and in its token ids.

A chat template is a program: it may trim, move, repeat or drop what it is given. So each part is
marked with unguessable characters on both sides, the template runs once more, and the marks tell
where the part went. Marks lie inside the part's outer white space, so that trimming acts as ever;
text that differs once the marks are taken out again (a template that looks at the first letters)
is searched instead. Knows no tokenizer: text positions in, text positions out.
"""

from __future__ import annotations

import secrets
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter

_PRIVATE_USE = range(0xE000, 0xF8FF)
Range = tuple[int, int]


class Marks:
    """Marks for `count` parts: private-use characters that no client can foresee."""

    def __init__(self, count: int) -> None:
        self._nonce = "".join(chr(secrets.choice(_PRIVATE_USE)) for _ in range(6))
        self._count = count

    def around(self, text: str, ranges: Mapping[int, Range]) -> str:
        """`text` with marks just inside the white space of each range; ranges do not overlap.

        ranges: number of the part -> its place in `text`."""
        pieces, at = [], 0
        for number, (start, end) in sorted(ranges.items(), key=lambda item: item[1]):
            first, last = core(text, start, end)
            pieces += [text[at:first], self._mark(number, 0), text[first:last]]
            pieces.append(self._mark(number, 1))
            at = last
        return "".join([*pieces, text[at:]])

    def remove(self, text: str) -> tuple[str, dict[int, tuple[list[int], list[int]]]]:
        """The text without marks; per part the places where it starts, and where it ends."""
        head, *rest = text.split(self._nonce)
        places: dict[int, tuple[list[int], list[int]]] = {}
        pieces, length = [head], len(head)
        for piece in rest:
            number = _PRIVATE_USE.index(ord(piece[0])) * 64 + _PRIVATE_USE.index(ord(piece[1]))
            side = _PRIVATE_USE.index(ord(piece[2]))
            places.setdefault(number, ([], []))[side].append(length)
            pieces.append(piece[3:])
            length += len(piece) - 3
        return "".join(pieces), places

    def _mark(self, number: int, side: int) -> str:
        digits = (number // 64, number % 64, side)
        return self._nonce + "".join(chr(_PRIVATE_USE[digit]) for digit in digits)


def core(text: str, start: int, end: int) -> Range:
    """A range without its outer white space."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())


def place(text: str, part: str, marked: tuple[Sequence[int], Sequence[int]] | None) -> Range | None:
    """The smallest range of the rendered `text` that covers `part`, outer white space included
    where it was kept. marked: where its marks were; None: search. None: it is not there."""
    inner = part.strip()
    if marked is None:
        found = text.find(inner)
        if found < 0:
            return None
        return _with_white_space(text, part, (found, text.rfind(inner) + len(inner)))
    starts, ends = marked
    if starts and ends:
        return _with_white_space(text, part, (min(starts), max(ends)))
    if starts:  # the end was cut off
        kept = _common(text[starts[0] :], inner)
        return (starts[0], starts[0] + kept) if kept else None
    if ends:  # the beginning was cut off
        kept = _common(text[: ends[0]][::-1], inner[::-1])
        return (ends[0] - kept, ends[0]) if kept else None
    return None


def tokens_around(offsets: Sequence[Range], character: int) -> Range:
    """How many tokens end at this character or before it, and how many begin before it.
    offsets: per token."""
    ended = bisect_right(offsets, character, key=itemgetter(1))
    return ended, bisect_left(offsets, character, lo=ended, key=itemgetter(0))


def cuts_of(ranges: Iterable[Range]) -> list[int]:
    """Where ranges begin or end, in order."""
    return sorted({cut for both in ranges for cut in both})


def spans_of(ranges: Iterable[Range], cuts: Sequence[int], places: Sequence[Range]) -> list[Range]:
    """The smallest ranges of tokens that cover these ranges of characters. places: what is around
    each of `cuts` (see `tokens_around`)."""
    around = dict(zip(cuts, places, strict=True))
    return [(around[start][0], around[end][1]) for start, end in ranges]


def _with_white_space(text: str, part: str, found: Range) -> Range:
    start, end = found
    before = part[: len(part) - len(part.lstrip())]
    after = part[len(part.rstrip()) :]
    start -= _common(text[max(0, start - len(before)) : start][::-1], before[::-1])
    end += _common(text[end : end + len(after)], after)
    return start, end


def _common(left: str, right: str) -> int:
    """Length of the common prefix."""
    length = min(len(left), len(right))
    if left[:length] == right[:length]:
        return length
    return next(index for index in range(length) if left[index] != right[index])
