"""Items that join a tiny catalogue, and histories to recommend to."""

import numpy as np

from tiger_jax.recommending.new_items import NewItem

HISTORIES = [["item-1", "item-2"], ["item-9"], ["item-40", "item-3", "item-8"]]


def new_items(number: int, seed: int = 0) -> list[NewItem]:
    vectors = np.random.default_rng(seed).normal(size=(number, 6))
    return [
        NewItem(
            f"new-{seed}-{n}",
            f"Novelty {n}",
            categories=[["All", "Shelf 1"]],
            attributes={"in_stock": bool(n % 2)},
            embedding=vector.tolist(),
        )
        for n, vector in enumerate(vectors)
    ]
