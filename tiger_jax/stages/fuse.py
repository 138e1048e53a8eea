"""The recommender fused with what is simpler than it: the folder `fusion/`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import numpy as np

from tiger_jax.config import config
from tiger_jax.data.item_vectors import load_embeddings, load_quantized_vectors
from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError
from tiger_jax.evaluation import bootstrap, evaluator, fusion, metrics
from tiger_jax.evaluation.baselines.item_cooccurrence import build_item_cooccurrence
from tiger_jax.evaluation.baselines.semantic_knn import build_semantic_knn
from tiger_jax.evaluation.evaluator import Evaluation
from tiger_jax.evaluation.recommend_fn import RecommendFn
from tiger_jax.histories import HeldOut
from tiger_jax.progress import say
from tiger_jax.recommending.trained_model import ModelCard
from tiger_jax.reporting import tables
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.list_candidates import load_candidates
from tiger_jax.stages.sasrec_artifact import load_sasrec
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import write_json

# Each part, and the folders that it is made from besides data/.
PARTS: Mapping[str, Sequence[str]] = {
    "tiger": ("candidates", "recommender"),
    "item_cooccurrence": (),
    "dense_knn": ("embeddings", "rqvae"),
    "sasrec": ("sasrec",),
}
# Name in metrics.json: whether seen items are masked.
SPLITS = {"test": False, "test_masked": True}


@config("fuse")
class FusionConfig:
    """What is fused, and how the weights are chosen.

    Attributes:
        parts: Of ``tiger``, ``item_cooccurrence``, ``dense_knn`` (nearest neighbours
            over the vectors that were quantized) and ``sasrec``; None takes all
            that the work directory has.
        normalizations: Scales to choose from (see `fusion.normalize_scores`).
        depth: Items of each part's list.
        metric: What the weights and the scale are chosen by, on validation users
            with their own items masked.
    """

    parts: tuple[str, ...] | None = None
    normalizations: tuple[str, ...] = fusion.NORMALIZATIONS
    depth: int = 100
    metric: str = "ndcg@10"

    def __post_init__(self) -> None:
        for name, values, known in (
            ("parts", self.parts or (), PARTS),
            ("normalizations", self.normalizations, fusion.NORMALIZATIONS),
        ):
            if unknown := set(values) - set(known):
                raise InputError(
                    f"fuse.FusionConfig.{name} names {sorted(unknown)}: known are "
                    f"{', '.join(known)}"
                )


@dataclasses.dataclass(frozen=True)
class Choice:
    """Weights by part, their scale, and the validation metric that they reach."""

    normalization: str
    weights: dict[str, float]
    value: float


@gin.configurable(module="stages")
def fuse(
    context: RunContext, *, seed: int = 0, config: FusionConfig | None = None
) -> None:
    """Sums the lists of several recommenders, weighted by what helps on validation.

    Writes ``metrics.json``: the fused recommender on test, masked and not, each part
    by itself on the same users, and what validation says of leaving a part out.

    Args:
        seed: Of the bootstrap.
        config: Parts and scales.

    Raises:
        InputError: A folder is missing or doesn't belong to the others.
    """
    config = config or FusionConfig()
    workdir = context.workdir
    names = config.parts or available_parts(workdir)
    folders = dict.fromkeys(f for name in names for f in PARTS[name])
    earlier_reads = artifacts.count_test_reads(workdir / "fusion")
    run = artifacts.begin(
        workdir,
        "fusion",
        stage="fuse",
        inputs=("data", *folders),
        config={"config": config, "parts": names, "seed": seed},
    )
    if run.is_current:
        return
    data = PreparedData.load(workdir / "data")
    validation, parts = _open(workdir, data, "validation", names)
    lists = {
        name: _evaluate(part, validation, data, config.depth, True, name)
        for name, part in parts.items()
    }
    chosen = choose(lists, validation, config)
    without = {
        name: choose({n: e for n, e in lists.items() if n != name}, validation, config)
        for name in (names if len(names) > 2 else ())
    }
    test, parts = _open(workdir, data, "test", names)
    measured: dict[str, dict[str, Evaluation]] = {}
    for split, masked in SPLITS.items():
        own = {
            name: _evaluate(part, test, data, config.depth, masked, name)
            for name, part in parts.items()
        }
        listed = {
            name: fusion.Part(_as_listed(test, found), parts[name].history_length)
            for name, found in own.items()
        }
        fused = fusion.FusedRecommender(
            listed,
            chosen.weights,
            normalization=chosen.normalization,
            depth=config.depth,
        )
        longest = max(part.history_length for part in parts.values())
        own["fusion"] = _evaluate(
            fusion.Part(fused, longest),
            test,
            data,
            metrics.LARGEST_CUTOFF,
            masked,
            "fusion",
        )
        measured[split] = own
    result = _collect(measured, seed)
    result["validation_masked"] = {
        "metric": config.metric,
        "fusion": chosen.value,
        "parts": {n: e.compute_metrics()[config.metric] for n, e in lists.items()},
        "without": {name: choice.value for name, choice in without.items()},
    }
    result["settings"] = {
        "weights": chosen.weights,
        "normalization": chosen.normalization,
        "depth": config.depth,
        "users": len(test.targets),
        "validation_users": len(validation.targets),
        "catalogue": f"all {data.num_items:,} items compete",
        "seed": seed,
    }
    write_json(run.folder / "metrics.json", result)
    _say(result)
    run.commit(
        summary={
            "recall@10, seen items masked": result["test_masked"]["recall@10"],
            "ndcg@10, seen items masked": result["test_masked"]["ndcg@10"],
            "weights": chosen.weights,
            "test_reads": earlier_reads + 1,
        }
    )


def available_parts(workdir: Path) -> tuple[str, ...]:
    """The parts whose folders a work directory has."""
    return tuple(
        name
        for name, folders in PARTS.items()
        if all((workdir / f / artifacts.MANIFEST).is_file() for f in folders)
    )


def choose(
    lists: Mapping[str, Evaluation], held_out: HeldOut, config: FusionConfig
) -> Choice:
    """Chooses weights for every scale, and then the scale."""
    found = []
    for how in config.normalizations:
        pool = fusion.pool_lists(
            [(e.item_numbers, e.scores) for e in lists.values()], how
        )
        weights, value = fusion.choose_weights(
            pool, held_out.targets, metric=config.metric
        )
        by_name = {
            name: round(float(weight), 4)
            for name, weight in zip(lists, weights, strict=True)
        }
        found.append(Choice(how, by_name, value))
    return max(found, key=lambda choice: choice.value)


def _open(
    workdir: Path, data: PreparedData, split: str, names: Sequence[str]
) -> tuple[HeldOut, dict[str, fusion.Part]]:
    """The users of a split and the parts; TIGER's lists are those on disk."""
    held_out = getattr(data, split)
    parts = {}
    for name in names:
        if name == "tiger":
            listed, held_out = load_candidates(workdir, data, split)
            length = ModelCard.load(workdir / "recommender").max_items
            parts[name] = fusion.Part(listed, length)
        else:
            parts[name] = _build(name, workdir, data)
    return held_out, parts


