"""Many rows as one element: Arrow tables on their way between workers.

Beam's cost is by element, and a row is a small one. So elements here are tables, as
the bytes of Arrow's own format, keyed by the number of the bucket or shard that they
go to: nothing is pickled, and each function works on columns.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Int, Int64

from tiger_jax.beam.runner import Keyed
from tiger_jax.input_pipeline.quiet_tensorflow import tf
from tiger_jax.workdir.shards import ShardWriter

# Where items are on their way: a shop's own columns may have any other name.
ITEM_NUMBER = "item_number (ours)"
_NO_ITEMS = pa.table({"item_id": pa.array([], pa.string())})


def to_bytes(table: pa.Table) -> bytes:
    """A table in Arrow's stream format."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def from_bytes(data: bytes) -> pa.Table:
    """The table that `to_bytes` was given."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()


def gather(blocks: Iterable[bytes], sort_by: str | None = None) -> pa.Table | None:
    """All rows that came for one key, None if nothing did; empty bytes are no rows.

    Sorted by a column of numbers that no two rows share, no runner decides their order.
    """
    tables = [from_bytes(block) for block in blocks if block]
    if not tables:
        return None
    whole = pa.concat_tables(tables).combine_chunks()
    if sort_by is None:
        return whole
    order = np.argsort(column(whole, sort_by), kind="stable")
    return whole.take(pa.array(order))


def scatter(
    table: pa.Table, keys: Int[np.ndarray, " rows"], wanted: Sequence[int]
) -> Iterator[Keyed]:
    """Cuts a table into one block per wanted key, in the rows' order."""
    order = np.argsort(keys, kind="stable")
    kept = np.array(sorted(set(wanted)), np.int64)
    ends = np.asarray(np.searchsorted(keys[order], [kept, kept + 1]))
    ordered = table.take(pa.array(order))
    for key, (start, stop) in zip(kept.tolist(), ends.T.tolist(), strict=True):
        if stop > start:
            yield key, to_bytes(ordered.slice(start, stop - start))


def write_items(
    shard: int,
    blocks: Iterable[bytes],
    writer: ShardWriter,
    *,
    empty: pa.Table = _NO_ITEMS,
) -> None:
    """Writes a shard of items in the order of their numbers, which it leaves out."""
    table = gather(blocks, ITEM_NUMBER)
    table = empty if table is None else table.drop_columns([ITEM_NUMBER])
    writer.write_table(shard, table)


# Goes into the recipe of what lies in buckets of texts: another way to choose them must
# not go on with shards of this one.
BUCKETS_BY = "tf.strings.to_hash_bucket_fast"


def buckets_of(texts: pa.Array, num_buckets: int) -> Int64[np.ndarray, " rows"]:
    """The bucket of each text: the same on every machine, in every run."""
    found = tf.constant(texts.to_numpy(zero_copy_only=False), tf.string)
    return tf.strings.to_hash_bucket_fast(found, num_buckets).numpy()


def shards_of(
    numbers: Int[np.ndarray, " rows"], ends: Sequence[int]
) -> Int64[np.ndarray, " rows"]:
    """Which of the contiguous ranges each number lies in.

    Examples:
        >>> shards_of(np.array([0, 3, 9]), [0, 3, 6, 10]).tolist()
        [0, 1, 2]
    """
    inner = np.asarray(ends[1:-1], np.int64)
    return np.asarray(np.searchsorted(inner, numbers, side="right"), np.int64)


def column(table: pa.Table, name: str) -> np.ndarray:
    """A column of numbers as an array."""
    return table[name].to_numpy()
