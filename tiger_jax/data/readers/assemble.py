"""Checks an items table against an interactions table and makes a `RawShop`."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiger_jax.data.raw_shop import CATEGORY_PATHS, RawShop
from tiger_jax.data.readers import columns
from tiger_jax.data.readers.naming import describe_columns, near_misses
from tiger_jax.data.tables.csv_files import HEADLESS, looks_like_data
from tiger_jax.data.tables.table import SourceTable
from tiger_jax.data.text_numbers import number_texts
from tiger_jax.errors import InputError, flag

# No name, or what pandas calls the row numbers that it wrote without one.
_NAMELESS = re.compile(r"\s*|Unnamed: \d+|__index_level_\d+__")
ITEM_PARTS = ("item_id", "title", "brand", "categories", "price")
# What makes two writings of an identifier equal, and how they came to differ.
_WRITINGS = (
    ("spaces stand around one of them", str.strip),
    (
        "one is in another Unicode form, or holds characters that aren't seen",
        lambda i: "".join(
            c
            for c in unicodedata.normalize("NFKC", i)
            if unicodedata.category(c) != "Cf"
        ),
    ),
    ("one became a number with decimals", lambda i: re.sub(r"^(\d+)[.,]0+$", r"\1", i)),
    ("quotes or other signs differ", lambda i: re.sub(r"[\W_]", "", i) or i),
    ("one lost its leading zeros", lambda i: i.lstrip("0") or i),
    ("capitals differ", str.casefold),
)
EXAMPLES = 1000  # unknown items of which the cause is looked for


@dataclass(frozen=True)
class ColumnNames:
    """Which of a source's columns plays which part; None is a column it lacks.

    Attributes:
        interaction_item_id: The interactions' column of item identifiers, if it has
            another name than the items'.
        options: Where a user can change the names ("files.FilesConfig"), if anywhere.
        config: The reader's config, where it isn't that.
    """

    item_id: str
    user_id: str
    interaction_item_id: str | None = None
    title: str | None = None
    brand: str | None = None
    price: str | None = None
    categories: str | None = None
    timestamp: str | None = None
    rating: str = "rating"
    options: str | None = None
    config: str | None = None

    @property
    def event_item_id(self) -> str:
        return self.interaction_item_id or self.item_id


def assemble_shop(
    name: str,
    items: SourceTable,
    interactions: SourceTable,
    names: ColumnNames,
    *,
    unknown_items: str,
    min_rating: float | None = None,
    time_format: str | None = None,
    missing_times: str = "error",
) -> RawShop:
    """Makes a shop of two tables whose optional columns are known to exist.

    The items' further columns are kept as texts; the interactions' are dropped.

    Args:
        interactions: One row per event. Without a timestamp column, its row order
            is the order of time.
        unknown_items: What to do about an interaction whose item isn't among the
            items: "error", or "drop" it and count it.
        time_format: See `columns.read_times`.
        missing_times: What to do about an interaction without a time: the same.

    Raises:
        InputError: A column is missing, an item is given twice or unknown, a value
            can't be used: names the file and the line.
    """
    for option, value in (
        ("unknown_items", unknown_items),
        ("missing_times", missing_times),
    ):
        if value not in ("error", "drop"):
            raise InputError(f"{option} must be 'error' or 'drop', not {value!r}")
    require_columns(items, names, ITEM_PARTS)
    events_have = ["user_id", "event_item_id", "timestamp"]
    events_have += ["rating"] if min_rating is not None else []
    require_columns(interactions, names, events_have)
    item_table, notes = read_items(items, names)
    notes += interactions.notes
    item_ids = item_table["item_id"]

    events = {
        "user_id": columns.read_ids(interactions, names.user_id),
        "item_id": columns.read_ids(interactions, names.event_item_id),
    }
    is_nobody = pc.is_in(events["user_id"], value_set=pa.array(columns.MISSING))
    if (row := columns.first_true(is_nobody)) is not None:
        count, user = pc.sum(is_nobody).as_py(), events["user_id"][row].as_py()
        notes.append(
            f"WARNING: {interactions.where(row)}: the user is {user!r}, as of "
            f"{count:,} of {len(is_nobody):,} interactions: delete such rows if nobody "
            "is called so"
        )
    if names.timestamp is not None:
        events["timestamp"] = columns.read_times(
            interactions,
            names.timestamp,
            time_format=time_format,
            may_lack=missing_times == "drop",
            options=names.options,
        )
    else:
        events["timestamp"] = np.arange(interactions.table.num_rows, dtype=np.float64)
        notes.append(
            f"{interactions.path.name} has no timestamps: each user's interactions are "
            "taken in the order of the file"
        )
    event_table = pa.table(events)
    is_kept = np.ones(event_table.num_rows, bool)
    if min_rating is not None:
        ratings = columns.read_numbers(interactions, names.rating)
        is_kept &= ratings.to_numpy() >= min_rating
        notes.append(
            f"{interactions.path.name}: {(~is_kept).sum():,} of {len(is_kept):,} "
            f"interactions are rated below {min_rating:g} and left out"
        )
    if names.timestamp is not None:
        notes += _tell_other_units(interactions, event_table["timestamp"].to_numpy())
    has_time = pc.is_valid(event_table["timestamp"]).to_numpy()
    if not has_time.all():
        notes.append(
            f"{interactions.path.name}: {(~has_time).sum():,} of {len(has_time):,} "
            "interactions have no time and are left out"
        )
        is_kept &= has_time
    is_known = pc.is_in(event_table["item_id"], value_set=item_ids).to_numpy()
    if not is_known.all():
        ids = event_table["item_id"], item_ids
        what, advice = _tell_unknown(interactions, items, *ids, is_known)
        if advice is None and unknown_items == "error":
            option = f"{names.options or names.config}.unknown_items"
            advice = (
                "add the items, or leave those interactions out with "
                f"{flag(option, 'drop')}"
            )
        if unknown_items == "error" or not is_known.any():
            raise InputError(f"{what}: {advice}")
        count = int((~is_known).sum())
        notes.append(
            f"{interactions.path.name}: {count:,} of {len(is_known):,} interactions "
            f"name items that {items.path.name} lacks and are left out"
            + (f"; {what}: {advice}" if advice else "")
        )
    is_kept &= is_known
    if not is_kept.all():
        event_table = event_table.filter(pa.array(is_kept))
    return RawShop(
        name,
        item_table,
        event_table,
        tuple(notes),
        columns=(
            describe_columns(items, {p: getattr(names, p) for p in ITEM_PARTS}),
            describe_columns(
                interactions,
                {p.removeprefix("event_"): getattr(names, p) for p in events_have},
            ),
        ),
    )


def _tell_other_units(interactions: SourceTable, times: np.ndarray) -> list[str]:
    """Tells of times that aren't in the unit of most: they'd be sorted first or last.

    Seconds since 1970, and a thousandth each, keep to 11, 14, 17 and 20 digits.
    """
    times = times[np.isfinite(times)]
    if len(times) > 1 and times.min() == times.max():
        return [
            f"WARNING: {interactions.path.name}: all times are the same: each user's "
            "interactions are taken in the order of the file"
        ]
    unit = np.searchsorted(10.0 ** np.array([8, 11, 14, 17]), times)
    counts = np.bincount(unit, minlength=5)
    usual = int(counts.argmax())
    if not usual or counts[usual] == len(times):
        return []
    odd, like = times[unit != usual], times[unit == usual][0]
    return [
        f"WARNING: {interactions.path.name}: {len(odd):,} of {len(times):,} times are "
        f"in another unit than the others ({odd[0]:.0f} beside {like:.0f}): mend them, "
        "or those interactions stand first or last in their histories"
    ]


def require_columns(
    source: SourceTable, names: ColumnNames, parts: Sequence[str]
) -> None:
    """Refuses a table that lacks a column that plays a part; None plays none."""
    found = source.column_names
    for part in parts:
        column = getattr(names, part)
        if column is None or column in found:
            continue
        shown = ", ".join(columns.shown(c) for c in found[:20])
        option = part.replace("event_item_id", "interaction_item_id")
        likely = near_misses(part.removeprefix("event_"), found) or ["NAME"]
        if source.has_header and (looks_like_data(found) or _returns(source)):
            advice = HEADLESS
        elif names.options is None:
            advice = "add it"
        else:
            advice = "name the column that holds it with "
            advice += flag(f"{names.options}.{option}", likely[0])
            is_known = any(getattr(names, p) in found for p in parts)
            mark = re.search(r"\W", found[0])
            if source.has_header and len(found) == 1 and mark:
                advice = f"if {mark[0]!r} stands between its columns, say so with "
                advice += flag(f"{names.options}.delimiter", mark[0])
            elif source.has_header and not is_known:
                advice += ", or add a line of column names if these are none"
        raise InputError(
            f"{source.path} has no column {column!r} (found: {shown}): {advice}"
        )


def _returns(source: SourceTable) -> bool:
    """Whether some column's name is one of its values too, as in a row of data."""
    return any(
        pc.any(pc.equal(values, name)).as_py()
        for name, values in zip(
            source.table.column_names, source.table.columns, strict=True
        )
        if pa.types.is_string(values.type)
    )


