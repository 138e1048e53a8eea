"""A raw shop in shards: `raw/items/` and `raw/interactions/`, rows in their order."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from tiger_jax.beam.blocks import to_bytes
from tiger_jax.beam.runner import Flow, RunnerConfig
from tiger_jax.data.raw_shop import INTERACTION_COLUMNS, ITEM_COLUMNS, RawShop
from tiger_jax.data.readers import columns
from tiger_jax.data.readers.assemble import ColumnNames, read_items
from tiger_jax.data.readers.naming import find_columns
from tiger_jax.data.readers.raw_source import find_source
from tiger_jax.data.readers.reader import Reader
from tiger_jax.data.tables.parquet_files import parquet_parts, read_parquet
from tiger_jax.data.tables.table import SourceTable
from tiger_jax.errors import InputError
from tiger_jax.workdir.shards import Shards, ShardWriter, cut_evenly, recipe_of

KINDS = ("items", "interactions")


@dataclasses.dataclass(frozen=True)
class RawShards:
    """A raw shop that no machine needs to hold.

    Attributes:
        items: With the columns of `RawShop.items`.
        interactions: With the columns of `RawShop.interactions`.
        is_generated: Whether it is a synthetic shop, which stays unfiltered.
        notes: What a reader had to say.
    """

    items: Shards
    interactions: Shards
    name: str
    is_generated: bool = False
    notes: Sequence[str] = ()


def open_raw(
    data_dir: Path | None,
    folder: Path,
    source: str,
    reader: Reader | None,
    *,
    num_shards: int,
    runner: RunnerConfig,
) -> RawShards:
    """Takes over a folder of Parquet files by worker, or cuts up what a reader reads.

    InputError if the data can't be used.
    """
    if data_dir is not None and all((data_dir / kind).is_dir() for kind in KINDS):
        return _import_parquet(data_dir, folder, runner)
    found = find_source(data_dir, source, reader=reader)
    return write_raw_shards(found.read(), folder, num_shards=num_shards)


def write_raw_shards(shop: RawShop, folder: Path, *, num_shards: int) -> RawShards:
    """Cuts a shop that a reader holds in memory into shards."""
    found = []
    for kind, table in zip(KINDS, (shop.items, shop.interactions), strict=True):
        rows = hashlib.sha256(to_bytes(table.combine_chunks())).hexdigest()
        writer = ShardWriter(folder / kind, num_shards, recipe_of({kind: rows}))
        ends = cut_evenly(table.num_rows, num_shards)
        for shard in writer.missing():
            start, stop = ends[shard], ends[shard + 1]
            writer.write_table(shard, table.slice(start, stop - start))
        found.append(writer.whole() or writer.finish())
    is_generated = shop.ceiling_by_user is not None
    return RawShards(found[0], found[1], shop.name, is_generated, shop.notes)


def _import_parquet(data_dir: Path, folder: Path, runner: RunnerConfig) -> RawShards:
    """Reads Parquet files, one per worker, as the local reader does."""
    found = []
    for kind in KINDS:
        paths = parquet_parts(data_dir / kind)
        if not paths:
            raise InputError(f"there are no Parquet files of {kind}")
        known = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in paths]
        writer = ShardWriter(folder / kind, len(paths), recipe_of({"files": known}))
        work = functools.partial(_import, kind=kind, paths=tuple(paths))
        found.append(runner.write(writer, Flow(work)))
    return RawShards(found[0], found[1], data_dir.resolve().name)


def _import(
    shard: int,
    blocks: Iterable[bytes],
    writer: ShardWriter,
    *,
    kind: str,
    paths: tuple[Path, ...],
) -> None:
    del blocks  # none came
    path = paths[shard]
    table, unusable = read_parquet(path, None)
    source = SourceTable(path, table, unusable, lambda r: f"{path}, row {r + 1}")
    wanted = ITEM_COLUMNS if kind == "items" else INTERACTION_COLUMNS
    there, _ = find_columns(source, {n: n for n in wanted}, options="files.FilesConfig")
    for name in ("item_id",) if kind == "items" else INTERACTION_COLUMNS:
        if name not in there:
            raise InputError(f"{path} has no column {name!r}: add it")
    if kind == "items":
        table = read_items(source, ColumnNames(user_id="", **there))[0]
    else:
        arrays: dict[str, Any] = {
            name: columns.read_ids(source, there[name])
            for name in ("user_id", "item_id")
        }
        arrays["timestamp"] = columns.read_times(source, there["timestamp"])
        table = pa.table(arrays)
    writer.write_table(shard, table)
