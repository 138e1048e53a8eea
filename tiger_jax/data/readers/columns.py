"""Turns a file's columns into `RawShop`'s: texts, prices, categories, times."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiger_jax.data.raw_shop import CATEGORY_PATHS
from tiger_jax.data.readers.list_texts import is_list, parse_list
from tiger_jax.data.tables.table import SourceTable
from tiger_jax.errors import InputError

_BETWEEN_PATHS = "|"
_BETWEEN_LEVELS = ">"


def read_ids(source: SourceTable, column: str) -> pa.ChunkedArray:
    """Reads identifiers as text; each row must have one.

    Texts stay as they are (" a" is not "a"), whole numbers become their digits.

    Raises:
        InputError: An identifier is missing, or the column holds fractions (a
            spreadsheet's 123.0 would match no other file's 123) or lists.
    """
    values = _column(source, column)
    if not (pa.types.is_string(values.type) or pa.types.is_integer(values.type)):
        raise InputError(
            f"{source.path}: column {column!r} holds {_kind_name(values.type)}: store "
            "identifiers as text or whole numbers"
        )
    ids = values.cast(pa.string())
    is_missing = pc.equal(pc.fill_null(ids, ""), "")
    if (row := first_true(is_missing)) is not None:
        raise InputError(
            f"{source.where(row)}: no {column!r} is given: fill it in, or delete that "
            "row"
        )
    return ids


def read_text(source: SourceTable, column: str) -> pa.ChunkedArray:
    """Reads a column as text: lists are joined by commas, what is missing is ""."""
    values = _column(source, column)
    if values.type == CATEGORY_PATHS:
        joined = [
            ", ".join(text for path in paths or () for text in path)
            for paths in values.to_pylist()
        ]
        return pa.chunked_array([pa.array(joined, pa.string())])
    return pc.fill_null(values.cast(pa.string()), "")


def read_prices(source: SourceTable, column: str) -> tuple[pa.ChunkedArray, list[str]]:
    """Reads prices; what is no price becomes null and is counted.

    A currency sign is dropped; a comma stands between thousands, or before the
    cents: "$1,299.00" is 1299.0, and "12,99" is 12.99. Zero and negative prices are
    unknown ones.

    Returns:
        The prices, float64, and a note if any was left out.
    """
    texts = read_text(source, column)
    plain = pc.replace_substring_regex(texts, r"^\s*[^\d\s.,+-]{0,3}\s*", "")
    plain = pc.utf8_trim_whitespace(plain)
    plain = pc.replace_substring_regex(plain, r"^(\d+),(\d\d?)$", r"\1.\2")
    has_thousands = pc.match_substring_regex(plain, r"^\d{1,3}(,\d{3})+(\.\d*)?$")
    plain = pc.if_else(has_thousands, pc.replace_substring(plain, ",", ""), plain)
    is_number = pc.match_substring_regex(plain, r"^(\d+(\.\d*)?|\.\d+)$")
    prices = pc.if_else(is_number, plain, None).cast(pa.float64())
    is_price = pc.fill_null(pc.and_(pc.greater(prices, 0), pc.is_finite(prices)), False)
    prices = pc.if_else(is_price, prices, None)
    is_refused = pc.and_(pc.invert(is_price), pc.not_equal(texts, ""))
    if (row := first_true(is_refused)) is None:
        return prices, []
    count, example = pc.sum(is_refused).as_py(), shown(texts[row].as_py())
    return prices, [
        f"{source.path.name}: {count:,} of {len(texts):,} values of {column!r} are no "
        f"prices and count as unknown (first {example})"
    ]


def read_categories(source: SourceTable, column: str) -> pa.ChunkedArray:
    """Reads category paths, root first, from a list or a text.

    *   A list of lists is several paths; a flat list is one.
    *   In a text, "|" stands between paths and ">" between the levels of one:
        "Beauty > Nails | Gifts". A text in brackets is a list, as JSON, Python, NumPy
        or a database write it: "['Beauty', 'Nails']".

    Empty names are dropped, then empty paths.

    Raises:
        InputError: A text in square brackets isn't a list: names the line.
    """
    values = _column(source, column)
    if values.type == CATEGORY_PATHS:
        return pa.chunked_array(
            [pa.array([clean_paths(v) for v in values.to_pylist()], CATEGORY_PATHS)]
        )
    return parse_categories(source, column, parse_paths)


def parse_categories(
    source: SourceTable, column: str, parse: Callable[[str], list[list[str]]]
) -> pa.ChunkedArray:
    """Reads category paths from texts.

    Raises:
        InputError: `parse` raised a ValueError or the like: names the line.
    """
    # Shops have few distinct category texts: parse each of them once.
    encoded = read_text(source, column).dictionary_encode()
    texts = encoded.unify_dictionaries().combine_chunks()
    parsed = []
    for index, text in enumerate(texts.dictionary.to_pylist()):
        try:
            parsed.append(clean_paths(parse(text)))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as bad:
            row = int(np.argmax(np.asarray(texts.indices) == index))
            raise InputError(
                f"{source.where(row)}: {column!r} is {shown(text)}, which is no list "
                'of names: write it as "A > B | C" or as JSON'
            ) from bad
    paths = pa.array(parsed, CATEGORY_PATHS).take(texts.indices)
    return pa.chunked_array([paths])


def read_times(source: SourceTable, column: str) -> pa.ChunkedArray:
    """Reads times: any numbers, or ISO dates and times, which become seconds.

    Raises:
        InputError: A time is missing, infinite, or neither: names the line.
    """
    values = _column(source, column)
    if pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("us"))
    if pa.types.is_string(values.type):
        values = _parse_times(source, column, values)
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.timestamp("us", values.type.tz), safe=False)
        values = pc.divide(values.cast(pa.int64()).cast(pa.float64(), safe=False), 1e6)
    is_number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    if not is_number:
        raise InputError(
            f"{source.path}: column {column!r} holds {_kind_name(values.type)}: times "
            "must be numbers, or like 2014-07-01 12:30:00"
        )
    times = values.cast(pa.float64(), safe=False)
    is_known = pc.fill_null(pc.is_finite(times), False)
    if (row := first_true(pc.invert(is_known))) is not None:
        raise InputError(
            f"{source.where(row)}: {column!r} is {times[row].as_py()}, which is no "
            "time: fill it in, or delete the row"
        )
    return times


def read_numbers(source: SourceTable, column: str) -> pa.ChunkedArray:
    """Reads numbers, such as ratings.

    Raises:
        InputError: A value is missing or no number: names the line.
    """
    values = _column(source, column)
    try:
        numbers = values.cast(pa.float64(), safe=False)
    except pa.ArrowException:
        bad = _first_refused(values, lambda part: part.cast(pa.float64())) or 0
        raise InputError(
            f"{source.where(bad)}: {column!r} is {shown(values[bad].as_py())}, which "
            "is no number"
        ) from None
    if (row := first_true(pc.invert(pc.is_valid(numbers)))) is not None:
        raise InputError(f"{source.where(row)}: no {column!r} is given")
    return numbers


def first_true(mask: pa.ChunkedArray) -> int | None:
    """The first row where a mask without nulls is true."""
    row = pc.index(mask, True).as_py()
    return None if row < 0 else row


def clean_paths(paths: list[list[str]] | None) -> list[list[str]]:
    """Strips names, and drops empty names, empty paths and repeated paths."""
    cleaned = ([name.strip() for name in path] for path in paths or ())
    named = (tuple(name for name in path if name) for path in cleaned)
    return [list(path) for path in dict.fromkeys(named) if path]


def _column(source: SourceTable, column: str) -> pa.ChunkedArray:
    if column in source.unusable:
        raise InputError(
            f"{source.path}: column {column!r} can't be used: it holds "
            f"{source.unusable[column]}"
        )
    return source.table[column]


def parse_paths(text: str) -> list[list[str]]:
    """The paths in a text; see `read_categories`."""
    if is_list(text):
        value = parse_list(text)
        paths = value if any(isinstance(v, list) for v in value) else [value]
        if not all(isinstance(name, str) for path in paths for name in path):
            raise TypeError("it is nested too deep")
        if any(isinstance(path, str) for path in paths):
            raise TypeError("it mixes names and lists")
        "".join(name for path in paths for name in path).encode()  # no surrogates
        return paths
    return [path.split(_BETWEEN_LEVELS) for path in text.split(_BETWEEN_PATHS)]


def _parse_times(
    source: SourceTable, column: str, texts: pa.ChunkedArray
) -> pa.ChunkedArray:
    """Parses all texts as numbers, or all as ISO times, by what the first one is."""
    texts = pc.utf8_trim_whitespace(texts)
    parsers = [
        lambda part: part.cast(pa.float64()),
        lambda part: part.cast(pa.timestamp("us")),
        lambda part: part.cast(pa.timestamp("us", "UTC")),
    ]
    fits = [p for p in parsers if _first_refused(texts.slice(0, 1), p) is None]
    parse = (fits or parsers)[0]
    if (row := _first_refused(texts, parse)) is None:
        return parse(texts)
    raise InputError(
        f"{source.where(row)}: {column!r} is {shown(texts[row].as_py())}, which is no "
        "time: times must be all numbers, or all like 2014-07-01 12:30:00"
    )


def _first_refused(
    values: pa.ChunkedArray, parse: Callable[[pa.ChunkedArray], pa.ChunkedArray]
) -> int | None:
    """The first row that can't be parsed, found by halving."""
    try:
        parse(values)
        return None
    except pa.ArrowException:
        pass
    start, stop = 0, len(values)  # the first refused row is in [start, stop)
    while stop - start > 1:
        middle = (start + stop) // 2
        try:
            parse(values.slice(start, middle - start))
            start = middle
        except pa.ArrowException:
            stop = middle
    return start


def shown(value: object) -> str:
    """A value as it stands in an error message: quoted, and not too long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…" + text[-1]


def _kind_name(kind: pa.DataType) -> str:
    if kind == CATEGORY_PATHS:
        return "lists"
    if pa.types.is_floating(kind):
        return "numbers with fractions"
    return str(kind)
