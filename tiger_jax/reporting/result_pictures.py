"""Pictures of how the training went, and of what came out of it."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tiger_jax.evaluation.record import title_of
from tiger_jax.reporting import tables
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[list[int], list[float]]  # steps and values
Panels = list[tuple[str, dict[str, Curve]]]  # title, and curves by name

# What is drawn of a stage's metrics: panel -> {name in metrics.jsonl: in the legend}.
RQVAE_PANELS = {
    "Loss": {r"train/loss": "loss"},
    "Reconstruction error": {r"train/reconstruction_error": "error"},
    "Codebook perplexity": {r"train/perplexity_(\d+)": r"level \1"},
    "Share of codewords used": {r"train/use_(\d+)": r"level \1"},
}
RECOMMENDER_PANELS = {
    "Loss": {r"train/loss": "training", r"validation/loss": "validation"},
    "Validation": {r"validation/(recall@10|ndcg@10)": r"\1"},
    "Codeword accuracy in training": {r"train/correct_level_(\d+)": r"level \1"},
    "Examples per second": {r"train/examples_per_s": "examples/s"},
}
SHARES = ("Share of codewords used", "Codeword accuracy in training")
LOGARITHMIC = ("Loss", "Loss in training", "Loss on validation", "Reconstruction error")
MARKED = ("recall@10", "ndcg@10")  # curves whose largest value has a dot


def training_pictures(
    rqvae: Mapping[str, Curve], recommender: Mapping[str, Curve]
) -> list[Picture]:
    """Training curves of the quantizer and of the recommender, where there are any."""
    return [
        render(
            f"{name}_training",
            _draw_curves,
            panels,
            height=2.7 * -(-len(panels) // 2),
            narrow_height=2.3 * len(panels),
            alt=f"Training curves of the {what}",
            caption=caption,
        )
        for name, what, caption, panels in (
            (
                "rqvae",
                "quantizer",
                "Perplexity: how many codewords would tell as much if all were used "
                "alike. A collapsing codebook shows as a falling one.",
                find_panels(rqvae, RQVAE_PANELS),
            ),
            (
                "recommender",
                "recommender",
                "Dots: the best on validation. Codeword accuracy: that of the "
                "likeliest codeword, given the true ones before it.",
                find_panels(recommender, RECOMMENDER_PANELS),
            ),
        )
        if panels
    ]


def compare_curves(runs: Mapping[str, Mapping[str, Curve]]) -> list[Picture]:
    """The recommenders' losses and what they were chosen by, a line a run."""
    panels = []
    for title, metric in (
        ("Loss in training", "train/loss"),
        ("Loss on validation", "validation/loss"),
        ("Recall@10 on validation", "validation/recall@10"),
        ("NDCG@10 on validation", "validation/ndcg@10"),
    ):
        named = {
            name: curves[metric] for name, curves in runs.items() if metric in curves
        }
        if named:
            panels.append((title, named))
    if not panels:
        return []
    return [
        render(
            "curves",
            _draw_curves,
            panels,
            height=2.7 * -(-len(panels) // 2),
            narrow_height=2.3 * len(panels),
            alt="Training curves of the runs",
            caption="Each run by the steps of its own recommender's training.",
        )
    ]


def difference_picture(rows: Sequence[Mapping[str, Any]]) -> Picture:
    """How far each run is from the first, with intervals; a plot a metric.

    Args:
        rows: As `compared_runs.differences` gives them.
    """
    lines = dict.fromkeys((row["run"], row["split"]) for row in rows)
    return render(
        "differences",
        _draw_differences,
        rows,
        {(n, split): f"{_short(n)}, {split.split('_')[-1]}" for n, split in lines},
        height=0.8 + 0.36 * len(lines),
        narrow_height=(0.5 + 0.3 * len(lines)) * len({row["metric"] for row in rows}),
        alt="Difference of each run to the first, with 95 % intervals",
        caption="Right of the line is better than the first run. An interval that "
        "crosses it is a draw.",
    )


def _short(name: str, max_length: int = 24) -> str:
    """A run's name for a plot: its end, as paths differ there."""
    return name if len(name) <= max_length else "…" + name[1 - max_length :]


def _draw_differences(
    figure: "Figure",
    theme: Theme,
    rows: Sequence[Mapping[str, Any]],
    lines: Mapping[tuple[str, str], str],
) -> None:
    """Dots and intervals around zero, the first run's place."""
    names = dict.fromkeys(row["metric"] for row in rows)
    grid = side_by_side(figure, len(names), per_row=len(names), sharey=True)
    for axes, metric in zip(grid, names, strict=True):
        axes.axvline(0, color=theme.faint, linewidth=1)
        for row in rows:
            if row["metric"] == metric:
                place = list(lines).index((row["run"], row["split"]))
                low, high, at = row["low"], row["high"], row["difference"]
                is_draw = low <= 0 <= high
                color = (
                    theme.neutral if is_draw else (theme.second, theme.accent)[low > 0]
                )
                axes.plot([low, high], [place, place], color=color, linewidth=2)
                axes.plot([at], [place], "o", color=color, markersize=6)
        axes.margins(x=0.12, y=0.25)
        axes.locator_params(axis="x", nbins=3 if is_narrow(figure) else 6)
        axes.grid(axis="y", visible=False)
        axes.set_yticks(range(len(lines)), list(lines.values()))
        label(axes, tables.metric_title(metric))
    grid[0].invert_yaxis()


def find_panels(
    curves: Mapping[str, Curve], panels: Mapping[str, Mapping[str, str]]
) -> Panels:
    """Finds the curves of each panel by the patterns of their names."""
    found = []
    for title, patterns in panels.items():
        named = {}
        for pattern, name in patterns.items():
            for metric in sorted(curves):
                if match := re.fullmatch(pattern, metric):
                    named[match.expand(name)] = curves[metric]
        if named:
            found.append((title, named))
    return found


def result_pictures(
    result_tables: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
    groups: Mapping[str, Any] | None,
) -> list[Picture]:
    """Every method with its interval, and who is served how well.

    Args:
        groups: ``by_target_count`` of ``evaluation/details.json``, if it is there.
    """
    pictures = []
    for table in result_tables:
        if table["split"] == "validation":
            continue
        rows = [r for r in table["rows"] if r.kind != "share" and r.values["recall@10"]]
        rows.sort(key=lambda row: row.values["recall@10"])
        pictures.append(
            render(
                f"results_{table['split']}",
                _draw_comparison,
                rows,
                "recall@10",
                height=0.7 + 0.34 * len(rows),
                narrow_height=0.6 + 0.26 * len(rows),
                alt=f"Recall@10 of every method on {table['title']}",
                caption="Lines are 95 % bootstrap intervals over users.",
            )
        )
    if groups:
        values = {title_of(metrics, n): v for n, v in groups["baselines"].items()}
        sized = zip(groups["groups"], groups["sizes"], strict=True)
        pictures.append(
            render(
                "recall_by_popularity",
                _draw_groups,
                [f"{name}\n({size:,} users)" for name, size in sized],
                {**values, "TIGER": groups["tiger"]},
                groups["sizes"],
                height=3.4,
                narrow_height=3.2,
                alt="Recall@10 of each method for rare and for popular targets",
                caption="Rare items are where recommenders differ most. Lines are 95 % "
                "intervals for so many users.",
            )
        )
    return pictures


def _draw_curves(figure: "Figure", theme: Theme, shown: Panels) -> None:
    """Draws panels, two in a row."""
    grid = side_by_side(figure, len(shown), per_row=2)
    colors = (theme.accent, theme.second, *theme.series[2:])
    for axes, (title, named) in zip(grid, shown, strict=True):
        for color, (name, (steps, values)) in zip(colors, named.items(), strict=False):
            marker = "o" if len(steps) <= 30 else ""
            style: Any = {"color": color, "marker": marker, "markersize": 3}
            axes.plot(steps, values, label=_short(name), **style)
            if name in MARKED:
                mark_best(axes, theme, color, (steps, values))
        label(axes, title, "step")
        axes.locator_params(axis="x", nbins=5)
        thousands(axes.xaxis)
        if title in SHARES:
            axes.set_ylim(0, 1.02)
            axes.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
        elif title in LOGARITHMIC and all(min(v) > 0 for _, v in named.values()):
            log_scale(axes.yaxis)
        elif axes.get_ylim()[1] >= 1000:
            thousands(axes.yaxis)
        if len(named) > 1:
            # Under the plot: nothing lies on the curves.
            longest = max(len(_short(name)) for name in named)
            place: Any = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.24)}
            columns = max(1, 60 // (longest + 7))
            axes.legend(ncols=columns, columnspacing=1.2, handlelength=1.4, **place)


def mark_best(axes: "Axes", theme: Theme, color: str, curve: Curve) -> None:
    """Dots the largest value and writes it on the side where there is room."""
    steps, values = curve
    best = max(range(len(values)), key=values.__getitem__)
    is_late = steps[best] > (steps[0] + steps[-1]) / 2
    axes.plot([steps[best]], [values[best]], "o", color=color, markersize=6)
    side, ha = (-4, "right") if is_late else (4, "left")
    at = (steps[best], values[best])
    note(axes, theme, f"{at[1]:.4f}", at, xytext=(side, -8), ha=ha, va="top")


def _draw_comparison(
    figure: "Figure", theme: Theme, rows: Sequence[tables.ResultRow], metric: str
) -> None:
    """One bar per method, weakest first, with 95 % intervals where there are any."""
    axes = figure.subplots()
    colors = {
        "ours": theme.accent,
        "baseline": theme.second,
        "fused": theme.series[2],
        "ceiling": theme.grid,
        "published": theme.neutral,
    }
    for place, row in enumerate(rows):
        value = end = row.values[metric]
        axes.barh(place, value, 0.68, color=colors[row.kind])
        if metric in row.intervals:
            low, end = row.intervals[metric]
            axes.plot([low, end], [place, place], color=theme.ink, linewidth=1.4)
        weight = "bold" if row.kind == "ours" else "normal"
        style = {"xytext": (5, 0), "va": "center", "fontweight": weight}
        note(axes, theme, tables.format_value(row, metric), (end, place), **style)
    names = [r.name + " [published]" * (r.kind == "published") for r in rows]
    axes.set_yticks(range(len(rows)), names)
    for text, row in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_color(theme.ink)
        text.set_fontweight("bold" if row.kind == "ours" else "normal")
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.1)
    label(axes, tables.metric_title(metric))


