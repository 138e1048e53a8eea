"""One file of a shop as a table, whatever its format, that knows where rows stand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from tiger_jax.data.readers.csv_files import CsvFormat, line_of_csv_row, read_csv
from tiger_jax.data.readers.json_lines import (
    array_of_objects,
    line_of_json_row,
    read_json_lines,
)
from tiger_jax.data.readers.text_files import one_line
from tiger_jax.errors import InputError

# A Parquet file may take this many times its size in memory, and always this much.
_MAX_RATIO, _LEAST_BYTES = 500, 1 << 28


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
        metadata = pa.parquet.read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
        names = schema.names
        wanted = columns if columns and set(columns) <= set(names) else names
        _refuse_bomb(path, _claimed_bytes(metadata))
        # A text that occurs a million times is in memory once.
        table = pa.parquet.read_table(
            path, columns=wanted, read_dictionary=_text_columns(schema)
        )
        for name in wanted:
            _refuse_bomb(path, _decoded_bytes(table[name]))
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


def _claimed_bytes(metadata: pa.parquet.FileMetaData) -> int:
    """What a file says it will take, whatever its compression."""
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    pages = sum(group.total_byte_size for group in groups)
    return pages + 8 * metadata.num_rows * metadata.num_columns


def _text_columns(schema: pa.Schema) -> list[str]:
    kinds = (pa.types.is_string, pa.types.is_large_string)
    return [f.name for f in schema if any(is_kind(f.type) for is_kind in kinds)]


def _decoded_bytes(column: pa.ChunkedArray) -> int:
    """What a column of texts takes when each row has its own."""
    if not pa.types.is_dictionary(column.type):
        return column.nbytes
    total = 0
    for chunk in column.chunks:
        lengths = pc.fill_null(pc.binary_length(chunk.dictionary), 0)
        total += pc.sum(lengths.take(chunk.indices)).as_py() or 0
    return total


def _refuse_bomb(path: Path, num_bytes: int) -> None:
    size = path.stat().st_size
    if num_bytes > max(_LEAST_BYTES, _MAX_RATIO * size):
        raise InputError(
            f"{path} has {size:,} bytes and would take {num_bytes:,} in memory: "
            "write it again without repeating long texts, or as CSV"
        )


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
