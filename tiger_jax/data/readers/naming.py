"""Which column of a file plays which part, under the names that shops give them."""

import difflib
import re
from collections.abc import Collection, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from tiger_jax.data.tables.table import SourceTable
from tiger_jax.errors import flag

# By part, the likeliest first; capitals, spaces and signs don't count.
_SYNONYMS = {
    "item_id": "item, item_no, item_number, sku, parent_asin, asin, product_id, "
    "product_no, product_code, article_id, article_no, movie_id, book_id, isbn, "
    "video_id, track_id, news_id, product",
    "user_id": "user, user_no, customer_id, customer_no, customer, client_id, client, "
    "buyer_id, visitor_id, member_id, reviewer_id, account_id, person_id, session_id, "
    "uid",
    "timestamp": "time, datetime, date, event_time, event_timestamp, event_date, "
    "unix_review_time, unix_time, review_time, created_at, order_time, order_date, "
    "ordered_at, purchase_time, purchase_date, purchased_at, invoice_date, click_time, "
    "view_time, rated_at, time_ms, timestamp_ms, t_dat, ts",
    "title": "name, product_title, product_name, product_display_name, item_title, "
    "item_name, prod_name, movie_title, book_title, track_name, headline, product",
    "brand": "vendor, manufacturer, brand_name, maker, store, supplier, publisher, "
    "author, artist",
    "price": "unit_price, sale_price, list_price, retail_price, current_price, "
    "price_usd, price_eur",
    "categories": "category, category_name, category_path, category_code, genres, "
    "genre, product_category, product_type, main_category, department",
    "rating": "stars, overall, score, rate",
}
_OPTIONAL = ("title", "brand", "price", "categories", "timestamp")
# 1973 in seconds; no count and no price is larger.
_LEAST_TIME = 1e8
_LOOKED_AT = 100


def find_columns(
    source: SourceTable,
    wanted: Mapping[str, str],
    *,
    options: str,
    taken: Collection[str] = (),
) -> tuple[dict[str, str], list[str]]:
    """Finds the columns that play the parts, by their usual names or synonyms of them.

    Args:
        wanted: By part, the column's usual name.
        options: The config whose fields name columns, for messages.
        taken: Columns that play another part.

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
        matching = [c for name in names for c in free if free[c] == _plain(name)]
        if matching:
            found[part] = matching[0]
            del free[matching[0]]
    notes = []
    for part in wanted:
        if part in found or part not in _OPTIONAL:
            continue
        near = [c for c in free if part == "timestamp" and _holds_times(source, c)]
        near += near_misses(part, list(free))
        if near:
            notes.append(
                f"WARNING: {source.path.name} has no {part}: if {near[0]!r} is it, add "
                + flag(f"{options}.{part}", near[0])
            )
    return found, notes


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
