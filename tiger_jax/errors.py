"""Errors whose message is for the user, and the exit code each one stands for."""

import ast
import errno
import os
import re
import shlex
from typing import Any

_STORAGE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ESTALE,
)
KEYWORDS = ("none", "true", "false")  # as people write gin's None, True and False


class UserFacingError(Exception):
    """A failure to report as one line, without a traceback."""

    exit_code = 1


class InputError(UserFacingError, ValueError):
    """Bad input or usage: says what is wrong, where, and what to do."""

    exit_code = 2


class LockedError(UserFacingError):
    """Another run holds the work directory."""

    exit_code = 3


class Preempted(UserFacingError):
    """Stopped by a signal after saving; the same command resumes."""

    exit_code = 4


def flag(name: str, value: Any) -> str:
    """The command-line flag that binds a value, quoted for the shell.

    Examples:
        >>> print(flag("rqvae.RqVaeConfig.codebook_sizes", (32, 32)))
        --gin.rqvae.RqVaeConfig.codebook_sizes='(32, 32)'
        >>> print(flag("files.FilesConfig.item_id", "product id"))
        --gin.files.FilesConfig.item_id='product id'
        >>> print(flag("files.FilesConfig.time_format", "%d.%m.%Y"))
        --gin.files.FilesConfig.time_format="'%d.%m.%Y'"
    """
    text = value if isinstance(value, str) and is_text(value) else repr(value)
    quoted = shlex.quote(text)
    if "'" in text and not re.search(r'["$`\\!]', text):
        quoted = f'"{text}"'  # easier to read, and to type
    return f"--gin.{name}={quoted}"


def is_text(value: str) -> bool:
    """Whether a flag's value is a text as it stands, and not what gin reads."""
    if value[:1] in ("", "@", "%") or value.strip().lower() in KEYWORDS:
        return False
    if value[0] in "([{" and (is_open(value) or re.search(r"[@%]\w", value)):
        return False
    try:
        ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return True
    return False


def is_open(text: str) -> bool:
    """Whether a bracket is never closed."""
    return any(text.count(a) > text.count(b) for a, b in ("()", "[]", "{}"))


def storage_problem(error: BaseException | None) -> str | None:
    """What a disk or a folder did to us, in words; None for any other error.

    Libraries that write for us keep the system's words, but not its error number.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _STORAGE:
            where = f" ({os.fspath(error.filename)})" if error.filename else ""
            return f"{os.strerror(error.errno)}{where}"
        for number in _STORAGE:
            if os.strerror(number) in str(error):
                return f"{os.strerror(number)} ({type(error).__name__})"
        error = error.__cause__ or error.__context__
    return None
