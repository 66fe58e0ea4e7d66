"""The bar chart of docs/images: medians with their quartiles, a panel per column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import summary

PANELS = ("decode", "prefill_1024", "batch_16", "shared_16")
COLOURS = {"bf16": "#4878a8", "int8": "#5f9e6e", "int4": "#b55d60"}


def draw(rounds: summary.Rounds, titles: dict[str, str], heading: str, path: Path) -> bool:
    """False where matplotlib is not there or nothing was measured that it shows."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [c for c in PANELS if c in summary.columns_in(rounds)]
    if not panels:
        return False
    peers = summary.peers_in(rounds)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kveik", "font.size": 8}):
        figure, axes = pyplot.subplots(
            1, len(panels), figsize=(2.3 * len(panels) + 1.4, 0.6 + 0.24 * len(peers)), sharey=True
        )
        for axis, column in zip([axes] if len(panels) == 1 else axes, panels, strict=True):
            _panel(axis, rounds, peers, column)
        first = axes if len(panels) == 1 else axes[0]
        first.set_yticks(range(len(peers)), [titles.get(peer, peer) for peer in peers])
        first.invert_yaxis()
        figure.suptitle(heading, fontsize=9)
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
    return True


def _panel(axis: Any, rounds: summary.Rounds, peers: list[str], column: str) -> None:
    for place, peer in enumerate(peers):
        found = summary.values(rounds, peer, column)
        if not found:
            continue
        one = summary.spread(found)
        ours = peer.startswith(summary.OURS)
        axis.barh(
            place,
            one.median,
            xerr=[[one.median - one.lower], [one.upper - one.median]],
            color=COLOURS[summary.width(peer)],
            alpha=1.0 if ours else 0.45,
            error_kw={"lw": 0.7},
        )
        axis.text(one.median, place, f" {summary.number(one.median)}", va="center", fontsize=6)
    sense = "less is better" if summary.unit(column) == "s" else "more is better"
    axis.set_title(f"{summary.title(column)}\n{summary.unit(column)}, {sense}", fontsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.18)
