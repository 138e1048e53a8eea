"""The join's work does not grow with an item's popularity."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from tiger_jax.beam.blocks import from_bytes
from tiger_jax.beam.joined import emit_asked
from tiger_jax.beam.prepare import _emit_counts
from tiger_jax.beam.raw import write_raw_shards
from tiger_jax.data.raw_shop import CATEGORY_PATHS, RawShop


def shop_of_one_popular_item(num_events):
    items = pa.table(
        {
            "item_id": ["everybody's", "nobody's"],
            "title": ["", ""],
            "brand": ["", ""],
            "price": pa.nulls(2, pa.float64()),
            "categories": pa.nulls(2, CATEGORY_PATHS),
        }
    )
    events = pa.table(
        {
            "user_id": [f"u{n % 7}" for n in range(num_events)],
            "item_id": ["everybody's"] * num_events,
            "timestamp": np.arange(num_events).astype(float),
        }
    )
    return RawShop("popular", items, events)


def test_a_shard_asks_for_each_item_once(tmp_path):
    """A shard asks for an item once, however often it was bought."""
    shop = shop_of_one_popular_item(1000)
    raw = write_raw_shards(shop, tmp_path, num_shards=2)
    asked = [
        from_bytes(block).to_pydict()
        for shard in enumerate(raw.interactions.paths)
        for _, block in emit_asked(shard, range(3))
    ]
    assert asked == [{"item_id": ["everybody's"], "shard": [n]} for n in (0, 1)]


def test_neighbouring_items_are_counted_in_different_shards(tmp_path):
    rows = np.arange(40)
    table = pa.table({"user_id": ["u"] * 40, "item_row": rows, "row": rows})
    pa.parquet.write_table(table, tmp_path / "bucket.parquet")
    blocks = _emit_counts(
        tmp_path / "bucket.parquet", range(4), alive=None, min_user=0, num_shards=4
    )
    assert [from_bytes(block).num_rows for _, block in blocks] == [10] * 4
