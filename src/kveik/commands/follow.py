"""`kveik follow`: a growing log goes into an endless stream, and a prompt is answered every few
lines.

The stream keeps a window of what it read and of what it answered; older lines are forgotten. A
file that becomes shorter (it was rotated) is read from its beginning.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from kveik.commands.chat import Partner, say
from kveik.errors import InvalidRequest

LONGEST_LINE = 64 * 1024
"""Characters; what is longer goes in as several lines."""

_PAUSE = 0.5
"""Seconds between two looks at a file that does not grow."""


def follow(
    partner: Partner,
    file: Path,
    prompt: str,
    *,
    every: int,
    once: bool,
    system: str | None = None,
) -> None:
    """Ask `prompt` behind every group of lines; once: until the end of the file, with the lines
    that are left there as the last group. Raises InvalidRequest for a file that cannot be read."""
    opening = [{"role": "system", "content": system}] if system else []
    group: list[str] = []
    for line in _lines(file, once=once):
        group.append(line)
        if len(group) == every:
            _ask(partner, opening, group, prompt)
            group = []
    if group:
        _ask(partner, opening, group, prompt)


def _ask(partner: Partner, opening: list[dict[str, str]], lines: list[str], prompt: str) -> None:
    content = "\n".join((*lines, "", prompt))
    say(partner, [*opening, {"role": "user", "content": content}])


def _lines(file: Path, *, once: bool) -> Iterator[str]:
    """Whole lines without their ends; at the end of the file it waits for more unless `once`."""
    try:
        with file.open(encoding="utf-8", errors="replace") as source:
            pending = ""
            while True:
                piece = source.readline(LONGEST_LINE)
                pending += piece
                if pending.endswith("\n") or len(pending) >= LONGEST_LINE:
                    yield pending.rstrip("\n")
                    pending = ""
                elif not piece and once:
                    break
                elif not piece:
                    time.sleep(_PAUSE)
                    if file.stat().st_size < source.tell():
                        source.seek(0)
                        pending = ""
            if pending:
                yield pending
    except OSError as error:
        raise InvalidRequest(f"file: {file} cannot be read ({error.strerror})") from None
