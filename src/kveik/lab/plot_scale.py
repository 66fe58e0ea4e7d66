"""Hit rate, time to the first token and imbalance against replicas, as a picture of three.

Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kveik.lab.plot import COLOURS, INK, save
from kveik.lab.simulate import Simulation
from kveik.lab.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Value = Callable[[Simulation], float]


def draw(trace: Trace, simulations: Sequence[Simulation], path: Path) -> None:
    """Write the picture; the ending of the path says in which format (svg, png, pdf).

    ConfigError where the file cannot be written."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "kveik", "font.size": 10}):
        figure = Figure(figsize=(11.0, 3.9), layout="constrained")
        hits, times, balance = figure.subplots(1, 3)
        _lines(hits, simulations, lambda one: 100 * one.token_hit_rate)
        hits.set_ylabel("prompt tokens from the cache, %")
        _lines(times, simulations, lambda one: one.ttft(0.5)[0] or 0.0)
        _lines(times, simulations, lambda one: one.ttft(0.99)[0] or 0.0, dash="--")
        times.set_ylabel("seconds to the first token")
        times.set_title("half of the requests, and 99 % (dashed)", fontsize=10, color=INK)
        times.set_yscale("log")
        _lines(balance, simulations, lambda one: one.busy_imbalance)
        balance.set_ylabel("busiest replica, times the mean")
        hits.set_ylim(bottom=0)
        balance.set_ylim(bottom=0)
        hits.set_title(trace.name, fontsize=10, color=INK, loc="left")
        handles, labels = hits.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        save(figure, path)


def _lines(axes: Axes, simulations: Sequence[Simulation], value: Value, dash: str = "-") -> None:
    """One line for each route."""
    routes = list(dict.fromkeys(one.route for one in simulations))
    for name, colour in zip(routes, COLOURS, strict=False):
        points = sorted((one.replicas, value(one)) for one in simulations if one.route == name)
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
    ticks = sorted({one.replicas for one in simulations})
    axes.set_xticks(ticks, [f"{count:,}" for count in ticks])
    axes.minorticks_off()
    axes.set_xlabel("replicas")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
