"""What the benchmarks share: command lines, rows, tables in documents, turns, plots."""

import argparse
import contextlib
import functools
import gc
import itertools
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tiger_jax.errors import InputError, UserFacingError
from tiger_jax.progress import outlive_readers
from tiger_jax.workdir.provenance import code_version, package_versions

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]


def make_parser(doc: str | None, *options: str) -> argparse.ArgumentParser:
    """A parser whose help is the module's docstring, with some of the known options."""
    spec = sys.modules["__main__"].__spec__
    parser = argparse.ArgumentParser(
        prog=spec and f"python -m {spec.name.removesuffix('.__main__')}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known: dict[str, dict[str, Any]] = {
        "workdir": {"type": Path, "required": True, "help": "a trained one"},
        "seed": {"type": int, "default": 0},
        "rows": {"type": Path, "help": "keep the rows in this file"},
        "document": {"type": existing, "help": "a Markdown file with marks for tables"},
        "table": {"type": existing, "help": "the same, for a table of all --rows"},
        "plot": {"type": Path, "help": "a PNG file"},
    }
    for name in options:
        parser.add_argument(f"--{name}", **known[name])
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line; a table of all rows needs their file."""
    options = parser.parse_args()
    if options.table and not options.rows:
        raise InputError("--table is written from --rows: give both")
    return options


def existing(path: str) -> Path:
    """A file that is written into at the end, so it has to be there at the start."""
    if not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {path}")
    return Path(path)


def words(text: str) -> list[str]:
    """The words of a list with commas."""
    return text.split(",")


def numbers(text: str) -> list[int]:
    """The whole numbers of a list with commas, such as 12000,1e6."""
    return [int(float(word)) for word in text.split(",")]


def run(main: Callable[[], None]) -> None:
    """Runs a command; a failure for its user is one line, and its exit code."""
    outlive_readers()
    try:
        main()
    except UserFacingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def find_data(folder: Path | None, name: str, option: str) -> Path:
    """What was given, or what has that name in $TIGER_DATA; InputError if none has."""
    data = os.environ.get("TIGER_DATA")
    found = folder or (Path(data, name) if data else None)
    if found is None or not found.exists():
        raise InputError(
            f"no {name} at {found or '$TIGER_DATA, which is not set'}: give {option}"
        )
    return found


def read_rows(path: Path) -> list[Row]:
    """Reads a file of rows, one JSON object per line; no file is no rows."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes a file of rows, whole or not at all."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(path)


