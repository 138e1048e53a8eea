"""Ranks by looking at every item, against which those from lists are checked."""

import numpy as np
from jaxtyping import Float32, Int32

from tiger_jax.evaluation.metrics import MISS


def ranks_in_catalogue(
    scores: Float32[np.ndarray, "B N"], targets: Int32[np.ndarray, " B"]
) -> Int32[np.ndarray, " B"]:
    """Finds each target's 0-based rank among all N items, worst place of its ties.

    A target scored -inf (excluded) is a `MISS`.
    """
    score = scores[np.arange(len(targets)), targets]  # [B]
    rank = (scores >= score[:, None]).sum(1) - 1
    return np.where(np.isneginf(score), MISS, rank).astype(np.int32)
