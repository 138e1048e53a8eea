"""Several recommenders fused: weights from validation users, metrics on test users."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tiger_jax.evaluation import fusion, metrics, record
from tiger_jax.evaluation.comparison import SPLITS
from tiger_jax.evaluation.evaluator import Evaluation, evaluate
from tiger_jax.evaluation.lists import ListedRecommender
from tiger_jax.evaluation.recommend_fn import RecommendFn
from tiger_jax.histories import HeldOut

OpenSplit = Callable[[str], tuple[HeldOut, Mapping[str, RecommendFn]]]


def fuse_and_measure(
    open_split: OpenSplit,
    *,
    num_items: int,
    depth: int,
    normalizations: Sequence[str],
    metric: str,
    names: tuple[str, ...],
    titles: Mapping[str, str],
    seed: int,
) -> dict[str, Any]:
    """Chooses weights, fuses, and measures: the content of ``fusion/metrics.json``.

    Args:
        open_split: Gives the users of a split and the parts by name.
        num_items: Size of the catalogue.
        depth: Items of each part's list.
        normalizations: Scales to choose from.
        metric: What is chosen by, with the users' own items masked.
        names: Of the metrics that are reported.
        titles: What to call the parts.
        seed: Of the bootstrap.
    """

    def measure(name: str, recommend: RecommendFn, **settings: Any) -> Evaluation:
        masked = ", masked" if settings["exclude_seen"] else ""
        description = titles.get(name, name) + masked
        return evaluate(
            recommend, num_items=num_items, description=description, **settings
        )

    def choose(lists: Mapping[str, Evaluation]) -> fusion.Choice:
        return fusion.choose(lists, validation.targets, normalizations, metric)

    validation, parts = open_split("validation")
    lists = {
        name: measure(name, part, held_out=validation, exclude_seen=True, k=depth)
        for name, part in parts.items()
    }
    chosen = choose(lists)
    without = {
        left_out: choose({n: e for n, e in lists.items() if n != left_out}).value
        for left_out in (lists if len(lists) > 2 else ())
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
                n: e.compute_metrics((metric,))[metric] for n, e in lists.items()
            },
            "without": without,
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
