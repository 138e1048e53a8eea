"""Baseline: the items whose text is nearest to the user's last items."""

import numpy as np
from jaxtyping import Float32, Int32

from tiger_jax.evaluation import recommend_fn

LAST_ITEMS = 5  # of the history, in the query
DECIMALS = 6  # of a cosine; float32 sums are no better than that


def build_semantic_knn(
    embeddings: Float32[np.ndarray, "N E"], *, last_items: int = LAST_ITEMS
) -> recommend_fn.RecommendFn:
    """Scores an item by the cosine with the user's last items, newest first.

        score(b) = cos(e_b, sum_j e_{a_j} / |e_{a_j}| / j),   j = 1 for the newest

    Scores are rounded, so that items with the same text are ties, as they should
    be, whatever the order in which a matrix product adds.
    """
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)  # [N, 1]
    directions = embeddings / np.maximum(length, 1e-12)  # [N, E]

    def score(
        user_numbers: Int32[np.ndarray, " B"], histories: Int32[np.ndarray, "B I"]
    ) -> Float32[np.ndarray, "B N"]:
        weights = recommend_fn.recency_weights(histories, last_items)  # [B, I]
        # Few items have weight, so only those are looked up. [B, P, E]
        place = np.argsort(-weights, axis=1, kind="stable")[:, :last_items]
        user = np.arange(len(histories))[:, None]
        query = np.einsum(
            "bp,bpe->be", weights[user, place], directions[histories[user, place]]
        )
        query /= np.maximum(np.linalg.norm(query, axis=1, keepdims=True), 1e-12)
        return np.round(query @ directions.T, DECIMALS)

    return recommend_fn.from_scores(score, len(embeddings))
