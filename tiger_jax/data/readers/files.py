"""A shop as anyone can write it down: `items` and `interactions` files."""

import dataclasses
from pathlib import Path

import pyarrow as pa

from tiger_jax.config import config
from tiger_jax.data.raw_shop import RawShop
from tiger_jax.data.readers.assemble import ColumnNames, assemble_shop, read_items
from tiger_jax.data.readers.csv_files import CsvFormat
from tiger_jax.data.readers.tables import SourceTable, read_table


@config("files")
class FilesConfig:
    """How to read `items.*` and `interactions.*`.

    Optional columns that a file lacks are simply unknown, but one that is named
    here, other than by its default, must exist. Texts of categories have "|"
    between paths and ">" between levels.

    Attributes:
      item_id: Column of the items' identifiers, in both files.
      interaction_item_id: The same in the interactions, if it has another name.
      title: Optional column of titles.
      brand: Optional column of brands.
      price: Optional column of prices.
      categories: Optional column of category paths.
      user_id: Column of the users' identifiers.
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


def read_files(
    items_path: Path, interactions_path: Path, config: FilesConfig, *, name: str
) -> RawShop:
    """Reads a CSV, JSON-lines or Parquet file of items and one of interactions.

    Raises:
      InputError: Something is wrong with a file: names it, the line or column,
        and what to do.
    """
    csv_format = CsvFormat(delimiter=config.delimiter, encoding=config.encoding)
    items = read_table(items_path, csv_format=csv_format)
    event_item_id = config.interaction_item_id or config.item_id
    wanted = [config.user_id, event_item_id, config.timestamp]
    if config.min_rating is not None:
        wanted.append(config.rating)
    interactions = read_table(interactions_path, columns=wanted, csv_format=csv_format)
    names = ColumnNames(
        item_id=config.item_id,
        user_id=config.user_id,
        interaction_item_id=event_item_id,
        title=_optional(config, "title", items),
        brand=_optional(config, "brand", items),
        price=_optional(config, "price", items),
        categories=_optional(config, "categories", items),
        timestamp=_optional(config, "timestamp", interactions),
        rating=config.rating,
        options="files.FilesConfig",
    )
    return assemble_shop(
        name,
        items,
        interactions,
        names,
        unknown_items=config.unknown_items,
        min_rating=config.min_rating,
    )


def read_items_file(path: Path, config: FilesConfig) -> pa.Table:
    """Reads a file of items alone, with the columns of `RawShop.items`.

    Raises:
      InputError: Something is wrong with the file: names the line or column.
    """
    csv_format = CsvFormat(delimiter=config.delimiter, encoding=config.encoding)
    items = read_table(path, csv_format=csv_format)
    names = ColumnNames(
        item_id=config.item_id,
        user_id=config.user_id,
        interaction_item_id=config.item_id,
        title=_optional(config, "title", items),
        brand=_optional(config, "brand", items),
        price=_optional(config, "price", items),
        categories=_optional(config, "categories", items),
        options="files.FilesConfig",
    )
    return read_items(items, names)[0]


def _optional(config: FilesConfig, field: str, source: SourceTable) -> str | None:
    """A column's name, or None if it has its default name and isn't there."""
    column = getattr(config, field)
    default = next(f.default for f in dataclasses.fields(config) if f.name == field)
    is_there = column in source.table.column_names or column in source.unusable
    return column if is_there or column != default else None
