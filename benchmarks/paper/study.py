"""A trained work directory, its validation users, and how rows of it are made."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import lib
from benchmarks.lib import Row
from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError
from tiger_jax.evaluation import bootstrap, evaluator, metrics
from tiger_jax.recommending.numbered_recommender import (
    NumberedRecommender,
    load_numbered_recommender,
)
from tiger_jax.recommending.searcher import SearchConfig
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.provenance import code_version

METRICS = ("recall@5", "recall@10", "ndcg@10")


class Study:
    """What is measured of a trained work directory, on validation users."""

    def __init__(self, workdir: Path, *, max_users: int, seed: int) -> None:
        """Loads the data and draws the users.

        Raises:
            InputError: Nothing is trained there.
        """
        if not (workdir / "recommender" / artifacts.MANIFEST).is_file():
            raise InputError(f"no trained recommender in {workdir}: train one there")
        self.workdir, self.seed = workdir, seed
        self.data = PreparedData.load(workdir / "data")
        validation = self.data.validation
        self.users, _ = evaluator.sample_users(validation, max_users, seed=seed)
        self.trained = artifacts.load_manifest(workdir / "recommender", verify=False)
        self.about = {
            "data": self.data.name,
            "split": "validation",
            "users": len(self.users.targets),
            "seed": seed,
            "recommender": self.trained.content_hash,
            "commit": code_version(),
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        }

    def load(self, num_beams: int, step: int | None = None) -> NumberedRecommender:
        """The recommender with a search of its own, or another step's."""
        search = SearchConfig(num_beams=num_beams)
        return load_numbered_recommender(self.workdir, self.data, search, step=step)

    def evaluate(self, recommend: Any, k: int, what: str) -> evaluator.Evaluation:
        """Lists of k - 1 items per user: one more is asked for, to see ties."""
        return evaluator.evaluate(
            recommend,
            self.users,
            num_items=self.data.num_items,
            exclude_seen=False,
            k=k - 1,
            count_invalid=True,
            batch_size=128,
            description=what,
        )


def interval(values: np.ndarray, seed: int) -> list[float]:
    """95 % bootstrap interval of a mean over users."""
    means = bootstrap.resampled_means(
        values[:, None].astype(np.float64),
        num_resamples=bootstrap.NUM_RESAMPLES,
        seed=seed,
    )
    return np.quantile(means, bootstrap.PERCENTILES).tolist()


def recall_facts(
    found: evaluator.Evaluation, seed: int, names: Iterable[str] = METRICS
) -> Row:
    """Means and intervals of the metrics."""
    intervals = bootstrap.metric_intervals(found.ranks, seed=seed)
    return {
        "metrics": metrics.compute_metrics(found.ranks, tuple(names)),
        "intervals": {name: intervals[name] for name in names},
    }


def metric_cell(row: Row, metric: str) -> str:
    """A metric of a row with its interval, as a table shows it."""
    ends = row["intervals"].get(metric)
    return lib.format_interval(row["metrics"][metric], ends)
