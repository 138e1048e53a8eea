"""Nearest neighbours over text, collaborative and joined vectors, one row each.

    python -m benchmarks.paper.collaborative_vectors --workdir=runs/beauty

What codes can say is bounded by the vectors that they quantize; this measures those
vectors by themselves, in seconds and without training, on validation users with
their own items masked. The collaborative vectors come from training histories only.
"""

from pathlib import Path

import numpy as np

from benchmarks import lib
from benchmarks.lib import Row
from benchmarks.paper.study import recall_facts
from tiger_jax.data.item_vectors import join_text
from tiger_jax.data.prepared import PreparedData
from tiger_jax.embedding.collaborative import CollaborativeConfig, embed_cooccurrence
from tiger_jax.evaluation import evaluator
from tiger_jax.evaluation.baselines.semantic_knn import build_semantic_knn
from tiger_jax.workdir.provenance import code_version

METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")


def measure(
    workdir: Path, *, dims: int, weight: float, max_users: int, seed: int
) -> list[Row]:
    """One row for each kind of vector."""
    data = PreparedData.load(workdir / "data")
    text = np.load(workdir / "embeddings" / "embeddings.npy", allow_pickle=False)
    users, _ = evaluator.sample_users(data.validation, max_users, seed=seed)
    config = CollaborativeConfig(dims=dims, weight=weight)
    vectors = embed_cooccurrence(data.train, data.num_items, config, seed=seed)
    kinds = {
        "text": text,
        "collaborative": vectors,
        "joined": join_text(text, weight * vectors),
    }
    rows = []
    for name, items in kinds.items():
        found = evaluator.evaluate(
            build_semantic_knn(items),
            users,
            num_items=data.num_items,
            exclude_seen=True,
            description=f"nearest by {name}",
        )
        rows.append(
            {
                "vectors": name,
                "data": data.name,
                "split": "validation, masked",
                "users": len(users.targets),
                "seed": seed,
                "commit": code_version(),
                "dims": dims,
                "weight": weight,
                **recall_facts(found, seed, METRICS),
            }
        )
    return rows


def main() -> None:
    """Prints the rows as JSON."""
    parser = lib.make_parser(__doc__, "workdir", "seed")
    parser.add_argument("--dims", type=int, default=128)
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("--max_users", type=int, default=4000)
    for row in measure(**vars(parser.parse_args())):
        lib.report(row)


if __name__ == "__main__":
    lib.run(main)
