"""What is known of one session that is followed by topic. Standard library only."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

from kveik.cache.relevance import Tracker

MOST_ENDS = 32  # of prompts and conversations remembered per session

Scope: TypeAlias = tuple[str, str]  # namespace, salt


class Followed:
    """Its tracker, and where its prompts and conversations ended."""

    __slots__ = ("context", "ends", "number", "open", "scope", "tracker")

    def __init__(self, number: int, scope: Scope, tracker: Tracker) -> None:
        self.number, self.scope, self.tracker = number, scope, tracker
        self.ends: OrderedDict[int, bytes] = OrderedDict()  # length in bytes -> digest
        self.open = 0  # length of the prompt whose turn is under way
        self.context = ""

    def remember(self, length: int, digest: bytes) -> None:
        self.ends[length] = digest
        self.ends.move_to_end(length)
        if len(self.ends) > MOST_ENDS:
            self.ends.popitem(last=False)
