"""Text files: unpacking, encodings, and saying which byte is wrong."""

import codecs
import gzip
import io
import itertools
import re
import zlib
from pathlib import Path
from typing import Any

from tiger_jax.errors import InputError, flag

MAX_RATIO = 200
"""Bytes that a compressed byte may stand for; in real files it is 3 to 20."""
_MIN_BYTES = 1 << 23  # below this, any ratio will do
_BOMS = {
    codecs.BOM_UTF32_LE: "utf-32",  # begins as UTF-16's does
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
# What begins with ASCII, without a mark; no text holds null bytes otherwise.
_UNMARKED = {rb"[^\0]\0[^\0]\0": "utf-16-le", rb"\0[^\0]\0[^\0]": "utf-16-be"}


def open_bytes(path: Path) -> io.BufferedReader:
    """Opens a file for reading; what is gzipped, by name or content, is unpacked.

    Reading raises an InputError where the file is damaged, or small and would never
    end.
    """
    file = open(path, "rb")
    if path.suffix != ".gz" and file.peek(2)[:2] != b"\x1f\x8b":
        return file
    return io.BufferedReader(_Unpacked(path, file), 1 << 16)


def is_gzipped(path: Path) -> bool:
    """Whether `open_bytes` unpacks a file."""
    with open_bytes(path) as file:
        return isinstance(getattr(file, "raw", None), _Unpacked)


def place_in_file(file: io.BufferedReader) -> int:
    """How many bytes on the disk have been read of what `open_bytes` opened."""
    packed = getattr(getattr(file, "raw", None), "packed", file)
    return int(packed.tell())


class _Unpacked(io.RawIOBase):
    """The content of a gzipped file."""

    def __init__(self, path: Path, packed: io.BufferedReader) -> None:
        self.packed = packed
        self._path, self._size = path, path.stat().st_size
        self._file = gzip.GzipFile(fileobj=packed, mode="rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except EOFError as error:
            raise InputError(
                f"{self._path} ends in the middle: it was cut off; delete it and "
                "fetch or write it again"
            ) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                f"{self._path} is not a whole gzip file ({error}): delete it and fetch "
                "or write it again"
            ) from error
        if self._file.tell() > max(_MIN_BYTES, MAX_RATIO * self._size):
            raise InputError(
                f"{self._path} holds more than {MAX_RATIO} times its {self._size:,} "
                "bytes: this is no file of data; unpack it if it is"
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.packed.close()
        super().close()


def find_encoding(path: Path, encoding: str) -> str:
    """The encoding of a text: what its first bytes tell, else the one given.

    Raises:
        InputError: There is no such encoding.
    """
    try:
        name = codecs.lookup(encoding).name
        "".encode(encoding)  # finds codecs that are no text encodings, as zip
    except LookupError as error:
        raise InputError(
            f"{path}: there is no text encoding called {encoding!r}"
        ) from error
    with open_bytes(path) as file:
        start = file.read(4)
    for mark, found in _BOMS.items():
        if start.startswith(mark):
            return found
    for pattern, found in _UNMARKED.items():
        if name == "utf-8" and re.fullmatch(pattern, start):
            return found
    return "utf-8" if name == "utf-8-sig" else name


def open_text(path: Path, encoding: str) -> io.TextIOWrapper:
    """Opens a file for reading, without its byte order mark, line ends as they are."""
    if encoding == "utf-8":
        encoding = "utf-8-sig"
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, newline="")


def raise_for_encoding(path: Path, encoding: str, option: str | None = None) -> None:
    """Raises an InputError that names the first line and byte that isn't text.

    Returns if every line can be decoded.

    Args:
        option: Where the user can set another encoding, if anywhere.
    """
    advice = "save the file as UTF-8"
    if option is not None:
        advice += ", or name its encoding (latin-1, gb18030, shift_jis, …): "
        advice += flag(f"{option}.encoding", "latin-1")
    # Lines of UTF-16 end within a character's bytes.
    decoder = codecs.getincrementaldecoder(encoding)()
    with open_bytes(path) as file:
        for line, data in enumerate(itertools.chain(file, [b""]), 1):
            pending = decoder.getstate()[0]
            try:
                decoder.decode(data, final=not data)
            except UnicodeError as error:
                start = getattr(error, "start", 0)
                bad = (pending + data)[start : start + 1]
                raise InputError(
                    f"{path}, line {line - (not data)}, byte {start + 1}: "
                    f"0x{bad.hex()} is not {encoding} text: {advice}"
                ) from error


def one_line(error: BaseException) -> str:
    """A library's message, short and without line breaks."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"
