"""Text of one choice while it grows: whole characters, stop strings cut out. Standard library.

Text that may be the beginning of a stop string is held back until it is decided. The choice ends
at the first character that completes a stop string (of several, the one that begins earliest), so
the result does not depend on how the text is cut into tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Pushes(Protocol):
    """An incremental detokeniser (engine/detokenizer.py)."""

    def push(self, token_id: int) -> str: ...

    def finish(self) -> str: ...


class Piece(NamedTuple):
    """Text that is safe to send, and the stop string that was completed (None: go on)."""

    text: str
    stop: str | None = None


class StopMatcher:
    """Holds back what may become a stop string; at most the longest stop string less one."""

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""

    def push(self, text: str) -> Piece:
        """Add text. After a match nothing more may be pushed."""
        if not self._stops:
            return Piece(text)
        buffer = self._held + text
        found = self._first_match(buffer)
        if found is not None:
            start, stop = found
            self._held = ""
            return Piece(buffer[: start + len(stop)] if self._include else buffer[:start], stop)
        keep = self._undecided(buffer)
        self._held = buffer[len(buffer) - keep :]
        return Piece(buffer[: len(buffer) - keep])

    def flush(self) -> str:
        """What was held back, at the end of the choice."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, buffer: str) -> tuple[int, str] | None:
        """(start, stop string) with the earliest end, then the earliest start."""
        places = [(buffer.find(stop), stop) for stop in self._stops]
        found = [(start + len(stop), start, stop) for start, stop in places if start >= 0]
        if not found:
            return None
        _, start, stop = min(found)
        return start, stop

    def _undecided(self, buffer: str) -> int:
        """Length of the longest end of `buffer` that some stop string begins with."""
        longest = min(len(buffer), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(buffer[-length:]) for stop in self._stops):
                return length
        return 0


class ChoiceText:
    """Tokens of one choice in, text to send out. Stop strings count from min_tokens on."""

    def __init__(
        self,
        detokenizer: Pushes,
        stops: Sequence[str] = (),
        *,
        include: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stops, include=include)
        self._tokens_before_stops = min_tokens

    def push(self, token_id: int) -> Piece:
        text = self._detokenizer.push(token_id)
        self._tokens_before_stops -= 1
        if self._tokens_before_stops > 0:
            return Piece(text)
        return self._matcher.push(text)

    def finish(self) -> Piece:
        """The rest: an incomplete character (as U+FFFD) and whatever was held back."""
        piece = self._matcher.push(self._detokenizer.finish())
        return piece if piece.stop is not None else Piece(piece.text + self._matcher.flush())
