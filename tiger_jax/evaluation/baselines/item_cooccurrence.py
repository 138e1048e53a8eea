"""Baseline: items that others bought close to yours. Hard to beat on Beauty."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from tiger_jax.config import config
from tiger_jax.evaluation import recommend_fn
from tiger_jax.evaluation.baselines.baseline import Baseline
from tiger_jax.histories import Histories

if TYPE_CHECKING:
    import scipy.sparse

    from tiger_jax.data.prepared import PreparedData

MAX_DISTANCE = 3  # items apart in a history that still count as together
BACKWARD_WEIGHT = 0.5  # what b then a says about a then b
LAST_ITEMS = 10  # of the history, in the query


@config("item_cooccurrence")
class ItemCooccurrence(Baseline):
    """Items that others bought close to the user's last ones."""

    name, title = "item_cooccurrence", "Item co-occurrence"

    def build(self, data: "PreparedData", workdir: Path) -> recommend_fn.RecommendFn:
        """Counts neighbours in the training histories."""
        return build_item_cooccurrence(data.train, data.num_items)


def count_neighbours(
    train: Histories,
    num_items: int,
    *,
    max_distance: int = MAX_DISTANCE,
    backward_weight: float = BACKWARD_WEIGHT,
) -> "scipy.sparse.csr_array":
    """Sums, for every pair of items, how closely one followed the other.

    C[a, b] = sum over the places where b comes d <= 3 after a of 1 / d, and half
    as much where it comes d before.

    Returns:
        Sparse [N, N]: row = the item at hand, column = the item to recommend.
    """
    import scipy.sparse

    user = np.repeat(np.arange(train.num_users), train.lengths)  # [total]
    rows, columns, weights = [], [], []
    for distance in range(1, max_distance + 1):
        together = user[distance:] == user[:-distance]
        first = train.items[:-distance][together]
        second = train.items[distance:][together]
        rows += [first, second]
        columns += [second, first]
        weights += [
            np.full(len(first), 1.0 / distance, np.float32),
            np.full(len(first), backward_weight / distance, np.float32),
        ]
    entries = np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))
    return scipy.sparse.coo_array(entries, shape=(num_items, num_items)).tocsr()


def build_item_cooccurrence(
    train: Histories, num_items: int, *, last_items: int = LAST_ITEMS
) -> recommend_fn.RecommendFn:
    """Scores an item by its neighbourhood with the user's last items.

        score(b) = sum_j C[a_j, b] / j  /  sqrt(1 + count(b)),   j = 1 for the newest

    The root of the item's count keeps bestsellers, which are near everything,
    from winning every list. Counts come from the training histories alone.
    """
    import scipy.sparse

    neighbours = count_neighbours(train, num_items)  # [N, N]
    counts = np.bincount(train.items, minlength=num_items)  # [N]
    discount = (1.0 / np.sqrt(1.0 + counts)).astype(np.float32)
    scaled = neighbours.multiply(discount[None, :]).tocsr()

    def score(
        user_numbers: recommend_fn.Users, histories: recommend_fn.Shown
    ) -> Float32[np.ndarray, "B N"]:
        weights = recommend_fn.recency_weights(histories, last_items)  # [B, I]
        user, place = np.nonzero(weights)
        query = scipy.sparse.csr_array(
            (weights[user, place], (user, histories[user, place])),
            shape=(len(histories), num_items),
        )
        return (query @ scaled).toarray().astype(np.float32, copy=False)

    return recommend_fn.ScoredCatalogue(score, num_items)
