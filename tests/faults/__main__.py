"""Runs the campaigns, or goes on with them, and prints their table: `make faults`.

Every few tries add a row to --rows, so that a campaign can be stopped at any moment:
the same command goes on after the last row. Each fault runs in a process of its own;
one that crashes or hangs costs its try, which counts as wrong, and not the campaign.

    make faults FAULTS="--list"
    make faults FAULTS="--only=kill --tries=10"
    make faults FAULTS="--minutes=30 --write"
"""

import argparse
import contextlib
import faulthandler
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.marked_sections import write_between
from faults.campaign import (
    REPOSITORY,
    Fault,
    Outcome,
    Total,
    append_row,
    format_table,
    next_try,
    sum_rows,
    try_once,
)
from faults.every_fault import FAULTS

DOCUMENT = REPOSITORY / "docs" / "reliability.md"
_SECONDS_PER_ROW = 20.0


def main(arguments: list[str]) -> int:
    """Runs what the arguments choose; 1 if anything was lost or wrong."""
    options = _parse(arguments)
    chosen = [f for f in FAULTS if not options.only or options.only in f.name]
    if not chosen:
        print(f"no fault has {options.only!r} in its name: see --list", file=sys.stderr)
        return 2
    if options.list:
        for fault in chosen:
            print(f"{fault.asked:>9,}  {fault.name}  {fault.unavailable()}".rstrip())
        return 0
    if options.worker is not None:
        _work(next(f for f in chosen if f.name == options.only), options)
        os._exit(0)  # whatever the tries have left running
    end = time.monotonic() + 60 * options.minutes if options.minutes else None
    with contextlib.suppress(KeyboardInterrupt):
        if not options.only_table:
            for fault in chosen:
                _oversee(fault, options, end)
    print(format_table(FAULTS, options.rows))
    totals = sum_rows(options.rows)
    for name, total in totals.items():
        for note in total.notes:
            print(f"{name}: {note}")
    if options.write:
        write_between(DOCUMENT, "faults", format_table(FAULTS, options.rows))
    return int(any(total.lost or total.wrong for total in totals.values()))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", default="", metavar="TEXT", help="faults with this in their name")
    add("--tries", type=int, help="tries a fault in all (what the table asks for)")
    add("--minutes", type=float, help="stop starting new tries after so long")
    add("--folder", type=Path, default=Path("runs/faults"), help="where to work")
    add("--rows", type=Path, help="the rows' file (FOLDER/rows.jsonl)")
    add("--list", action="store_true", help="list the faults, and what can't be made")
    add("--only_table", action="store_true", help="run nothing, print the table")
    add("--write", action="store_true", help="put the table in docs/reliability.md")
    add("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.folder = options.folder.absolute()
    options.rows = (options.rows or options.folder / "rows.jsonl").absolute()
    return options


def _oversee(fault: Fault, options: argparse.Namespace, end: float | None) -> None:
    """Has a fault's missing tries made, by as many processes as it takes."""
    if why := fault.unavailable():
        print(f"{fault.name}: not made: {why}", file=sys.stderr)
        return
    wanted = options.tries or fault.asked
    while (first := next_try(options.rows, fault.name)) < wanted:
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            return
        print(f"{fault.name}: from try {first:,} of {wanted:,}", file=sys.stderr)
        command = [sys.executable, "-m", "faults", f"--only={fault.name}"]
        command += [f"--folder={options.folder}", f"--rows={options.rows}"]
        command += [f"--worker={first}", f"--tries={wanted}"]
        command += [] if left is None else [f"--minutes={left / 60}"]
        _mark(fault, options).unlink(missing_ok=True)
        started = time.monotonic()
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        if done.returncode == 0:
            if next_try(options.rows, fault.name) == first:
                return  # the time was up
            continue
        if done.returncode in (-signal.SIGINT, 130):
            raise KeyboardInterrupt
        if not _mark(fault, options).exists():
            raise SystemExit(f"{fault.name}: no try was begun: see the error above")
        _blame(fault, options, done.returncode, time.monotonic() - started)


def _blame(
    fault: Fault, options: argparse.Namespace, code: int, seconds: float
) -> None:
    """Counts the try during which the process died; what had no row yet is lost."""
    last = int(_mark(fault, options).read_text())
    died = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    note = f"try {last}: the process ended ({died}) or hung for {fault.seconds:g} s"
    total = Total()
    total.add(Outcome(wrong=1, note=note), seconds)
    append_row(options.rows, fault.name, last, total)


def _mark(fault: Fault, options: argparse.Namespace) -> Path:
    return fault.folder(options.folder).with_suffix(".try")


def _work(fault: Fault, options: argparse.Namespace) -> None:
    """Makes tries from number `options.worker` on, in this process."""
    if fault.gigabytes is not None:
        size = int(fault.gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    folder = fault.folder(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes if options.minutes else None
    first = number = options.worker
    total = Total()
    while number < options.tries and (end is None or time.monotonic() < end):
        _mark(fault, options).write_text(str(number))
        started = time.monotonic()
        with _no_longer_than(fault.seconds):
            outcome = try_once(fault, number, folder)
        total.add(outcome, time.monotonic() - started)
        number += outcome.count
        is_full = total.tries >= fault.tries_per_row
        if is_full or total.seconds > _SECONDS_PER_ROW or number >= options.tries:
            append_row(options.rows, fault.name, first, total)
            first, total = number, Total()
    if total.tries:
        append_row(options.rows, fault.name, first, total)


@contextlib.contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    """Ends the process if the block hangs, be it in C."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main(sys.argv[1:]))
