"""One line for whatever goes wrong with a file that an earlier stage wrote."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tiger_jax.errors import InputError, UserFacingError
from tiger_jax.stage_table import MADE_BY

T = TypeVar("T")
_UNREADABLE = (OSError, EOFError, LookupError, TypeError, ValueError)


def path_of(text: str) -> Path:
    """A path that a user gave: ``~`` is a home, and ``a:b`` no URI of a scheme a.

    Raises:
        InputError: Its name isn't UTF-8, which the libraries that write there need.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = f"the path {ascii(text)} isn't UTF-8: give it another name"
        raise InputError(what) from error
    path = Path(os.path.expanduser(text))
    return path.absolute() if ":" in text else path


@contextlib.contextmanager
def reading(path: Path | str, remedy: str | None = None) -> Iterator[None]:
    """Turns any failure to read what is at a path into an `InputError`.

    Args:
        remedy: What to do; by default to run the stage again that made the folder.

    Raises:
        InputError: The block failed as reading fails; its own `InputError`s, and what
            is no such failure, pass as they are.
    """
    try:
        yield
    except UserFacingError:
        raise
    except Exception as error:
        is_arrow = type(error).__module__.partition(".")[0] == "pyarrow"
        if not (is_arrow or isinstance(error, _UNREADABLE)):
            raise
        remedy = remedy or f"{how_to_make(Path(path))} again"
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(f"{path} can't be read ({what}): {remedy}") from error


def read_unchanged(stamp: Callable[[], Any], read: Callable[[], T]) -> tuple[Any, T]:
    """Reads what other processes may replace: begins again where they did.

    Args:
        stamp: Names the state on disk; another one after a failure excuses it.

    Returns:
        The stamp before reading, and what was read.
    """
    while True:
        before = stamp()
        try:
            return before, read()
        except (OSError, InputError):
            time.sleep(0.05)  # longer than a replacement takes
            if stamp() == before:
                raise


def how_to_make(path: Path) -> str:
    """The command that makes a work directory's folder, or what lies in it."""
    makers = (MADE_BY.get(part.name) for part in (path, *path.parents))
    stage = next(filter(None, makers), None)
    return f"run --stage={stage}" if stage else "make it"
