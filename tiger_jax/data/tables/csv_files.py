"""Reads CSV and its dialects with pyarrow; finds the line of what is wrong."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from jaxtyping import Bool

from tiger_jax.data.tables import text_files
from tiger_jax.data.tables.text_files import one_line
from tiger_jax.errors import InputError

_BLOCK_BYTES = 2**23
_MAX_BLOCK_BYTES = 2**31 - 1
# Python's own limit would be 128 KiB; with none, a field of 1 GiB makes its reader ask
# for more than 10 GiB.
_MAX_FIELD = 2**26
_OTHER_DELIMITERS = ";\t|~^\x01"
_NUMBER_OR_DATE = re.compile(r"[^\w\s]?[-+]?\d[\d.,:/ TZ+-]*")
HEADLESS = "its first line looks like data: add a line of column names"
# The first line by which Excel is told the delimiter.
_SEPARATOR_HINT = re.compile(
    r'"?sep=([\t !#-/:-@\[-`{-~])"?[\r\n]*', re.IGNORECASE | re.ASCII
)


@dataclass(frozen=True)
class CsvFormat:
    """How a text table is written; the defaults are ordinary CSV.

    Attributes:
        delimiter: Where the header has none, a semicolon, tab or bar is found.
        quoting: Fields may stand in double quotes. RecBole's files have none.
        encoding: Any of Python's text encodings; a byte order mark goes before it.
        option: Where a user can change these ("files.FilesConfig"), if anywhere.
        escapes: A quote in a quoted field is written as a backslash and a quote.
        has_hint: The first line is Excel's "sep=;", and no header.
    """

    delimiter: str = ","
    quoting: bool = True
    encoding: str = "utf-8"
    option: str | None = None
    escapes: bool = False
    has_hint: bool = False


def find_dialect(path: Path, given: CsvFormat) -> tuple[CsvFormat, list[str]]:
    """What a file itself tells of how it is written, and notes on what it told.

    Raises:
        InputError: An unknown encoding, or a delimiter of several characters.
    """
    if given.delimiter == "\\t":  # as a shell passes it
        given = replace(given, delimiter="\t")
    if not re.fullmatch(r'[^"\r\n\0\x80-\U0010ffff]', given.delimiter):
        raise InputError(
            f"{path}: the delimiter must be one ASCII character, and no quote or "
            f"line's end, not {given.delimiter!r}"
        )
    found = replace(given, encoding=text_files.find_encoding(path, given.encoding))
    if not found.quoting:
        return found, []
    notes = []
    try:
        with _open(path, found) as file:
            hint = _SEPARATOR_HINT.fullmatch(file.readline(20))
        if hint:
            found = replace(found, delimiter=hint[1], has_hint=True)
        else:
            # A comma may stand in a name further on: "item_id;price, EUR".
            header = _first_row(path, found)
            marks = [mark for mark in _OTHER_DELIMITERS if mark in header[0]]
            others = [replace(found, delimiter=mark) for mark in marks]
            widths = [len(_first_row(path, other)) for other in others]
            if max(widths, default=0) >= max(2, len(header)):
                found = others[widths.index(max(widths))]
        if found.delimiter != given.delimiter:
            notes.append(
                f"{path.name}: {found.delimiter!r} stands between its fields, not "
                f"{given.delimiter!r}"
            )
        if _uses_escapes(path, found):
            found = replace(found, escapes=True)
            notes.append(f'{path.name}: \\" is read as a double quote within a text')
    except UnicodeError as error:
        text_files.raise_for_encoding(path, found.encoding, found.option)
        raise InputError(f"{path} can't be read: {one_line(error)}") from error
    return found, notes


def read_csv(
    path: Path, columns: Sequence[str] | None, csv_format: CsvFormat
) -> tuple[pa.Table, list[str]]:
    """Reads a table with a header line; every column is text, nothing is null.

    "NA" stays "NA", and "007" stays "007". Blank lines are skipped, and so are rows
    of empty fields, columns without a name, empty fields beyond the header's, and
    spaces around column names.

    Args:
        columns: Read only these if the file has them all, otherwise everything.
        csv_format: As `find_dialect` returns it.

    Returns:
        The table, and notes on what was skipped.

    Raises:
        InputError: Wrong encoding, rows of different lengths, a column name given
            twice, a quote that is never closed: names the line.
    """
    header_end, header = _read_header(path, csv_format)
    # Excel writes columns without a name, and so does pandas its index.
    named = [name or f"\0{place}" for place, name in enumerate(header)]
    present = [name for name in header if name]
    wanted = columns if columns and set(columns) <= set(present) else present
    parse_options = pa.csv.ParseOptions(
        delimiter=csv_format.delimiter,
        quote_char='"' if csv_format.quoting else False,
        newlines_in_values=csv_format.quoting,
    )

    def parse(block_size: int, names: Sequence[str] = wanted) -> pa.Table:
        convert_options = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(named, pa.string()), include_columns=names
        )
        read_options = pa.csv.ReadOptions(
            column_names=named,
            skip_rows=header_end,
            block_size=block_size,
            encoding=csv_format.encoding,
        )
        if csv_format.escapes:
            with _open(path, csv_format) as file:
                source = pa.BufferReader(file.read().encode())
            read_options.encoding = "utf-8"
        elif text_files.is_gzipped(path):
            source = text_files.open_bytes(path)
        else:
            source = path
        return pa.csv.read_csv(source, read_options, parse_options, convert_options)

    notes: list[str] = []
    block_size = _BLOCK_BYTES
    try:
        try:
            table = parse(block_size)
        except pa.ArrowInvalid as error:
            if not re.search("straddling|Could not skip", str(error)):
                raise
            # A field or a header longer than a block: take all as one block.
            block_size = _MAX_BLOCK_BYTES
            table = parse(block_size)
        if _are_empty(table).any():
            is_empty = _are_empty(parse(block_size, named))
            table = table.filter(pa.array(~is_empty))
            count = f"{is_empty.sum():,} rows of empty fields"
            notes += [f"{path.name}: {count} are left out"] if is_empty.any() else []
    except (pa.ArrowException, UnicodeError) as error:
        if re.search("Empty CSV|Could not skip", str(error)):
            raise InputError(f"{path} has a header but no rows") from error
        text_files.raise_for_encoding(path, csv_format.encoding, csv_format.option)
        table = _read_even_rows(path, csv_format, named, error).select(wanted)
    _refuse_unclosed_quote(path, csv_format)
    if num_nameless := len(header) - len(present):
        what = f"{num_nameless} of its columns are without a name and left out"
        notes.append(f"{path.name}: {what}")
    return table, notes


def _are_empty(table: pa.Table) -> Bool[np.ndarray, " rows"]:
    """Which rows have no content."""
    found = np.ones(table.num_rows, bool)
    for column in table.columns:
        if found.any():
            found &= pc.equal(column, "").to_numpy()
    return found


def line_of_csv_row(path: Path, row: int, csv_format: CsvFormat) -> int:
    """The number, from 1, of the line where a row (from 0) starts."""
    rows = enumerate(_rows(path, csv_format), -1)  # the header is row -1
    return next((line for i, (line, _) in rows if i == row), row + 2)


def _open(path: Path, csv_format: CsvFormat) -> io.TextIOWrapper | io.StringIO:
    file = text_files.open_text(path, csv_format.encoding)
    if not csv_format.escapes:
        return file
    with file:
        return io.StringIO(_double_quotes(file.read(), csv_format), newline="")


def _quoted_fields(csv_format: CsvFormat) -> re.Pattern[str]:
    r"""Matches a quoted field in which \" may stand; its text is group 1."""
    edge = rf"[^{re.escape(csv_format.delimiter)}\r\n]"
    inside = r'(?:[^"\\]++|\\.|"")*+'
    return re.compile(rf'(?<!{edge})"({inside})"(?!{edge})', re.DOTALL)


