"""Training curves from a stage's metrics.jsonl."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tiger_jax.reporting import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[list[int], list[float]]


def read_curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Gathers each metric's (steps, values) from lines that hold a few each.

    A line that repeats a step (written again after a resumed run) replaces the
    earlier one.
    """
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if name != "step" and is_number and "step" in row:
                values.setdefault(name, {})[int(row["step"])] = float(value)
    return {
        name: (sorted(by_step), [by_step[s] for s in sorted(by_step)])
        for name, by_step in values.items()
    }


def curves(
    panels: Sequence[tuple[str, Mapping[str, Curve]]],
    *,
    mark_best: Sequence[str] = (),
) -> figures.Draw:
    """Draws panels, two in a row; each is a title and its named curves.

    Args:
      panels: (title, {name: curve}).
      mark_best: Names of curves whose largest value is marked.
    """

    def draw(theme: figures.Theme) -> "Figure":
        columns = min(2, len(panels))
        rows = -(-len(panels) // columns)
        figure = figures.new_figure(2.5 * rows)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        colors = (theme.accent, theme.second, *theme.series[2:])
        for axes, (title, named) in zip(grid, panels, strict=False):
            for color, (name, curve) in zip(colors, named.items(), strict=False):
                steps, values = curve
                axes.plot(
                    steps,
                    values,
                    color=color,
                    label=name,
                    marker="o" if len(steps) <= 30 else "",
                    markersize=3,
                )
                if name in mark_best:
                    _mark_best(axes, theme, color, curve)
            figures.label(axes, title, "step")
            figures.thousands(axes.xaxis)
            if axes.get_ylim()[1] >= 1000:
                figures.thousands(axes.yaxis)
            if len(named) > 1:
                axes.legend()
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        return figure

    return draw


def _mark_best(axes: "Axes", theme: figures.Theme, color: str, curve: Curve) -> None:
    """Dots the largest value and writes it on the side where there is room."""
    steps, values = curve
    best = max(range(len(values)), key=values.__getitem__)
    is_late = steps[best] > (steps[0] + steps[-1]) / 2
    axes.plot([steps[best]], [values[best]], "o", color=color, markersize=6)
    axes.annotate(
        f"{values[best]:.4f}",
        (steps[best], values[best]),
        xytext=(-4 if is_late else 4, -8),
        textcoords="offset points",
        ha="right" if is_late else "left",
        va="top",
        fontsize=8.5,
        color=theme.ink,
    )
