"""The raw files of Amazon's reviews (McAuley, UCSD), of 2014, 2018 and 2023.

The paper's data sets are of 2014 (section 4). All files are lines, mostly gzipped.
Reviews are JSON, or CSV in the 5-cores of 2023. Metadata are JSON; in 2014, Python
literals, a few of them with broken quoting, which are read by `ast.literal_eval`, which
runs nothing. What is neither is counted and left out.
"""

import ast
import html
import json
import math
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from tiger_jax.config import config
from tiger_jax.data.raw_shop import INTERACTION_COLUMNS, ITEM_COLUMNS, RawShop
from tiger_jax.data.readers import columns
from tiger_jax.data.readers.reader import match_files, required_files
from tiger_jax.data.tables import text_files
from tiger_jax.data.tables.csv_files import looks_like_data
from tiger_jax.data.tables.table import read_table
from tiger_jax.errors import InputError
from tiger_jax.progress import Progress

CATEGORIES = {
    "beauty": "Beauty",
    "sports": "Sports_and_Outdoors",
    "toys": "Toys_and_Games",
}
"""The paper's categories: our names, and those in the names of the files."""
MAX_LINE_BYTES = 1 << 20
"""Real lines have some kilobytes; a longer one is not read into memory."""
MAX_DEPTH = 32
"""Deepest nesting of brackets in a metadata line; real ones have 3."""
_MAX_EMPTY_LINES = 1_000_000  # real files have none
_ASIN = re.compile(r"""['"](?:parent_)?asin['"]\s*:\s*['"]([^'"]*)['"]""")
_META = re.compile(r"meta_(.+)\.jsonl?(\.gz)?")
_PARTS = ("train", "valid", "test")
# Files of reviews, with what holds for them: the year, and how many make the whole.
_REVIEWS = (
    (2014, ("reviews_{}_5.json",)),
    (2018, ("{}_5.json",)),
    (2023, tuple(f"{{}}.{part}.csv" for part in _PARTS)),
    (2023, ("{}.csv",)),
    (2023, ("{}.jsonl",)),
    (2014, ("reviews_{}.json",)),
    (2018, ("{}.json",)),
)
_PRICE = re.compile(r"\$?((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?)")
# The names of a review's user, item, rating and time, and time's units a second.
_UNTIL_2018 = (("reviewerID", "asin", "overall", "unixReviewTime"), 1)
_OF_2023 = (("user_id", "parent_asin", "rating", "timestamp"), 1000)
_MAX_SKIPPED = 10  # as long as there are no more, most lines may be unreadable
_LINES_PER_UPDATE = 5000
# What `literal_eval` raises on text that is no literal, or one made to break it.
_NOT_A_LITERAL = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)


@dataclass
class Reviews:
    """Ratings in file order, column by column."""

    user_ids: list[str] = field(default_factory=list)
    item_ids: list[str] = field(default_factory=list)
    ratings: list[float] = field(default_factory=list)
    timestamps: list[float] = field(default_factory=list)

    def extend(self, other: "Reviews") -> None:
        """Adds later ones."""
        for name, values in vars(other).items():
            getattr(self, name).extend(values)


@dataclass(frozen=True)
class Metadata:
    """What the shop says about an item; empty, or NaN, where it says nothing."""

    title: str = ""
    brand: str = ""
    price: float = math.nan
    categories: tuple[tuple[str, ...], ...] = ()


@config("amazon")
class AmazonConfig:
    """The reviews and the metadata of one category; there are no options.

    Items are in the order of their first review in the file. Interactions, one for
    every review whatever its rating, are sorted by time alone, and are in file order
    where times are equal, as in S3-Rec's preprocessing.
    """

    kind: ClassVar = "amazon"
    looks_for: ClassVar = (
        "meta_NAME.json.gz and reviews_NAME_5.json.gz (Amazon 2014), meta_NAME.json.gz "
        "and NAME_5.json.gz (2018), or meta_NAME.jsonl.gz and NAME.csv.gz, "
        "NAME.train.csv.gz with .valid and .test, or NAME.jsonl.gz (2023)"
    )

    def find(self, folder: Path) -> tuple[Path | None, ...]:
        metas = match_files(folder, _META.pattern)
        if metas[0] is None:
            return match_files(folder, _META.pattern, r"reviews_.+_5\.json(\.gz)?")
        return (metas[0], *_find_reviews(metas[0])[1])

    def read(self, folder: Path) -> RawShop:
        metadata, *reviews = required_files(self, folder)
        name = category_of(metadata)
        names = {title: short for short, title in CATEGORIES.items()}
        year, _ = _find_reviews(metadata)
        return read_amazon(metadata, reviews, names.get(name, name.lower()), year=year)


def category_of(metadata: Path) -> str:
    """The NAME of a file meta_NAME.json.gz, or .jsonl."""
    found = _META.fullmatch(metadata.name)
    return found[1] if found else ""


