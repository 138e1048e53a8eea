"""What `evaluate` writes: metrics.json, details.json and predictions.jsonl."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tiger_jax.evaluation import diversity, metrics, names
from tiger_jax.evaluation.bootstrap import paired_difference
from tiger_jax.evaluation.evaluator import Evaluation
from tiger_jax.evaluation.recommend_fn import count_items
from tiger_jax.histories import HeldOut

if TYPE_CHECKING:
    from tiger_jax.data.prepared import PreparedData

# Groups of targets by their number of training interactions: name, from, to.
TARGET_COUNTS = (("never", 0, 0), ("1–5", 1, 5), ("6–20", 6, 20), ("over 20", 21, None))


def collect_metrics(
    ours: Mapping[str, Evaluation],
    baselines: Mapping[str, Mapping[str, Evaluation]],
    data: "PreparedData",
    seed: int,
) -> dict[str, Any]:
    """Everything in ``metrics.json`` but the settings.

    Args:
      ours: By split.
      baselines: By name and split.
      data: For the ceiling, where it is known.
      seed: Of the bootstrap.
    """
    return {
        **{split: found.compute_metrics() for split, found in ours.items()},
        "intervals": {
            split: found.compute_intervals(seed) for split, found in ours.items()
        },
        "baselines": {
            name: {split: found.compute_metrics() for split, found in splits.items()}
            for name, splits in baselines.items()
        },
        "ceiling": data.ceiling,
        "invalid_ids": sum(found.num_invalid for found in ours.values()),
    }


def collect_details(
    evaluations: Mapping[str, Mapping[str, Evaluation]],
    test: HeldOut,
    data: "PreparedData",
    seed: int,
) -> dict[str, Any]:
    """What the report shows beyond the metrics."""
    ours = evaluations["tiger"]
    baselines = {n: e for n, e in evaluations.items() if n != "tiger"}
    differences = []
    for name, splits in baselines.items():
        for split, theirs in splits.items():
            mean, low, high = paired_difference(
                ours[split].ranks, theirs.ranks, "recall@10", seed=seed
            )
            differences.append(
                {
                    "baseline": names.BASELINE_NAMES[name],
                    "split": split,
                    "difference": mean,
                    "low": low,
                    "high": high,
                }
            )
    return {
        "baseline_intervals": {
            name: {split: e.compute_intervals(seed) for split, e in splits.items()}
            for name, splits in baselines.items()
        },
        "differences": differences,
        "diversity": _measure_diversity(evaluations, data),
        "by_target_count": _group_by_target(evaluations, test, data),
    }


def _measure_diversity(
    evaluations: Mapping[str, Mapping[str, Evaluation]], data: "PreparedData"
) -> dict[str, Any]:
    categories = data.category_of_items()
    counts = count_items(data.train, data.num_items)
    rows = []
    for name, splits in evaluations.items():
        lists = splits["test"].item_numbers
        entropy = (
            float(diversity.category_entropy(lists, categories, 10).mean())
            if any(categories)
            else None
        )
        coverage = diversity.catalogue_coverage(lists, data.num_items, 10)
        popularity = diversity.mean_popularity_rank(lists, counts, 10)
        rows.append(
            {
                "name": names.BASELINE_NAMES.get(name, names.OURS),
                "values": [entropy, coverage, popularity],
            }
        )
    columns = ["Entropy@10", "Coverage@10", "Popularity rank@10"]
    return {"columns": columns, "rows": rows}


def _group_by_target(
    evaluations: Mapping[str, Mapping[str, Evaluation]],
    test: HeldOut,
    data: "PreparedData",
) -> dict[str, Any]:
    """Recall@10 by how often the target occurs in training."""
    counts = count_items(data.train, data.num_items)[test.targets]  # [U]
    groups = []
    for name, low, high in TARGET_COUNTS:
        inside = (counts >= low) & (counts <= (high if high is not None else np.inf))
        if inside.any():
            groups.append((name, inside))

    def recalls(found: Evaluation) -> list[float]:
        hits = metrics.recall_at_k(found.ranks, 10)
        return [float(hits[inside].mean()) for _, inside in groups]

    return {
        "groups": [name for name, _ in groups],
        "sizes": [int(inside.sum()) for _, inside in groups],
        "tiger": recalls(evaluations["tiger"]["test"]),
        "baselines": {
            name: recalls(splits["test"])
            for name, splits in evaluations.items()
            if name != "tiger"
        },
    }


def write_predictions(
    path: Path, found: Evaluation, test: HeldOut, data: "PreparedData", num_items: int
) -> None:
    """One line a user: ids of users and items are those of the raw data."""
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:
        for row, user in enumerate(test.user_numbers.tolist()):
            rank = int(found.ranks[row])
            listed = found.item_numbers[row, :num_items].tolist()
            scores = found.scores[row, :num_items].tolist()
            line = {
                "user": data.user_ids[user],
                "history": [data.item_ids[i] for i in test.histories.of(row).tolist()],
                "target": data.item_ids[int(test.targets[row])],
                "rank": rank if rank < metrics.LARGEST_CUTOFF else None,
                "recommended": [
                    {"item_id": data.item_ids[item], "score": round(score, 4)}
                    for item, score in zip(listed, scores, strict=True)
                    if item >= 0
                ],
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
