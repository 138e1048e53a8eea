"""What every reader returns: a shop's items and who met which of them when."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

CATEGORY_PATHS = pa.list_(pa.list_(pa.string()))
"""Type of the `categories` column: an item's category paths, root first."""

ITEM_COLUMNS = {
    "item_id": pa.string(),
    "title": pa.string(),
    "brand": pa.string(),
    "price": pa.float64(),
    "categories": CATEGORY_PATHS,
}
INTERACTION_COLUMNS = {
    "user_id": pa.string(),
    "item_id": pa.string(),
    "timestamp": pa.float64(),
}


@dataclass(frozen=True)
class RawShop:
    """Items and interactions as they were found, before any filtering.

    Readers (files, RecBole, MovieLens, Amazon, the synthetic shop) differ in
    everything but this. Row order is the source's and carries meaning: ready-made
    embeddings follow the items' order, and interactions with equal timestamps
    may keep theirs.

    Attributes:
        name: Short name of the data set, shown in reports ("amazon2014_beauty").
        items: One row per item, in the source's order, with at least the columns of
            `ITEM_COLUMNS`, and strings for all further ones, which serve as text
            fields. `item_id` is unique and not empty. Unknown titles and brands are
            empty strings, unknown prices null, unknown categories empty lists.
        interactions: One row per event, in the source's order, with exactly the
            columns of `INTERACTION_COLUMNS`; all values are known, and each
            `item_id` is in `items`. `timestamp` counts seconds, or anything else
            that grows with time.
        notes: What the reader counted and left out, or assumed; one sentence each,
            shown to the user.
        ceiling_by_user: For a generated shop, what the best possible recommender
            is expected to reach on each user's last interaction given all earlier
            ones, without masking seen items: {"u1": {"recall@1": .12, "recall@5": .3,
            "ndcg@5": .2, ...}}, the same keys for every user. None for real data.
        columns: Which column of a file became what; one sentence each, shown too.
    """

    name: str
    items: pa.Table
    interactions: pa.Table
    notes: tuple[str, ...] = ()
    ceiling_by_user: Mapping[str, Mapping[str, float]] | None = None
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the columns and their types: a reader's own mistake, not a user's."""
        for column in (*ITEM_COLUMNS, *self.items.column_names):
            kind = ITEM_COLUMNS.get(column, pa.string())
            if self.items.schema.field(column).type != kind:
                raise TypeError(f"items.{column} must be {kind}")
        if self.interactions.schema != pa.schema(INTERACTION_COLUMNS):
            raise TypeError(f"interactions must have columns {INTERACTION_COLUMNS}")

    @property
    def is_generated(self) -> bool:
        return self.ceiling_by_user is not None
