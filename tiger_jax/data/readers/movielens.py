"""MovieLens as GroupLens ships it.

Recent sets (latest, 20M, 25M, 32M) hold `ratings.csv` and `movies.csv`, or `rating.csv`
and `movie.csv`; 1M and 10M hold `ratings.dat` and `movies.dat`, with "::" between
fields, in Latin-1 and UTF-8; 100K holds `u.data` and `u.item`, whose genres are flags.
Each rating is an interaction, whatever its stars. The genres of a film are
categories side by side: paths of one level.
"""

import codecs
import dataclasses
import itertools
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.csv

from tiger_jax.config import config
from tiger_jax.data.raw_shop import RawShop
from tiger_jax.data.readers import columns
from tiger_jax.data.readers.assemble import ColumnNames, assemble_shop
from tiger_jax.data.readers.list_texts import is_list
from tiger_jax.data.readers.naming import find_columns
from tiger_jax.data.readers.reader import match_files, required_files
from tiger_jax.data.tables.table import SourceTable, read_table
from tiger_jax.data.tables.text_files import one_line, open_bytes
from tiger_jax.errors import InputError

_OPTIONS = "movielens.MovielensConfig"
_NO_GENRES = "(no genres listed)"
_RATINGS = ("userId", "movieId", "rating", "timestamp")
_MOVIES = ("movieId", "title", "genres")
_GENRES = (  # of 100K's flags, in their order
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|"
    "Fantasy|Film-Noir|Horror|Musical|Mystery|Romance|Sci-Fi|Thriller|War|Western"
).split("|")
_U_ITEM = ("movieId", "title", "released", "released on video", "url", *_GENRES)


@config("movielens")
class MovielensConfig:
    """Which ratings count.

    Attributes:
        min_rating: Leave out ratings below this (None: all are interactions).
        unknown_items: "error", or "drop" ratings of films that aren't listed.
    """

    min_rating: float | None = None
    unknown_items: str = "error"

    kind: ClassVar = "movielens"
    looks_for: ClassVar = (
        "movies.csv and ratings.csv, or .dat, or u.item and u.data (MovieLens)"
    )

    def find(self, folder: Path) -> tuple[Path | None, ...]:
        kinds = r"s?\.(csv|dat)(\.gz)?"
        return match_files(
            folder, rf"movie{kinds}|u\.item(\.gz)?", rf"rating{kinds}|u\.data(\.gz)?"
        )

    def read(self, folder: Path) -> RawShop:
        movies_path, ratings_path = required_files(self, folder)
        movies = _read(movies_path, _MOVIES)
        ratings = _read(ratings_path, _RATINGS)
        # Copies of these files have names of their own.
        item_parts = ("item_id", "title", "categories")
        wanted = dict(zip(item_parts, _MOVIES, strict=True))
        parts, _ = find_columns(movies, wanted, options=_OPTIONS)
        event_parts = ("user_id", "item_id", "rating", "timestamp")
        wanted = dict(zip(event_parts, _RATINGS, strict=True))
        events, _ = find_columns(ratings, wanted, options=_OPTIONS)
        if genres := parts.get("categories"):
            paths = columns.parse_categories(movies, genres, _split_genres)
            movies = movies.with_column(genres, lambda _: paths)
        interaction_item_id = events.pop("item_id", "movieId")
        names = ColumnNames(
            **{"item_id": "movieId", **parts},
            **{"user_id": "userId", "timestamp": "timestamp", **events},
            interaction_item_id=interaction_item_id,
            config=_OPTIONS,
        )
        return assemble_shop(
            folder.resolve().name,
            movies,
            ratings,
            names,
            unknown_items=self.unknown_items,
            min_rating=self.min_rating,
        )


def _split_genres(text: str) -> list[list[str]]:
    names = text.split("|")
    if is_list(text):  # as some copies have it
        names = [name for path in columns.parse_paths(text) for name in path]
    return [[name] for name in names if name != _NO_GENRES]


def _read(path: Path, columns: tuple[str, ...]) -> SourceTable:
    match path.name.removesuffix(".gz"):
        case "u.data":
            return _read_fields(path, columns, "\t")
        case "u.item":
            return _with_genres(_read_fields(path, _U_ITEM, "|"))
        case name if name.endswith(".dat"):
            return _read_fields(path, columns, "::")
    return read_table(path)


def _with_genres(films: SourceTable) -> SourceTable:
    """Puts the names of the genres that are flagged in place of the flags."""
    flags = films.table.select(_GENRES).to_pylist()
    names = ["|".join(g for g, is_set in row.items() if is_set == "1") for row in flags]
    table = films.table.select(_MOVIES[:2]).append_column(
        "genres", pa.array([n if n != "unknown" else "" for n in names], pa.string())
    )
    return dataclasses.replace(films, table=table)


def _read_fields(path: Path, columns: tuple[str, ...], mark: str) -> SourceTable:
    """Reads rows without a header, whose mark between fields may be no character."""
    try:
        with open_bytes(path) as file:
            data = file.read().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    try:
        data.decode("utf-8")
        encoding = "utf-8"
    except UnicodeDecodeError:
        encoding = "latin-1"  # as 100K and 1M are; every byte is a Latin-1 character
    between = mark.encode()
    for line, row in enumerate(data.split(b"\n"), 1):
        if row.strip() and row.count(between) != len(columns) - 1:
            raise InputError(
                f"{path}, line {line}: {row.count(between) + 1} fields where there "
                f"should be {len(columns)} ({mark.join(columns)})"
            )
    if between != b"\t":
        data = data.replace(b"\t", b" ").replace(between, b"\t")
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(data),
            pa.csv.ReadOptions(column_names=columns, encoding=encoding),
            pa.csv.ParseOptions(delimiter="\t", quote_char=False),
            pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string())),
        )
    except pa.ArrowException as error:
        raise InputError(f"{path} can't be read: {one_line(error)}") from error
    if table.num_rows == 0:
        raise InputError(f"{path} has no rows: it should hold a table")

    def where(row: int) -> str:
        lines = enumerate(data.split(b"\n"), 1)
        filled = (line for line, text in lines if text.strip())
        return f"{path}, line {next(itertools.islice(filled, row, None))}"

    return SourceTable(path, table, {}, where)
