"""Figures in two themes, as SVG: for light pages and for dark ones."""

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiger_jax.workdir.json_files import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

PAGE_INCHES = 7.0
TEMPLATES = Path(__file__).parent / "templates"


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of a page and of the plots on it; `accent` is ours in every plot."""

    background: str
    ink: str
    faint: str
    grid: str
    accent: str
    second: str
    neutral: str
    series: tuple[str, ...]


# The series are Okabe and Ito's colours, told apart by everybody, plus quieter kin.
_COLORS = read_json(TEMPLATES / "themes.json")
LIGHT, DARK = (
    Theme(**_COLORS[name], series=tuple(_COLORS["series"]))
    for name in ("light", "dark")
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """One figure, drawn for both themes.

    Attributes:
        name: File name without ending.
        alt: What it shows, for those who can't see it.
    """

    name: str
    alt: str
    caption: str
    light: bytes
    dark: bytes


def render(
    name: str,
    draw: Callable[..., None],
    *data: Any,
    height: float,
    alt: str,
    caption: str,
    below: float = 0.0,
    between: float = 0.0,
) -> Picture:
    """Draws a figure twice, as wide as the page, and encodes it.

    Text is taken literally: a title with dollar signs is no formula.

    Args:
        draw: draw(figure, theme, *data) fills an empty figure; the theme is in force
            meanwhile.
        height: In inches.
        below: Share of the height that is left free at the bottom.
        between: Free height between rows of plots, as a share of a plot's.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    encoded = []
    for theme in (LIGHT, DARK):
        with _in_force(theme):
            room = (0, below, 1, 1 - below)
            layout = ConstrainedLayoutEngine(rect=room, hspace=between)
            figure = Figure(figsize=(PAGE_INCHES, height), layout=layout)
            draw(figure, theme, *data)
            buffer = io.BytesIO()
            # Without these, the file would name the day and the library's version:
            # the same plot should have the same bytes wherever it can.
            figure.savefig(
                buffer, format="svg", metadata={"Date": None, "Creator": None}
            )
            encoded.append(buffer.getvalue())
    return Picture(name, alt, caption, *encoded)


def note(
    axes: "Axes", theme: Theme, text: str, at: tuple[Any, Any], **style: Any
) -> None:
    """Writes a small text beside a point; `style` is as `Axes.annotate` takes it."""
    axes.annotate(
        text, at, textcoords="offset points", color=theme.ink, fontsize=8.5, **style
    )


def thousands(axis: "Axis") -> None:
    """Writes an axis' numbers as 12,000, or 0.05 where they are small."""
    from matplotlib.ticker import FuncFormatter

    def show(value: float, _: int | None) -> str:
        return f"{value:,.0f}" if value == int(value) else f"{value:g}"

    axis.set_major_formatter(FuncFormatter(show))


def log_scale(axis: "Axis") -> None:
    """Makes an axis logarithmic, with numbers that are read without mathematics."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    is_x = axis is axis.axes.xaxis
    axis.axes.set(**{"xscale" if is_x else "yscale": "log"})
    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)
    few = high < 10 * low
    axis.set_major_locator(MaxNLocator(4) if few else LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    thousands(axis)


def label(axes: "Axes", title: str, x: str = "", y: str = "") -> None:
    """Titles a plot and its axes."""
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)


@contextlib.contextmanager
def _in_force(theme: Theme) -> Iterator[None]:
    import matplotlib
    from cycler import cycler

    paper, ink, faint = theme.background, theme.ink, theme.faint
    settings: dict[Any, Any] = {
        **{f"{w}.facecolor": paper for w in ("figure", "savefig", "axes", "legend")},
        **{f"{which}.color": faint for which in ("xtick", "ytick")},
        "axes.labelcolor": faint,
        "axes.titlecolor": ink,
        "text.color": ink,
        "axes.edgecolor": theme.grid,
        "grid.color": theme.grid,
        "axes.prop_cycle": cycler(color=theme.series),
    }
    with (
        matplotlib.rc_context(settings, fname=TEMPLATES / "report.mplstyle"),
        warnings.catch_warnings(),
    ):
        # A category's name may be in letters that the font lacks: boxes are fine.
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        yield
