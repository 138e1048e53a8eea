"""The raw files of Amazon 2014 (McAuley, UCSD), the data sets of the paper (section 4).

Both files are gzipped lines. Reviews are JSON. Metadata lines are Python literals, a
few of them with broken quoting; they are read by `ast.literal_eval`, which runs
nothing, and what isn't a literal is counted and left out.
"""

import ast
import gzip
import html
import json
import math
import re
import warnings
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from tiger_jax.config import config
from tiger_jax.data.raw_shop import INTERACTION_COLUMNS, ITEM_COLUMNS, RawShop
from tiger_jax.data.readers.reader import match_files, required_files
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
MAX_RATIO = 200
"""Bytes that a compressed byte may stand for; in real files it is some 3."""
_MIN_BYTES = 1 << 23  # below this, any ratio will do
_MAX_EMPTY_LINES = 1_000_000  # real files have none
_ASIN = re.compile(r"""['"]asin['"]\s*:\s*['"]([^'"]*)['"]""")
_LINES_PER_UPDATE = 5000
# What `literal_eval` raises on text that is no literal, or one made to break it.
_NOT_A_LITERAL = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)


@dataclass
class Reviews:
    """Ratings in file order, column by column."""

    user_ids: list[str] = field(default_factory=list)
    item_ids: list[str] = field(default_factory=list)
    ratings: list[float] = field(default_factory=list)
    timestamps: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Metadata:
    """What the shop says about an item; empty, or NaN, where it says nothing."""

    title: str = ""
    brand: str = ""
    price: float = math.nan
    categories: tuple[tuple[str, ...], ...] = ()


@config("amazon")
class AmazonConfig:
    """The 5-core reviews and the metadata of one category; there are no options.

    Items are in the order of their first review in the file. Interactions, one for
    every review whatever its rating, are sorted by time alone, and are in file order
    where times are equal, as in S3-Rec's preprocessing.
    """

    kind: ClassVar = "amazon"
    looks_for: ClassVar = "meta_NAME.json.gz and reviews_NAME_5.json.gz (Amazon 2014)"

    def find(self, folder: Path) -> tuple[Path | None, ...]:
        return match_files(folder, r"meta_.+\.json\.gz", r"reviews_.+_5\.json\.gz")

    def read(self, folder: Path) -> RawShop:
        metadata, reviews = required_files(self, folder)
        title = metadata.name.removeprefix("meta_").removesuffix(".json.gz")
        names = {title: name for name, title in CATEGORIES.items()}
        return read_amazon(metadata, reviews, names.get(title, title.lower()))


def read_amazon(metadata_path: Path, reviews_path: Path, category: str) -> RawShop:
    """Makes a shop of the two files of a category; see `AmazonConfig`."""
    reviews = read_reviews(reviews_path)
    item_ids = list(dict.fromkeys(reviews.item_ids))
    metadata, skipped = read_metadata(metadata_path, set(item_ids))
    about = [metadata.get(item_id, Metadata()) for item_id in item_ids]
    items: dict[str, list[Any]] = {
        "item_id": item_ids,
        "title": [item.title for item in about],
        "brand": [item.brand for item in about],
        "price": [None if math.isnan(item.price) else item.price for item in about],
        "categories": [item.categories for item in about],
    }
    events = {
        "user_id": reviews.user_ids,
        "item_id": reviews.item_ids,
        "timestamp": np.asarray(reviews.timestamps, np.float64),
    }
    by_time = np.argsort(events["timestamp"], kind="stable")
    notes = []
    if skipped:
        notes.append(
            f"{metadata_path.name}: {len(skipped):,} lines are no Python literals and "
            f"are left out (the first at {', '.join(map(str, skipped[:5]))})"
        )
    if num_unknown := len(item_ids) - len(metadata):
        notes.append(
            f"{num_unknown:,} of {len(item_ids):,} items have no metadata, and so no "
            "text"
        )
    return RawShop(
        f"amazon2014_{category}",
        pa.table(items, schema=pa.schema(ITEM_COLUMNS)),
        pa.table(events, schema=pa.schema(INTERACTION_COLUMNS)).take(by_time),
        tuple(notes),
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
            user_id, item_id = review["reviewerID"], review["asin"]
            rating, timestamp = review["overall"], review["unixReviewTime"]
        except (ValueError, RecursionError) as error:
            what = f"{path}, line {line} is not valid JSON: {error}"
            raise InputError(what) from error
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path}, line {line}: a review needs reviewerID, asin, overall and "
                f"unixReviewTime, but reading it gives {error!r}"
            ) from error
        for name, value, is_right in (
            ("reviewerID", user_id, _is_id),
            ("asin", item_id, _is_id),
            ("overall", rating, _is_number),
            ("unixReviewTime", timestamp, _is_number),
        ):
            if not is_right(value):
                raise InputError(f"{path}, line {line}: {name} is {str(value)[:60]!r}")
        reviews.user_ids.append(user_id)
        reviews.item_ids.append(item_id)
        reviews.ratings.append(float(rating))
        reviews.timestamps.append(int(timestamp))
    if not reviews.user_ids:
        raise InputError(f"{path} holds no reviews")
    return reviews


