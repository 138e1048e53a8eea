"""Baseline: everybody gets the most bought items."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from tiger_jax.config import config
from tiger_jax.evaluation import recommend_fn
from tiger_jax.evaluation.baselines.baseline import Baseline
from tiger_jax.histories import Histories

if TYPE_CHECKING:
    from tiger_jax.data.prepared import PreparedData


@config("popularity")
class Popularity(Baseline):
    """Everybody gets the most bought items."""

    name, title = "popularity", "Popularity"

    def build(self, data: "PreparedData", workdir: Path) -> recommend_fn.RecommendFn:
        """Counts the training histories."""
        return build_popularity(data.train, data.num_items)


def build_popularity(train: Histories, num_items: int) -> recommend_fn.RecommendFn:
    """Scores an item by how often it occurs in the training histories.

    On Amazon Beauty, ties against the target and the user's own items masked,
    Recall@10 is .0110. The .0114 that is quoted elsewhere comes from the order of
    equal counts in the file (a target is then ranked by luck) and no masking.
    """
    counts = np.bincount(train.items, minlength=num_items).astype(np.float32)  # [N]

    def score(
        user_numbers: recommend_fn.Users, histories: recommend_fn.Shown
    ) -> Float32[np.ndarray, "B N"]:
        return np.broadcast_to(counts, (len(histories), num_items))

    return recommend_fn.ScoredCatalogue(score, num_items)