def _draw_groups(
    figure: "Figure",
    theme: Theme,
    groups: Sequence[str],
    values: Mapping[str, Sequence[float]],
    sizes: Sequence[int],
) -> None:
    """One group of bars per kind of target, one bar per method; the last is ours."""
    axes = figure.subplots()
    width = 0.8 / len(values)
    quiet = (theme.neutral, theme.series[2], theme.second, *theme.series[6:])
    for i, (name, heights) in enumerate(values.items()):
        color = theme.accent if i == len(values) - 1 else quiet[i]
        place = np.arange(len(groups)) + (i - (len(values) - 1) / 2) * width
        share = np.asarray(heights)
        error = 1.96 * np.sqrt(share * (1 - share) / np.asarray(sizes))
        error = np.stack([np.minimum(error, share), error])
        axes.bar(
            place,
            heights,
            width * 0.92,
            color=color,
            label=name,
            yerr=error,
            ecolor=theme.ink,
            error_kw={"elinewidth": 1.0},
        )
    if is_narrow(figure):
        groups = [text.replace(" users", "\nusers") for text in groups]
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(axis="x", visible=False)
    # Under the plot: nothing lies on the bars.
    figure.legend(ncols=2 if is_narrow(figure) else 4, loc="outside lower left")
    label(
        axes,
        "Recall@10 by how often the target occurs in training",
        "training interactions of the target",
    )
