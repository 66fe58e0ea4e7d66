"""Prompts that forgot a stretch of their middle, with exact numbers of tokens, for the benches.

Case                    how many tokens stay, go and are new
gapped(whole, case)     the shorter prompt, put together from keys and values of the whole one
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from joined import FIRST_TOKEN

from kveik.cache.directive import PLAIN, Directive
from kveik.engine.gaps import Laid, aligned, closed
from kveik.engine.request import Request

UNSTORED = Directive(write="none")


@dataclass(frozen=True)
class Case:
    """Tokens before the gap, in it, behind it, and of the new message."""

    before: int
    gone: int
    behind: int
    new: int = 64

    @property
    def settled(self) -> int:
        return self.before + self.gone + self.behind

    @property
    def name(self) -> str:
        return f"{self.before} + {self.behind} tokens stay, {self.gone} go, {self.new} are new"

    def shorter(self, whole: Sequence[int]) -> list[int]:
        return [*whole[: self.before], *whole[self.before + self.gone :]]


def gapped(whole: Sequence[int], case: Case) -> Request:
    """The shorter prompt, put together from keys and values of the whole one."""
    shorter = case.shorter(whole)
    joined = closed(Laid.plain(whole), aligned(whole, shorter), case.settled, PLAIN)
    return Request(tuple(shorter), FIRST_TOKEN, joined=joined)
