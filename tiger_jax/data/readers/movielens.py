"""MovieLens as GroupLens ships it.

Recent sets (latest, 20M, 25M, 32M) hold `ratings.csv` and `movies.csv`; 1M and 10M
hold `ratings.dat` and `movies.dat`, with "::" between fields, in Latin-1 and UTF-8.
Each rating is an interaction, whatever its stars. The genres of a film are
categories side by side: paths of one level.
"""

from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.csv

from tiger_jax.config import config
from tiger_jax.data.raw_shop import CATEGORY_PATHS, RawShop
from tiger_jax.data.readers.assemble import ColumnNames, assemble_shop
from tiger_jax.data.readers.reader import match_files, required_files
from tiger_jax.data.tables.table import SourceTable, read_table
from tiger_jax.data.tables.text_files import one_line
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

    kind: ClassVar = "movielens"
    looks_for: ClassVar = "movies.csv and ratings.csv, or .dat (MovieLens)"

    def find(self, folder: Path) -> tuple[Path | None, ...]:
        return match_files(folder, r"movies\.(csv|dat)", r"ratings\.(csv|dat)")

    def read(self, folder: Path) -> RawShop:
        movies_path, ratings_path = required_files(self, folder)
        if movies_path.suffix == ".dat":
            movies = _read_dat(movies_path, _MOVIES)
            ratings = _read_dat(ratings_path, _RATINGS)
        else:
            movies, ratings = read_table(movies_path), read_table(ratings_path)
        if "genres" in movies.table.column_names:
            movies = movies.with_column("genres", _genre_lists)
        names = ColumnNames(
            item_id="movieId",
            user_id="userId",
            title="title",
            categories="genres",
            timestamp="timestamp",
        )
        return assemble_shop(
            folder.resolve().name,
            movies,
            ratings,
            names,
            unknown_items=self.unknown_items,
            min_rating=self.min_rating,
        )


def _genre_lists(texts: pa.ChunkedArray) -> pa.Array:
    split = (text.split("|") for text in texts.to_pylist())
    paths = [[[genre] for genre in genres if genre != _NO_GENRES] for genres in split]
    return pa.array(paths, CATEGORY_PATHS)


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