def _find_reviews(metadata: Path) -> tuple[int, list[Path | None]]:
    """The year and the reviews that belong to a file of metadata."""
    name = re.escape(category_of(metadata))
    for year, forms in _REVIEWS:
        patterns = (re.escape(form).replace(r"\{\}", name) for form in forms)
        found = match_files(metadata.parent, *(rf"{p}(\.gz)?" for p in patterns))
        if all(found):
            return year, list(found)
    return 2014, [None]


def read_amazon(
    metadata_path: Path, reviews_paths: Sequence[Path], category: str, *, year: int
) -> RawShop:
    """Makes a shop of the files of a category; see `AmazonConfig`."""
    reviews = Reviews()
    for path in reviews_paths:
        is_csv = ".csv" in path.suffixes
        reviews.extend(_read_csv_reviews(path) if is_csv else read_reviews(path))
    items, notes = describe_items(metadata_path, list(dict.fromkeys(reviews.item_ids)))
    events = {
        "user_id": reviews.user_ids,
        "item_id": reviews.item_ids,
        "timestamp": np.asarray(reviews.timestamps, np.float64),
    }
    by_time = np.argsort(events["timestamp"], kind="stable")
    return RawShop(
        f"amazon{year}_{category}",
        items,
        pa.table(events, schema=pa.schema(INTERACTION_COLUMNS)).take(by_time),
        tuple(notes),
    )


def describe_items(path: Path, item_ids: list[str]) -> tuple[pa.Table, list[str]]:
    """Makes `RawShop.items` of metadata; and notes on what they lack."""
    metadata, skipped = read_metadata(path, set(item_ids))
    about = [metadata.get(item_id, Metadata()) for item_id in item_ids]
    items: dict[str, list[Any]] = {
        "item_id": item_ids,
        "title": [item.title for item in about],
        "brand": [item.brand for item in about],
        "price": [None if math.isnan(item.price) else item.price for item in about],
        "categories": [item.categories for item in about],
    }
    notes = []
    if skipped:
        notes.append(
            f"{path.name}: {len(skipped):,} lines can't be read and are left out (the "
            f"first at {', '.join(map(str, skipped[:5]))})"
        )
    lacking = {name: sum(not v for v in items[name]) for name in list(items)[1:]}
    if any(lacking.values()):
        each = ", ".join(f"{n:,} no {name}" for name, n in lacking.items() if n)
        notes.append(
            f"of {len(item_ids):,} items, {len(item_ids) - len(metadata):,} have no "
            f"metadata; in all, {each}"
        )
    return pa.table(items, schema=pa.schema(ITEM_COLUMNS)), notes


def _read_csv_reviews(path: Path) -> Reviews:
    """Reads a 5-core of 2023: a row each review, maybe with the history before it."""
    (user_id, item_id, rating, time), units = _OF_2023
    source = read_table(path, columns=(user_id, item_id, rating, time))
    lacking = {user_id, item_id, rating, time} - set(source.column_names)
    if lacking:
        what = f"{path} has no column {' nor '.join(sorted(lacking))}"
        if looks_like_data(source.column_names):  # of before 2023
            what += ": it holds ratings alone; bring the reviews, NAME_5.json.gz"
        raise InputError(what)
    times = columns.read_times(source, time).to_numpy() / units
    return Reviews(
        columns.read_ids(source, user_id).to_pylist(),
        columns.read_ids(source, item_id).to_pylist(),
        columns.read_numbers(source, rating).to_pylist(),
        times.tolist(),
    )


def read_reviews(path: Path) -> Reviews:
    """Reads reviews: who rated what, how, and when, one JSON object per line.

    Raises:
        InputError: A line isn't such an object, or the file is damaged.
    """
    reviews = Reviews()
    for line, data in _read_lines(path):
        if data is None:
            raise InputError(
                f"{path}, line {line} is longer than {MAX_LINE_BYTES:,} bytes: this is "
                "no file of Amazon reviews"
            )
        try:
            review = json.loads(data)
            names, units = _OF_2023 if "parent_asin" in review else _UNTIL_2018
            user_id, item_id, rating, timestamp = (review[name] for name in names)
        except (ValueError, RecursionError) as error:
            what = f"{path}, line {line} is not valid JSON: {error}"
            raise InputError(what) from error
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path}, line {line}: a review needs {', '.join(_UNTIL_2018[0])}; or "
                f"{', '.join(_OF_2023[0])}; but reading it gives {error!r}"
            ) from error
        for name, value, is_right in (
            (names[0], user_id, is_id),
            (names[1], item_id, is_id),
            (names[2], rating, _is_number),
            (names[3], timestamp, _is_number),
        ):
            if not is_right(value):
                raise InputError(f"{path}, line {line}: {name} is {str(value)[:60]!r}")
        reviews.user_ids.append(user_id)
        reviews.item_ids.append(item_id)
        reviews.ratings.append(float(rating))
        reviews.timestamps.append(timestamp / units)
    if not reviews.user_ids:
        raise InputError(f"{path} holds no reviews")
    return reviews


