"""The rows of a generated shop: ten interactions a user and, by Zipf's law, an item."""

import numpy as np
import pyarrow as pa

from tiger_jax.data.raw_shop import CATEGORY_PATHS

HISTORY = 10


def draw_zipf(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers below `size` by Zipf's law."""
    upto = np.cumsum(1 / np.arange(1, size + 1))
    return np.searchsorted(upto, rng.random(count) * upto[-1])


def name_items(numbers: np.ndarray) -> pa.Array:
    """The ids of items."""
    return pa.array(np.char.add("i", numbers.astype(str)))


def make_items(first: int, last: int, titles: pa.Array | None = None) -> pa.Table:
    """Items `first` to `last`, with nothing but a title, if that."""
    count = last - first
    empty = pa.array([""] * count, pa.string())
    return pa.table(
        {
            "item_id": name_items(np.arange(first, last)),
            "title": empty if titles is None else titles,
            "brand": empty,
            "price": pa.nulls(count, pa.float64()),
            "categories": pa.nulls(count, CATEGORY_PATHS),
        }
    )


def make_interactions(
    users: np.ndarray, item_ids: pa.Array, times: np.ndarray
) -> pa.Table:
    """Interactions, in the order given."""
    user_ids = pa.array(users).cast(pa.string())
    return pa.table({"user_id": user_ids, "item_id": item_ids, "timestamp": times})
