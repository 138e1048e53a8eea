import numpy as np
from small_workdir import make_workdir

from benchmarks.paper.collaborative_vectors import measure
from tiger_jax.data.prepared import PreparedData


def test_the_benchmark_has_one_row_for_each_kind_of_vector(tmp_path):
    make_workdir(tmp_path)
    num_items = PreparedData.load(tmp_path / "data").num_items
    vectors = np.random.default_rng(0).normal(size=(num_items, 6)).astype(np.float32)
    (tmp_path / "embeddings").mkdir(exist_ok=True)
    np.save(tmp_path / "embeddings" / "embeddings.npy", vectors)
    rows = measure(tmp_path, dims=3, weight=1.0, max_users=10, seed=0)
    assert [row["vectors"] for row in rows] == ["text", "collaborative", "joined"]
    for row in rows:
        assert row["users"] == 10
        low, high = row["intervals"]["recall@10"]
        assert low <= row["metrics"]["recall@10"] <= high
