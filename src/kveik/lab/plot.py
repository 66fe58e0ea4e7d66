"""Hit rate, and what was computed again, against memory: one line for each policy, as a picture.

Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kveik.errors import ConfigError
from kveik.lab.replay import Replay
from kveik.lab.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by everybody; more policies than that differ in their dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_DASHES = ("-", "--", ":")
INK = "#4d4d4d"

Value = Callable[[Replay], float]


def check_plot() -> None:
    """ConfigError unless a picture can be drawn: better before long work than behind it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            "--plot: needs matplotlib, which is not installed: pip install 'kveik[lab]'",
            param="plot",
        ) from None


def draw(trace: Trace, replays: Sequence[Replay], path: Path) -> None:
    """Write the picture; the ending of the path says in which format (svg, png, pdf).

    ConfigError where the file cannot be written."""
    import matplotlib
    from matplotlib.figure import Figure

    watched = [one for one in replays if one.played.reasons.computed_first]
    with matplotlib.rc_context({"svg.hashsalt": "kveik", "font.size": 10}):
        figure = Figure(figsize=(11.5 if watched else 7.5, 4.2), layout="constrained")
        hits, *again = figure.subplots(1, 2 if watched else 1, squeeze=False)[0]
        _lines(hits, trace, replays, lambda one: 100 * one.token_hit_rate)
        hits.set_ylabel("prompt tokens from the cache, %")
        hits.set_title(trace.name, fontsize=10, color=INK, loc="left")
        for axes in again:
            _lines(axes, trace, watched, lambda one: one.played.reasons.computed_again)
            axes.set_ylabel("blocks computed again")
            axes.yaxis.set_major_formatter("{x:,.0f}")
            axes.set_title("had been there, and were evicted", fontsize=10, color=INK)
        figure.legend(*hits.get_legend_handles_labels(), frameon=False, loc="outside right center")
        save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """ConfigError where the file cannot be written."""
    try:
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot: {path} cannot be written ({error})", param="plot") from None


def _lines(axes: Axes, trace: Trace, replays: Sequence[Replay], value: Value) -> None:
    """One line for each policy."""
    policies = list(dict.fromkeys(one.policy for one in replays))
    others = [name for name in policies if name != "optimum"]
    for name in policies:
        points = sorted((one.blocks, value(one)) for one in replays if one.policy == name)
        colour, dash = INK, "-."
        if name != "optimum":
            lap, place = divmod(others.index(name), len(COLOURS))
            colour, dash = COLOURS[place], _DASHES[lap % len(_DASHES)]
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            linestyle=dash,
            label=name,
            marker="o",
            markersize=4,
            linewidth=1.6,
        )
    axes.set_xscale("log", base=2)
    ticks = sorted({one.blocks for one in replays})
    axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"KV pool, blocks of {trace.block_size} tokens")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
