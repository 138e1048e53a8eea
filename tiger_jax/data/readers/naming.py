"""Which column of a file plays which part, under the names that shops give them."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tiger_jax.data.tables.table import SourceTable
from tiger_jax.errors import flag

# By part, the likeliest first; capitals, spaces and signs don't count.
_SYNONYMS = {
    "item_id": "item, item_no, item_number, item_code, sku, parent_asin, asin, "
    "product_id, product_no, product_code, article_id, article_no, stock_code, isbn, "
    "isbn13, ean, gtin, movie_id, book_id, video_id, track_id, song_id, artist_id, "
    "game_id, app_id, news_id, recipe_id, business_id, venue_id, product",
    "user_id": "user, user_no, user_name, customer_unique_id, customer_id, "
    "customer_no, customer_key, customer, client_id, client, buyer_id, visitor_id, "
    "member_id, reviewer_id, reader_id, player_id, listener_id, viewer_id, "
    "subscriber_id, account_id, person_id, household_id, household_key, "
    "user_pseudo_id, session_id, uid",
    "timestamp": "time, datetime, date, event_time, event_timestamp, event_date, "
    "unix_review_time, unix_time, review_time, review_date, created_at, order_time, "
    "order_date, ordered_at, order_timestamp, order_purchase_timestamp, "
    "purchase_time, purchase_date, purchased_at, transaction_date, invoice_date, "
    "click_time, view_time, rated_at, date_added, added_at, played_at, date_read, "
    "watched_at, visited_at, create_timestamp, unix_timestamp, time_ms, "
    "timestamp_ms, event_ts, t_dat, ts",
    "title": "name, display_name, headline, caption, product, description",
    "brand": "vendor, manufacturer, brand_name, maker, store, supplier, publisher, "
    "author, artist, vendor_name, manufacturer_name, supplier_name, author_name, "
    "artist_name, developer",
    "price": "unit_price, sale_price, list_price, retail_price, regular_price, "
    "current_price, final_price, price_usd, price_eur",
    "categories": "category, category_name, category_path, category_code, genres, "
    "genre, product_type, product_type_name, main_category, department, "
    "department_name",
    "rating": "stars, overall, score, rate",
}
_ALL_BUT_IDS = {
    re.sub(r"[\W_]", "", name)
    for part, names in _SYNONYMS.items()
    for name in (part, *names.split(", "))
    if part != "item_id"
}
# "book_author" is an author, where no column is called so.
_THING = re.compile(
    "^(product|prod|item|article|book|movie|film|game|app|song|track|variant)"
)
_OPTIONAL = ("title", "brand", "price", "categories", "timestamp")
# 1973 in seconds; no count and no price is larger.
_LEAST_TIME = 1e8
_LOOKED_AT = 100


def columns_of(
    config: Any,
    source: SourceTable,
    parts: Sequence[str],
    *,
    options: str,
    other: SourceTable | None = None,
) -> tuple[dict[str, str], list[str]]:
    """The columns that a reader's config names, or that go by one of the usual names.

    Args:
        other: The shop's other file; see `find_columns`, which the rest is as well.
    """
    usual: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(config)}
    named = {p: n for p in parts if (n := getattr(config, p)) != usual[p]}
    open_parts = {p: usual[p] for p in parts if p not in named}
    shared = () if other is None else other.column_names
    found, notes = find_columns(
        source, open_parts, options=options, taken=named.values(), shared=shared
    )
    return {**found, **named}, notes


def find_columns(
    source: SourceTable,
    wanted: Mapping[str, str],
    *,
    options: str,
    taken: Collection[str] = (),
    shared: Collection[str] = (),
    as_option: Callable[[str], Any] = str,
) -> tuple[dict[str, str], list[str]]:
    """Finds the columns that play the parts, by their usual names or synonyms of them.

    Args:
        wanted: By part, the column's usual name.
        options: The config whose fields name columns, for messages.
        taken: Columns that play another part.
        shared: Columns of the shop's other file: of several that may be the items'
            identifiers, one that both files have.
        as_option: What names a column in that config.

    Returns:
        The columns by part, without the parts that none plays; and notes on parts that
        are missing, though a column looks as if it played one.
    """
    free = {c: _plain(c) for c in source.column_names if c not in taken}
    # The rows of interactions may be numbered by one called so.
    is_items = "title" in wanted
    found = {part: name for part, name in wanted.items() if free.pop(name, None)}
    for part in wanted:
        if part in found:
            continue
        names = [wanted[part], *_SYNONYMS[part].split(", ")]
        names += ["id"] if part == "item_id" and is_items else []
        plain = [_plain(name) for name in names]
        bare = {c: _THING.sub("", p) if is_items else p for c, p in free.items()}
        matching = [
            c
            for name in plain
            for form in (free, bare)
            for c in form
            if form[c] == name
        ]
        if part == "item_id":
            both = {_plain(column) for column in shared}
            matching.sort(key=lambda c: free[c] not in both)
            others = [c for c in free if free[c] in both - _ALL_BUT_IDS]
            if not matching and len(others) == 1:  # anime_id, Artikelnummer
                matching = others
        if matching:
            found[part] = matching[0]
            del free[matching[0]]
    notes = []
    for part in wanted:
        if part in found or part not in _OPTIONAL:
            continue
        near = [
            c
            for c in free
            if part == "timestamp"
            and (_holds_times(source, c) or re.search("time|date$|^date", free[c]))
        ]
        near += near_misses(part, list(free))
        if near:
            notes.append(
                f"WARNING: {source.path.name} has no {part}: if {near[0]!r} is it, add "
                + flag(f"{options}.{part}", as_option(near[0]))
            )
    return found, notes


def join_date_and_time(source: SourceTable) -> SourceTable:
    """Writes the hours of a column `time` after the days of a column `date`."""
    by_name = {_plain(c): c for c in source.table.column_names}
    pair = by_name.get("date", ""), by_name.get("time", "")
    if not all(pair):
        return source
    columns = [source.table[name] for name in pair]
    patterns = r"^[^:]*\d[^:]*$", r"^\s*\d\d?:\d\d"
    for column, pattern in zip(columns, patterns, strict=True):
        if (
            not pa.types.is_string(column.type)
            or not pc.all(pc.match_substring_regex(column, pattern)).as_py()
        ):
            return source
    both = pc.binary_join_element_wise(*columns, " ")
    joined = source.with_column(pair[0], lambda _: both)
    return dataclasses.replace(
        joined,
        table=joined.table.drop_columns([pair[1]]),
        notes=(*source.notes, f"{source.path.name}: {' and '.join(pair)} are one time"),
    )


def near_misses(part: str, columns: list[str]) -> list[str]:
    """Columns whose names are nearly those of a part."""
    plain = {_plain(column): column for column in columns}
    names = [part, *_SYNONYMS[part].split(", ")]
    near = [difflib.get_close_matches(_plain(n), plain, 1, 0.8) for n in names]
    return [plain[match] for matches in near for match in matches]


def describe_columns(source: SourceTable, columns: Mapping[str, str | None]) -> str:
    """Says which column plays which part."""
    parts = [f"{part} from {name!r}" for part, name in columns.items() if name]
    missing = [part for part, name in columns.items() if not name]
    text = f"{source.path.name}: {', '.join(parts)}"
    return text + (f"; no {', no '.join(missing)}" if missing else "")


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold()) or name


def _holds_times(source: SourceTable, column: str) -> bool:
    if column in source.unusable:
        return False
    values = source.table[column].slice(0, _LOOKED_AT).drop_null()
    if pa.types.is_temporal(values.type):
        return True
    if pa.types.is_string(values.type):
        dates = pc.match_substring_regex(values, r"^\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}")
        if len(values) and pc.all(dates).as_py():
            return True
    try:
        numbers = values.cast(pa.float64())
    except pa.ArrowException:
        return False
    return bool(len(values)) and bool(pc.all(pc.greater(numbers, _LEAST_TIME)).as_py())
