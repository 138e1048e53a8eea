"""A column of vectors in Parquet shards: written, and read whole, in part or by row.

Needs no Beam: training reads embeddings here.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from jaxtyping import Float32, Int

from tiger_jax.errors import InputError
from tiger_jax.workdir.shards import ROW_GROUP, Shards, rows_of, texts

# Sets the draw of a sample apart from others by the same seed.
_SAMPLE = 4


def vector_array(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """A matrix as an Arrow column of vectors."""
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def read_vectors(table: pa.Table, name: str) -> np.ndarray:
    """The matrix in such a column."""
    if not table.num_rows:
        raise InputError(f"there are no rows in the column {name!r}")
    lists = texts(table, name)
    return np.asarray(lists.flatten()).reshape(len(lists), lists.type.list_size)


def save_vectors(shards: Shards, name: str, path: Path) -> np.ndarray:
    """Writes a column of vectors as one `.npy`, shard by shard; returns it mapped."""
    whole, first = None, 0
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp.npy")
    for table in shards.tables([name]):
        if not table.num_rows:
            continue
        rows = read_vectors(table, name)
        if whole is None:
            shape = (shards.num_rows, rows.shape[1])
            whole = np.lib.format.open_memmap(beside, "w+", rows.dtype, shape)
        whole[first : first + len(rows)] = rows
        first += len(rows)
    if whole is None:
        raise InputError(f"{shards.folder} has no rows")
    whole.flush()
    beside.replace(path)
    return whole


class VectorRows:
    """The embeddings in a folder of shards, by item number, read as they are needed."""

    def __init__(self, shards: Shards, name: str = "embedding") -> None:
        if not shards.num_rows:
            raise InputError(f"{shards.folder} has no rows")
        self._name, self._rows = name, rows_of(shards)
        self._ends = list(itertools.accumulate(shards.count()))
        self.num_rows = self._ends[-1]

    def blocks(self, size: int = 16_384) -> Iterator[Float32[np.ndarray, "rows E"]]:
        """All rows in their order, a block at a time."""
        for start in range(0, self.num_rows, size):
            yield self.read(start, min(start + size, self.num_rows))

    def read(self, start: int, stop: int) -> Float32[np.ndarray, "rows E"]:
        """Rows that follow one another, of any files; InputError if not finite."""
        found = []
        for shard, end in zip(self._rows, self._ends, strict=True):
            here = max(start - shard.first_row, 0), min(stop, end) - shard.first_row
            if here[0] < here[1]:
                found.append(_read_part(shard.path, self._name, *here))
        vectors = np.concatenate(found).astype(np.float32, copy=False)
        is_finite = np.isfinite(vectors).all(axis=1)
        if not is_finite.all():
            raise InputError(
                f"the embedding of item number {start + int(is_finite.argmin())} is "
                "not finite: run --stage=prepare_shards again with another encoder"
            )
        return vectors

    def take(self, rows: Int[np.ndarray, " B"]) -> Float32[np.ndarray, "B E"]:
        """Some rows, ascending; a row group in memory at a time."""
        found = []
        for start in range(0, self.num_rows, ROW_GROUP):
            stop = min(start + ROW_GROUP, self.num_rows)
            here = rows[(rows >= start) & (rows < stop)]
            if len(here):
                found.append(self.read(start, stop)[here - start])
        return np.concatenate(found)

    def sample(self, count: int, seed: int) -> Float32[np.ndarray, "B E"]:
        """Some rows drawn by seed, or all: the same however the files are cut."""
        if count >= self.num_rows:
            return self.read(0, self.num_rows)
        rng = np.random.default_rng([seed, _SAMPLE])
        return self.take(np.sort(rng.choice(self.num_rows, count, replace=False)))


def _read_part(path: Path, name: str, start: int, stop: int) -> np.ndarray:
    """Some rows of a file, of which only the row groups they lie in are decoded."""
    # Read and not mapped: the pages of a mapped file would stay in memory.
    with pa.parquet.ParquetFile(path) as file:
        groups = range(file.num_row_groups)
        ends = np.cumsum([file.metadata.row_group(g).num_rows for g in groups])
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop, side="left"))
        table = file.read_row_groups(range(first, last + 1), columns=[name])
    skipped = int(ends[first - 1]) if first else 0
    return read_vectors(table, name)[start - skipped : stop - skipped]
