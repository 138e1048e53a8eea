"""Turns a file's columns into `RawShop`'s: texts, prices, categories, times."""

import datetime
import html
import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiger_jax.data.raw_shop import CATEGORY_PATHS
from tiger_jax.data.readers.list_texts import is_list, parse_list
from tiger_jax.data.tables.table import SourceTable
from tiger_jax.errors import InputError, flag

_BETWEEN_PATHS = "|"
_BETWEEN_LEVELS = r"-?>|-?&gt;|»|›"
MISSING = (
    *("NaN", "nan", "NaT", "NULL", "Null", "null", "(null)", "None", "<NA>", "\\N"),
    *("#N/A", "N/A", "n/a", "#NV", "#REF!", "#VALUE!"),
)
"""What programs write in place of a text that isn't there; "NA" is a text."""
_MISSING = pa.array(["", *MISSING])
# What brings the times of other programs into the form that Arrow reads.
_TO_ISO = (
    (r"\[[\w/+-]+\]$", ""),  # Java's zone: Z[UTC]
    (r"^([\d/.-]{8,}), (\d)", r"\1 \2"),
    (r"^(\d\d?)\.(\d\d?)\.(\d{4})", r"\3-\2-\1"),
    (r"^(\d{4})[-/.](\d\d?)[-/.](\d\d?)", r"\1-0\2-0\3"),
    (r"^(\d{4}-)0(\d\d)", r"\1\2"),
    (r"^(\d{4}-\d\d-)0(\d\d)", r"\1\2"),
    (r"^(.{10}[ T])(\d:)", r"\10\2"),
    (r"(:\d\d)[.,](\d{1,6})\d*", r"\1.\2"),
    (r"^(.*:.*?)\s*(UTC|GMT|z)$", r"\1Z"),
    (r"^(.*:.*?)\s+([+-]\d\d:?\d\d)$", r"\1\2"),
)
# Names of months and halves of a day, of which Arrow knows nothing.
_FORMATS = (
    *("%a %b %d %H:%M:%S %z %Y", "%a %b %d %H:%M:%S %Y", "%a, %d %b %Y %H:%M:%S %Z"),
    *("%a, %d %b %Y %H:%M:%S %z", "%m %d, %Y"),  # mails, and Amazon's reviewTime
    *("%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y", "%B %d, %Y"),
    *("%d %b %Y %H:%M", "%d %b %Y %H:%M:%S", "%b %d, %Y %H:%M:%S", "%b %d %Y"),
    *("%Y-%m-%d %I:%M %p", "%Y-%m-%d %I:%M:%S %p", "%B %d, %Y %I:%M %p"),
    *(
        f"{day}{comma} %I:%M{seconds} %p"
        for day in ("%m/%d/%Y", "%d/%m/%Y")
        for comma in ("", ",")
        for seconds in ("", ":%S")
    ),
)
_ROUNDED = r"^\d[.,]\d+E\+\d+$"  # 9.78014E+12
_ENTITY = r"&(#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z]\w{1,30});"


def read_ids(source: SourceTable, column: str) -> pa.ChunkedArray:
    """Reads identifiers as text; each row must have one.

    Texts stay as they are (" a" is not "a"), whole numbers become their digits, also
    those that are stored as 123.0.

    Raises:
        InputError: An identifier is missing, or the column holds fractions or lists.
    """
    values = _column(source, column)
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
        is_whole = pc.and_(
            pc.equal(pc.floor(values), values), pc.less(pc.abs(values), 2.0**53)
        )
        if pc.all(is_whole).as_py() is not False:
            values = values.cast(pa.int64())
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
    if (row := first_true(pc.match_substring_regex(ids, _ROUNDED))) is not None:
        raise InputError(
            f"{source.where(row)}: {column!r} is {ids[row].as_py()!r}: a spreadsheet "
            "wrote long numbers so, without their last digits: write the file anew, "
            "with that column as text"
        )
    return ids


def read_text(source: SourceTable, column: str) -> pa.ChunkedArray:
    """Reads a column as text: lists are joined by commas, what is missing is "".

    HTML's entities become the characters they stand for: texts are embedded.
    """
    values = _column(source, column)
    if values.type == CATEGORY_PATHS:
        joined = [
            ", ".join(name for path in clean_paths(paths) for name in path)
            for paths in values.to_pylist()
        ]
        return pa.chunked_array([pa.array(joined, pa.string())])
    texts = _known_text(values)
    if not pc.any(pc.match_substring_regex(texts, _ENTITY)).as_py():
        return texts
    decoded = [decode_entities(text) for text in texts.to_pylist()]
    return pa.chunked_array([pa.array(decoded, pa.string())])


