"""The screen of `kveik cache top`: what one look at a server brought, as rows for a terminal.

Pure: from the server's answers to lines; nothing here asks or waits. Every figure that has a colour
has a letter or a pattern of its own too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kveik.commands.cache import span
from kveik.commands.plan import size_text

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

Json = Mapping[str, Any]

_LEVELS = "▁▂▃▄▅▆▇█"
_SPARK = 30  # characters of a line over time
_BAR = 24
_LABEL = 13
_PARTS = (
    ("cached", "cached_tokens", "█", "green"),
    ("approximate", "approximate_tokens", "▓", "yellow"),
    ("computed", "computed_tokens", "▒", "blue"),
    ("generated", "generated_tokens", "░", "magenta"),
)


@dataclass(frozen=True, slots=True)
class Look:
    """What the server answered. history: of all tenants, or of the key's own; curve: None for a key
    that may not see it. trouble: why it is not of this moment."""

    url: str
    history: Json
    curve: Json | None
    caches: Sequence[Json]
    sessions: Sequence[Json]
    requests: Sequence[Json]
    trouble: str | None = None


def screen(look: Look, rows: int) -> Group:
    """The whole screen; rows: of each of its three lists."""
    from rich.console import Group
    from rich.text import Text

    lines: list[Text | Table] = [_title(look)]
    if look.trouble is not None:
        lines.append(Text(look.trouble, style="bold red"))
    lines += [_saved(look.history), _hits(look.history), *_memory(look.history)]
    if look.curve is not None:
        lines.append(_curve(look.curve))
    lines += [_under_way(look.history)] if look.history["now"] is not None else []
    lines += [Text(), _heading("named caches", len(look.caches)), _caches(look.caches, rows)]
    lines += [_heading("sessions", len(look.sessions)), _sessions(look.sessions, rows)]
    lines += [_heading("last requests", None), _legend(), _requests(look.requests, rows)]
    return Group(*lines)


def sparkline(values: Sequence[float | None], most: float | None = None) -> str:
    """One character for each value, from 0 to `most` (None: the largest); a space for None."""
    top = max((value for value in values if value is not None), default=0.0)
    top = max(top if most is None else most, 1e-12)
    return "".join(
        " " if value is None else _LEVELS[min(int(value / top * len(_LEVELS)), len(_LEVELS) - 1)]
        for value in values
    )


def bar(request: Json, most: int) -> list[tuple[str, str]]:
    """(characters, colour) of the tokens of one request; `most` tokens have the full width."""
    pieces: list[tuple[str, str]] = []
    done = tokens = 0
    for _, name, letter, colour in _PARTS:
        tokens += request[name]
        end = round(_BAR * min(tokens / max(most, 1), 1.0))
        pieces.append((letter * (end - done), colour))
        done = end
    return pieces


def in_pieces(values: Sequence[float], pieces: int) -> list[list[float]]:
    """The values in at most so many runs of equal length, the last of which ends them."""
    length = -(-len(values) // pieces)
    first = len(values) % length or length
    starts = [0, *range(first, len(values), length)]
    return [
        list(values[start:end])
        for start, end in zip(starts, [*starts[1:], len(values)], strict=True)
    ]


def _title(look: Look) -> Text:
    from rich.text import Text

    scope = "all tenants" if look.history["scope"] == "all" else "this key"
    return Text(f"kveik   {look.url}   {scope}   {time.strftime('%H:%M:%S')}", style="bold")


def _row(label: str, *parts: str | tuple[str, str]) -> Text:
    from rich.text import Text

    return Text.assemble((f"{label:<{_LABEL}}", "bold"), *parts, overflow="ellipsis", no_wrap=True)


def _heading(label: str, count: int | None) -> Text:
    from rich.text import Text

    return Text(label + ("" if count is None else f" ({count:,})"), style="bold underline")


def _saved(history: Json) -> Text:
    day = history["today"]
    saved = day["seconds_saved"]
    return _row(
        "saved today",
        (f"{saved:.1f} s" if saved < 120 else span(saved), "bold green"),
        f" of computation, {day['share']:.0%} of {day['prompt_tokens']:,} prompt tokens, "
        f"in {day['hit_requests']:,} of {day['requests']:,} requests",
    )


def _hits(history: Json) -> Text:
    """A space where no prompt came."""
    series = history["series"]
    pairs = zip(series["cached_tokens"], series["approximate_tokens"], strict=True)
    reused = [exact + approximate for exact, approximate in pairs]
    hits = list(map(sum, in_pieces(reused, _SPARK)))
    prompts = list(map(sum, in_pieces(series["prompt_tokens"], _SPARK)))
    rates = [hit / asked if asked else None for hit, asked in zip(hits, prompts, strict=True)]
    whole = sum(hits) / sum(prompts) if sum(prompts) else None
    now = "no prompt yet" if whole is None else f"{whole:.0%}"
    seconds = len(reused) * history["step"]
    return _row("hit rate", (sparkline(rates, 1.0), "green"), f"  {now}, last {span(seconds)}")


def _memory(history: Json) -> list[Text]:
    """Nothing for a key that may not see the pool."""
    now, series = history["now"], history["series"]
    if now is None:
        return []
    total = max(now["total_bytes"], 1)
    columns = zip(series["used_bytes"], series["cached_bytes"], strict=True)
    held = [(used + cached) / total for used, cached in columns]
    peaks = [max(piece) for piece in in_pieces(held, _SPARK)]
    used, cached, pinned = (
        f"{now[f'{name}_bytes'] / total:.0%} {name}" for name in ("used", "cached", "pinned")
    )
    size = size_text(now["total_bytes"]).partition(" (")[0]
    line = sparkline(peaks, 1.0)
    return [_row("memory", (line, "cyan"), f"  {used} + {cached} of {size}, {pinned}")]


def _curve(curve: Json) -> Text:
    if not curve["tokens"]:
        return _row("other sizes", "no prompt was looked up yet")
    sample = "" if curve["share"] == 1 else f", 1 block in {1 / curve['share']:.0f} followed"
    return _row(
        "other sizes",
        f"half {curve['half']:.0%}  ",
        (f"this pool {curve['this']:.0%}", "bold"),
        f"  twice {curve['twice']:.0%}  ",
        (sparkline(curve["hit_rates"], 1.0), "green"),
        f"  served {curve['served']:.0%}{sample}",
    )


def _under_way(history: Json) -> Text:
    now = history["now"]
    names = ("running", "waiting", "sessions", "open_streams", "named_caches")
    return _row("now", ", ".join(f"{now[name]:,} {name.replace('_', ' ')}" for name in names))


def _table(
    heads: Sequence[str], rows: Sequence[Sequence[str | Text]], empty: str, left: int = 1
) -> Table | Text:
    """left: columns from the left on that are no numbers."""
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return Text(empty, style="dim")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, head in enumerate(heads):
        table.add_column(head, no_wrap=True, justify="left" if number < left else "right")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def _caches(caches: Sequence[Json], most: int) -> Table | Text:
    """What ends first comes first."""
    order = sorted(caches, key=lambda one: (one["time_left"] is None, one["time_left"] or 0.0))
    rows = [
        (
            one["name"],
            one["status"] + (", pinned" if one["pinned"] else ""),
            f"{one['tokens']:,}",
            "-" if one["hits"] is None else f"{one['hits']:,}",
            countdown(one["time_left"]),
        )
        for one in order[:most]
    ]
    return _table(("name", "status", "tokens", "hits", "ends in"), rows, "none")


def countdown(seconds: float | None) -> str:
    """1:02:03, or 02:03; without an end a dash."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def _sessions(sessions: Sequence[Json], most: int) -> Table | Text:
    rows = [
        (one["session"], f"{one['tokens']:,}", f"{one['blocks']:,}", span(one["idle"]))
        for one in sessions[:most]
    ]
    return _table(("session", "tokens", "blocks", "idle"), rows, "none")


def _legend() -> Text:
    from rich.text import Text

    parts = [(f"{letter} {name}   ", colour) for name, _, letter, colour in _PARTS]
    return Text.assemble(*parts)


def _requests(requests: Sequence[Json], most: int) -> Table | Text:
    from rich.text import Text

    shown = requests[:most]
    largest = max((sum(one[name] for _, name, *_ in _PARTS) for one in shown), default=0)
    rows: list[Sequence[str | Text]] = []
    for one in shown:
        why = one["explanation"]
        reason = "" if why is None else f"{why['reason']} at {why['position']:,}"
        counts = " + ".join(f"{one[name]:,}" for _, name, *_ in _PARTS)
        ended = one["outcome"] if one["outcome"] != "finished" else f"{one['seconds']:.2f} s"
        drawn = Text.assemble(*bar(one, largest))
        when = time.strftime("%H:%M:%S", time.localtime(one["ended"]))
        rows.append((when, drawn, counts, ended, reason))
    heads = ("ended", "", "tokens", "took", "cached until")
    return _table(heads, rows, "none yet", left=2)
