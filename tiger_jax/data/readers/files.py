"""A shop as anyone can write it down: `items` and `interactions` files."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from tiger_jax.config import config
from tiger_jax.data.raw_shop import RawShop
from tiger_jax.data.readers.assemble import (
    ITEM_PARTS,
    ColumnNames,
    assemble_shop,
    read_items,
    require_columns,
)
from tiger_jax.data.readers.columns import read_ids, read_times
from tiger_jax.data.readers.naming import (
    columns_of,
    describe_columns,
    join_date_and_time,
)
from tiger_jax.data.readers.reader import match_files, required_files
from tiger_jax.data.tables.csv_files import CsvFormat
from tiger_jax.data.tables.table import SourceTable, read_table
from tiger_jax.workdir.json_files import ADDED_LATER

_OPTIONS = "files.FilesConfig"


@config("files")
class FilesConfig:
    """How to read `items.*` and `interactions.*`.

    A column of another name than the usual one is found by the synonyms in `naming`.
    Optional columns that a file lacks are simply unknown, but one that is named
    here, other than by its default, must exist. Texts of categories have "|"
    between paths and ">" between levels.

    Attributes:
        item_id: Column of the items' identifiers, in both files.
        interaction_item_id: The same in the interactions, if it has another name.
        title: Optional column, as are `brand`, `price` and `categories`.
        timestamp: Optional column of times; without it, the file's order counts.
        rating: Column of ratings, read only where `min_rating` asks for it.
        min_rating: Leave out interactions rated lower (None: all count).
        unknown_items: "error", or "drop" interactions of items that aren't listed.
        delimiter: The character between a CSV file's fields; where the header has
            none, a semicolon, tab or bar is found.
        encoding: Text encoding of CSV and JSON files; a byte order mark goes before.
        time_format: How times are written, as Python's strptime takes it
            ("%d.%m.%Y %H:%M"); None knows numbers, ISO dates and their kin.
        missing_times: "error", or "drop" interactions without a time.
    """

    item_id: str = "item_id"
    interaction_item_id: str | None = None
    title: str = "title"
    brand: str = "brand"
    price: str = "price"
    categories: str = "categories"
    user_id: str = "user_id"
    timestamp: str = "timestamp"
    rating: str = "rating"
    min_rating: float | None = None
    unknown_items: str = "error"
    delimiter: str = ","
    encoding: str = "utf-8"
    time_format: str | None = dataclasses.field(default=None, metadata=ADDED_LATER)
    missing_times: str = dataclasses.field(default="error", metadata=ADDED_LATER)

    kind: ClassVar = "files"
    looks_for: ClassVar = "items.csv and interactions.csv (or .jsonl, .parquet, .gz)"

    def find(self, folder: Path) -> tuple[Path | None, ...]:
        found: tuple[Path | None, ...] = ()
        # What else people save tables as counts where there is nothing better.
        for more in ("", "|txt|json|xlsx?"):
            kinds = rf"(\.((csv|tsv|jsonl|ndjson{more})(\.gz)?|parquet))?"
            names = (f"(?i:{name}{kinds})" for name in ("items", "interactions"))
            if all(found := match_files(folder, *names)):
                break
        return found

    def read(self, folder: Path) -> RawShop:
        items_path, interactions_path = required_files(self, folder)
        wanted = [
            self.user_id,
            self.interaction_item_id or self.item_id,
            self.timestamp,
        ]
        if self.min_rating is not None:
            wanted.append(self.rating)
        items = read_table(items_path, csv_format=self._csv_format)
        interactions = join_date_and_time(
            read_table(interactions_path, columns=wanted, csv_format=self._csv_format)
        )
        names, notes = self._names(items, interactions)
        shop = assemble_shop(
            folder.resolve().name,
            items,
            interactions,
            names,
            unknown_items=self.unknown_items,
            min_rating=self.min_rating,
            time_format=self.time_format,
            missing_times=self.missing_times,
        )
        return dataclasses.replace(shop, notes=(*shop.notes, *notes))

    def read_items(self, path: Path) -> tuple[pa.Table, list[str]]:
        """Reads a file of items alone, with the columns of `RawShop.items`.

        Returns:
            The items; and notes, which column became what before all others.

        Raises:
            InputError: Something is wrong with the file: names the line or column.
        """
        items = read_table(path, csv_format=self._csv_format)
        names, missing = self._names(items)
        require_columns(items, names, ITEM_PARTS)
        table, notes = read_items(items, names)
        parts = {part: getattr(names, part) for part in ITEM_PARTS}
        return table, [describe_columns(items, parts), *notes, *missing]

    def read_histories(self, path: Path) -> tuple[dict[str | None, list[str]], list]:
        """Reads a file of interactions alone, of one user if it names none.

        Returns:
            Item ids by user, oldest first; and notes.

        Raises:
            InputError: Something is wrong with the file: names the line or column.
        """
        source = join_date_and_time(read_table(path, csv_format=self._csv_format))
        names, notes = self._names(None, source)
        has_users = names.user_id in source.column_names
        require_columns(source, names, ["user_id"] * has_users + ["event_item_id"])
        items = read_ids(source, names.event_item_id).to_pylist()
        users = read_ids(source, names.user_id).to_pylist() if has_users else [None]
        order: Sequence[int] = range(len(items))
        if names.timestamp is not None:
            times = read_times(
                source,
                names.timestamp,
                time_format=self.time_format,
                may_lack=self.missing_times == "drop",
                options=_OPTIONS,
            ).to_numpy()
            order = np.argsort(times, kind="stable")[: np.isfinite(times).sum()]
        found: dict[str | None, list[str]] = {user: [] for user in users}
        for row in order:
            found[users[row] if has_users else None].append(items[row])
        return found, [*source.notes, *notes]

    @property
    def _csv_format(self) -> CsvFormat:
        return CsvFormat(self.delimiter, encoding=self.encoding, option=_OPTIONS)

    def _names(
        self, items: SourceTable | None, interactions: SourceTable | None = None
    ) -> tuple[ColumnNames, list[str]]:
        """The columns that are named here, or that go by one of the usual names."""
        notes: list[str] = []
        parts: dict[str, str] = {}
        if items is not None:
            parts, notes = columns_of(
                self, items, ITEM_PARTS, options=_OPTIONS, other=interactions
            )
        parts.setdefault("item_id", self.item_id)
        if interactions is not None:
            wanted = ["user_id", "item_id", "timestamp"]
            wanted += ["rating"] if self.min_rating is not None else []
            events, missing = columns_of(
                self, interactions, wanted, options=_OPTIONS, other=items
            )
            notes += missing
            own = self.interaction_item_id or events.pop("item_id", self.item_id)
            parts |= {**events, "interaction_item_id": own}
        parts.setdefault("user_id", self.user_id)
        return ColumnNames(**parts, options=_OPTIONS), notes
