"""How varied recommendations are: over categories, and over the catalogue."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int, Int32


def category_entropy(
    item_numbers: Int32[np.ndarray, "U C"], category_of_items: Sequence[str], k: int
) -> Float64[np.ndarray, " U"]:
    """Entropy@k: how mixed the categories of a user's first k items are.

        H = -sum_c p_c ln p_c,   p_c = share of category c among the k items

    In nats; 0 when all come from one category, ln k when all differ. Items
    without a category ('') are left out; a list with none has entropy 0.

    References:
        Rajput et al. 2023, "Recommender Systems with Generative Retrieval", 4.3.
    """
    names, category = np.unique(np.asarray(category_of_items, str), return_inverse=True)
    top = item_numbers[:, :k]
    is_counted = (top >= 0) & (names[category[top]] != "")  # [U, k]
    codes = np.where(is_counted, category[top], len(names))  # [U, k]
    user = np.broadcast_to(np.arange(len(top))[:, None], codes.shape)
    counts = np.zeros((len(top), len(names) + 1))
    np.add.at(counts, (user, codes), 1.0)
    counts = counts[:, :-1]  # [U, categories]
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1.0)
    return -(share * np.log(np.where(share > 0, share, 1.0))).sum(1)


def catalogue_coverage(
    item_numbers: Int32[np.ndarray, "U C"], num_items: int, k: int
) -> float:
    """The share of the catalogue that at least one user gets among the first k."""
    top = item_numbers[:, :k]
    return len(np.unique(top[top >= 0])) / num_items


def mean_popularity_rank(
    item_numbers: Int32[np.ndarray, "U C"], counts: Int[np.ndarray, " N"], k: int
) -> float:
    """Where recommended items stand between most (0) and least bought (1).

    Equal counts share their mean place. 0.5 is what random lists would have.

    Args:
        item_numbers: Lists, padded with -1.
        counts: Training interactions of each item.
    """
    _, place, sizes = np.unique(-counts, return_inverse=True, return_counts=True)
    first = np.cumsum(sizes) - sizes
    standing = ((first + (sizes - 1) / 2) / max(1, len(counts) - 1))[place]  # [N]
    top = item_numbers[:, :k]
    return float(standing[top[top >= 0]].mean()) if (top >= 0).any() else float("nan")
