"""Reads JSON lines: one object per line, each key a column."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json

from tiger_jax.data.raw_shop import CATEGORY_PATHS
from tiger_jax.data.tables import text_files
from tiger_jax.data.tables.text_files import one_line
from tiger_jax.errors import InputError


def read_json_lines(
    path: Path,
    columns: Sequence[str] | None,
    encoding: str,
    option: str | None = None,
) -> tuple[pa.Table, dict[str, str]]:
    """Reads a table of texts, numbers and lists of paths; absent keys are null.

    A column that mixes texts and numbers becomes text. A flat list counts as one
    path, a list of lists as several.

    Args:
        columns: Read only these if the first line has them all, otherwise
            everything.
        encoding: Any of Python's text encodings; a byte order mark goes before it.
        option: Where a user can change it, if anywhere.

    Returns:
        The table; and the columns that hold anything else, with what they hold.

    Raises:
        InputError: Wrong encoding, malformed JSON, something other than an object:
            names the line.
    """
    encoding = text_files.find_encoding(path, encoding)
    if columns is not None and encoding == "utf-8":
        table = _read_fast(path, columns)
        if table is not None:
            return table, {}
    return _read_slowly(path, encoding, option)


def line_of_json_row(path: Path, row: int) -> int:
    """The number, from 1, of the line that holds a row (from 0)."""
    with text_files.open_bytes(path) as file:
        lines = (line for line, data in enumerate(file, 1) if data.strip())
        return next((line for i, line in enumerate(lines) if i == row), row + 1)


def array_of_objects(values: list[Any]) -> pa.Array:
    """Gives a column of Python values one type.

    Raises:
        TypeError: The values are of kinds that no column of ours holds.
        UnicodeEncodeError: A text holds half a surrogate pair.
    """
    kinds = {type(v) for v in values if v is not None}
    if kinds <= {str}:
        return pa.array(values, pa.string())
    if kinds <= {list}:
        return pa.array([_as_paths(v) for v in values], CATEGORY_PATHS)
    if kinds <= {int, float} and all(abs(v) < 2**63 for v in values if v is not None):
        return pa.array(values, pa.int64() if kinds == {int} else pa.float64())
    if kinds <= {str, int, float, bool}:
        texts = [v if isinstance(v, str | None) else json.dumps(v) for v in values]
        return pa.array(texts, pa.string())
    raise TypeError(" and ".join(sorted(k.__name__ for k in kinds)))


def _read_fast(path: Path, columns: Sequence[str]) -> pa.Table | None:
    """Reads columns that keep the type of the first line; None if they don't.

    The first line's types are the schema, since pyarrow's own guess would turn
    the text "2014-01-01" into a time.
    """
    with text_files.open_bytes(path) as file:
        try:
            first = json.loads(file.readline())
        except (ValueError, RecursionError):
            return None
    if not isinstance(first, dict):
        return None
    types = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    fields = [(name, types.get(type(first.get(name)))) for name in columns]
    if any(kind is None for _, kind in fields):
        return None
    try:
        is_gzipped = text_files.is_gzipped(path)
        table = pa.json.read_json(
            text_files.open_bytes(path) if is_gzipped else path,
            pa.json.ReadOptions(block_size=2**23),
            pa.json.ParseOptions(
                explicit_schema=pa.schema(fields), unexpected_field_behavior="ignore"
            ),
        )
        table.validate(full=True)  # finds strings that aren't UTF-8
    except (pa.ArrowException, UnicodeError):
        return None  # mixed types or an error: the slow reader tells them apart
    return table.select(columns)


def _read_slowly(
    path: Path, encoding: str, option: str | None
) -> tuple[pa.Table, dict[str, str]]:
    values: dict[str, list[Any]] = {}
    num_rows = 0
    try:
        with text_files.open_text(path, encoding) as file:
            for line, text in enumerate(file, 1):
                text = text.strip()
                if not text:
                    continue
                for name, value in _parse_line(path, line, text).items():
                    column = values.setdefault(name, [])
                    column.extend([None] * (num_rows - len(column)))
                    column.append(value)
                num_rows += 1
    except UnicodeError as error:
        text_files.raise_for_encoding(path, encoding, option)
        raise InputError(f"{path} can't be read: {one_line(error)}") from error
    arrays, unusable = {}, {}
    for name, column in values.items():
        if not _is_encodable(name):
            raise InputError(
                f"{path}: the key {ascii(name)[:80]} holds half a surrogate pair, "
                "which is no character: remove it"
            )
        column.extend([None] * (num_rows - len(column)))
        try:
            arrays[name] = array_of_objects(column)
        except TypeError as error:
            unusable[name] = one_line(error)
        except UnicodeEncodeError as error:
            row = next(i for i, v in enumerate(column) if not _is_encodable(v))
            raise InputError(
                f"{path}, line {line_of_json_row(path, row)}: {name!r} holds half a "
                "surrogate pair, which is no character: remove it"
            ) from error
    if not arrays:  # a table without columns has lost its rows
        arrays["(none)"] = pa.nulls(num_rows, pa.string())
    return pa.table(arrays), unusable


def _parse_line(path: Path, line: int, text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {line}, column {error.colno}: not valid JSON "
            f"({error.msg}): each line must be one JSON object"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}, line {line}: {one_line(error)}") from error
    if not isinstance(row, dict):
        raise InputError(
            f"{path}, line {line}: a JSON {type(row).__name__} where each line must "
            'be one JSON object, such as {"item_id": "a1", "title": "…"} (pandas: '
            "to_json(orient='records', lines=True))"
        )
    return row


def _as_paths(value: list[Any] | None) -> list[list[str]] | None:
    if value is None:
        return None
    paths = value if any(isinstance(v, list) for v in value) else [value]
    if any(not isinstance(path, list) for path in paths):
        raise TypeError("lists that mix texts and lists")
    if any(isinstance(v, list | dict) for path in paths for v in path):
        raise TypeError("lists of something other than texts")
    return [
        [v if isinstance(v, str) else json.dumps(v) for v in path if v is not None]
        for path in paths
    ]


def _is_encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
