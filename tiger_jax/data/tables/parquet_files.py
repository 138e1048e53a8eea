"""Reads Parquet, and refuses files that would fill the memory."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from tiger_jax.data.tables.json_lines import array_of_objects
from tiger_jax.data.tables.text_files import one_line
from tiger_jax.errors import InputError

# A Parquet file may take this many times its size in memory, and always this much.
_MAX_RATIO, _MIN_BYTES = 500, 1 << 28


def parquet_parts(path: Path) -> list[Path]:
    """The files of a table: itself, or a folder's in the order of their names.

    They may lie in folders such as ``day=2024-07-01``.
    """
    if path.is_file():
        return [path]
    found = sorted((*path.glob("*.parquet"), *path.glob("*=*/**/*.parquet")))
    return [p for p in found if p.is_file() and p.name[0] not in "._"]


def place_of_row(path: Path, row: int) -> str:
    """The file that holds a row of a table (from 0), and the row in it, from 1."""
    for part in parquet_parts(path):
        num_rows = pa.parquet.read_metadata(part).num_rows
        if row < num_rows:
            return f"{part}, row {row + 1}"
        row -= num_rows
    return str(path)


def read_parquet(
    path: Path, columns: Sequence[str] | None
) -> tuple[pa.Table, dict[str, str]]:
    """Reads a table of texts, numbers, booleans, times and lists of paths.

    A folder holds the parts of one table, as Spark and others write it.

    Args:
        columns: Read only these if the file has them all, otherwise everything.

    Returns:
        The table; and the columns that hold anything else, with what they hold.

    Raises:
        InputError: The file is malformed, or would fill the memory.
    """
    parts = parquet_parts(path)
    if (path / "_delta_log").is_dir():
        raise InputError(
            f"{path} is a Delta table, whose files may hold rows that are deleted: "
            "write it as Parquet alone"
        )
    if not parts:
        raise InputError(f"{path} holds no .parquet files")
    read = [_read_part(part, columns) for part in parts]
    unusable = {name: kind for _, bad in read for name, kind in bad.items()}
    tables = [
        table.drop_columns([name for name in table.column_names if name in unusable])
        for table, _ in read
    ]
    try:
        return pa.concat_tables(tables, promote_options="permissive"), unusable
    except pa.ArrowException as error:
        raise InputError(
            f"{path}: its parts don't fit together: {one_line(error)}"
        ) from error


def _read_part(
    path: Path, columns: Sequence[str] | None
) -> tuple[pa.Table, dict[str, str]]:
    try:
        metadata = pa.parquet.read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
        names = schema.names
        wanted = columns if columns and set(columns) <= set(names) else names
        _refuse_bomb(path, _claimed_bytes(metadata))
        # A text that occurs a million times is in memory once.
        kinds = (pa.string(), pa.large_string())
        texts = [field.name for field in schema if field.type in kinds]
        table = pa.parquet.read_table(path, columns=wanted, read_dictionary=texts)
        for name in wanted:
            _refuse_bomb(path, _decoded_bytes(table[name]))
            _refuse_damaged(path, name, table[name])
    except InputError:
        raise
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
    if num_bytes > max(_MIN_BYTES, _MAX_RATIO * size):
        raise InputError(
            f"{path} has {size:,} bytes and would take {num_bytes:,} in memory: "
            "write it again without repeating long texts, or as CSV"
        )


def _refuse_damaged(path: Path, name: str, column: pa.ChunkedArray) -> None:
    try:
        column.validate(full=True)  # finds text that isn't UTF-8
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{path}, column {name!r}: {one_line(error)}: write the file again"
        ) from error


def _plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """Reduces Arrow's many types to the few that `SourceTable` holds."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain_column(column.cast(kind.value_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return array_of_objects(column.to_pylist())
    if pa.types.is_decimal(kind):
        if kind.scale:
            return column.cast(pa.float64())
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:  # more digits than that
            return column.cast(pa.string())
    if pa.types.is_primitive(kind):
        return column  # numbers, booleans, times
    return column.cast(pa.string())  # fails for what isn't text
