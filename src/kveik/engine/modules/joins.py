"""How the modules of a layout are joined: what of them is computed again in the prompt.

    independent   nothing: a module sees the lead and itself (Prompt Cache)
    link, link2   the first one or two blocks of every module, so that it knows what stands before
                  it and its beginning draws no attention that belongs to the prompt's own (EPIC)
    exact         everything: an ordinary prompt, which shares its true beginning and nothing else

CacheBlend's choice, the tokens whose keys and values deviate most, is left out: they lie scattered,
so that nearly every block of a paged cache would have to be copied.

A module directly behind the lead, at its home position, is an exact prefix in every way of joining.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

from kveik.cache.directive import PLAIN, Directive
from kveik.cache.join import JoinedPrompt, Stretch, Unit
from kveik.engine.modules.layout import Layout, Piece
from kveik.errors import InvalidRequest

Join: TypeAlias = Literal["independent", "link", "link2", "exact"]
JOINS: tuple[Join, ...] = get_args(Join)
DEFAULT: Join = "link"

_LINKED: dict[str, int] = {"independent": 0, "link": 1, "link2": 2}  # blocks computed again


def check_join(value: object) -> Join:
    """InvalidRequest unless it is one of the ways."""
    for known in JOINS:
        if value == known:
            return known
    raise InvalidRequest(f"join: expected one of {', '.join(JOINS)}", param="join")


def join_layout(
    layout: Layout, how: Join, block_size: int, directives: Sequence[Directive] = ()
) -> JoinedPrompt | None:
    """What the engine is told beside `layout.token_ids`; None: it is an ordinary prompt.

    directives: what becomes of every unit of the layout; empty: plain use."""
    pieces = _Pieces(layout)
    for piece in layout.pieces:
        if piece.unit < 0 or how == "exact" or pieces.is_prefix(piece):
            pieces.compute(piece, len(piece.token_ids))
        else:
            linked = _LINKED[how] * block_size - piece.offset
            pieces.compute(piece, min(max(linked, 0), len(piece.token_ids)))
    pieces.compute_last()
    stretches = pieces.stretches
    ordinary = all(one.unit < 0 and one.seen == one.first for one in stretches)
    if ordinary:
        return None
    used = list(dict.fromkeys(one.unit for one in stretches if one.unit >= 0))
    lead = len(layout.lead)
    units = tuple(
        Unit(
            layout.lead + layout.units[number].token_ids,
            lead,
            directives[number] if directives else PLAIN,
        )
        for number in used
    )
    if used != list(range(len(used))):
        stretches = [
            one if one.unit < 0 else one._replace(unit=used.index(one.unit)) for one in stretches
        ]
    return JoinedPrompt(tuple(stretches), units, how)


class _Pieces:
    """The stretches so far. tokens: all of them; exact: they are an ordinary beginning."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._tokens: list[int] = []
        self._exact = True
        self.stretches: list[Stretch] = []

    def is_prefix(self, piece: Piece) -> bool:
        """Do the lead and the unit up to the end of this piece begin the prompt?"""
        first, lead = len(self._tokens), self._layout.lead
        if not self._exact or not piece.seen == first == len(lead) + piece.offset:
            return False
        unit = lead + self._layout.units[piece.unit].token_ids[: piece.offset]
        return unit == tuple(self._tokens)

    def compute(self, piece: Piece, count: int) -> None:
        """The first `count` tokens of the piece are computed here, the rest is its unit's."""
        first, rest = len(self._tokens), len(piece.token_ids) - count
        if count:
            self.stretches.append(Stretch(first, count, piece.seen))
            self._exact = self._exact and piece.seen == first
        if rest:
            offset = len(self._layout.lead) + piece.offset + count
            seen = piece.seen + count
            self.stretches.append(Stretch(first + count, rest, seen, piece.unit, offset))
            self._exact = False
        self._tokens += piece.token_ids

    def compute_last(self) -> None:
        """The last token of a prompt is computed in it, whatever it belongs to."""
        last = self.stretches[-1]
        if last.unit < 0:
            return
        self.stretches.pop()
        if last.length > 1:
            self.stretches.append(last._replace(length=last.length - 1))
        end = last.length - 1
        self.stretches.append(Stretch(last.first + end, 1, last.seen + end))