def _build(name: str, workdir: Path, data: PreparedData) -> fusion.Part:
    usual = 20  # the others look at fewer
    if name == "item_cooccurrence":
        recommend = build_item_cooccurrence(data.train, data.num_items)
        return fusion.Part(recommend, usual)
    if name == "dense_knn":
        vectors = load_embeddings(workdir / "embeddings", data.num_items)
        vectors = load_quantized_vectors(vectors, workdir / "rqvae")
        return fusion.Part(build_semantic_knn(np.asarray(vectors, np.float32)), usual)
    return fusion.Part(*load_sasrec(workdir, data.num_items))


def _evaluate(
    part: fusion.Part,
    held_out: HeldOut,
    data: PreparedData,
    depth: int,
    masked: bool,
    name: str,
) -> Evaluation:
    title = tables.BASELINE_NAMES.get(name, name)
    return evaluator.evaluate(
        part.recommend,
        held_out,
        num_items=data.num_items,
        exclude_seen=masked,
        k=depth,
        history_length=part.history_length,
        description=f"{title}{', masked' if masked else ''}",
    )


def _as_listed(held_out: HeldOut, found: Evaluation) -> RecommendFn:
    return fusion.ListedRecommender(
        held_out.user_numbers, found.item_numbers, found.scores
    )


def _collect(
    measured: Mapping[str, Mapping[str, Evaluation]], seed: int
) -> dict[str, Any]:
    """Means and intervals of the fused recommender and its parts, by split."""
    result: dict[str, Any] = {
        "intervals": {},
        "parts": {},
        "part_intervals": {},
        "differences": [],
    }
    for split, own in measured.items():
        ours = own["fusion"]
        result[split] = ours.compute_metrics()
        result["intervals"][split] = ours.compute_intervals(seed)
        for name, found in own.items():
            if name == "fusion":
                continue
            result["parts"].setdefault(name, {})[split] = found.compute_metrics()
            intervals = result["part_intervals"].setdefault(name, {})
            intervals[split] = found.compute_intervals(seed)
            for metric in ("recall@10", "ndcg@10"):
                mean, low, high = bootstrap.paired_difference(
                    ours.ranks, found.ranks, metric, seed=seed
                )
                difference = {"difference": mean, "low": low, "high": high}
                about = {"part": name, "split": split, "metric": metric}
                result["differences"].append({**about, **difference})
    return result


def _say(result: Mapping[str, Any]) -> None:
    for split in SPLITS:
        ours = result["parts"].get("tiger", {}).get(split)
        rows = [tables.ResultRow(tables.OURS, "baseline", ours)] if ours else []
        rows += tables.build_fusion_rows(result, split)
        title = "Test" + (", items that the user already has masked" * SPLITS[split])
        say("\n" + tables.format_result_table(title, rows))
    chosen = result["validation_masked"]
    without = [f"{n} alone left out {v:.4f}" for n, v in chosen["without"].items()]
    fused = f"masked validation {chosen['metric']} {chosen['fusion']:.4f}"
    say("\n" + "; ".join([fused, *without]))
