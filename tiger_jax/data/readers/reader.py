"""What a reader of raw shops is, and finding its files in a folder."""

import contextlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from tiger_jax.data.raw_shop import RawShop
from tiger_jax.data.tables.parquet_files import parquet_parts
from tiger_jax.errors import InputError


@runtime_checkable
class Reader(Protocol):
    """A reader and its config in one: a class made by `tiger_jax.config.config`.

    Two class attributes are optional: `kind`, a short name (the class's otherwise),
    and `looks_for`, its files in words, for messages.
    """

    def find(self, folder: Path) -> tuple[Path | None, ...]:
        """The files it needs, with None for each that the folder lacks.

        Where all are there, the folder is for this reader; the files' hashes tell
        whether the data have changed.
        """

    def read(self, folder: Path) -> RawShop:
        """Reads the folder.

        Raises:
            InputError: Something is wrong with a file: names it, the place and what
                to do.
        """


def match_files(folder: Path, *patterns: str) -> tuple[Path | None, ...]:
    """Finds the file whose name matches, for each regular expression.

    A folder of Parquet parts counts as a file. Other files may lie beside them.

    Raises:
        InputError: The folder can't be read, or a pattern has two files to choose
            from while the others have one.
    """
    try:
        # Some systems leave "._items.csv" and the like beside a file.
        there = (p for p in folder.iterdir() if p.name[0] != ".")
        names = sorted(p.name for p in there if parquet_parts(p))
    except NotADirectoryError as error:
        raise InputError(
            f"{folder} is a file: give --data_dir the folder that holds it"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{folder} can't be read ({reason}): give --data_dir the folder of a "
            "shop's data"
        ) from error
    found = [[n for n in names if re.fullmatch(p, n)] for p in patterns]
    for matching in found if all(found) else ():
        if len(matching) > 1:
            raise InputError(
                f"{folder} holds {' and '.join(matching)}: leave only one of them"
            )
    return tuple(folder / matching[0] if matching else None for matching in found)


def required_files(reader: Reader, folder: Path) -> list[Path]:
    """The files that a reader needs.

    Raises:
        InputError: One is missing: says what is looked for.
    """
    return recognise(folder, [reader])[1]


def recognise(folder: Path, readers: Sequence[Reader]) -> tuple[Reader, list[Path]]:
    """The first reader that has all its files in the folder, and these.

    Raises:
        InputError: There is none: says what is looked for.
    """
    halves: dict[int, Path] = {}
    for place, reader in enumerate(readers):
        found = reader.find(folder)
        files = [path for path in found if path is not None]
        if files and len(files) == len(found):
            return reader, files
        if files:
            halves[place] = files[0]
    what = "no data that is known"
    if halves:
        what = f"{next(iter(halves.values())).name} but not what belongs to it"
    looked_for = [
        getattr(reader, "looks_for", f"the files of {kind_of(reader)}")
        for place, reader in enumerate(readers)
        if place in halves or not halves
    ]
    suffixes = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".item", ".inter")
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.suffix in suffixes and not parquet_parts(path):
            what += (
                f" ({path.name} is a folder without .parquet files: write it as one "
                "file)"
            )
    if inner := _folder_inside(folder, readers):
        raise InputError(
            f"{folder} holds {what}, but {inner.name} in it does: "
            f"--data_dir={shlex.quote(str(inner))}"
        )
    raise InputError(f"{folder} holds {what}; looked for {'; '.join(looked_for)}")


def _folder_inside(folder: Path, readers: Sequence[Reader]) -> Path | None:
    """A folder in this one that a reader would take."""
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        for reader in readers:
            with contextlib.suppress(InputError):
                found = reader.find(inner)
                if found and all(found):
                    return inner
    return None


def kind_of(reader: Reader) -> str:
    """A reader's short name."""
    return getattr(reader, "kind", type(reader).__name__)