def merge_rows(old: Iterable[Row], new: Iterable[Row], *names: str) -> list[Row]:
    """Puts new rows in place of those alike in the named fields, others at the end."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for rows in (old, new):
        own: dict[tuple[Any, ...], list[Row]] = {}
        for row in rows:
            own.setdefault(tuple(row.get(name) for name in names), []).append(row)
        groups |= own
    return list(itertools.chain.from_iterable(groups.values()))


def report(row: Row, path: Path | None = None) -> None:
    """Prints a row and, if a file is given, appends it there."""
    line = json.dumps(row, ensure_ascii=False)
    print(line, flush=True)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def newest_rows(path: Path, key: Callable[[Row], Any]) -> list[Row]:
    """The last row of each key, in the order in which the keys first appear."""
    found = {json.dumps(key(row), sort_keys=True): row for row in read_rows(path)}
    return list(found.values())


@functools.cache
def environment() -> Row:
    """The machine, the versions and the allocator's settings."""
    import jax

    device, count = jax.devices()[0], jax.device_count()
    return {
        "commit": code_version(),
        "packages": package_versions(),
        "device": f"{count} x {device.device_kind}",
        "processor": _processor(),
        "platform": device.platform,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        if found := re.search(r"model name\s*: (.*)", text):
            return found[1].strip()
    return platform.processor()


def write_between(file: Path, name: str, text: str) -> None:
    """Replaces what stands between <!-- name --> and <!-- /name -->, once in a file."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    old = file.read_text(encoding="utf-8")
    before, has_begin, rest = old.partition(begin)
    _, has_end, after = rest.partition(end)
    if not (has_begin and has_end) or old.count(begin) + old.count(end) != 2:
        raise InputError(f"{file} needs one {begin} and, after it, one {end}")
    file.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")


def publish(
    options: argparse.Namespace,
    mark: str,
    rows: Sequence[Row],
    table: Callable[[Sequence[Row]], str],
    plot: Callable[[Sequence[Row], Path], None] | None = None,
) -> None:
    """Draws rows and writes their table, where the command line asks for it."""
    if plot and options.plot:
        plot(rows, options.plot)
    if options.document:
        write_between(options.document, mark, table(rows))


def markdown_table(
    titles: Sequence[str], rows: Iterable[Sequence[Any]], align: str = "|--"
) -> list[str]:
    """The lines of a Markdown table.

    The last column of `align`, the second line's beginning, stands for those after it.

    Example:
        >>> markdown_table(["a", "b"], [[1, 2]], "|---|--:")
        ['| a | b |', '|---|--:|', '| 1 | 2 |']
    """
    marks = align.strip("|").split("|")
    marks += marks[-1:] * (len(titles) - len(marks))
    lines = [table_line(titles), f"|{'|'.join(marks)}|"]
    return lines + [table_line(cells) for cells in rows]


def table_line(cells: Iterable[Any]) -> str:
    """One row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def format_short(value: float) -> str:
    """Three places above one, four below it."""
    if abs(value) >= 1:
        return f"{value:.2f}"
    return f"{value:.4f}".removeprefix("0").replace("-0.", "−.")


def format_interval(value: float, ends: Sequence[float] | None) -> str:
    """A value and its interval.

    Example:
        >>> format_interval(0.05, (0.04, 0.06)), format_interval(1.5, None)
        ('.0500 (.0400–.0600)', '1.50')
        >>> format_interval(-0.05, (-0.06, 0.01))
        '−.0500 (−.0600 to .0100)'
    """
    if ends is None:
        return format_short(value)
    between = " to " if min(ends) < 0 else "–"
    return f"{format_short(value)} ({between.join(map(format_short, ends))})"


def race(
    sides: dict[str, Callable[[], Any]],
    rounds: int,
    turn_seconds: float,
    *,
    weigh: Callable[[Any], Sequence[float]] = lambda result: (1.0,),
) -> dict[str, np.ndarray]:
    """Runs the sides in turns, so that a machine that slows down does so for all.

    A turn is one call, which isn't timed, and calls for `turn_seconds` after it: what a
    side finds in the caches, and in memory that the system hasn't taken back, is then
    its own. With 0 seconds it is one call, timed: a build, done once, finds nothing
    ready. A side's method `prepare`, if it has one, is called before and not timed.

    Args:
        rounds: R, how many turns each has.
        weigh: The work, W numbers, that a call's result stands for.

    Returns:
        Per side float64 [R 2+W]: each turn's wall seconds, processor seconds (summed
        over cores, which other programs on the machine disturb less), and work.
    """
    import jax

    def call(side: Callable[[], Any]) -> np.ndarray:
        getattr(side, "prepare", lambda: None)()
        wall, cpu = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(side())
        spent = (time.perf_counter() - wall, time.process_time() - cpu)
        return np.array([*spent, *weigh(result)])

    turns: dict[str, list[np.ndarray]] = {name: [] for name in sides}
    for side in sides.values():
        call(side)
    gc.collect()
    for _ in range(rounds):
        for name, side in sides.items():
            if turn_seconds:
                call(side)
            turn = call(side)
            while turn[0] < turn_seconds:
                turn += call(side)
            turns[name].append(turn)
    return {name: np.stack(own) for name, own in turns.items()}


@contextlib.contextmanager
def draw(file: Path, *grid: int, dpi: int = 144, **options: Any) -> Iterator[Any]:
    """Yields a figure and its axes [rows, columns]; saves it into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(*grid, layout="constrained", squeeze=False, **options)
    yield figure, axes
    figure.savefig(file, dpi=dpi)
    plt.close(figure)
