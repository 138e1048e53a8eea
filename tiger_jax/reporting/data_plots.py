"""Plots of the data: how long histories are, how popularity is spread."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from tiger_jax.reporting import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_SHOWN = 60


def history_lengths(lengths: Int[np.ndarray, " U"], shown_items: int) -> figures.Draw:
    """A histogram of history lengths; the encoder sees the last `shown_items`."""

    def draw(theme: figures.Theme) -> "Figure":
        figure = figures.new_figure(2.9)
        axes = figure.subplots()
        top = int(min(lengths.max(initial=1), LONGEST_SHOWN))
        counts = np.bincount(np.minimum(lengths, top), minlength=top + 1)
        place = np.arange(top + 1)
        colors = [theme.accent if p <= shown_items else theme.neutral for p in place]
        axes.bar(place, counts, width=0.86, color=colors)
        median = float(np.median(lengths))
        axes.axvline(median, color=theme.ink, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"median {median:g}",
            (median, 0.95),
            xytext=(6, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=theme.ink,
            fontsize=8.5,
            va="top",
        )
        axes.grid(axis="x", visible=False)
        figures.label(axes, "Items in a user's history", "items", "users")
        figures.thousands(axes.yaxis)
        if lengths.max(initial=0) > top:
            axes.set_xlabel(f"items ({top} stands for {top} or more)")
        return figure

    return draw


def popularity(counts: Int[np.ndarray, " N"]) -> figures.Draw:
    """How often items occur: by rank, and how much the head holds."""

    def draw(theme: figures.Theme) -> "Figure":
        figure = figures.new_figure(2.9)
        left, right = figure.subplots(1, 2)
        ordered = np.sort(counts)[::-1]
        seen = ordered[ordered > 0]
        left.loglog(np.arange(1, len(seen) + 1), seen, color=theme.accent)
        figures.label(left, "Interactions by item rank", "rank", "interactions")
        share = np.cumsum(ordered) / max(1, ordered.sum())
        part = np.arange(1, len(ordered) + 1) / max(1, len(ordered))
        right.plot(part * 100, share * 100, color=theme.accent)
        right.plot([0, 100], [0, 100], color=theme.neutral, linewidth=1)
        tenth = float(share[max(0, round(len(share) / 10) - 1)]) if len(share) else 0.0
        right.plot([10], [tenth * 100], "o", color=theme.accent, markersize=5)
        right.annotate(
            f"a tenth of the items\nhas {tenth:.0%}",
            (10, tenth * 100),
            xytext=(10, -4),
            textcoords="offset points",
            va="top",
            fontsize=8.5,
            color=theme.ink,
        )
        figures.label(right, "Share of interactions", "% of items", "% of interactions")
        for axis in (left.xaxis, left.yaxis):
            figures.thousands(axis)
        return figure

    return draw
