"""One file as a table, whatever its format, that knows where each row is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from tiger_jax.data.tables.csv_files import (
    CsvFormat,
    find_dialect,
    line_of_csv_row,
    read_csv,
)
from tiger_jax.data.tables.json_lines import line_of_json_row, read_json_lines
from tiger_jax.data.tables.parquet_files import place_of_row, read_parquet
from tiger_jax.data.tables.text_files import one_line, open_bytes
from tiger_jax.errors import InputError

_FETCH, _SAVE = (
    "and not the file itself: fetch that",
    "which isn't read: save it as CSV",
)
_STAND_INS = {
    b"version https://git-lfs": ("a pointer of Git LFS", _FETCH),
    b"<!doctype html": ("a web page", _FETCH),
    b"<html": ("a web page", _FETCH),
    b"pk\3\4": ("an Excel workbook or a zip archive", _SAVE),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("an Excel workbook of before 2007", _SAVE),
}
_JSON = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class SourceTable:
    """A file's rows, and where in the file each of them stands.

    Attributes:
        table: Its columns: texts, numbers, booleans, times, or lists of paths
            (`RawShop`'s categories).
        unusable: Columns that hold something else, and what they hold.
        where: Names a row, from 0, for an error message ("items.csv, line 7"). It
            may read the whole file again.
        notes: What the user should know about how the file was read.
        has_header: Its first row names the columns, as in CSV.
    """

    path: Path
    table: pa.Table
    unusable: dict[str, str]
    where: Callable[[int], str]
    notes: tuple[str, ...] = ()
    has_header: bool = False

    @property
    def column_names(self) -> list[str]:
        """All columns of the file, the unusable ones last."""
        return [*self.table.column_names, *self.unusable]

    def with_column(
        self, column: str, convert: Callable[[pa.ChunkedArray], pa.Array]
    ) -> "SourceTable":
        table = self.table.set_column(
            self.table.column_names.index(column), column, convert(self.table[column])
        )
        return replace(self, table=table)


def read_table(
    path: Path,
    *,
    columns: Sequence[str] | None = None,
    csv_format: CsvFormat | None = None,
) -> SourceTable:
    """Reads a file by its suffix; what isn't JSON lines or Parquet is read as CSV.

    Either may be gzipped, and `.parquet` a folder of parts.

    Args:
        columns: Read only these if the file has them all, otherwise everything.
        csv_format: How a CSV file is written; its encoding holds for JSON too.

    Raises:
        InputError: The file can't be read, is empty, or is malformed: names the
            line, and for a wrong encoding the byte.
    """
    csv_format = csv_format or CsvFormat()
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    unusable: dict[str, str] = {}
    notes: list[str] = []
    has_header = False
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise InputError(f"{path} is empty: it should hold a table")
        if path.is_file():
            _refuse_stand_in(path)
        if suffix == ".parquet" or path.is_dir():
            table, unusable = read_parquet(path, columns)
        elif suffix in _JSON:
            table, unusable = read_json_lines(
                path, columns, csv_format.encoding, csv_format.option
            )
        else:
            csv_format, notes = find_dialect(path, csv_format)
            table, skipped = read_csv(path, columns, csv_format)
            notes += skipped
            has_header = True
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise InputError(f"{path} can't be read: {reason}") from error
    if table.num_rows == 0:
        raise InputError(f"{path} has no rows: it should hold a table")

    def where(row: int) -> str:
        if suffix == ".parquet" or path.is_dir():
            return place_of_row(path, row)
        if suffix in _JSON:
            return f"{path}, line {line_of_json_row(path, row)}"
        return f"{path}, line {line_of_csv_row(path, row, csv_format)}"

    return SourceTable(path, table, unusable, where, tuple(notes), has_header)


def _refuse_stand_in(path: Path) -> None:
    """Refuses a workbook, and what a failed download leaves in a file's place."""
    with open_bytes(path) as file:
        start = file.read(64).lstrip().lower()
    for begins, (what, advice) in _STAND_INS.items():
        if start.startswith(begins):
            raise InputError(f"{path} is {what}, {advice}")
