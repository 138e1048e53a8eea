"""The format of what `evaluate` and `fuse` write, and reading it back.

``metrics.json`` has, of our recommender (or of the fused one), the mean of every metric
by split (``test``, ``test_masked``, ``validation``), their ``intervals``, the same of
every baseline (``baselines``, or ``parts``), what to call these (``titles``), and the
``settings`` in force. ``details.json`` has what only the report shows.
``predictions.jsonl`` is for people: one line per test user, with four decimals of each
score. The same lists at full precision are in ``lists/`` (`lists.SavedLists`).
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tiger_jax.evaluation import bootstrap, diversity, guards
from tiger_jax.evaluation.baselines.known import TITLES
from tiger_jax.evaluation.comparison import OURS, Comparison
from tiger_jax.evaluation.evaluator import Evaluation
from tiger_jax.evaluation.metrics import MAX_CUTOFF, compute_metrics, recall_at_k
from tiger_jax.histories import HeldOut
from tiger_jax.workdir.json_files import read_json, write_json

if TYPE_CHECKING:
    from tiger_jax.data.prepared import PreparedData

METRICS, DETAILS = "metrics.json", "details.json"
PREDICTIONS, LISTS = "predictions.jsonl", "lists"
TIE_RULE = "a tie counts against the target: it takes the worst place of its group"
OUR_TITLE, FUSED = "TIGER (this run)", "Fusion"
# Groups of targets by their number of training interactions: name, from, to.
TARGET_COUNTS = (
    ("never", 0, 0),
    ("1–5", 1, 5),
    ("6–20", 6, 20),
    ("over 20", 21, np.inf),
)


def read_record(folder: Path | None, name: str = METRICS) -> dict[str, Any] | None:
    """Reads one of the JSON files; None where it isn't there."""
    if folder is None or not (folder / name).is_file():
        return None
    return read_json(folder / name)


def title_of(record: Mapping[str, Any], name: str) -> str:
    """What tables call a method; records of earlier versions hold no titles."""
    return record.get("titles", {}).get(name) or TITLES.get(name, name)


