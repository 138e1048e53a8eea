"""Baselines: the items whose vectors are nearest to the user's last items."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from tiger_jax.config import config
from tiger_jax.data.item_vectors import load_embeddings, load_quantized_vectors
from tiger_jax.evaluation import recommend_fn
from tiger_jax.evaluation.baselines.baseline import Baseline

if TYPE_CHECKING:
    from tiger_jax.data.prepared import PreparedData

LAST_ITEMS = 5  # of the history, in the query
DECIMALS = 6  # of a cosine; float32 sums are no better than that


@config("semantic_knn")
class SemanticKnn(Baseline):
    """Nearest neighbours over the embeddings of the items' texts."""

    name, title = "semantic_knn", "Semantic KNN"
    inputs = ("embeddings",)

    def build(self, data: "PreparedData", workdir: Path) -> recommend_fn.RecommendFn:
        """Reads the vectors."""
        vectors = load_embeddings(workdir / "embeddings", data.num_items)
        return build_semantic_knn(vectors)


@config("semantic_knn")
class DenseKnn(Baseline):
    """Nearest neighbours over the vectors that were quantized."""

    name, title = "dense_knn", "KNN over the codes' vectors"
    inputs = ("embeddings", "rqvae")

    def build(self, data: "PreparedData", workdir: Path) -> recommend_fn.RecommendFn:
        """Reads the vectors."""
        vectors = load_embeddings(workdir / "embeddings", data.num_items)
        vectors = load_quantized_vectors(vectors, workdir / "rqvae")
        return build_semantic_knn(np.asarray(vectors, np.float32))


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
        user_numbers: recommend_fn.Users, histories: recommend_fn.Shown
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

    return recommend_fn.ScoredCatalogue(score, len(embeddings))