def read_prices(source: SourceTable, column: str) -> tuple[pa.ChunkedArray, list[str]]:
    """Reads prices; what is no price becomes null and is counted.

    A currency sign is dropped; a comma stands between thousands, or before the
    cents: "$1,299.00" and "1.299,00 €" are 1299.0, and "12,99" is 12.99; where there
    are such, "1.299" is 1299.0. Zero and negative prices are unknown ones, and so are
    ranges.

    Returns:
        The prices, float64, and a note if any was left out.
    """
    texts = read_text(source, column)
    sign = r"(Rs\.|[^\d\s.,+-]{0,3})"
    plain = pc.utf8_trim_whitespace(texts)
    plain = pc.replace_substring_regex(plain, rf"^{sign}[\s\xa0]*", "")
    plain = pc.replace_substring_regex(plain, rf"[\s\xa0]*{sign}$", "")
    plain = pc.replace_substring_regex(plain, r"(\d)[ '’\xa0\x{202f}](\d{3})", r"\1\2")
    has_commas = pc.any(pc.match_substring_regex(plain, r"\d,\d\d?$")).as_py()
    cents = r"(,\d\d?)?" if has_commas else r"(,\d\d?)"
    has_points = pc.match_substring_regex(plain, rf"^\d{{1,3}}(\.\d{{3}})+{cents}$")
    plain = pc.if_else(has_points, pc.replace_substring(plain, ".", ""), plain)
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
    encoded = _known_text(_column(source, column)).dictionary_encode()
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


def read_times(
    source: SourceTable,
    column: str,
    *,
    time_format: str | None = None,
    may_lack: bool = False,
    options: str | None = None,
) -> pa.ChunkedArray:
    """Reads times: any numbers, or dates and times, which become seconds.

    Args:
        time_format: How texts are written, as Python's `strptime` takes it. None
            knows numbers, years first (2014-07-01T12:30:00.5Z, 2014/7/1), and
            01/07/2014 where some date of the column tells days from months.
        may_lack: A row without a time is null, not an error.
        options: The config whose options of these names messages tell of, if any.

    Raises:
        InputError: A time is missing, infinite, or none: names the line.
    """
    values = _column(source, column)
    if pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("us"))
    if pa.types.is_string(values.type):
        values = _parse_times(source, column, values, time_format, options)
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.timestamp("us", values.type.tz), safe=False)
        values = pc.divide(values.cast(pa.int64()).cast(pa.float64(), safe=False), 1e6)
    is_number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    if not is_number and not pa.types.is_null(values.type):
        raise InputError(
            f"{source.path}: column {column!r} holds {_kind_name(values.type)}: times "
            "must be numbers, or like 2014-07-01 12:30:00"
        )
    times = values.cast(pa.float64(), safe=False)
    times = pc.if_else(pc.is_nan(times), None, times)
    if not may_lack and (row := first_true(pc.is_null(times))) is not None:
        advice = "fill it in, or delete the row"
        if options is not None:
            drop = flag(f"{options}.missing_times", "drop")
            advice = f"fill it in, or leave such rows out with {drop}"
        raise InputError(f"{source.where(row)}: no {column!r} is given: {advice}")
    if (row := first_true(pc.fill_null(pc.is_inf(times), False))) is not None:
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
    if pa.types.is_string(values.type):
        values = _with_points(values)
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


