"""RecBole's atomic files: tab-separated, with a type after each column's name.

A data set `shop` is a folder with `shop.inter` (`user_id:token`, `item_id:token`,
`rating:float`, `timestamp:float`) and `shop.item` (`item_id:token`,
`title:token_seq`, ...). Nothing is quoted.
"""

import dataclasses
import re
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from tiger_jax.config import config
from tiger_jax.data.raw_shop import RawShop
from tiger_jax.data.readers import columns
from tiger_jax.data.readers.assemble import ITEM_PARTS, ColumnNames, assemble_shop
from tiger_jax.data.readers.list_texts import is_list
from tiger_jax.data.readers.naming import columns_of, find_columns
from tiger_jax.data.readers.reader import match_files, required_files
from tiger_jax.data.tables.csv_files import CsvFormat
from tiger_jax.data.tables.table import SourceTable, read_table
from tiger_jax.errors import InputError
from tiger_jax.workdir.json_files import ADDED_LATER

_PARTS = ("train", "valid", "test")
_OPTIONS = "recbole.RecboleConfig"
_TYPES = ("token", "token_seq", "float", "float_seq")


@config("recbole")
class RecboleConfig:
    """How to read RecBole's files. Of each tuple, the first column found counts.

    Attributes:
        item_id: Column of the items' identifiers, in both files.
        timestamp: Optional column of times; without it, the file's order counts.
        rating: Column of ratings, read only where `min_rating` asks for it.
        title: Names under which RecBole's data sets keep the title. Where none is
            found, the synonyms in `naming` are tried; so for the next three.
        categories: They count as one path, separated by commas if most have some,
            otherwise by spaces; or a list, as Python writes it.
        min_rating: Leave out interactions rated lower (None: all count).
        unknown_items: "error", or "drop" interactions of items that aren't listed.
        encoding: Text encoding of the files.
        time_format: How times are written, where they are texts; see `files`.
        missing_times: "error", or "drop" interactions without a time.
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
    encoding: str = dataclasses.field(default="utf-8", metadata=ADDED_LATER)
    time_format: str | None = dataclasses.field(default=None, metadata=ADDED_LATER)
    missing_times: str = dataclasses.field(default="error", metadata=ADDED_LATER)

    kind: ClassVar = "recbole"
    looks_for: ClassVar = "NAME.item and NAME.inter (RecBole)"

    def find(self, folder: Path) -> tuple[Path | None, ...]:
        for parts in (_PARTS, ("train", "test"), ("train", "valid")):
            split = [rf".+\.{part}\.inter(\.gz)?" for part in parts]
            if all(found := match_files(folder, r".+\.item(\.gz)?", *split)):
                return found
        return match_files(folder, r".+\.item(\.gz)?", r".+\.inter(\.gz)?")

    def read(self, folder: Path) -> RawShop:
        tables = [_read_atomic(p, self.encoding) for p in required_files(self, folder)]
        items, interactions = tables[0], _joined(tables[1:])
        if "item_id_list" in interactions.column_names:
            raise InputError(
                f"{interactions.path} holds histories (item_id_list), cut by RecBole: "
                "bring its file of single interactions"
            )
        wanted = ["user_id", "item_id", "timestamp"]
        wanted += ["rating"] if self.min_rating is not None else []
        events, notes = columns_of(
            self, interactions, wanted, options=_OPTIONS, other=items
        )
        own, _ = columns_of(
            self, items, ["item_id"], options=_OPTIONS, other=interactions
        )
        wanted = [p for p in ITEM_PARTS if p != "item_id"]
        parts = {p: n for p in wanted if (n := _first_of(getattr(self, p), items))}
        usual = {f.name: f.default for f in dataclasses.fields(self)}
        more, missing = find_columns(
            items,
            {p: p for p in wanted if p not in parts and getattr(self, p) == usual[p]},
            options=_OPTIONS,
            taken=[*own.values(), *parts.values()],
            as_option=lambda name: (name,),
        )
        parts |= more
        if "categories" in parts:
            items = _separate(items, parts["categories"])
        names = ColumnNames(
            item_id=own.get("item_id", self.item_id),
            user_id=events.get("user_id", self.user_id),
            interaction_item_id=events.get("item_id", self.item_id),
            **parts,
            timestamp=events.get("timestamp"),
            rating=events.get("rating", self.rating),
            options=_OPTIONS,
        )
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
        return dataclasses.replace(shop, notes=(*shop.notes, *notes, *missing))


def _read_atomic(path: Path, encoding: str) -> SourceTable:
    source = read_table(
        path, csv_format=CsvFormat("\t", False, encoding, option=_OPTIONS)
    )
    names = []
    for column in source.table.column_names:
        name, separator, kind = column.rpartition(":")
        if kind not in _TYPES or ":" in name or not separator:
            raise InputError(
                f"{path}, line 1: column {column[:60]!r} has no type: write it as in "
                f"'user_id:token', with one of {', '.join(_TYPES)}, and tabs between "
                "columns"
            )
        names.append(name)
    if len(set(names)) < len(names):
        raise InputError(f"{path}, line 1: two columns have the same name")
    return dataclasses.replace(source, table=source.table.rename_columns(names))


def _joined(parts: list[SourceTable]) -> SourceTable:
    """The interactions of a split, as one table; the split is made anew, by time."""
    if len(parts) == 1:
        return parts[0]
    for part in parts[1:]:
        if part.column_names != parts[0].column_names:
            raise InputError(
                f"{part.path} has other columns than {parts[0].path.name}: write the "
                "same in both"
            )

    def where(row: int) -> str:
        for part in parts:
            if row < part.table.num_rows:
                return part.where(row)
            row -= part.table.num_rows
        return str(parts[0].path.parent)

    names = ", ".join(part.path.name for part in parts)
    return SourceTable(
        parts[0].path,
        pa.concat_tables([part.table for part in parts]),
        {},
        where,
        (f"{names} are read as one, and split anew: the last two of each user's",),
    )


def _first_of(candidates: tuple[str, ...], source: SourceTable) -> str | None:
    found = source.table.column_names
    return next((name for name in candidates if name in found), None)


def _separate(source: SourceTable, column: str) -> SourceTable:
    """Splits each sequence of categories into one path.

    Commas separate where most of several words have some; otherwise, spaces do too.
    """
    texts = source.table[column].to_pylist()
    several = [text for text in texts if " " in text or "," in text]
    by_commas = 2 * sum("," in text for text in several) >= len(several) > 0
    pattern = "," if by_commas else r"[,\s]+"

    def parse(text: str) -> list[list[str]]:
        if is_list(text):
            return columns.parse_paths(text)
        # Some of RecBole's own conversions left Python's quotes around the names.
        return [[name.strip().strip("'\"") for name in re.split(pattern, text)]]

    paths = columns.parse_categories(source, column, parse)
    return source.with_column(column, lambda _: paths)
