"""Figures as SVG: for light pages and dark ones, for screens and for phones."""

import contextlib
import dataclasses
import io
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiger_jax.workdir.json_files import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

PAGE_INCHES, PHONE_INCHES = 7.0, 3.75
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
    """One figure, drawn for pages and for phones, and each for both themes.

    Attributes:
        name: File name without ending.
        alt: What it shows, for those who can't see it.
    """

    name: str
    alt: str
    caption: str
    light: bytes
    dark: bytes
    narrow_light: bytes
    narrow_dark: bytes


def render(
    name: str,
    draw: Callable[..., None],
    *data: Any,
    height: float,
    narrow_height: float,
    alt: str,
    caption: str,
) -> Picture:
    """Draws a figure twice, as wide as the page and as a phone, and encodes it.

    Text is taken literally: a title with dollar signs is no formula.

    Args:
        draw: draw(figure, theme, *data) fills an empty figure; the theme is in force
            meanwhile.
        height: In inches.
    """
    from matplotlib.figure import Figure

    encoded = []
    for size in ((PAGE_INCHES, height), (PHONE_INCHES, narrow_height)):
        with _in_force(LIGHT):
            figure = Figure(figsize=size, layout="constrained")
            draw(figure, LIGHT, *data)
            buffer = io.BytesIO()
            # Without these, the file would name the day and the library's version:
            # the same plot should have the same bytes wherever it can.
            figure.savefig(
                buffer, format="svg", metadata={"Date": None, "Creator": None}
            )
            svg = re.sub(rb"<[^>]*>", _shortened, buffer.getvalue())
            encoded += [svg, _darkened(svg)]
    return Picture(name, alt, caption, *encoded)


def _shortened(tag: re.Match[bytes]) -> bytes:
    """A tag with places to a hundredth of a point, which is enough."""
    return re.sub(rb"(\d\.\d\d)\d+", rb"\1", tag[0])


def _darkened(svg: bytes) -> bytes:
    """A figure with the dark theme's colours in place of the light one's."""
    pairs = zip(
        dataclasses.astuple(LIGHT)[:-1], dataclasses.astuple(DARK), strict=False
    )
    dark_of = {light.lower().encode(): dark.lower().encode() for light, dark in pairs}
    return re.sub(rb"#[0-9a-f]{6}", lambda m: dark_of.get(m[0], m[0]), svg)


def is_narrow(figure: Any) -> bool:
    """Whether it is drawn for phones."""
    return bool(figure.get_figwidth() < PAGE_INCHES)


def side_by_side(
    figure: "Figure", count: int, *, per_row: int, **options: Any
) -> list["Axes"]:
    """Plots in rows; on a phone, one under the other."""
    columns = 1 if is_narrow(figure) else min(per_row, count)
    rows = -(-count // columns)
    grid = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for axes in grid[count:]:
        axes.set_visible(False)
    return grid[:count]


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
    if is_narrow(axes.get_figure()):
        title = textwrap.fill(title, 32)
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