def _double_quotes(text: str, csv_format: CsvFormat) -> str:
    r"""Writes \" and \\ in quoted fields as CSV has them: "" and \."""

    def rewrite(field: re.Match[str]) -> str:
        plain = re.sub(r'\\(["\\])', lambda m: m[1] * (1 + (m[1] == '"')), field[1])
        return f'"{plain}"'

    return _quoted_fields(csv_format).sub(rewrite, text)


def _uses_escapes(path: Path, csv_format: CsvFormat) -> bool:
    r"""Whether \" is a quote: the file is whole only then, or has no other quotes.

    What is whole either way, as `"5\""` is, would otherwise keep its backslash.
    """
    if not any(b'\\"' in part for part in _blocks(path)):
        return False
    with _open(path, csv_format) as file:
        fields = [m[1] for m in _quoted_fields(csv_format).finditer(file.read())]
    if not any('\\"' in field for field in fields):
        return False
    if not _is_whole(path, replace(csv_format, escapes=True)):
        return False
    has_doubled = any('""' in re.sub(r"(?s)\\.", "", field) for field in fields)
    return not has_doubled or not _is_whole(path, csv_format)


def _blocks(path: Path) -> Iterator[bytes]:
    """Yields a file's blocks, each after the last byte of the one before."""
    last = b"\n"
    with text_files.open_bytes(path) as file:
        while block := file.read(2**20):
            yield last + block
            last = block[-1:]


