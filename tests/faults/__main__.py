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
import functools
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from benchmarks.lib import write_between
from faults import shop
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
from tiger_jax.errors import LockedError
from tiger_jax.progress import outlive_readers
from tiger_jax.workdir.lock import hold_workdir

DOCUMENT = REPOSITORY / "docs" / "reliability.md"
_SECONDS_PER_ROW = 20.0


def main(arguments: list[str]) -> int:
    """Runs what the arguments choose; 1 if anything was lost or wrong."""
    options = _parse(arguments)
    texts = options.only or [""]
    chosen = dict.fromkeys(f for text in texts for f in FAULTS if text in f.name)
    if not chosen:
        print(f"no fault has {texts} in its name: see --list", file=sys.stderr)
        return 2
    if options.list:
        for fault in chosen:
            print(f"{fault.asked:>9,}  {fault.name}  {fault.unavailable()}".rstrip())
        return 0
    end = time.monotonic() + 60 * options.minutes if options.minutes else None
    shop.share_compiled(options.folder)
    with contextlib.suppress(KeyboardInterrupt):
        if not options.only_table:
            for fault in chosen:
                try:
                    with hold_workdir(fault.folder(options.folder)):
                        _oversee(fault, options, end)
                except LockedError as error:  # another campaign is at it
                    print(f"{fault.name}: {error}", file=sys.stderr)
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
    about = "faults with this in their name; repeatable, in this order"
    add("--only", action="append", metavar="TEXT", help=about)
    add("--tries", type=int, help="tries a fault in all (what the table asks for)")
    add("--minutes", type=float, help="stop starting new tries after so long")
    add("--folder", type=Path, default=Path("runs/faults"), help="where to work")
    add("--rows", type=Path, help="the rows' file (FOLDER/rows.jsonl)")
    add("--list", action="store_true", help="list the faults, and what can't be made")
    add("--only_table", action="store_true", help="run nothing, print the table")
    add("--write", action="store_true", help="put the table in docs/reliability.md")
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
        _mark(fault, options).unlink(missing_ok=True)
        started = time.monotonic()
        code = _in_a_fork(functools.partial(_work, fault, options, first, wanted, end))
        if code == 0:
            if next_try(options.rows, fault.name) == first:
                return  # the time was up
            continue
        if code in (-signal.SIGINT, 130):
            raise KeyboardInterrupt
        if not _mark(fault, options).exists():
            raise SystemExit(f"{fault.name}: no try was begun: see the error above")
        _blame(fault, options, code, time.monotonic() - started)


def _in_a_fork(work: Callable[[], None]) -> int:
    """Does it in a process that has all this one has imported; its exit code."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        for name, value in shop.COMPILED.items():
            jax.config.update(name, value)
        work()
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # whatever the tries have left running


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


def _work(
    fault: Fault,
    options: argparse.Namespace,
    number: int,
    wanted: int,
    end: float | None,
) -> None:
    """Makes tries from a number on, in this process."""
    if fault.gigabytes is not None:
        size = int(fault.gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    folder = fault.folder(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    first, total = number, Total()
    while number < wanted and (end is None or time.monotonic() < end):
        _mark(fault, options).write_text(str(number))
        started = time.monotonic()
        with _no_longer_than(fault.seconds):
            outcome = try_once(fault, number, folder)
        total.add(outcome, time.monotonic() - started)
        number += outcome.count
        is_full = total.tries >= fault.tries_per_row
        if is_full or total.seconds > _SECONDS_PER_ROW or number >= wanted:
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
    outlive_readers()
    sys.exit(main(sys.argv[1:]))
