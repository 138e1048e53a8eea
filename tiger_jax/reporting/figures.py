"""Figures in two themes, as PNG bytes: for light pages and for dark ones."""

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

DOTS_PER_INCH = 160
PAGE_INCHES = 7.0


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


# Okabe and Ito's colours, told apart by everybody, plus quieter kin for long lists.
_SERIES = (
    "#E8702A",
    "#0072B2",
    "#009E73",
    "#CC79A7",
    "#F0C239",
    "#56B4E9",
    "#8C6BB1",
    "#A6761D",
    "#66A61E",
    "#E7298A",
    "#7A8794",
)
LIGHT = Theme(
    background="#FFFFFF",
    ink="#1F2328",
    faint="#6B7480",
    grid="#E4E7EB",
    accent="#D9591B",
    second="#0072B2",
    neutral="#A9B3BE",
    series=_SERIES,
)
DARK = Theme(
    background="#1B1F24",
    ink="#E6E8EB",
    faint="#9AA4B0",
    grid="#343A42",
    accent="#FF8A4C",
    second="#56B4E9",
    neutral="#66717D",
    series=_SERIES,
)

Draw = Callable[[Theme], "Figure"]


@dataclasses.dataclass(frozen=True)
class Picture:
    """One figure, drawn for both themes.

    Attributes:
        name: File name without ending.
        alt: What it shows, for those who can't see it.
        caption: The sentence under it.
        light: PNG bytes.
        dark: PNG bytes.
    """

    name: str
    alt: str
    caption: str
    light: bytes
    dark: bytes


def render(name: str, draw: Draw, *, alt: str, caption: str) -> Picture:
    """Draws a figure twice and encodes it.

    `draw` gets a theme and returns a figure; the theme is in force meanwhile. Text
    is taken literally: a title with dollar signs is no formula.
    """
    encoded = []
    for theme in (LIGHT, DARK):
        with _in_force(theme):
            buffer = io.BytesIO()
            # Without this, the PNG would name the library's version: the same
            # plot should have the same bytes wherever it can.
            draw(theme).savefig(buffer, format="png", metadata={"Software": None})
            encoded.append(buffer.getvalue())
    return Picture(name, alt, caption, *encoded)


def new_figure(height: float, *, below: float = 0.0, between: float = 0.0) -> "Figure":
    """An empty figure as wide as the page.

    Args:
      height: In inches.
      below: Share of the height that is left free at the bottom.
      between: Free height between rows of plots, as a share of a plot's.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(rect=(0, below, 1, 1 - below), hspace=between)
    return Figure(figsize=(PAGE_INCHES, height), layout=layout)


def thousands(axis: "Axis") -> None:
    """Writes an axis' numbers as 12,000, or 0.05 where they are small."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(
        FuncFormatter(
            lambda value, _: f"{value:,.0f}" if value == int(value) else f"{value:g}"
        )
    )


def label(axes: "Axes", title: str, x: str = "", y: str = "") -> None:
    """Titles a plot and its axes."""
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)


@contextlib.contextmanager
def _in_force(theme: Theme) -> Iterator[None]:
    import matplotlib
    from cycler import cycler

    settings: dict[Any, Any] = {
        "figure.facecolor": theme.background,
        "figure.dpi": DOTS_PER_INCH,
        "savefig.dpi": DOTS_PER_INCH,
        "savefig.facecolor": theme.background,
        "axes.facecolor": theme.background,
        "axes.edgecolor": theme.grid,
        "axes.labelcolor": theme.faint,
        "axes.titlecolor": theme.ink,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlepad": 9,
        "axes.labelsize": 9,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=theme.series),
        "grid.color": theme.grid,
        "grid.linewidth": 0.7,
        "xtick.color": theme.faint,
        "ytick.color": theme.faint,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "text.color": theme.ink,
        "text.parse_math": False,
        "legend.facecolor": theme.background,
        "legend.edgecolor": "none",
        "legend.framealpha": 0.8,
        "legend.fontsize": 8.5,
        "lines.linewidth": 1.8,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9.5,
        "svg.hashsalt": "tiger_jax",
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A category's name may be in letters that the font lacks: boxes are fine.
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        yield
