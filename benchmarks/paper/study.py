"""A trained work directory, its users, and how rows and tables of it are made."""

from collections.abc import Iterable, Mapping, Sequence
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
from tiger_jax.recommending.trained_model import DENSE_WEIGHT, POPULARITY_WEIGHT
from tiger_jax.reporting.tables import format_mean
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
        self.workdir, self.seed, self.max_users = workdir, seed, max_users
        self.data = PreparedData.load(workdir / "data")
        validation = self.data.validation
        self.users, _ = evaluator.sample_users(validation, max_users, seed=seed)
        self.trained = artifacts.load_manifest(workdir / "recommender", verify=False)
        self.about = {
            "data": self.data.name,
            "split": "validation",
            "users": len(self.users.targets),
            "recommender": self.trained.content_hash,
            "commit": code_version(),
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        }

    @property
    def num_beams(self) -> int:
        """As training validates, and one more than the largest cutoff at least."""
        return max(21, self.trained.config["validation"].get("num_beams", 0))

    def load(
        self,
        num_beams: int,
        step: int | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> NumberedRecommender:
        """The recommender with a search of its own, or another step's, and weights."""
        weights = weights or {}
        search = SearchConfig(
            num_beams=num_beams,
            dense_weight=weights.get(DENSE_WEIGHT),
            popularity_weight=weights.get(POPULARITY_WEIGHT),
        )
        return load_numbered_recommender(self.workdir, self.data, search, step=step)

    def evaluate(
        self, recommend: Any, k: int, what: str, *, masked: bool = False
    ) -> evaluator.Evaluation:
        """Lists of k - 1 items per user: one more is asked for, to see ties."""
        return evaluator.evaluate(
            recommend,
            self.users,
            num_items=self.data.num_items,
            exclude_seen=masked,
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
    found: evaluator.Evaluation,
    seed: int,
    names: Iterable[str] = METRICS,
    suffix: str = "",
) -> Row:
    """Means and intervals of the metrics, with something after their names."""
    intervals = bootstrap.metric_intervals(found.ranks, tuple(names), seed=seed)
    values = metrics.compute_metrics(found.ranks, tuple(names))
    return {
        "metrics": {name + suffix: value for name, value in values.items()},
        "intervals": {name + suffix: ends for name, ends in intervals.items()},
    }


def join(*facts: Row) -> Row:
    """Facts of one case, measured one after the other."""
    kinds = ("metrics", "intervals")
    return {
        kind: {k: v for one in facts for k, v in one.get(kind, {}).items()}
        for kind in kinds
    }


def cell_of(rows: Sequence[Row], metric: str) -> str:
    """The mean over seeds and its 95 % interval, or one seed's interval over users."""
    rows = [row for row in rows if metric in row["metrics"]]
    if len(rows) > 1:
        return format_mean([r["metrics"][metric] for r in rows]).replace("-0.", "−.")
    if not rows:
        return ""
    value, ends = rows[0]["metrics"][metric], rows[0]["intervals"].get(metric)
    return lib.format_interval(value, ends)
