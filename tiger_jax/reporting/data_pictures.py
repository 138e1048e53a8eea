"""Pictures of the data, and of the Semantic IDs that its items got."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, Int32

from tiger_jax.data.prepared import PreparedData
from tiger_jax.reporting.figures import (
    Picture,
    Theme,
    is_narrow,
    label,
    log_scale,
    note,
    render,
    side_by_side,
    thousands,
)
from tiger_jax.reporting.tables import shorten
from tiger_jax.semantic_ids.table import SemanticIdTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

MAX_LENGTH_SHOWN = 60
MAX_CATEGORIES = 10  # with a colour of their own; the others are one grey
OTHER = "other"
FEW_BARS = 80


def data_pictures(data: PreparedData, shown_items: int) -> list[Picture]:
    """How long histories are, and how popularity is spread."""
    return [
        render(
            "history_lengths",
            _draw_history_lengths,
            data.histories.lengths,
            shown_items,
            height=2.9,
            narrow_height=2.4,
            alt="Histogram of the number of items in a user's history",
            caption=f"The recommender sees the last {shown_items} items of a history: "
            "orange bars are seen whole.",
        ),
        render(
            "popularity",
            _draw_popularity,
            np.bincount(data.histories.items, minlength=data.num_items),
            height=2.9,
            narrow_height=4.8,
            alt="Interactions by item rank, and the share held by popular items",
            caption="How often the most, second most, … popular item occurs; and the "
            "share of all interactions that the most popular items hold.",
        ),
    ]


def code_pictures(table: SemanticIdTable, data: PreparedData | None) -> list[Picture]:
    """Codebook use and, where items have categories, what the codes mean."""
    codes = table.codes
    pictures = [
        render(
            "codebook_use",
            _draw_codebook_use,
            codes[:, : table.num_levels],
            table.codebook_sizes,
            height=2.5,
            narrow_height=0.3 + 1.5 * table.num_levels,
            alt="Items per codeword at each level, most used first",
            caption="Dashed: what every codeword would have if all were used alike.",
        )
    ]
    if data is None or data.num_items != table.num_items:
        return pictures
    categories = data.category_of_items()
    if not any(categories):
        return pictures
    pictures.append(
        render(
            "categories_by_first_code",
            _draw_categories_by_first_code,
            codes[:, 0],
            np.asarray(categories, str),
            height=3.6,
            narrow_height=3.8,
            alt="Stacked bars: the categories of the items behind each first code",
            caption="One bar is one first code. A bar of one colour is a code that "
            "stands for one category, though no category was ever given to the "
            "quantizer as such.",
        )
    )
    return pictures


def _draw_history_lengths(
    figure: "Figure", theme: Theme, lengths: Int[np.ndarray, " U"], shown_items: int
) -> None:
    axes = figure.subplots()
    top = int(min(lengths.max(initial=1), MAX_LENGTH_SHOWN))
    counts = np.bincount(np.minimum(lengths, top), minlength=top + 1)
    place = np.arange(top + 1)
    colors = [theme.accent if p <= shown_items else theme.neutral for p in place]
    axes.bar(place, counts, width=0.86, color=colors)
    median = float(np.median(lengths))
    axes.axvline(median, color=theme.ink, linewidth=1, linestyle=(0, (4, 3)))
    where = ("data", "axes fraction")
    text = f"median {median:g}"
    note(axes, theme, text, (median, 0.95), xytext=(6, 0), xycoords=where, va="top")
    axes.grid(axis="x", visible=False)
    is_cut = lengths.max(initial=0) > top
    x = f"items ({top} stands for {top} or more)" if is_cut else "items"
    label(axes, "Items in a user's history", x, "users")
    thousands(axes.yaxis)


def _draw_popularity(
    figure: "Figure", theme: Theme, counts: Int[np.ndarray, " N"]
) -> None:
    left, right = side_by_side(figure, 2, per_row=2)
    ordered = np.sort(counts)[::-1]
    seen = ordered[ordered > 0]
    left.plot(np.arange(1, len(seen) + 1), seen, color=theme.accent)
    label(left, "Interactions by item rank", "rank", "interactions")
    share = np.cumsum(ordered) / max(1, ordered.sum())
    part = np.arange(1, len(ordered) + 1) / max(1, len(ordered))
    right.plot(part * 100, share * 100, color=theme.accent)
    right.plot([0, 100], [0, 100], color=theme.neutral, linewidth=1)
    tenth = float(share[max(0, round(len(share) / 10) - 1)]) if len(share) else 0.0
    right.plot([10], [tenth * 100], "o", color=theme.accent, markersize=5)
    text = f"a tenth of the items\nhas {tenth:.0%}"
    ground = {"facecolor": theme.background, "edgecolor": "none", "pad": 1.5}
    place = {"xytext": (10, -4), "va": "top", "bbox": ground}
    note(right, theme, text, (10, tenth * 100), **place)
    label(right, "Share of interactions", "% of items", "% of interactions")
    for axis in (left.xaxis, left.yaxis):
        log_scale(axis)


def _draw_codebook_use(
    figure: "Figure",
    theme: Theme,
    codes: Int32[np.ndarray, "N L"],
    codebook_sizes: Sequence[int],
) -> None:
    """Items per codeword of each learned level, most used first."""
    count = codes.shape[1]
    row = side_by_side(figure, count, per_row=count, sharey=True)
    for level, axes in enumerate(row):
        counts = np.bincount(codes[:, level], minlength=codebook_sizes[level])
        ordered = np.sort(counts)[::-1]
        place = np.arange(len(ordered))
        axes.fill_between(place, ordered, step="mid", color=theme.accent, lw=0)
        even = len(codes) / len(ordered)
        axes.axhline(even, color=theme.ink, linewidth=1, linestyle=(0, (4, 3)))
        used = int((counts > 0).sum())
        is_last = level == count - 1 or not is_narrow(figure)
        x = "codewords, by use" if is_last else ""
        label(axes, f"Level {level}: {used} of {len(counts)}", x)
        axes.grid(axis="x", visible=False)
        thousands(axes.yaxis)
    row[0].set_ylabel("items")


def _draw_categories_by_first_code(
    figure: "Figure",
    theme: Theme,
    first_codes: Int32[np.ndarray, " N"],
    categories: np.ndarray,
) -> None:
    """For each first code, the mix of its items' categories, side by side."""
    axes = figure.subplots()
    names, shares = _count(first_codes, categories, MAX_CATEGORIES)
    _stack(axes, theme, names, shares)
    label(
        axes,
        "Categories of the items behind each first code",
        f"{len(shares)} first codes in use, like beside like",
        "share of items",
    )
    _legend(axes, columns=2 if is_narrow(figure) else 4, width=24)


def _count(
    codes: Int32[np.ndarray, " n"], categories: np.ndarray, max_categories: int
) -> tuple[list[str], np.ndarray]:
    """Shares of the categories behind each code in use; small ones become one.

    Rows are sorted by their most frequent category, then by its share, so that
    like codes stand together.
    """
    found, counts = np.unique(categories[categories != ""], return_counts=True)
    names = found[np.argsort(-counts, kind="stable")][:max_categories].tolist()
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
    return names, share[np.lexsort((-share.max(1), share.argmax(1)))]


def _stack(axes: "Axes", theme: Theme, names: Sequence[str], share: np.ndarray) -> None:
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
