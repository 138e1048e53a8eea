"""Joins interactions with their items, and gathers each user's in one bucket."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from tiger_jax.beam.blocks import Keyed, buckets_of, column, gather, scatter, texts
from tiger_jax.beam.raw import RawShards
from tiger_jax.beam.runner import RunnerConfig
from tiger_jax.beam.shards import ShardRows, Shards, ShardWriter, recipe_of, rows_of
from tiger_jax.beam.steps import collect, run_missing, spread
from tiger_jax.errors import InputError

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("item_row", pa.int64()),
        ("timestamp", pa.float64()),
    ]
)


def join_interactions(
    raw: RawShards, folder: Path, num_buckets: int, runner: RunnerConfig
) -> Shards:
    """Writes each bucket of users: all their interactions, in the raw rows' order.

    Args:
        raw: The raw shop.
        folder: Where to write tables of `SCHEMA`: the interaction's raw row, and its
            item's.
        num_buckets: Into how many buckets users, and on the way items, fall.
        runner: Where it runs.

    Raises:
        InputError: An item is given twice, or an interaction's item is unknown.
    """
    recipe = recipe_of({"buckets": num_buckets}, raw.items, raw.interactions)
    writer = ShardWriter(folder, num_buckets, recipe)
    emit = functools.partial(_emit, num_buckets=num_buckets)

    def build(pipeline: beam.Pipeline, missing: list[int]) -> None:
        every = range(num_buckets)  # an item's bucket has users of all
        parts = {
            name: spread(pipeline, rows_of(shards), emit, every, name)
            for name, shards in (
                ("items", raw.items),
                ("interactions", raw.interactions),
            )
        }
        blocks = (
            parts
            | "By item" >> beam.CoGroupByKey()
            | "Join"
            >> beam.FlatMap(
                functools.partial(_join, num_buckets=num_buckets, missing=missing)
            ).with_output_types(Keyed)
        )
        collect(pipeline, blocks, writer, _write, missing)

    return run_missing(runner, writer, build)


def _emit(
    rows: ShardRows, wanted: Sequence[int], *, num_buckets: int
) -> Iterator[Keyed]:
    names = pa.parquet.read_schema(rows.path).names
    kept = [name for name in ("user_id", "item_id", "timestamp") if name in names]
    table = pa.parquet.read_table(rows.path, columns=kept)
    number = np.arange(rows.first_row, rows.first_row + table.num_rows)
    table = table.append_column("row", pa.array(number))
    yield from scatter(table, buckets_of(texts(table, "item_id"), num_buckets), wanted)


def _join(
    bucket: tuple[int, dict[str, Iterable[bytes]]],
    *,
    num_buckets: int,
    missing: Sequence[int],
) -> Iterator[Keyed]:
    parts = bucket[1]
    events = gather(parts["interactions"], "row")
    items = gather(parts["items"], "row")
    ids = texts(items, "item_id") if items else pa.array([], pa.string())
    if len(ids) != len(pc.unique(ids)):
        counts = pc.value_counts(ids)
        twice = counts.filter(pc.greater(counts.field("counts"), 1))
        raise InputError(
            f"item {twice[0].as_py()['values']!r} is given more than once among the "
            "raw items: keep one row an item"
        )
    if events is None:
        return
    place = pc.index_in(texts(events, "item_id"), value_set=ids)
    if place.null_count:
        row = pc.index(pc.is_null(place), True).as_py()
        raise InputError(
            f"item {events['item_id'][row].as_py()!r} of an interaction is not among "
            f"the raw items ({place.null_count:,} such interactions in one bucket): "
            "add the items, or leave those interactions out"
        )
    item_rows = column(items, "row")[np.asarray(place)]
    events = events.append_column("item_row", pa.array(item_rows))
    users = buckets_of(texts(events, "user_id"), num_buckets)
    yield from scatter(events.select(SCHEMA.names), users, missing)


def _write(shard: int, blocks: list[bytes], writer: ShardWriter) -> None:
    table = gather(blocks, "row")
    table = SCHEMA.empty_table() if table is None else table
    num_users = len(pc.unique(table["user_id"]))
    writer.write_table(shard, table, users=num_users)
