"""Plots of Semantic IDs: codebook use, and what the codes mean."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32

from tiger_jax.reporting import figures
from tiger_jax.reporting.tables import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

MOST_CATEGORIES = 10  # with a colour of their own; the others are one grey
OTHER = "other"
MOST_FIRST_CODES = 4  # whose second codes are shown
MOST_SECOND_CODES = 16
MOST_PANEL_CATEGORIES = 5
FEW_BARS = 80


def codebook_use(
    codes: Int32[np.ndarray, "N T"], codebook_sizes: Sequence[int], num_levels: int
) -> figures.Draw:
    """Items per codeword of each learned level, most used first."""

    def draw(theme: figures.Theme) -> "Figure":
        figure = figures.new_figure(2.5)
        row: Any = figure.subplots(1, num_levels, squeeze=False, sharey=True)[0]
        for level, axes in enumerate(row):
            counts = np.bincount(codes[:, level], minlength=codebook_sizes[level])
            ordered = np.sort(counts)[::-1]
            even = len(codes) / len(ordered)
            place = np.arange(len(ordered))
            axes.fill_between(place, ordered, step="mid", color=theme.accent, lw=0)
            axes.axhline(even, color=theme.ink, linewidth=1, linestyle=(0, (4, 3)))
            used = int((counts > 0).sum())
            figures.label(
                axes, f"Level {level}: {used} of {len(counts)}", "codewords, by use"
            )
            axes.grid(axis="x", visible=False)
            figures.thousands(axes.yaxis)
        row[0].set_ylabel("items")
        return figure

    return draw


def categories_by_first_code(
    first_codes: Int32[np.ndarray, " N"], category_of_items: Sequence[str]
) -> figures.Draw:
    """For each first code, the mix of its items' categories, side by side."""

    def draw(theme: figures.Theme) -> "Figure":
        names, table = _count(first_codes, np.asarray(category_of_items, str))
        figure = figures.new_figure(3.6)
        axes = figure.subplots()
        _stack(axes, theme, names, table)
        figures.label(
            axes,
            "Categories of the items behind each first code",
            f"{len(table)} first codes in use, like beside like",
            "share of items",
        )
        _legend(axes, columns=4, width=24)
        return figure

    return draw


def categories_by_second_code(
    first_codes: Int32[np.ndarray, " N"],
    second_codes: Int32[np.ndarray, " N"],
    category_of_items: Sequence[str],
) -> figures.Draw:
    """For the fullest first codes, the mix behind each of their second codes.

    Args:
      first_codes: Of every item.
      second_codes: Of every item.
      category_of_items: The narrowest category of every item. Each panel gives
        its own most frequent ones a colour.
    """

    def draw(theme: figures.Theme) -> "Figure":
        categories = np.asarray(category_of_items, str)
        fullest = np.argsort(-np.bincount(first_codes), kind="stable")
        fullest = fullest[:MOST_FIRST_CODES]
        figure = figures.new_figure(5.8, below=0.09, between=0.26)
        grid = figure.subplots(2, 2, sharey=True).ravel()
        for axes, first in zip(grid, fullest, strict=False):
            rows = first_codes == first
            second, counts = np.unique(second_codes[rows], return_counts=True)
            kept = second[np.argsort(-counts, kind="stable")[:MOST_SECOND_CODES]]
            shown = rows & np.isin(second_codes, kept)
            names, table = _count(
                second_codes[shown], categories[shown], MOST_PANEL_CATEGORIES
            )
            _stack(axes, theme, names, table)
            figures.label(
                axes, f"({first}, ·): {counts.sum()} items, {len(second)} second codes"
            )
            # Room for it is made by hand: the layout would shrink plots to its width.
            _legend(axes, columns=2, width=23).set_in_layout(False)
        for axes in grid[len(fullest) :]:
            axes.set_visible(False)
        return figure

    return draw


def _count(
    codes: Int32[np.ndarray, " n"],
    categories: np.ndarray,
    most: int = MOST_CATEGORIES,
) -> tuple[list[str], np.ndarray]:
    """Shares of the categories behind each code in use; small ones become one.

    Rows are sorted by their most frequent category, then by its share, so that
    like codes stand together.
    """
    found, counts = np.unique(categories[categories != ""], return_counts=True)
    names = found[np.argsort(-counts, kind="stable")][:most].tolist()
    if len(found) > len(names) or (categories == "").any():
        names.append(OTHER)
    column = {name: i for i, name in enumerate(names)}
    last = column.get(OTHER, len(names))
    columns = np.array([column.get(c, last) for c in categories.tolist()], int)
    used, row = np.unique(codes, return_inverse=True)
    table = np.zeros((len(used), len(names) + 1))
    np.add.at(table, (row, columns), 1)
    table = table[:, : len(names)]
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    main = share.argmax(1)
    order = np.lexsort((-share.max(1), main))
    return names, share[order]


def _stack(
    axes: "Axes", theme: figures.Theme, names: Sequence[str], share: np.ndarray
) -> None:
    bottom = np.zeros(len(share))
    place = np.arange(len(share))
    width = 0.94 if len(share) <= FEW_BARS else 1.0  # no gap where it would flicker
    for i, name in enumerate(names):
        color = theme.neutral if name == OTHER else theme.series[i % len(theme.series)]
        axes.bar(
            place, share[:, i], width, bottom=bottom, color=color, lw=0, label=name
        )
        bottom += share[:, i]
    axes.set_xlim(-0.5, max(0, len(share)) - 0.5)
    axes.set_ylim(0, 1)
    axes.set_xticks([])
    axes.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    axes.grid(visible=False)


def _legend(axes: "Axes", *, columns: int, width: int) -> "Legend":
    """Names the colours under the plot, without a word on what isn't shown."""
    handles, labels = axes.get_legend_handles_labels()
    return axes.legend(
        handles,
        [shorten(text, width) for text in labels],
        loc="upper left",
        bbox_to_anchor=(0, -0.03 if not axes.get_xlabel() else -0.12),
        borderaxespad=0,
        ncols=columns,
        handlelength=1,
        handleheight=1,
        columnspacing=1.2,
        fontsize=7.5,
    )
