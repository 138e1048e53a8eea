"""One file of a shop as a table, whatever its format, that knows where rows stand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from tiger_jax.data.csv_files import CsvFormat, line_of_csv_row, read_csv
from tiger_jax.data.json_lines import (
    array_of_objects,
    line_of_json_row,
    read_json_lines,
)
from tiger_jax.data.text_files import one_line
from tiger_jax.errors import InputError


@dataclass(frozen=True)
class SourceTable:
    """A file's rows, and where in the file each of them stands.

    Attributes:
      path: The file.
      table: Its columns: texts, numbers, booleans, times, or lists of paths
        (`RawShop`'s categories).
      unusable: Columns that hold something else, and what they hold.
      where: Names a row, from 0, for an error message ("items.csv, line 7"). It
        may read the whole file again.
    """

    path: Path
    table: pa.Table
    unusable: dict[str, str]
    where: Callable[[int], str]


def read_table(
    path: Path,
    *,
    columns: Sequence[str] | None = None,
    csv_format: CsvFormat | None = None,
) -> SourceTable:
    """Reads a file by its suffix; what isn't `.jsonl` or `.parquet` is read as CSV.

    Args:
      path: The file.
      columns: Read only these if the file has them all, otherwise everything.
      csv_format: How a CSV file is written; its encoding holds for JSON too.

    Raises:
      InputError: The file can't be read, is empty, or is malformed: names the
        line, and for a wrong encoding the byte.
    """
    csv_format = csv_format or CsvFormat()
    unusable: dict[str, str] = {}
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty: it should hold a table")
        if path.suffix == ".parquet":
            table, unusable = _read_parquet(path, columns)
        elif path.suffix == ".jsonl":
            table, unusable = read_json_lines(path, columns, csv_format.encoding)
        else:
            table = read_csv(path, columns, csv_format)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise InputError(f"{path} can't be read: {reason}") from error
    if table.num_rows == 0:
        raise InputError(f"{path} has no rows: it should hold a table")

    def where(row: int) -> str:
        if path.suffix == ".parquet":
            return f"{path}, row {row + 1}"
        if path.suffix == ".jsonl":
            return f"{path}, line {line_of_json_row(path, row)}"
        return f"{path}, line {line_of_csv_row(path, row, csv_format)}"

    return SourceTable(path, table, unusable, where)


def _read_parquet(
    path: Path, columns: Sequence[str] | None
) -> tuple[pa.Table, dict[str, str]]:
    try:
        names = pa.parquet.read_schema(path).names
        wanted = columns if columns and set(columns) <= set(names) else names
        table = pa.parquet.read_table(path, columns=wanted)
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{path} is no Parquet file: {one_line(error)}") from error
    if len(set(names)) < len(names):
        raise InputError(f"{path}: two columns have the same name: rename one")
    kept, unusable = {}, {}
    for name in wanted:
        try:
            kept[name] = _plain_column(table[name])
        except (pa.ArrowException, TypeError) as error:
            unusable[name] = f"{table[name].type} ({one_line(error)})"
    if not kept:  # a table without columns has lost its rows
        kept["(none)"] = pa.nulls(table.num_rows, pa.string())
    return pa.table(kept), unusable


def _plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """Reduces Arrow's many types to the few that `SourceTable` holds."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain_column(column.cast(kind.value_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return array_of_objects(column.to_pylist())
    if pa.types.is_decimal(kind):
        return column.cast(pa.float64())
    if (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_temporal(kind)
    ):
        return column
    return column.cast(pa.string())  # fails for what isn't text