def read_items(source: SourceTable, names: ColumnNames) -> tuple[pa.Table, list[str]]:
    """Reads items alone: the columns of `RawShop.items`, and notes.

    Raises:
        InputError: An item is given twice, or a value can't be used.
    """
    ids = columns.read_ids(source, names.item_id)
    _refuse_duplicates(source, ids, names.item_id)
    unknown = pa.array([""] * len(ids), pa.string())
    prices, notes = pa.nulls(len(ids), pa.float64()), list(source.notes)
    if names.price is not None:
        prices, refused = columns.read_prices(source, names.price)
        notes += refused
    categories = pa.array([[]] * len(ids), CATEGORY_PATHS)
    if names.categories is not None:
        categories = columns.read_categories(source, names.categories)
    table = {
        "item_id": ids,
        "title": columns.read_text(source, names.title) if names.title else unknown,
        "brand": columns.read_text(source, names.brand) if names.brand else unknown,
        "price": prices,
        "categories": categories,
    }
    used = {names.item_id, names.title, names.brand, names.price, names.categories}
    for column in source.table.column_names:
        if _NAMELESS.fullmatch(column):
            notes.append(f"{source.path.name}: a column without a name is left out")
        elif column not in used:
            # A further column must not take the place of one of ours.
            key = f"{column} (further)" if column in table else column
            table[key] = columns.read_text(source, column)
    notes += [
        f"{source.path.name}: column {column!r} is left out: it holds {kind}"
        for column, kind in source.unusable.items()
    ]
    if len(table) == 5 and not (names.title or names.brand or names.categories):
        notes.append(
            f"{source.path.name} has no texts: items can only be told apart by "
            "ready-made embeddings"
        )
    return pa.table(table), notes


