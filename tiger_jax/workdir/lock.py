"""One run at a time in a work directory."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tiger_jax.errors import InputError, LockedError, UserFacingError
from tiger_jax.workdir.durable import make_folder

LOCK_FILE = ".lock"
_LOOKS, _SECONDS_BETWEEN_LOOKS = 20, 0.05


@contextlib.contextmanager
def hold_workdir(workdir: Path) -> Iterator[None]:
    """Holds the work directory until the block ends or the process dies.

    The kernel drops the lock with its process, so a killed run leaves no stale
    lock behind; the text in the file only serves the message below.

    Raises:
        LockedError: Another live process holds it; says which, and since when.
        InputError: The block failed, and the work directory is no longer there.
            Libraries then complain of whatever they missed first, in words of theirs.
    """
    make_folder(workdir)
    path = workdir / LOCK_FILE
    with hold_file(path) as file:
        holder = {
            "process": os.getpid(),
            "host": os.uname().nodename,
            "started": datetime.datetime.now().isoformat(" ", "seconds"),
            "command": " ".join(sys.argv)[:500],
        }
        file.truncate(0)
        file.write(json.dumps(holder))
        file.flush()
        try:
            yield
        except UserFacingError:
            raise
        except Exception as error:
            if _is_there(path, file):
                raise
            missed = " ".join(str(error).split())[:200]
            raise InputError(
                f"{workdir} was taken away while this process worked in it: put it "
                "back, and the same command goes on from what it held "
                f"({type(error).__name__}: {missed})"
            ) from error
        finally:
            file.truncate(0)


@contextlib.contextmanager
def hold_file(path: Path, *, seconds: float = 0.0) -> Iterator[IO[str]]:
    """Holds a lock file, and makes it if need be, until the block ends.

    Raises:
        LockedError: Another process holds it for so many seconds.
        InputError: It is a link, which could lead to a file that is worth something.
    """
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InputError(f"{path} is a link, and a lock is none: remove it") from error
    end = time.monotonic() + seconds
    with open(descriptor, "r+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() < end:
                    time.sleep(0.01)
                    continue
                raise LockedError(
                    f"{path.parent} is in use by {_describe_holder(path)}: wait for "
                    "it, stop it, or choose another --workdir"
                ) from error
        yield file


def _is_there(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def _describe_holder(path: Path) -> str:
    for _ in range(_LOOKS):
        try:
            holder = json.loads(path.read_text(encoding="utf-8"))
            return (
                f"process {holder['process']} on {holder['host']}, started "
                f"{holder['started']} ({holder['command']})"
            )
        except (OSError, ValueError, KeyError, TypeError):
            time.sleep(_SECONDS_BETWEEN_LOOKS)  # it has only just taken the lock
    return "another process"
