"""Joins interactions with their items, and gathers each user's in one bucket.

An item that everybody bought has as many interactions as a shop has users, and no
worker could hold them. So interactions don't meet their items: each shard asks for
its distinct items' rows, once each, and is joined with the answers where it lies.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from tiger_jax.beam.blocks import BUCKETS_BY, buckets_of, column, gather, scatter
from tiger_jax.beam.raw import RawShards
from tiger_jax.beam.runner import Flow, Keyed, RunnerConfig
from tiger_jax.errors import InputError
from tiger_jax.workdir.shards import (
    ShardRows,
    Shards,
    ShardWriter,
    recipe_of,
    rows_of,
    texts,
)

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

    The tables are of `SCHEMA`; on the way items fall into as many buckets as users.
    InputError if an item is given twice, or an interaction's item is unknown.
    """
    buckets = {"buckets": num_buckets, "by": BUCKETS_BY}
    recipe = recipe_of(buckets, raw.items, raw.interactions)
    shards = rows_of(raw.interactions)
    join = functools.partial(_join_shard, shards=shards, num_buckets=num_buckets)
    flow = Flow(
        _write_bucket,
        {
            "items": (rows_of(raw.items), _emit_items),
            "ask": (list(enumerate(raw.interactions.paths)), emit_asked),
        },
        {"look up": _look_up, "join": join},
    )
    return runner.write(ShardWriter(folder, num_buckets, recipe), flow)


def _emit_items(rows: ShardRows, wanted: Sequence[int]) -> Iterator[Keyed]:
    """Each item and its row, to the item's bucket."""
    table = pa.parquet.read_table(rows.path, columns=["item_id"])
    number = np.arange(rows.first_row, rows.first_row + table.num_rows)
    table = table.append_column("row", pa.array(number))
    yield from scatter(table, buckets_of(texts(table, "item_id"), len(wanted)), wanted)


def emit_asked(shard: tuple[int, Path], wanted: Sequence[int]) -> Iterator[Keyed]:
    """Each distinct item of a numbered shard of interactions, to the item's bucket."""
    distinct = pc.unique(
        pa.parquet.read_table(shard[1], columns=["item_id"])["item_id"]
    )
    number = pa.array(np.full(len(distinct), shard[0]))
    table = pa.table({"item_id": distinct, "shard": number})
    yield from scatter(table, buckets_of(distinct, len(wanted)), wanted)


def _look_up(
    bucket: tuple[int, dict[str, Iterable[bytes]]], _: Sequence[int]
) -> Iterator[Keyed]:
    """The rows of a bucket's items, to the shards that asked for them."""
    parts = bucket[1]
    asked = gather(parts["ask"])
    items = gather(parts["items"], "row")
    ids = texts(items, "item_id") if items else pa.array([], pa.string())
    if len(ids) != len(pc.unique(ids)):
        counts = pc.value_counts(ids)
        twice = counts.filter(pc.greater(counts.field("counts"), 1))
        raise InputError(
            f"item {twice[0].as_py()['values']!r} is given more than once among the "
            "raw items: keep one row an item"
        )
    if asked is None:
        return
    place = pc.index_in(texts(asked, "item_id"), value_set=ids)
    if place.null_count:
        row = pc.index(pc.is_null(place), True).as_py()
        raise InputError(
            f"item {asked['item_id'][row].as_py()!r} of an interaction is not among "
            f"the raw items ({place.null_count:,} such items in one bucket, each shard "
            "counted): add the items, or leave those interactions out"
        )
    item_rows = column(items, "row")[np.asarray(place)]
    answer = pa.table({"item_id": asked["item_id"], "item_row": item_rows})
    shards = column(asked, "shard")
    yield from scatter(answer, shards, np.unique(shards).tolist())


def _join_shard(
    answered: tuple[int, Iterable[bytes]],
    missing: Sequence[int],
    *,
    shards: Sequence[ShardRows],
    num_buckets: int,
) -> Iterator[Keyed]:
    """A shard's interactions with their items' rows, to their users' buckets."""
    number, blocks = answered
    rows = shards[number]
    answers = gather(blocks)
    assert answers is not None
    events = pa.parquet.read_table(
        rows.path, columns=["user_id", "item_id", "timestamp"]
    )
    place = pc.index_in(texts(events, "item_id"), value_set=texts(answers, "item_id"))
    item_rows = column(answers, "item_row")[np.asarray(place)]
    row = np.arange(rows.first_row, rows.first_row + events.num_rows)
    events = events.append_column("item_row", pa.array(item_rows))
    events = events.append_column("row", pa.array(row)).select(SCHEMA.names)
    users = buckets_of(texts(events, "user_id"), num_buckets)
    yield from scatter(events, users, missing)


def _write_bucket(shard: int, blocks: Iterable[bytes], writer: ShardWriter) -> None:
    table = gather(blocks, "row") or SCHEMA.empty_table()
    num_users = len(pc.unique(table["user_id"]))
    writer.write_table(shard, table, users=num_users)