def read_metadata(
    path: Path, wanted: Collection[str]
) -> tuple[dict[str, Metadata], list[int]]:
    """Reads the metadata of the wanted items, one Python literal per line.

    The first line about an item counts. Lines about other items (nineteen in
    twenty, in these files) aren't evaluated.

    Returns:
        What was found, by item identifier; and the numbers of the lines left out,
        since they are no literal of a dictionary with an asin, too long or too
        deeply nested.

    Raises:
        InputError: The file is damaged.
    """
    found: dict[str, Metadata] = {}
    skipped = []
    with warnings.catch_warnings():
        # Old descriptions are full of "\d" and the like.
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        for line, data in _read_lines(path):
            text = (data or b"").decode("utf-8", errors="replace")
            asin = _ASIN.search(text)
            if asin and (asin[1] not in wanted or asin[1] in found):
                continue
            fields = parse_literal(text)
            if fields is None or not isinstance(fields.get("asin"), str):
                skipped.append(line)
            elif fields["asin"] in wanted:
                found.setdefault(fields["asin"], _as_metadata(fields))
    return found, skipped


def parse_literal(text: str) -> dict[Any, Any] | None:
    """Evaluates a dictionary written as a Python literal; None if it isn't one.

    Runs no code. Text nested deeper than `MAX_DEPTH` is refused unparsed.

    Example:
        >>> parse_literal("{'asin': 'B1', 'price': 3.5}")
        {'asin': 'B1', 'price': 3.5}
        >>> parse_literal("{'title': 'broken 'quoting''}") is None
        True
    """
    depth = 0
    for bracket in re.findall(r"[\[\](){}]", text):
        depth += 1 if bracket in "[({" else -1
        if depth > MAX_DEPTH:
            return None
    try:
        value = ast.literal_eval(text.strip())
    except _NOT_A_LITERAL:
        return None
    return value if isinstance(value, dict) else None


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and value == _clean(value)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < 2**53


def _as_metadata(fields: dict[Any, Any]) -> Metadata:
    price: Any = fields.get("price")
    is_price = _is_number(price) and price >= 0
    paths = fields.get("categories")
    return Metadata(
        title=_clean(fields.get("title")),
        brand=_clean(fields.get("brand")),
        price=float(price) if is_price else math.nan,
        categories=tuple(
            tuple(name for name in map(_clean, path) if name)
            for path in (paths if isinstance(paths, list) else [])
            if isinstance(path, list)
        ),
    )


def _clean(value: Any) -> str:
    """Text without HTML entities, outer space, or what UTF-8 can't hold."""
    if not isinstance(value, str):
        return ""
    text = value.encode("utf-8", errors="replace").decode("utf-8")
    return " ".join(html.unescape(text).split())


def _read_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yields line numbers from 1 and lines; None for a line that is too long."""
    size = path.stat().st_size
    with (
        path.open("rb") as raw,
        gzip.GzipFile(fileobj=raw, mode="rb") as file,
        Progress(size, f"Reading {path.name}", unit="byte") as bar,
    ):
        line = num_empty = 0
        try:
            while data := file.readline(MAX_LINE_BYTES + 1):
                line += 1
                is_too_long = len(data) > MAX_LINE_BYTES
                while len(data) > MAX_LINE_BYTES and not data.endswith(b"\n"):
                    data = file.readline(MAX_LINE_BYTES + 1)
                    _refuse_bomb(path, file.tell(), size)
                if is_too_long:
                    yield line, None
                elif data.strip():
                    yield line, data
                elif (num_empty := num_empty + 1) > _MAX_EMPTY_LINES:
                    raise InputError(
                        f"{path} holds more than {_MAX_EMPTY_LINES:,} empty lines: "
                        "this is no file of Amazon's"
                    )
                if line % _LINES_PER_UPDATE == 0:
                    _refuse_bomb(path, file.tell(), size)
                    bar.advance(raw.tell() - bar.done)
        except EOFError as error:
            raise InputError(
                f"{path} ends in the middle (after line {line:,}): the download was "
                "cut off; delete the file and fetch it again"
            ) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                f"{path} is not a whole gzip file (after line {line:,}: {error}): "
                "delete it and fetch it again"
            ) from error
        bar.advance(size - bar.done)


def _refuse_bomb(path: Path, num_bytes: int, size: int) -> None:
    """Stops at a small file that would be read for hours."""
    if num_bytes > max(_MIN_BYTES, MAX_RATIO * size):
        raise InputError(
            f"{path} holds more than {num_bytes // size:,} times its {size:,} bytes: "
            "this is no file of Amazon's"
        )
