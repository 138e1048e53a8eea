"""Text encodings: opening a file, and saying which byte is wrong."""

import codecs
from pathlib import Path
from typing import TextIO

from tiger_jax.errors import InputError


def check_encoding(path: Path, encoding: str) -> None:
    """Refuses an unknown encoding, and UTF-16 that isn't asked for.

    UTF-16 is what spreadsheets save as "Unicode text"; read as UTF-8 it would
    look like a table without its columns.
    """
    try:
        name = codecs.lookup(encoding).name
        "".encode(encoding)  # finds codecs that are no text encodings, as zip
    except LookupError as error:
        raise InputError(
            f"{path}: there is no text encoding called {encoding!r}"
        ) from error
    with open(path, "rb") as file:
        is_utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    if is_utf16 and not name.startswith("utf-16"):
        raise InputError(
            f"{path} is encoded as UTF-16, not {encoding}: save it as UTF-8, or set "
            "the reader's option encoding to 'utf-16'"
        )


def open_text(path: Path, encoding: str) -> TextIO:
    """Opens a file for reading, without its byte order mark, line ends as they are."""
    if codecs.lookup(encoding).name == "utf-8":
        encoding = "utf-8-sig"
    return open(path, encoding=encoding, newline="")


def raise_for_encoding(path: Path, encoding: str) -> None:
    """Raises an InputError that names the first line and byte that isn't text.

    Returns if every line can be decoded.
    """
    with open(path, "rb") as file:
        for line, data in enumerate(file, 1):
            try:
                data.decode(encoding)
            except UnicodeError as error:
                start = getattr(error, "start", 0)
                raise InputError(
                    f"{path}, line {line}, byte {start + 1}: 0x{data[start]:02x} is "
                    f"not {encoding} text: save the file as UTF-8, or set the reader's "
                    "option encoding (such as 'latin-1')"
                ) from error


def one_line(error: BaseException) -> str:
    """A library's message, short and without line breaks."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"
