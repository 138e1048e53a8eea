"""A trained recommender to measured recommendations: the folder `evaluation/`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gin
import numpy as np

from tiger_jax.config import config
from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError
from tiger_jax.evaluation import evaluator, guards, metrics
from tiger_jax.evaluation import record as evaluation_record
from tiger_jax.evaluation.baselines.item_cooccurrence import build_item_cooccurrence
from tiger_jax.evaluation.baselines.popularity import build_popularity
from tiger_jax.evaluation.baselines.semantic_knn import build_semantic_knn
from tiger_jax.evaluation.recommend_fn import RecommendFn
from tiger_jax.histories import HeldOut
from tiger_jax.progress import say
from tiger_jax.recommending.numbered_recommender import (
    NumberedRecommender,
    load_numbered_recommender,
)
from tiger_jax.recommending.searcher import SearchConfig
from tiger_jax.reporting import paper_rows, tables
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.sasrec_artifact import load_sasrec
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.arrays import load_array
from tiger_jax.workdir.json_files import write_json

INPUTS = ("data", "embeddings", "semantic_ids", "recommender")
SASREC = "sasrec"  # an input where it is there: a baseline that has to be trained
BASELINES = ("popularity", "item_cooccurrence", "semantic_knn")
# Name in metrics.json: (which held-out items, whether seen items are masked).
SPLITS = {
    "test": ("test", False),
    "test_masked": ("test", True),
    "validation": ("validation", False),
}
LEAST_EXACT_USERS = 4
TIE_RULE = "a tie counts against the target: it takes the worst place of its group"


@config("evaluate")
class EvaluateConfig:
    """What is measured, on whom.

    Attributes:
        batch_size: Users searched at a time.
        max_users: Measure on so many users, drawn by seed; None for all.
        max_validation_users: The same for the validation split.
        baselines: Which baselines stand beside the recommender. SASRec does too,
            where `train_sasrec` has been run.
        guard_users: Users on whom the checks run; 0 for none.
        exact_guard_scores: The search is compared with exact scoring of the whole
            catalogue on as many of them as this number of item scores pays for,
            unless that is fewer than 4.
        predictions: Items of each list that are written to predictions.jsonl.
    """

    batch_size: int = 128
    max_users: int | None = None
    max_validation_users: int | None = None
    baselines: tuple[str, ...] = BASELINES
    guard_users: int = 64
    exact_guard_scores: int = 200_000
    predictions: int = 20

    def __post_init__(self) -> None:
        unknown = set(self.baselines) - set(BASELINES)
        if unknown:
            raise InputError(
                f"evaluate.EvaluateConfig.baselines names {sorted(unknown)}: known "
                f"are {', '.join(BASELINES)}; SASRec stands there once "
                "--stage=train_sasrec has been run"
            )


@gin.configurable(module="stages")
def evaluate(
    context: RunContext,
    *,
    seed: int = 0,
    config: EvaluateConfig | None = None,
    search: SearchConfig | None = None,
) -> None:
    """Ranks every user's held-out items over the whole catalogue.

    The test split is read here and nowhere else: whatever was chosen, was chosen
    on validation. The manifest counts how often it has been read in this work
    directory with another configuration.

    Args:
        seed: Of the bootstrap, and of the samples of users.
        config: What is measured.
        search: How the recommender finds its items.

    Raises:
        InputError: An input is missing or doesn't belong to the others, or a
            setting is out of range.
    """
    config, search = config or EvaluateConfig(), search or SearchConfig()
    _check_beams(search)
    earlier_reads = artifacts.count_test_reads(context.workdir / "evaluation")
    has_sasrec = (context.workdir / SASREC / artifacts.MANIFEST).is_file()
    run = artifacts.begin(
        context.workdir,
        "evaluation",
        stage="evaluate",
        inputs=INPUTS + ((SASREC,) if has_sasrec else ()),
        config={"config": config, "search": search, "seed": seed},
    )
    if run.is_current:
        return
    data = PreparedData.load(context.workdir / "data")
    ours = load_numbered_recommender(context.workdir, data, search)
    held_out = _sample(data, config, seed)
    checks = _run_guards(ours, held_out["validation"], config, search, seed)
    recommenders: dict[str, RecommendFn] = {
        **_build_baselines(data, context.workdir, config),
        "tiger": ours,
    }
    shown_items = dict.fromkeys(recommenders, ours.max_items)
    if has_sasrec:
        recommenders[SASREC], shown_items[SASREC] = load_sasrec(
            context.workdir, data.num_items
        )
    evaluations = {
        name: {
            split: evaluator.evaluate(
                recommend,
                held_out[of],
                num_items=data.num_items,
                exclude_seen=masked,
                history_length=shown_items[name],
                batch_size=config.batch_size,
                description=f"{tables.BASELINE_NAMES.get(name, 'TIGER')}, {split}",
            )
            for split, (of, masked) in SPLITS.items()
            if name == "tiger" or of == "test"
        }
        for name, recommend in recommenders.items()
    }
    baselines = {n: e for n, e in evaluations.items() if n != "tiger"}
    checks.append(
        guards.check_lists_differ(
            evaluations["tiger"]["test"].item_numbers, data.num_items
        )
    )
    result = evaluation_record.collect_metrics(
        evaluations["tiger"], baselines, data, seed
    )
    result["settings"] = {
        **dataclasses.asdict(search),
        "normalize": ours.normalize,
        "history_length": ours.max_items,
        "users": len(held_out["test"].targets),
        "validation_users": len(held_out["validation"].targets),
        "masking": "test and validation: none; test_masked: the user's own items",
        "ties": TIE_RULE,
        "catalogue": f"all {data.num_items:,} items compete",
        "seed": seed,
    }
    details = evaluation_record.collect_details(
        evaluations, held_out["test"], data, seed
    )
    details["guards"] = [dataclasses.asdict(check) for check in checks]
    write_json(run.folder / "metrics.json", result)
    write_json(run.folder / "details.json", details)
    evaluation_record.write_predictions(
        run.folder / "predictions.jsonl",
        evaluations["tiger"]["test"],
        held_out["test"],
        data,
        config.predictions,
    )
    _say_results(result, details, data)
    run.commit(
        summary={
            "recall@10": result["test"]["recall@10"],
            "recall@10, seen items masked": result["test_masked"]["recall@10"],
            "test split": "read once for this configuration, after selection on "
            "validation",
            "test_reads": earlier_reads + 1,
        }
    )


def _check_beams(search: SearchConfig) -> None:
    # One more than the largest cutoff, to see whether a tie goes on beyond it.
    least = metrics.LARGEST_CUTOFF + 1
    if search.method == "beam" and search.num_beams < least:
        raise InputError(
            f"recommendation.SearchConfig.num_beams is {search.num_beams}: metrics at "
            f"{metrics.LARGEST_CUTOFF} need at least {least}"
        )


def _sample(
    data: PreparedData, config: EvaluateConfig, seed: int
) -> dict[str, HeldOut]:
    test, _ = evaluator.sample_users(data.test, config.max_users, seed=seed)
    validation, _ = evaluator.sample_users(
        data.validation, config.max_validation_users or config.max_users, seed=seed
    )
    for split, part in (("test", test), ("validation", validation)):
        if not len(part.targets):
            raise InputError(
                f"the {split} split is empty: no user has enough interactions; lower "
                "the k-core and run --stage=prepare_data again"
            )
    return {"test": test, "validation": validation}


def _build_baselines(
    data: PreparedData, workdir: Path, config: EvaluateConfig
) -> dict[str, RecommendFn]:
    build = {
        "popularity": lambda: build_popularity(data.train, data.num_items),
        "item_cooccurrence": lambda: build_item_cooccurrence(
            data.train, data.num_items
        ),
        "semantic_knn": lambda: build_semantic_knn(
            load_array(workdir / "embeddings" / "embeddings.npy")
        ),
    }
    return {name: build[name]() for name in config.baselines}


def _run_guards(
    ours: NumberedRecommender,
    validation: HeldOut,
    config: EvaluateConfig,
    search: SearchConfig,
    seed: int,
) -> list[guards.GuardResult]:
    """Checks the recommender on a few validation users; says loudly what fails."""
    if not config.guard_users:
        return []
    sample, _ = evaluator.sample_users(validation, config.guard_users, seed=seed)
    found = []
    if len(sample.targets) > 1:
        found.append(
            guards.check_history_matters(
                ours.first_codeword_log_probs, sample, history_length=ours.max_items
            )
        )
    affordable = config.exact_guard_scores // ours.num_items
    if search.method == "beam" and affordable >= LEAST_EXACT_USERS:
        few = sample.select(np.arange(min(affordable, len(sample.targets))))
        found.append(
            guards.check_search_is_exact(
                ours, ours.recommend_exactly, few, history_length=ours.max_items
            )
        )
    return found


def _say_results(
    result: Mapping[str, Any], details: Mapping[str, Any], data: PreparedData
) -> None:
    known = paper_rows.recognise(
        data.num_users, data.num_items, len(data.histories.items)
    )
    published = paper_rows.PUBLISHED[known.name] if known else ()
    titles = {
        "test": "Test, whole catalogue (the headline)",
        "test_masked": "Test, items that the user already has masked",
    }
    for split, title in titles.items():
        rows = tables.build_result_rows(result, split, published=published)
        say("\n" + tables.format_result_table(title, rows))
    say("")
    for check in details["guards"]:
        say(("ok: " if check["is_fine"] else "WARNING: ") + check["explanation"])
