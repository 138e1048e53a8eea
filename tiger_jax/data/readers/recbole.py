"""RecBole's atomic files: tab-separated, with a type after each column's name.

A data set `shop` is a folder with `shop.inter` (`user_id:token`, `item_id:token`,
`rating:float`, `timestamp:float`) and `shop.item` (`item_id:token`,
`title:token_seq`, ...). Nothing is quoted.
"""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tiger_jax.config import config
from tiger_jax.data.raw_shop import RawShop
from tiger_jax.data.readers.assemble import ColumnNames, assemble_shop
from tiger_jax.data.readers.csv_files import CsvFormat
from tiger_jax.data.readers.tables import SourceTable, read_table
from tiger_jax.errors import InputError

_TYPES = ("token", "token_seq", "float", "float_seq")


@config("recbole")
class RecboleConfig:
    """How to read RecBole's files. Of each tuple, the first column found counts.

    Attributes:
      item_id: Column of the items' identifiers, in both files.
      user_id: Column of the users' identifiers.
      timestamp: Optional column of times; without it, the file's order counts.
      rating: Column of ratings, read only where `min_rating` asks for it.
      title: Names under which RecBole's data sets keep the title.
      brand: Likewise the brand.
      price: Likewise the price.
      categories: Likewise the categories. They count as one path, separated by
        commas if the column has any, otherwise by spaces.
      min_rating: Leave out interactions rated lower (None: all count).
      unknown_items: "error", or "drop" interactions of items that aren't listed.
    """

    item_id: str = "item_id"
    user_id: str = "user_id"
    timestamp: str = "timestamp"
    rating: str = "rating"
    title: tuple[str, ...] = ("title", "movie_title", "name", "item_name")
    brand: tuple[str, ...] = ("brand", "store", "manufacturer")
    price: tuple[str, ...] = ("price",)
    categories: tuple[str, ...] = ("categories", "category", "genres", "genre", "class")
    min_rating: float | None = None
    unknown_items: str = "error"


def read_recbole(
    item_path: Path, inter_path: Path, config: RecboleConfig, *, name: str
) -> RawShop:
    """Reads a `.item` and a `.inter` file.

    Raises:
      InputError: Something is wrong with a file: names it, the line or column,
        and what to do.
    """
    items, interactions = _read_atomic(item_path), _read_atomic(inter_path)
    categories = _first_of(config.categories, items)
    if categories is not None:
        items = _with_separated_categories(items, categories)
    names = ColumnNames(
        item_id=config.item_id,
        user_id=config.user_id,
        interaction_item_id=config.item_id,
        title=_first_of(config.title, items),
        brand=_first_of(config.brand, items),
        price=_first_of(config.price, items),
        categories=categories,
        timestamp=_first_of((config.timestamp,), interactions),
        rating=config.rating,
        options="recbole.RecboleConfig",
    )
    return assemble_shop(
        name,
        items,
        interactions,
        names,
        unknown_items=config.unknown_items,
        min_rating=config.min_rating,
    )


def _read_atomic(path: Path) -> SourceTable:
    source = read_table(path, csv_format=CsvFormat(delimiter="\t", quoting=False))
    names = []
    for column in source.table.column_names:
        name, separator, kind = column.rpartition(":")
        if not separator or kind not in _TYPES:
            raise InputError(
                f"{path}, line 1: column {column[:60]!r} has no type: write it as in "
                f"'user_id:token', with one of {', '.join(_TYPES)}, and tabs between "
                "columns"
            )
        names.append(name)
    if len(set(names)) < len(names):
        raise InputError(f"{path}, line 1: two columns have the same name")
    return dataclasses.replace(source, table=source.table.rename_columns(names))


def _first_of(candidates: tuple[str, ...], source: SourceTable) -> str | None:
    found = source.table.column_names
    return next((name for name in candidates if name in found), None)


def _with_separated_categories(source: SourceTable, column: str) -> SourceTable:
    """Splits a sequence of categories into one path."""
    texts = source.table[column]
    has_commas = pc.any(pc.match_substring(texts, ",")).as_py()
    split = (text.split("," if has_commas else " ") for text in texts.to_pylist())
    # Some of RecBole's own conversions left Python's quotes around the names.
    paths = [[[name.strip().strip("'\"") for name in names]] for names in split]
    index = source.table.column_names.index(column)
    lists = pa.array(paths, pa.list_(pa.list_(pa.string())))
    return dataclasses.replace(
        source, table=source.table.set_column(index, column, lists)
    )
