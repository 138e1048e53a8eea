"""The recommender fused with what is simpler than it: the folder `fusion/`."""

from pathlib import Path

import gin

from tiger_jax.data.prepared import PreparedData
from tiger_jax.evaluation import record
from tiger_jax.evaluation.baselines.baseline import Baseline
from tiger_jax.evaluation.baselines.known import resolve
from tiger_jax.evaluation.comparison import OURS
from tiger_jax.evaluation.fuse_and_measure import FusionConfig, fuse_and_measure
from tiger_jax.evaluation.lists import ListedRecommender, SavedLists
from tiger_jax.evaluation.recommend_fn import RecommendFn
from tiger_jax.histories import HeldOut
from tiger_jax.progress import say
from tiger_jax.reporting import tables
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import write_json

USUAL_PARTS = ("item_cooccurrence", "dense_knn", "sasrec")  # where their folders are


@gin.configurable(module="stages")
def fuse(
    context: RunContext, *, seed: int = 0, config: FusionConfig | None = None
) -> None:
    """Sums the lists of several recommenders, weighted by what helps on validation.

    Writes ``metrics.json``: the fused recommender on test, masked and not, each part
    by itself on the same users, and what validation says of leaving a part out.

    Args:
        seed: Of the bootstrap.
    """
    config = config or FusionConfig()
    workdir = context.workdir
    with_ours, baselines = _choose_parts(workdir, config)
    folders = [folder for baseline in baselines for folder in baseline.inputs]
    if with_ours:
        lists_folder, prefix = _find_lists(workdir)
        folders.insert(0, lists_folder.relative_to(workdir).parts[0])
    names = [OURS] * with_ours + [baseline.name for baseline in baselines]
    earlier_reads = artifacts.count_test_reads(workdir / "fusion")
    run = artifacts.begin(
        workdir,
        "fusion",
        stage="fuse",
        inputs=tuple(dict.fromkeys(("data", *folders))),
        config={"config": config, "parts": names, "seed": seed},
    )
    if run.is_current:
        return
    data = PreparedData.load(workdir / "data")
    built = {baseline.name: baseline.build(data, workdir) for baseline in baselines}

    def open_split(split: str) -> tuple[HeldOut, dict[str, RecommendFn]]:
        """The users of a split and the parts; our recommender's lists are on disk."""
        held_out: HeldOut = getattr(data, split)
        if not with_ours:
            return held_out, built
        lists = SavedLists.load(lists_folder, prefix + split)
        held_out = held_out.select(lists.rows)
        ours = ListedRecommender(held_out.user_numbers, lists.items, lists.scores)
        return held_out, {OURS: ours, **built}

    titles = {baseline.name: baseline.title_in(workdir) for baseline in baselines}
    result = fuse_and_measure(
        open_split, config, num_items=data.num_items, titles=titles, seed=seed
    )
    write_json(run.folder / record.METRICS, result)
    run.commit(
        summary={
            "recall@10, seen items masked": result["test_masked"]["recall@10"],
            "ndcg@10, seen items masked": result["test_masked"]["ndcg@10"],
            "weights": result["settings"]["weights"],
            "test_reads": earlier_reads + 1,
        }
    )
    say(tables.format_fusion(result))


def _choose_parts(
    workdir: Path, config: FusionConfig
) -> tuple[bool, tuple[Baseline, ...]]:
    """Whether our recommender is a part, and the other parts."""
    if config.parts is not None:
        others = [part for part in config.parts if part != OURS]
        return OURS in config.parts, resolve(others)
    return _find_lists(workdir)[0].is_dir(), tuple(
        part
        for part in resolve(USUAL_PARTS)
        if all((workdir / f / artifacts.MANIFEST).is_file() for f in part.inputs)
    )


def _find_lists(workdir: Path) -> tuple[Path, str]:
    """Our recommender's lists: what `list_candidates` made, or else `evaluate`.

    Returns:
        Their folder, and what their names start with.
    """
    folder = workdir / "evaluation" / record.LISTS
    if (workdir / "candidates").exists() or not folder.is_dir():
        return workdir / "candidates", ""
    return folder, f"{OURS}_"
