"""Plots of results: every method with its interval, and who is served how well."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tiger_jax.reporting import figures, tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def comparison(rows: Sequence[tables.ResultRow], metric: str) -> figures.Draw:
    """One bar a method, weakest first, with 95 % intervals where there are any."""

    def draw(theme: figures.Theme) -> "Figure":
        shown = [row for row in rows if row.kind != "share" and row.values.get(metric)]
        shown.sort(key=lambda row: row.values[metric])
        figure = figures.new_figure(0.7 + 0.34 * len(shown))
        axes = figure.subplots()
        colors = {
            "ours": theme.accent,
            "baseline": theme.second,
            "fused": theme.series[2],
            "ceiling": theme.grid,
            "published": theme.neutral,
        }
        for place, row in enumerate(shown):
            value = row.values[metric]
            axes.barh(place, value, 0.68, color=colors[row.kind])
            end = value
            if metric in row.intervals:
                low, end = row.intervals[metric]
                axes.plot([low, end], [place, place], color=theme.ink, linewidth=1.4)
            axes.annotate(
                tables.format_value(row, metric),
                (end, place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                color=theme.ink,
                fontweight="bold" if row.kind == "ours" else "normal",
            )
        names = [
            f"{row.name} [published]" if row.kind == "published" else row.name
            for row in shown
        ]
        axes.set_yticks(range(len(shown)), names)
        for text, row in zip(axes.get_yticklabels(), shown, strict=True):
            text.set_color(theme.ink)
            text.set_fontweight("bold" if row.kind == "ours" else "normal")
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.1)
        figures.label(axes, tables.metric_title(metric))
        return figure

    return draw


def by_group(
    titles: Sequence[str],
    groups: Sequence[str],
    values: Mapping[str, Sequence[float]],
    *,
    title: str,
    x: str,
) -> figures.Draw:
    """Grouped bars: one group a kind of target, one bar a method.

    Args:
      titles: Methods, in order; the last is ours.
      groups: Names of the groups, with their sizes.
      values: By method, one value a group.
      title: Of the plot.
      x: Of the groups' axis.
    """

    def draw(theme: figures.Theme) -> "Figure":
        figure = figures.new_figure(3.0)
        axes = figure.subplots()
        width = 0.8 / len(titles)
        quiet = (theme.neutral, theme.series[2], theme.second, *theme.series[6:])
        for i, name in enumerate(titles):
            color = theme.accent if i == len(titles) - 1 else quiet[i]
            place = np.arange(len(groups)) + (i - (len(titles) - 1) / 2) * width
            axes.bar(place, values[name], width * 0.92, color=color, label=name)
        axes.set_xticks(range(len(groups)), groups)
        axes.grid(axis="x", visible=False)
        axes.legend(ncols=2)
        figures.label(axes, title, x)
        return figure

    return draw
