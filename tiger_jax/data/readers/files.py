"""A shop as anyone can write it down: `items` and `interactions` files."""

import dataclasses
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from tiger_jax.config import config
from tiger_jax.data.raw_shop import RawShop
from tiger_jax.data.readers.assemble import ColumnNames, assemble_shop, read_items
from tiger_jax.data.readers.reader import match_files, required_files
from tiger_jax.data.tables.csv_files import CsvFormat
from tiger_jax.data.tables.table import SourceTable, read_table


@config("files")
class FilesConfig:
    """How to read `items.*` and `interactions.*`.

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
        delimiter: The character between a CSV file's fields.
        encoding: Text encoding of CSV and JSON files.
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

    kind: ClassVar = "files"
    looks_for: ClassVar = "items.csv and interactions.csv (or .jsonl, .parquet)"

    def find(self, folder: Path) -> tuple[Path | None, ...]:
        kinds = r"\.(csv|jsonl|parquet)"
        return match_files(folder, f"items{kinds}", f"interactions{kinds}")

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
        interactions = read_table(
            interactions_path, columns=wanted, csv_format=self._csv_format
        )
        return assemble_shop(
            folder.resolve().name,
            items,
            interactions,
            self._names(items, interactions),
            unknown_items=self.unknown_items,
            min_rating=self.min_rating,
        )

    def read_items(self, path: Path) -> pa.Table:
        """Reads a file of items alone, with the columns of `RawShop.items`.

        Raises:
            InputError: Something is wrong with the file: names the line or column.
        """
        items = read_table(path, csv_format=self._csv_format)
        return read_items(items, self._names(items))[0]

    @property
    def _csv_format(self) -> CsvFormat:
        return CsvFormat(delimiter=self.delimiter, encoding=self.encoding)

    def _names(
        self, items: SourceTable, interactions: SourceTable | None = None
    ) -> ColumnNames:
        """The columns, leaving out those of a default name that aren't there."""
        sources = dict.fromkeys(("title", "brand", "price", "categories"), items)
        if interactions is not None:
            sources["timestamp"] = interactions
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        optional = {
            role: column
            for role, source in sources.items()
            if (column := getattr(self, role)) != defaults[role]
            or column in source.column_names
        }
        return ColumnNames(
            item_id=self.item_id,
            user_id=self.user_id,
            interaction_item_id=self.interaction_item_id,
            rating=self.rating,
            options="files.FilesConfig",
            **optional,
        )