def _refuse_duplicates(source: SourceTable, ids: pa.ChunkedArray, column: str) -> None:
    numbers, distinct = number_texts(ids)
    if len(distinct) == len(ids):
        return
    # Numbered by first appearance: the first row that brings nothing new repeats.
    highest = np.maximum.accumulate(numbers)
    row = int(np.argmax(np.diff(highest) == 0)) + 1
    first = int(np.argmax(numbers == numbers[row]))
    earlier = source.where(first).rsplit(", ", 1)[-1]
    raise InputError(
        f"{source.where(row)}: {column} {ids[row].as_py()!r} is given a second time "
        f"(first at {earlier}; {len(ids) - len(distinct):,} repeated in all): keep one "
        "row an item"
    )


def _tell_unknown(
    interactions: SourceTable,
    items: SourceTable,
    event_ids: pa.ChunkedArray,
    item_ids: pa.ChunkedArray,
    is_known: np.ndarray,
) -> tuple[str, str | None]:
    """Which items aren't known; and what to do if the cause is how they're written."""
    unknown = event_ids.filter(pa.array(~is_known))
    count = f"{len(unknown):,} of {len(event_ids):,} interactions"
    examples = unknown.unique()[:EXAMPLES].to_pylist()
    found = same_but_for_writing(examples, item_ids.to_pylist())
    wanted = examples[0] if found is None else found[1]
    row = interactions.where(pc.index(event_ids, wanted).as_py())
    # Two Unicode forms of one text look alike.
    show = ascii if not wanted.isascii() and found is not None else repr
    what = f"{row}: item {show(wanted[:60])} is not in {items.path}"
    if found is not None:
        cause, _, known = found
        return (
            f"{what}, which has {show(known[:60])} (so {count})",
            f"{cause}: write identifiers the same way in both files",
        )
    if not is_known.any():
        return (
            f"{what}, nor is that of any other of {len(event_ids):,} interactions",
            f"its identifiers look like {item_ids[0].as_py()[:60]!r}: use the same "
            "ones in both files",
        )
    return f"{what} ({count})", None


def same_but_for_writing(
    unknown: list[str], known: Iterable[str]
) -> tuple[str, str, str] | None:
    """Why most of the unknown identifiers differ from known ones, and a pair."""

    def plain(item_id: str) -> str:
        for _, rewrite in _WRITINGS:
            item_id = rewrite(item_id)
        return item_id

    for cause, rewrite in (*_WRITINGS, ("they are written in several ways", plain)):
        known_by_form = {rewrite(item_id): item_id for item_id in known}
        pairs = [
            (i, known_by_form[form])
            for i in unknown
            if (form := rewrite(i)) in known_by_form
        ]
        if 2 * len(pairs) >= len(unknown):
            return cause, *pairs[0]
    return None