def _is_whole(path: Path, csv_format: CsvFormat) -> bool:
    """Whether all rows have one length, and no quote stands where it can't."""
    try:
        return len({len(row) for _, row in _rows(path, csv_format, strict=True)}) == 1
    except InputError:
        return False


def looks_like_data(names: Sequence[str]) -> bool:
    """Whether a header seems to be a row: numbers, prices or dates are no names."""
    return any(_NUMBER_OR_DATE.fullmatch(name.strip()) for name in names)


def _rows(
    path: Path,
    csv_format: CsvFormat,
    *,
    strict: bool = False,
    with_empty: bool = False,
) -> Iterator[tuple[int, list[str]]]:
    """Yields each row's first line and its fields, from the header on.

    Args:
        with_empty: Rows of nothing but empty fields, too.
    """
    csv.field_size_limit(_MAX_FIELD)
    with _open(path, csv_format) as file:
        line = 1
        if csv_format.has_hint:
            file.readline()
            line = 2
        first_line = line
        reader = csv.reader(
            file,
            delimiter=csv_format.delimiter,
            quoting=csv.QUOTE_MINIMAL if csv_format.quoting else csv.QUOTE_NONE,
            strict=strict,
        )
        try:
            for row in reader:
                if any(row) or (row and with_empty):
                    yield line, row
                line = reader.line_num + first_line
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


def _first_row(path: Path, csv_format: CsvFormat) -> list[str]:
    """The names in the header; one without letters if it can't be read."""
    try:
        return next(_rows(path, csv_format), (1, [""]))[1]
    except InputError:
        return [""]


def _read_header(path: Path, csv_format: CsvFormat) -> tuple[int, list[str]]:
    """Returns the line where the header ends, and the names of the columns."""
    try:
        line, header = next(_rows(path, csv_format), (1, []))
        last_line = line + sum(name.count("\n") for name in header)
    except UnicodeError as error:
        text_files.raise_for_encoding(path, csv_format.encoding, csv_format.option)
        raise InputError(f"{path} can't be read: {one_line(error)}") from error
    header = [name.strip() for name in header]
    for name in filter(None, header):
        if header.count(name) > 1:
            advice = HEADLESS if looks_like_data(header) else "rename one"
            raise InputError(
                f"{path}, line {line}: two columns are called {name!r}: {advice}"
            )
    if not any(header):
        raise InputError(f"{path} is empty: it should begin with a header line")
    if csv_format.quoting and all(re.fullmatch("'.*'", name) for name in header):
        raise InputError(
            f"{path}, line {line}: fields stand in single quotes: write it with double "
            "ones"
        )
    return last_line, header


def _read_even_rows(
    path: Path, csv_format: CsvFormat, header: Sequence[str], reason: Exception
) -> pa.Table:
    """Reads rows that are longer than the header only by empty fields.

    Spreadsheets write them, and only pyarrow refuses them. Rows of empty fields are
    left out, whatever their length.
    """
    num_columns = len(header)
    rows = _rows(path, csv_format, with_empty=True)
    for _, row in rows:
        if any(row):  # the header
            break
    mark = repr(csv_format.delimiter)
    even, has_other = [], False  # rows that only pyarrow refuses
    try:
        for line, row in rows:
            if not any(row):
                has_other |= len(row) != num_columns
                continue
            has_other |= len(row) > num_columns
            if len(row) < num_columns or any(row[num_columns:]):
                advice = f"put {mark} between all fields, empty ones too"
                if csv_format.quoting:
                    if len(row) > num_columns:
                        advice = f"put fields that hold {mark} in double quotes"
                    advice += ", or look for a quote that is never closed"
                    if num_columns == 1:
                        advice = "delete the lines before that of the columns' names"
                    if any(re.match(r'\s+"', field) for field in row):
                        advice = "no spaces may stand before an opening quote"
                raise InputError(
                    f"{path}, line {line}: {len(row)} fields where the header has "
                    f"{num_columns}: {advice}"
                )
            even.append(row[:num_columns])
    except UnicodeError:
        has_other = False
    if not has_other:
        raise InputError(f"{path} can't be read: {one_line(reason)}") from reason
    columns = zip(*even, strict=True) if even else [[]] * num_columns
    arrays = [pa.array(column, pa.string()) for column in columns]
    return pa.table(arrays, names=list(header))


def _refuse_unclosed_quote(path: Path, csv_format: CsvFormat) -> None:
    """Finds a quote that swallows the lines after it, which pyarrow doesn't mind.

    Only a file with an odd number of quotes can have one, or it has a quote inside
    an unquoted field, which means itself: the strict reader tells which.
    """
    if not csv_format.quoting:
        return
    if sum(part[1:].count(b'"') for part in _blocks(path)) % 2:
        for _ in _rows(path, csv_format, strict=True):
            pass
