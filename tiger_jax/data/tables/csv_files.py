"""Reads CSV and its relatives with pyarrow; finds the line of what is wrong."""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from tiger_jax.data.tables import text_files
from tiger_jax.data.tables.text_files import one_line
from tiger_jax.errors import InputError

_BLOCK_BYTES = 2**23
_MAX_BLOCK_BYTES = 2**31 - 1
# Python's own limit would be 128 KiB; with none, a field of 1 GiB makes its reader ask
# for more than 10 GiB.
_MAX_FIELD = 2**26


@dataclass(frozen=True)
class CsvFormat:
    """How a text table is written; the defaults are ordinary CSV.

    Attributes:
        quoting: Fields may stand in double quotes. RecBole's files have none.
        encoding: Any of Python's text encodings; a byte order mark is skipped.
    """

    delimiter: str = ","
    quoting: bool = True
    encoding: str = "utf-8"


def read_csv(
    path: Path, columns: Sequence[str] | None, csv_format: CsvFormat
) -> pa.Table:
    """Reads a table with a header line; every column is text, nothing is null.

    "NA" stays "NA", and "007" stays "007". Blank lines are skipped, and spaces
    around column names are dropped.

    Args:
        columns: Read only these if the file has them all, otherwise everything.

    Raises:
        InputError: Wrong encoding, rows of different lengths, a column name given
            twice, a quote that is never closed: names the line.
    """
    text_files.check_encoding(path, csv_format.encoding)
    header_end, header = _read_header(path, csv_format)
    wanted = columns if columns and set(columns) <= set(header) else header
    parse_options = pa.csv.ParseOptions(
        delimiter=csv_format.delimiter,
        quote_char='"' if csv_format.quoting else False,
        newlines_in_values=csv_format.quoting,
    )
    convert_options = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(header, pa.string()), include_columns=wanted
    )

    def parse(block_size: int) -> pa.Table:
        read_options = pa.csv.ReadOptions(
            column_names=header,
            skip_rows=header_end,
            block_size=block_size,
            encoding=csv_format.encoding,
        )
        return pa.csv.read_csv(path, read_options, parse_options, convert_options)

    try:
        try:
            table = parse(_BLOCK_BYTES)
        except pa.ArrowInvalid as error:
            if not re.search("straddling|Could not skip", str(error)):
                raise
            # A field or a header longer than a block: take all as one block.
            table = parse(min(path.stat().st_size + 1, _MAX_BLOCK_BYTES))
    except (pa.ArrowException, UnicodeError) as error:
        if re.search("Empty CSV|Could not skip", str(error)):
            raise InputError(f"{path} has a header but no rows") from error
        text_files.raise_for_encoding(path, csv_format.encoding)
        _raise_for_ragged_row(path, csv_format, len(header))
        raise InputError(f"{path} can't be read: {one_line(error)}") from error
    _refuse_unclosed_quote(path, csv_format)
    return table


def line_of_csv_row(path: Path, row: int, csv_format: CsvFormat) -> int:
    """The number, from 1, of the line where a row (from 0) starts."""
    rows = enumerate(_rows(path, csv_format), -1)  # the header is row -1
    return next((line for i, (line, _) in rows if i == row), row + 2)


def _rows(
    path: Path, csv_format: CsvFormat, *, strict: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Yields each row's first line and its fields, from the header on."""
    csv.field_size_limit(_MAX_FIELD)
    with text_files.open_text(path, csv_format.encoding) as file:
        reader = csv.reader(
            file,
            delimiter=csv_format.delimiter,
            quoting=csv.QUOTE_MINIMAL if csv_format.quoting else csv.QUOTE_NONE,
            strict=strict,
        )
        line = 1
        try:
            for row in reader:
                if row:
                    yield line, row
                line = reader.line_num + 1
        except csv.Error as error:
            if "field limit" in str(error):
                raise InputError(
                    f"{path}, line {line}: a field of more than "
                    f"{_MAX_FIELD:,} characters: is a line's end or a closing "
                    "quote missing?"
                ) from error
            raise InputError(
                f"{path}, line {line}: {one_line(error)}: close the double quote that "
                "opens a field, and write quotes that belong to the text twice"
            ) from error


def _read_header(path: Path, csv_format: CsvFormat) -> tuple[int, list[str]]:
    """Returns the line where the header ends, and the names of the columns."""
    if len(csv_format.delimiter) != 1:
        raise InputError(
            f"{path}: the delimiter must be one character, not {csv_format.delimiter!r}"
        )
    try:
        line, header = next(_rows(path, csv_format), (1, []))
        last_line = line + sum(name.count("\n") for name in header)
    except UnicodeError as error:
        text_files.raise_for_encoding(path, csv_format.encoding)
        raise InputError(f"{path} can't be read: {one_line(error)}") from error
    header = [name.strip() for name in header]
    for name in header:
        if header.count(name) > 1:
            raise InputError(
                f"{path}, line {line}: two columns are called {name!r}: rename one"
            )
    if not header:
        raise InputError(f"{path} is empty: it should begin with a header line")
    return last_line, header


def _raise_for_ragged_row(path: Path, csv_format: CsvFormat, num_columns: int) -> None:
    try:
        for line, row in _rows(path, csv_format):
            if len(row) != num_columns:
                raise InputError(
                    f"{path}, line {line}: {len(row)} fields where the header has "
                    f"{num_columns}: put fields that hold {csv_format.delimiter!r} in "
                    "double quotes, or look for a quote that is never closed"
                )
    except UnicodeError:
        return  # the caller reports pyarrow's own message


def _refuse_unclosed_quote(path: Path, csv_format: CsvFormat) -> None:
    """Finds a quote that swallows the lines after it, which pyarrow doesn't mind.

    Only a file with an odd number of quotes can have one, or it has a quote inside
    an unquoted field, which means itself: the strict reader tells which.
    """
    if not csv_format.quoting:
        return
    with open(path, "rb") as file:
        count = sum(part.count(b'"') for part in iter(lambda: file.read(2**20), b""))
    if count % 2:
        for _ in _rows(path, csv_format, strict=True):
            pass
