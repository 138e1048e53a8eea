"""A raw shop in shards: `raw/items/` and `raw/interactions/`, rows in their order."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from tiger_jax.beam.blocks import to_bytes
from tiger_jax.beam.runner import RunnerConfig
from tiger_jax.beam.steps import each_shard
from tiger_jax.data.raw_shop import INTERACTION_COLUMNS, ITEM_COLUMNS, RawShop
from tiger_jax.errors import InputError
from tiger_jax.workdir.json_files import read_json, write_json
from tiger_jax.workdir.shards import Shards, ShardWriter, cut_evenly, recipe_of

_FACTS = "shop.json"


@dataclasses.dataclass(frozen=True)
class RawShards:
    """A raw shop that no machine needs to hold.

    Attributes:
        items: Shards with the columns of `RawShop.items`.
        interactions: Shards with the columns of `RawShop.interactions`.
        name: Of the data set.
        is_generated: Whether it is a synthetic shop, which stays unfiltered.
        notes: What a reader had to say.
    """

    items: Shards
    interactions: Shards
    name: str
    is_generated: bool = False
    notes: tuple[str, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> "RawShards":
        """Reads what `write_raw_shards` or `import_parquet` wrote.

        Raises:
            InputError: The folder holds no whole raw shop.
        """
        items = Shards.load(folder / "items")
        interactions = Shards.load(folder / "interactions")
        try:
            facts = read_json(folder / _FACTS)
            return cls(
                items,
                interactions,
                facts["name"],
                facts["is_generated"],
                tuple(facts["notes"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{folder} holds no raw shop in shards: {error}"
            ) from error


def write_raw_shards(
    shop: RawShop,
    folder: Path,
    *,
    num_shards: int,
    external: dict[str, str] | None = None,
) -> RawShards:
    """Cuts a shop that a reader holds in memory into shards.

    Args:
        shop: From any of the local stages' readers.
        folder: Where to write `items/`, `interactions/` and `shop.json`.
        num_shards: Of each.
        external: Hashes of the files that were read; the rows decide if None.
    """
    for name, table in (("items", shop.items), ("interactions", shop.interactions)):
        shown = external or {"rows": _hash_table(table)}
        writer = ShardWriter(
            folder / name, num_shards, recipe_of({"table": name, "raw": shown})
        )
        if writer.whole() is None:
            ends = cut_evenly(table.num_rows, num_shards)
            for shard in writer.missing():
                start, stop = ends[shard], ends[shard + 1]
                writer.write_table(shard, table.slice(start, stop - start))
            writer.finish()
    _write_facts(folder, shop.name, shop.ceiling_by_user is not None, tuple(shop.notes))
    return RawShards.load(folder)


def import_parquet(
    items: Sequence[Path],
    interactions: Sequence[Path],
    folder: Path,
    *,
    name: str,
    runner: RunnerConfig,
) -> RawShards:
    """Checks Parquet files, one a worker, and takes them over as shards.

    Args:
        items: Files with at least `item_id`; further columns must be texts.
        interactions: Files with `user_id`, `item_id` and `timestamp`.
        folder: Where to write.
        name: Of the data set.
        runner: Where it runs.

    Raises:
        InputError: A column is missing or of another kind, or a value is missing.
    """
    for kind, paths in (("items", items), ("interactions", interactions)):
        if not paths:
            raise InputError(f"there are no Parquet files of {kind}")
        stats = [path.stat() for path in paths]
        known = [
            [str(p), s.st_size, s.st_mtime_ns]
            for p, s in zip(paths, stats, strict=True)
        ]
        writer = ShardWriter(folder / kind, len(paths), recipe_of({"files": known}))
        each_shard(runner, writer, _Import(kind, tuple(paths)))
    _write_facts(folder, name, False, ())
    return RawShards.load(folder)


@dataclasses.dataclass(frozen=True)
class _Import:
    """The work on one raw file; sent to workers."""

    kind: str
    paths: tuple[Path, ...]

    def __call__(self, shard: int, writer: ShardWriter) -> None:
        path = self.paths[shard]
        try:
            table = pa.parquet.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{path} is no Parquet file: {error}") from error
        columns = ITEM_COLUMNS if self.kind == "items" else INTERACTION_COLUMNS
        taken: dict[str, Any] = {}
        for name, kind in columns.items():
            if name in table.column_names:
                taken[name] = _cast(table[name], kind, path, name)
            elif name in ("item_id", *INTERACTION_COLUMNS):
                raise InputError(f"{path} has no column {name!r}: add it")
            else:
                taken[name] = _unknown(name, kind, table.num_rows)
        for name in table.column_names:
            if self.kind == "items" and name not in columns:
                taken[name] = pc.fill_null(
                    _cast(table[name], pa.string(), path, name), ""
                )
        for name in taken:
            if name in ("item_id", *INTERACTION_COLUMNS):
                _refuse_missing(taken[name], path, name)
            elif name in ("title", "brand"):
                taken[name] = pc.fill_null(taken[name], "")
        writer.write_table(shard, pa.table(taken))


def _cast(values: pa.ChunkedArray, kind: pa.DataType, path: Path, name: str) -> Any:
    try:
        return values.cast(kind)
    except pa.ArrowException as error:
        raise InputError(
            f"{path}: column {name!r} holds {values.type} and must be {kind}"
        ) from error


def _unknown(name: str, kind: pa.DataType, num_rows: int) -> pa.Array:
    if pa.types.is_string(kind):
        return pa.array([""] * num_rows, kind)
    if name == "categories":
        return pa.array([[]] * num_rows, kind)
    return pa.nulls(num_rows, kind)


def _refuse_missing(values: pa.ChunkedArray, path: Path, name: str) -> None:
    is_known = pc.is_valid(values)
    if pa.types.is_string(values.type):
        is_known = pc.and_(is_known, pc.not_equal(pc.fill_null(values, ""), ""))
    elif pa.types.is_floating(values.type):
        is_known = pc.fill_null(pc.is_finite(values), False)
    row = pc.index(is_known, False).as_py()
    if row >= 0:
        raise InputError(f"{path}, row {row + 1}: no {name!r} is given: fill it in")


def _write_facts(
    folder: Path, name: str, is_generated: bool, notes: tuple[str, ...]
) -> None:
    facts = {"name": name, "is_generated": is_generated, "notes": notes}
    write_json(folder / _FACTS, facts)


def _hash_table(table: pa.Table) -> str:
    """Names rows by the bytes of their Arrow stream."""
    return hashlib.sha256(to_bytes(table.combine_chunks())).hexdigest()
