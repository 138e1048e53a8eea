"""Several recommenders fused: weights from validation users, metrics on test users."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from tiger_jax.config import config
from tiger_jax.evaluation import bootstrap, fusion, metrics, record
from tiger_jax.evaluation.baselines import baseline, known
from tiger_jax.evaluation.comparison import OURS, SPLITS
from tiger_jax.evaluation.evaluator import Evaluation, evaluate
from tiger_jax.evaluation.lists import ListedRecommender
from tiger_jax.evaluation.recommend_fn import RecommendFn
from tiger_jax.histories import HeldOut
from tiger_jax.workdir.json_files import ADDED_LATER

OpenSplit = Callable[[str], tuple[HeldOut, Mapping[str, RecommendFn]]]


@config("fuse")
class FusionConfig:
    """What is fused, and how the weights are chosen.

    Attributes:
        parts: ``tiger``, and baselines as `evaluate` takes them: names, such as
            ``item_cooccurrence``, ``dense_knn`` (nearest neighbours over the vectors
            that were quantized) and ``sasrec``, or configs; None takes all of these
            that the work directory has.
        normalizations: Scales to choose from (see `fusion.normalize_scores`).
        depth: Items of each part's list.
        metric: What the weights and the scale are chosen by, on validation users
            with their own items masked.
        metrics: Names of metrics besides `metrics.REPORTED`.
    """

    parts: tuple[str | baseline.Baseline, ...] | None = None
    normalizations: tuple[str, ...] = fusion.NORMALIZATIONS
    depth: int = 100
    metric: str = "ndcg@10"
    metrics: tuple[str, ...] = dataclasses.field(default=(), metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        metrics.check_names((self.metric, *self.metrics))
        known.resolve([part for part in self.parts or () if part != OURS])
        if unknown := set(self.normalizations) - set(fusion.NORMALIZATIONS):
            raise ValueError(
                f"normalizations names {sorted(unknown)}: known are "
                f"{', '.join(fusion.NORMALIZATIONS)}"
            )


def fuse_and_measure(
    open_split: OpenSplit,
    config: FusionConfig,
    *,
    num_items: int,
    titles: Mapping[str, str],
    seed: int,
) -> dict[str, Any]:
    """Chooses weights, fuses, and measures: the content of ``fusion/metrics.json``."""
    depth, metric = config.depth, config.metric
    names = metrics.with_reported(config.metrics)

    def measure(name: str, recommend: RecommendFn, **settings: Any) -> Evaluation:
        masked = ", masked" if settings["exclude_seen"] else ""
        description = titles.get(name, name) + masked
        return evaluate(
            recommend, num_items=num_items, description=description, **settings
        )

    def choose(lists: Mapping[str, Evaluation]) -> fusion.Choice:
        return fusion.choose(lists, validation.targets, config.normalizations, metric)

    validation, parts = open_split("validation")
    lists = {
        name: measure(name, part, held_out=validation, exclude_seen=True, k=depth)
        for name, part in parts.items()
    }
    chosen = choose(lists)
    without = {
        left_out: choose({n: e for n, e in lists.items() if n != left_out})
        for left_out in (lists if len(lists) > 2 else ())
    }

    def ranks_by(choice: fusion.Choice) -> Any:
        used = {n: (lists[n].item_numbers, lists[n].scores) for n in choice.weights}
        fused = fusion.fuse_lists(
            used,
            choice.weights,
            normalization=choice.normalization,
            k=metrics.MAX_CUTOFF + 1,
        )
        return metrics.ranks_in_lists(*fused, validation.targets)

    gains = {
        left_out: bootstrap.paired_difference(
            ranks_by(chosen), ranks_by(choice), metric, seed=seed
        )
        for left_out, choice in without.items()
    }
    test, parts = open_split("test")
    measured: dict[str, dict[str, Evaluation]] = {n: {} for n in (*parts, "fusion")}
    for split, (of, masked) in SPLITS.items():
        if of != "test":
            continue
        listed = {}
        for name, part in parts.items():
            found = measure(name, part, held_out=test, exclude_seen=masked, k=depth)
            measured[name][split] = found
            listed[name] = found.item_numbers, found.scores
        fused = ListedRecommender(
            test.user_numbers,
            *fusion.fuse_lists(
                listed,
                chosen.weights,
                normalization=chosen.normalization,
                k=metrics.MAX_CUTOFF + 1,
            ),
        )
        measured["fusion"][split] = measure(
            "fusion", fused, held_out=test, exclude_seen=masked, k=metrics.MAX_CUTOFF
        )
    return {
        **record.collect_fusion(measured, titles, names=names, seed=seed),
        "validation_masked": {
            "metric": metric,
            "fusion": chosen.value,
            "parts": {
                name: metrics.compute_metrics(found.ranks, (metric,))[metric]
                for name, found in lists.items()
            },
            "without": {name: choice.value for name, choice in without.items()},
            "gains": gains,
        },
        "settings": {
            "weights": chosen.weights,
            "normalization": chosen.normalization,
            "depth": depth,
            "users": len(test.targets),
            "validation_users": len(validation.targets),
            "catalogue": f"all {num_items:,} items compete",
            "seed": seed,
        },
    }
