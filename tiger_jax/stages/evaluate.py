"""A trained recommender to measured recommendations: the folder `evaluation/`."""

import dataclasses

import gin

from tiger_jax.config import config
from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError, flag
from tiger_jax.evaluation import comparison, guards, metrics, record
from tiger_jax.evaluation.baselines.baseline import Baseline
from tiger_jax.evaluation.baselines.known import resolve
from tiger_jax.evaluation.baselines.sasrec import TrainedSasRec
from tiger_jax.progress import say
from tiger_jax.recommending import numbered_recommender
from tiger_jax.recommending.searcher import SearchConfig
from tiger_jax.reporting import tables
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import ADDED_LATER

USUAL_BASELINES = ("popularity", "item_cooccurrence", "semantic_knn")
INPUTS = ("data", "embeddings", "semantic_ids", "recommender")


@config("evaluate")
class EvaluateConfig:
    """What is measured, on whom.

    Attributes:
        batch_size: Users searched at a time.
        max_users: Measure on so many users, drawn by seed; None for all.
        max_validation_users: The same for the validation split.
        baselines: Which baselines stand beside the recommender: names of those that
            are known, or configs (`baselines.baseline.Baseline`). SASRec stands there
            too, where `train_sasrec` has been run.
        metrics: Names of metrics besides `metrics.REPORTED`, such as ``mine@10``.
        guard_users: Users on whom the checks run; 0 for none.
        exact_guard_scores: The search is compared with exact scoring of the whole
            catalogue on as many of them as this number of item scores pays for,
            unless that is fewer than 4.
        predictions: Items of each list that are written to predictions.jsonl.
    """

    batch_size: int = 128
    max_users: int | None = None
    max_validation_users: int | None = None
    baselines: tuple[str | Baseline, ...] = USUAL_BASELINES
    metrics: tuple[str, ...] = dataclasses.field(default=(), metadata=ADDED_LATER)
    guard_users: int = 64
    exact_guard_scores: int = 200_000
    predictions: int = 20

    def __post_init__(self) -> None:
        metrics.check_names(self.metrics)
        if any(one.name == TrainedSasRec.name for one in resolve(self.baselines)):
            raise InputError(
                "evaluate.EvaluateConfig.baselines names 'sasrec': SASRec stands there "
                "by itself once --stage=train_sasrec has been run"
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

    The test split is read here and nowhere else: whatever was chosen, was chosen on
    validation. The manifest counts how often it has been read.

    Args:
        seed: Of the bootstrap, and of the samples of users.
    """
    config, search = config or EvaluateConfig(), search or SearchConfig()
    workdir = context.workdir
    # One beam more than the largest cutoff: does a tie go on beyond it?
    if search.method == "beam" and search.num_beams <= metrics.MAX_CUTOFF:
        raise InputError(
            f"recommendation.SearchConfig.num_beams is {search.num_beams}, too few for "
            f"metrics at {metrics.MAX_CUTOFF}: "
            + flag("recommendation.SearchConfig.num_beams", metrics.MAX_CUTOFF + 1)
        )
    baselines = resolve(config.baselines)
    if (workdir / "sasrec" / artifacts.MANIFEST).is_file():
        baselines += (TrainedSasRec(),)
    folders = [folder for baseline in baselines for folder in baseline.inputs]
    earlier_reads = artifacts.count_test_reads(workdir / "evaluation")
    run = artifacts.begin(
        workdir,
        "evaluation",
        stage="evaluate",
        inputs=tuple(dict.fromkeys((*INPUTS, *folders))),
        config={"config": config, "search": search, "seed": seed},
    )
    if run.is_current:
        return
    data = PreparedData.load(workdir / "data")
    ours = numbered_recommender.load_numbered_recommender(workdir, data, search)
    by_codes = ours
    if ours.dense_weights.item:
        by_codes = ours.by_codes_alone()
        baselines += (numbered_recommender.CodesAlone(by_codes),)
    max_validation = config.max_validation_users or config.max_users
    users = comparison.draw_users(data, config.max_users, max_validation, seed=seed)
    checks = guards.check_recommender(
        by_codes,
        users["validation"].held_out,
        num_users=config.guard_users,
        exact_scores=config.exact_guard_scores if search.method == "beam" else 0,
        batch_size=config.batch_size,
        seed=seed,
    )
    compared = comparison.compare(
        ours,
        baselines,
        data,
        workdir,
        users,
        batch_size=config.batch_size,
        metrics=metrics.with_reported(config.metrics),
    )
    found = compared.ours["test"].item_numbers
    result, details = record.save_record(
        run.folder,
        compared,
        data,
        settings={**dataclasses.asdict(search), **ours.in_force},
        checks=[*checks, guards.check_lists_differ(found, data.num_items)],
        num_predicted=config.predictions,
        seed=seed,
    )
    run.commit(
        summary={
            "recall@10": result["test"]["recall@10"],
            "recall@10, seen items masked": result["test_masked"]["recall@10"],
            "test split": "read once for this configuration, after selection on "
            "validation",
            "test_reads": earlier_reads + 1,
        }
    )
    say(tables.format_evaluation(result, details, data))
