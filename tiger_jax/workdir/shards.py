"""A folder of shards: each written whole, counted and hashed, and found again.

A finished folder has a manifest as every folder has, in which a file's entry also has
its row count. Workers leave these entries beside their files: by
``part-00003-of-00016.parquet`` lies ``part-00003-of-00016.json``, with the recipe that
made it, a hash of the config and of the inputs. A run of the same recipe leaves
finished shards alone; any other replaces them.
"""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tiger_jax.errors import InputError
from tiger_jax.workdir import artifacts, hashing, json_files, provenance

# Rows that are decoded together: who wants a few need not read a whole file.
ROW_GROUP = 16_384


@dataclasses.dataclass(frozen=True)
class ShardWriter:
    """Where a pipeline's workers put their shards; a few strings, sent to each.

    Attributes:
        folder: One folder that all workers reach under this path.
        recipe: Names what decides the content; see `recipe_of`.
    """

    folder: Path
    num_shards: int
    recipe: str
    suffix: str = "parquet"

    def path(self, shard: int) -> Path:
        return self.folder / f"part-{shard:05}-of-{self.num_shards:05}.{self.suffix}"

    def missing(self) -> list[int]:
        """The shards that this recipe has not finished."""
        return [s for s in range(self.num_shards) if self._entry(s) is None]

    def write_table(self, shard: int, table: pa.Table, **counts: Any) -> None:

        def write(path: Path) -> int:
            pa.parquet.write_table(table, path, row_group_size=ROW_GROUP)
            return table.num_rows

        self.write(shard, write, **counts)

    def write(self, shard: int, write: Callable[[Path], int], **counts: Any) -> None:
        """Writes a shard beside its place, and moves it there with its counts.

        Args:
            write: Writes the file that it is given, and returns its count of rows.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(shard)
        # Two workers may be given one shard; each has a file of its own.
        beside = path.with_name(f"{path.name}.{os.getpid()}.{id(write)}.tmp")
        rows = write(beside)
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        known = {
            "recipe": self.recipe,
            "rows": rows,
            "bytes": beside.stat().st_size,
            "sha256": hashing.hash_file(beside),
            **counts,
        }
        path.with_suffix(".json").unlink(missing_ok=True)
        beside.replace(path)
        json_files.write_json(path.with_suffix(".json"), known)

    def finish(self, **facts: Any) -> "Shards":
        """Writes the manifest and clears up; InputError if a shard is missing."""
        files = {}
        for shard in range(self.num_shards):
            entry = self._entry(shard)
            if entry is None:
                raise InputError(
                    f"{self.path(shard)} is missing: run the same command again"
                )
            files[self.path(shard).name] = entry
        for other in self.folder.glob("part-*"):
            is_half = other.suffix == ".tmp"
            if is_half or other.with_suffix(f".{self.suffix}").name not in files:
                other.unlink()
        artifacts.write_manifest(
            self.folder,
            stage=_stage_of(self.folder),
            content_hash=hashing.hash_json([e["sha256"] for e in files.values()]),
            fingerprint=self.recipe,
            config={},
            inputs={},
            external={},
            files=files,
            summary=json_files.canonical(facts),
            made=provenance.describe_environment(),
        )
        return Shards.load(self.folder)

    def whole(self) -> "Shards | None":
        """The folder, if this recipe has finished it."""
        with contextlib.suppress(InputError):
            shards = Shards.load(self.folder)
            if (shards.recipe, shards.num_shards) == (self.recipe, self.num_shards):
                return shards
        return None

    def _entry(self, shard: int) -> dict[str, Any] | None:
        path = self.path(shard)
        try:
            known = json_files.read_json(path.with_suffix(".json"))
            is_whole = path.stat().st_size == known["bytes"]
        except (OSError, ValueError, KeyError):
            return None
        return known if is_whole and known.get("recipe") == self.recipe else None


@dataclasses.dataclass(frozen=True, eq=False)
class Shards:
    """A whole folder of shards.

    Attributes:
        files: Of each file, by name and in order: `rows`, `bytes`, further counts.
        content_hash: Names the shards by their bytes.
    """

    folder: Path
    facts: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    content_hash: str
    recipe: str

    @classmethod
    def load(cls, folder: Path, *, verify: bool = False) -> "Shards":
        """Finds a folder's shards.

        Args:
            verify: Compare every file's SHA-256; otherwise only its size.

        Raises:
            InputError: No pipeline finished the folder, or a file is damaged.
        """
        folder = Path(folder)
        if not (folder / artifacts.MANIFEST).is_file():
            raise InputError(
                f"{folder} is no whole folder of shards: run "
                f"--stage={_stage_of(folder)}, which goes on where it stopped"
            )
        known = artifacts.load_manifest(folder, verify=verify)
        files = dict(sorted(known.files.items()))
        return cls(folder, known.summary, files, known.content_hash, known.fingerprint)

    @property
    def paths(self) -> list[Path]:
        return [self.folder / name for name in self.files]

    def count(self, name: str = "rows") -> list[int]:
        """A count of each file; by default its rows."""
        return [entry[name] for entry in self.files.values()]

    @property
    def num_shards(self) -> int:
        return len(self.files)

    @property
    def num_rows(self) -> int:
        return sum(self.count())

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Reads one shard after the other."""
        for path in self.paths:
            yield pa.parquet.read_table(path, columns=columns)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads all shards at once: for data that one machine holds."""
        found = list(self.tables(columns))
        return pa.concat_tables([t for t in found if t.num_rows] or found[:1])


@dataclasses.dataclass(frozen=True)
class ShardRows:
    """One shard's file, and the number of its first row among all."""

    path: Path
    first_row: int


def rows_of(shards: Shards) -> list[ShardRows]:
    """The shards of a folder, each with its first row's number."""
    firsts = itertools.accumulate(shards.count(), initial=0)
    return [ShardRows(*pair) for pair in zip(shards.paths, firsts, strict=False)]


def recipe_of(config: Mapping[str, Any], *inputs: Shards | str) -> str:
    """Names what decides a folder's content: the config, and folders or hashes read."""
    hashes = [i if isinstance(i, str) else i.content_hash for i in inputs]
    return hashing.hash_json({"config": dict(config), "inputs": hashes})


def cut_evenly(total: int, num_shards: int) -> list[int]:
    """Where contiguous shards begin, and the end of the last.

    Examples:
        >>> cut_evenly(10, 3)
        [0, 3, 6, 10]
    """
    return [total * shard // num_shards for shard in range(num_shards + 1)]


def texts(table: pa.Table, name: str) -> pa.Array:
    """A column as one Arrow array."""
    return table[name].combine_chunks()


def _stage_of(folder: Path) -> str:
    """The stage that makes a folder under `shards/`."""
    is_of_ids = {"semantic_ids", "tokens"} & {folder.name, folder.parent.name}
    return "assign_shards" if is_of_ids else "prepare_shards"