def read_metadata(
    path: Path, wanted: Collection[str]
) -> tuple[dict[str, Metadata], list[int]]:
    """Reads the metadata of the wanted items, one JSON object or literal per line.

    The first line about an item counts. Lines about other items (nineteen in
    twenty, in these files) aren't evaluated.

    Returns:
        What was found, by item identifier; and the numbers of the lines left out,
        since they are no dictionary with an asin, too long or too deeply nested.

    Raises:
        InputError: The file is damaged, or most of its lines are left out.
    """
    found: dict[str, Metadata] = {}
    skipped = []
    with warnings.catch_warnings():
        # Old descriptions are full of "\d" and the like.
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        for line, data in _read_lines(path):
            text = (data or b"").decode("utf-8-sig", errors="replace")
            asin = _ASIN.search(text)
            if asin and (asin[1] not in wanted or asin[1] in found):
                continue
            fields = parse_line(text) or {}
            item_id = fields.get("parent_asin", fields.get("asin"))
            if not isinstance(item_id, str):
                skipped.append(line)
            elif item_id in wanted:
                found.setdefault(item_id, _as_metadata(fields))
    if len(skipped) > max(len(found), _MAX_SKIPPED):
        raise InputError(
            f"{path}: {len(skipped):,} lines can't be read, {len(found):,} can (the "
            f"first at {', '.join(map(str, skipped[:5]))}): each line must be a JSON "
            "object or a Python literal with an asin or a parent_asin"
        )
    return found, skipped


def parse_line(text: str) -> dict[Any, Any] | None:
    """Reads a dictionary written as JSON or as a Python literal; None if it is neither.

    Runs no code. Text nested deeper than `MAX_DEPTH` is refused unparsed.

    Examples:
        >>> parse_line("{'asin': 'B1', 'price': 3.5}")
        {'asin': 'B1', 'price': 3.5}
        >>> parse_line('{"asin": "B1", "price": null}')
        {'asin': 'B1', 'price': None}
        >>> parse_line("{'title': 'broken 'quoting''}") is None
        True
    """
    depth = 0
    for bracket in re.findall(r"[\[\](){}]", text):
        depth += 1 if bracket in "[({" else -1
        if depth > MAX_DEPTH:
            return None
    try:
        value = json.loads(text)
    except ValueError:
        try:
            value = ast.literal_eval(text.strip())
        except _NOT_A_LITERAL:
            return None
    return value if isinstance(value, dict) else None


def is_id(value: Any) -> bool:
    """Whether a value can be an identifier of Amazon's: a text, and a clean one."""
    return isinstance(value, str) and bool(value) and value == _clean(value)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < 2**53


def _as_metadata(fields: dict[Any, Any]) -> Metadata:
    title = _clean(fields.get("title"))
    if "getTime" in title:  # a few lines of 2018 hold a page's script
        title = ""
    paths = fields.get("categories", fields.get("category"))
    if isinstance(paths, list) and not any(isinstance(path, list) for path in paths):
        paths = [paths]  # since 2018, one path
    return Metadata(
        title=title,
        brand=_clean(fields.get("brand", fields.get("store"))),
        price=_as_price(fields.get("price")),
        categories=tuple(
            names
            for path in (paths if isinstance(paths, list) else [])
            if isinstance(path, list)
            and (names := tuple(filter(None, map(_clean, path))))
        ),
    )


def _as_price(value: Any) -> float:
    """A price as a number or as "$1,299.00"; NaN for a range, or anything else."""
    if isinstance(value, str) and (found := _PRICE.fullmatch(value.strip())):
        value = float(found[1].replace(",", ""))
    return float(value) if _is_number(value) and value > 0 else math.nan


def _clean(value: Any) -> str:
    """Text without HTML entities, outer space, or what UTF-8 can't hold."""
    if not isinstance(value, str):
        return ""
    text = value.encode("utf-8", errors="replace").decode("utf-8")
    text = " ".join(html.unescape(text).split())
    return "" if text in columns.MISSING else text


def _read_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yields line numbers from 1 and lines; None for a line that is too long."""
    with (
        text_files.open_bytes(path) as file,
        Progress(path.stat().st_size, f"Reading {path.name}", unit="byte") as bar,
    ):
        line = num_empty = 0
        while data := file.readline(MAX_LINE_BYTES + 1):
            line += 1
            is_too_long = len(data) > MAX_LINE_BYTES
            while len(data) > MAX_LINE_BYTES and not data.endswith(b"\n"):
                data = file.readline(MAX_LINE_BYTES + 1)
            if is_too_long:
                yield line, None
            elif data.strip():
                yield line, data
            elif (num_empty := num_empty + 1) > _MAX_EMPTY_LINES:
                raise InputError(
                    f"{path} holds more than {_MAX_EMPTY_LINES:,} empty lines: this is "
                    "no file of Amazon's"
                )
            if line % _LINES_PER_UPDATE == 0:
                bar.advance(text_files.place_in_file(file) - bar.done)
        bar.advance(path.stat().st_size - bar.done)