def save_record(
    folder: Path,
    compared: Comparison,
    data: "PreparedData",
    *,
    settings: Mapping[str, Any],
    checks: Sequence[guards.GuardResult],
    num_predicted: int,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes everything that `evaluate` found out.

    Args:
        num_predicted: Items of each list in ``predictions.jsonl``.

    Returns:
        What is in ``metrics.json`` and in ``details.json``.
    """
    means, intervals = _summarize(compared.evaluations, compared.metrics, seed)
    test = compared.users["test"].held_out
    metrics = {
        **means.pop(OURS),
        "intervals": intervals.pop(OURS),
        "baselines": means,
        "titles": dict(compared.titles),
        "ceiling": data.ceiling,
        "invalid_ids": sum(found.num_invalid for found in compared.ours.values()),
        "settings": {
            **settings,
            "users": len(test.targets),
            "validation_users": len(compared.users["validation"].rows),
            "masking": "test and validation: none; test_masked: the user's own items",
            "ties": TIE_RULE,
            "catalogue": f"all {data.num_items:,} items compete",
            "seed": seed,
        },
    }
    details = {
        "baseline_intervals": intervals,
        "differences": [
            {"baseline": compared.titles[name], "split": split}
            | _difference(compared.ours[split], theirs, "recall@10", seed)
            for name, splits in compared.baselines.items()
            for split, theirs in splits.items()
        ],
        "diversity": _measure_diversity(compared, data),
        "by_target_count": _group_by_target(compared, data),
        "guards": [dataclasses.asdict(check) for check in checks],
    }
    write_json(folder / METRICS, metrics)
    write_json(folder / DETAILS, details)
    path = folder / PREDICTIONS
    _write_predictions(path, compared.ours["test"], test, data, num_predicted)
    compared.save_lists(folder / LISTS)
    return metrics, details


def collect_fusion(
    measured: Mapping[str, Mapping[str, Evaluation]],
    titles: Mapping[str, str],
    *,
    names: tuple[str, ...],
    seed: int,
) -> dict[str, Any]:
    """The fused recommender and its parts, all but the settings."""
    means, intervals = _summarize(measured, names, seed)
    fused = measured["fusion"]
    return {
        **means.pop("fusion"),
        "intervals": intervals.pop("fusion"),
        "parts": means,
        "part_intervals": intervals,
        "titles": dict(titles),
        "differences": [
            {"part": part, "split": split, "metric": metric}
            | _difference(fused[split], measured[part][split], metric, seed)
            for split in fused
            for part in means
            for metric in ("recall@10", "ndcg@10")
        ],
    }


def _summarize(
    evaluations: Mapping[str, Mapping[str, Evaluation]],
    names: tuple[str, ...],
    seed: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Means and intervals, each by recommender, split and metric."""
    means: dict[str, Any] = {name: {} for name in evaluations}
    intervals: dict[str, Any] = {name: {} for name in evaluations}
    for name, splits in evaluations.items():
        for split, found in splits.items():
            means[name][split] = compute_metrics(found.ranks, names)
            intervals[name][split] = bootstrap.metric_intervals(
                found.ranks, names, seed=seed
            )
    return means, intervals


def _difference(
    ours: Evaluation, theirs: Evaluation, metric: str, seed: int
) -> dict[str, float]:
    found = bootstrap.paired_difference(ours.ranks, theirs.ranks, metric, seed=seed)
    return dict(zip(("difference", "low", "high"), found, strict=True))


def _measure_diversity(compared: Comparison, data: "PreparedData") -> dict[str, Any]:
    categories = data.category_of_items()
    counts = data.occurrences
    rows = []
    for name, splits in compared.evaluations.items():
        lists = splits["test"].item_numbers
        entropy = (
            float(diversity.category_entropy(lists, categories, 10).mean())
            if any(categories)
            else None
        )
        coverage = diversity.catalogue_coverage(lists, data.num_items, 10)
        popularity = diversity.mean_popularity_rank(lists, counts, 10)
        values = [entropy, coverage, popularity]
        rows.append({"name": compared.titles.get(name, OUR_TITLE), "values": values})
    columns = ["Entropy@10", "Coverage@10", "Popularity rank@10"]
    return {"columns": columns, "rows": rows}


def _group_by_target(compared: Comparison, data: "PreparedData") -> dict[str, Any]:
    """Recall@10 by how often the target occurs in training."""
    targets = compared.users["test"].held_out.targets
    counts = data.occurrences[targets]  # [U]
    groups = [
        (name, inside)
        for name, low, high in TARGET_COUNTS
        if (inside := (counts >= low) & (counts <= high)).any()
    ]

    def recalls(found: Evaluation) -> list[float]:
        hits = recall_at_k(found.ranks, 10)
        return [float(hits[inside].mean()) for _, inside in groups]

    return {
        "groups": [name for name, _ in groups],
        "sizes": [int(inside.sum()) for _, inside in groups],
        "tiger": recalls(compared.ours["test"]),
        "baselines": {n: recalls(s["test"]) for n, s in compared.baselines.items()},
    }


def _write_predictions(
    path: Path, found: Evaluation, test: HeldOut, data: "PreparedData", num_items: int
) -> None:
    """One line per user: ids of users and items are those of the raw data."""
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:
        for row, user in enumerate(test.user_numbers.tolist()):
            rank = int(found.ranks[row])
            listed = found.item_numbers[row, :num_items].tolist()
            scores = found.scores[row, :num_items].tolist()
            line = {
                "user": data.user_ids[user],
                "history": [data.item_ids[i] for i in test.histories.of(row).tolist()],
                "target": data.item_ids[int(test.targets[row])],
                "rank": rank if rank < MAX_CUTOFF else None,
                "recommended": [
                    {"item_id": data.item_ids[item], "score": round(score, 4)}
                    for item, score in zip(listed, scores, strict=True)
                    if item >= 0
                ],
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