def _with_points(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Numbers with decimal commas, with points."""
    return pc.replace_substring_regex(texts, r"^\s*(\d+),(\d+)\s*$", r"\1.\2")


def first_true(mask: pa.ChunkedArray) -> int | None:
    """The first row where a mask without nulls is true."""
    row = pc.index(mask, True).as_py()
    return None if row < 0 else row


def clean_paths(paths: list[list[str]] | None) -> list[list[str]]:
    """Decodes and strips names; drops missing names, empty and repeated paths."""
    cleaned = ([decode_entities(name).strip() for name in path] for path in paths or ())
    named = (tuple(n for n in path if n and n not in MISSING) for path in cleaned)
    return [list(path) for path in dict.fromkeys(named) if path]


def decode_entities(text: str) -> str:
    """Puts characters in place of HTML's entities: "A &amp; B" is "A & B"."""
    for _ in range(2 if "&" in text else 0):  # some were encoded twice: "&amp;#39;"
        text = re.sub(_ENTITY, lambda entity: html.unescape(entity[0]), text)
    return text


def _known_text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    texts = pc.fill_null(values.cast(pa.string()), "")
    return pc.if_else(pc.is_in(texts, value_set=_MISSING), "", texts)


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
    return [re.split(_BETWEEN_LEVELS, path) for path in text.split(_BETWEEN_PATHS)]


def _parse_times(
    source: SourceTable,
    column: str,
    texts: pa.ChunkedArray,
    time_format: str | None,
    options: str | None,
) -> pa.ChunkedArray:
    """Parses all texts as numbers, or all as times, by what the first one is."""
    texts = pc.utf8_trim_whitespace(texts)
    is_missing = pc.is_in(texts, value_set=_MISSING)
    is_missing = pc.or_(is_missing, pc.starts_with(texts, "0000-00-00"))  # MySQL's
    texts = pc.if_else(is_missing, None, texts)
    if time_format is not None:
        return _strptime(source, column, texts, time_format)
    parsers = [
        lambda part: part.cast(pa.float64()),
        lambda part: part.cast(pa.timestamp("us")),
        lambda part: part.cast(pa.timestamp("us", "UTC")),
    ]
    is_number, *_ = parsers
    plain = _with_points(texts)
    if _first_refused(_first_known(plain), is_number) is not None:
        plain = _year_first(texts)
    first = _first_known(plain)
    fits = [p for p in parsers if _first_refused(first, p) is None]
    parse = (fits or parsers)[0]
    if (row := _first_refused(plain, parse)) is None:
        return parse(plain)
    if (found := _in_known_format(source, column, texts)) is not None:
        return found
    advice = ""
    if options is not None:
        named = flag(f"{options}.time_format", "%d.%m.%Y %H:%M")
        advice = f"; or say how they are written, such as {named}"
    raise InputError(
        f"{source.where(row)}: {column!r} is {shown(texts[row].as_py())}, which is no "
        "time: times must be all numbers, or all like 2014-07-01 12:30:00" + advice
    )


def _first_known(values: pa.ChunkedArray) -> pa.ChunkedArray:
    place = pc.index(pc.is_valid(values), True).as_py()
    return values.slice(place, 1) if place >= 0 else values.slice(0, 0)


def _year_first(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Writes dates and times as ISO has them, where it is clear what they are."""
    # 31/01 and 01/31 tell which of the two is the month.
    is_day_first, is_month_first = (
        pc.any(pc.match_substring_regex(texts, pattern)).as_py()
        for pattern in (r"^(1[3-9]|[23]\d)[-/]\d", r"^\d\d?[-/](1[3-9]|[23]\d)[-/]\d")
    )
    changes = list(_TO_ISO)
    if is_day_first != is_month_first:
        date = r"^(\d\d?)[-/](\d\d?)[-/](\d{4})"
        changes.insert(0, (date, r"\3-\2-\1" if is_day_first else r"\3-\1-\2"))
    for pattern, replacement in changes:
        texts = pc.replace_substring_regex(texts, pattern, replacement)
    return texts


def _in_known_format(
    source: SourceTable, column: str, texts: pa.ChunkedArray
) -> pa.ChunkedArray | None:
    """The times, if all are written as one of `_FORMATS` has it, and it is clear."""
    found = []
    for time_format in _FORMATS:
        try:
            _strptime(source, column, _first_known(texts), time_format)
            found.append(_strptime(source, column, texts, time_format))
        except InputError:
            continue
    return found[0] if found and all(map(found[0].equals, found)) else None


def _strptime(
    source: SourceTable, column: str, texts: pa.ChunkedArray, time_format: str
) -> pa.ChunkedArray:
    encoded = texts.dictionary_encode().unify_dictionaries().combine_chunks()
    seconds = []
    for index, text in enumerate(encoded.dictionary.to_pylist()):
        try:
            when = datetime.datetime.strptime(text, time_format)
            seconds.append(when.replace(tzinfo=when.tzinfo or datetime.UTC).timestamp())
        except (ValueError, OverflowError, re.error) as bad:
            row = int(np.argmax(np.asarray(encoded.indices) == index))
            raise InputError(
                f"{source.where(row)}: {column!r} is {shown(text)}, which isn't "
                f"written as time_format = {time_format!r} says"
            ) from bad
    times = pa.array(seconds, pa.float64()).take(encoded.indices)
    return pa.chunked_array([times])


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
