"""MovieLens as GroupLens ships it.

Recent sets (latest, 20M, 25M, 32M) hold `ratings.csv` and `movies.csv`; 1M and 10M
hold `ratings.dat` and `movies.dat`, with "::" between fields, in Latin-1 and UTF-8.
Each rating is an interaction, whatever its stars. The genres of a film are
categories side by side: paths of one level.
"""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from tiger_jax.config import config
from tiger_jax.data.raw_shop import CATEGORY_PATHS, RawShop
from tiger_jax.data.readers.assemble import ColumnNames, assemble_shop
from tiger_jax.data.readers.tables import SourceTable, read_table
from tiger_jax.data.readers.text_files import one_line
from tiger_jax.errors import InputError

_NO_GENRES = "(no genres listed)"
_RATINGS = ("userId", "movieId", "rating", "timestamp")
_MOVIES = ("movieId", "title", "genres")


@config("movielens")
class MovielensConfig:
    """Which ratings count.

    Attributes:
      min_rating: Leave out ratings below this (None: all are interactions).
      unknown_items: "error", or "drop" ratings of films that aren't listed.
    """

    min_rating: float | None = None
    unknown_items: str = "error"


def read_movielens(
    movies_path: Path, ratings_path: Path, config: MovielensConfig, *, name: str
) -> RawShop:
    """Reads the films and ratings of a MovieLens folder.

    Raises:
      InputError: Something is wrong with a file: names it, the line or column,
        and what to do.
    """
    if movies_path.suffix == ".dat":
        movies = _read_dat(movies_path, _MOVIES)
        ratings = _read_dat(ratings_path, _RATINGS)
    else:
        movies, ratings = read_table(movies_path), read_table(ratings_path)
    names = ColumnNames(
        item_id="movieId",
        user_id="userId",
        interaction_item_id="movieId",
        title="title",
        categories="genres",
        timestamp="timestamp",
        rating="rating",
    )
    if "genres" in movies.table.column_names:
        movies = _with_genre_lists(movies)
    return assemble_shop(
        name,
        movies,
        ratings,
        names,
        unknown_items=config.unknown_items,
        min_rating=config.min_rating,
    )


def _with_genre_lists(movies: SourceTable) -> SourceTable:
    paths = [
        [[genre] for genre in text.split("|") if genre != _NO_GENRES]
        for text in movies.table["genres"].to_pylist()
    ]
    index = movies.table.column_names.index("genres")
    genres = pa.array(paths, CATEGORY_PATHS)
    return dataclasses.replace(
        movies, table=movies.table.set_column(index, "genres", genres)
    )


def _read_dat(path: Path, columns: tuple[str, ...]) -> SourceTable:
    """Reads fields with "::" between them, which no CSV reader knows."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    try:
        data.decode("utf-8")
        encoding = "utf-8"
    except UnicodeDecodeError:
        encoding = "latin-1"  # as 1M is; every byte is a Latin-1 character
    for line, row in enumerate(data.split(b"\n"), 1):
        if row.strip() and row.count(b"::") != len(columns) - 1:
            raise InputError(
                f"{path}, line {line}: {row.count(b'::') + 1} fields where there "
                f"should be {len(columns)} ({'::'.join(columns)})"
            )
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(data.replace(b"\t", b" ").replace(b"::", b"\t")),
            pa.csv.ReadOptions(column_names=columns, encoding=encoding),
            pa.csv.ParseOptions(delimiter="\t", quote_char=False),
            pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string())),
        )
    except pa.ArrowException as error:
        raise InputError(f"{path} can't be read: {one_line(error)}") from error
    return SourceTable(path, table, {}, lambda row: f"{path}, line {row + 1}")
