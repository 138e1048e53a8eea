"""A trained recommender to the lists it gives every user: the folder `candidates/`.

Searching for all users is what costs in an evaluation. Done once per split and kept,
the lists can be fused, masked and looked into as often as one likes.
"""

from pathlib import Path

import gin

from tiger_jax.config import config
from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError, flag
from tiger_jax.evaluation import lists, metrics
from tiger_jax.evaluation.evaluator import sample_users
from tiger_jax.evaluation.record import LISTS
from tiger_jax.recommending.numbered_recommender import load_numbered_recommender
from tiger_jax.recommending.searcher import SearchConfig
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir import artifacts, chunks, json_files

INPUTS = ("data", "semantic_ids", "recommender")
SPLITS = ("validation", "test")


@config("list_candidates")
class CandidatesConfig:
    """Whose lists are made, and how long they are.

    Attributes:
        depth: Items of a list; at most the search's beams. Items that the user
            already has may be among them, and are left out when the lists are used.
        reuse: Take the lists that `evaluate` made, where they are long enough and
            come from the same recommender, search and users; else search.
        batch_size: Users searched at a time.
        max_users: Test users, drawn by seed; None for all.
        max_validation_users: The same for the validation split.
    """

    depth: int = 20
    reuse: bool = True
    batch_size: int = 128
    max_users: int | None = None
    max_validation_users: int | None = 6000


@gin.configurable(module="stages")
def list_candidates(
    context: RunContext,
    *,
    seed: int = 0,
    config: CandidatesConfig | None = None,
    search: SearchConfig | None = None,
) -> None:
    """Searches for the users of both splits and writes their lists.

    What comes next is not looked at: the targets aren't read. Killed, it goes on with
    the users that are left.

    Args:
        seed: Of the samples of users.
    """
    config, search = config or CandidatesConfig(), search or SearchConfig()
    if search.method == "beam" and not 0 < config.depth <= search.num_beams:
        raise InputError(
            f"list_candidates.CandidatesConfig.depth is {config.depth}: it must lie "
            f"between 1 and the {search.num_beams} beams: "
            + flag("recommendation.SearchConfig.num_beams", max(config.depth, 1))
        )
    workdir = context.workdir
    limits = {"validation": config.max_validation_users, "test": config.max_users}
    listed = _listed_by_evaluate(workdir, config, search)
    run = artifacts.begin(
        workdir,
        "candidates",
        stage="list_candidates",
        inputs=(*INPUTS, "evaluation") if listed else INPUTS,
        config={"config": config, "search": search, "seed": seed},
        resumable=True,
    )
    if run.is_current:
        return
    data = PreparedData.load(workdir / "data")
    counts, ours = {}, None
    for split in SPLITS:
        held_out, rows = sample_users(getattr(data, split), limits[split], seed=seed)
        if split in listed:
            folder = workdir / "evaluation" / LISTS
            found = lists.SavedLists.load(folder, f"tiger_{split}")
            found = found.select(rows, config.depth)
        else:
            ours = ours or load_numbered_recommender(workdir, data, search)
            found = lists.list_resumably(
                ours,
                held_out,
                rows,
                run.folder,
                split=split,
                depth=config.depth,
                batch_size=config.batch_size,
            )
        found.save(run.folder, split)
        counts[f"{split}_users"] = len(rows)
    chunks.remove_chunks(run.folder)
    run.commit(summary={**counts, "depth": config.depth, "lists from evaluate": listed})


def _listed_by_evaluate(
    workdir: Path, config: CandidatesConfig, search: SearchConfig
) -> list[str]:
    """The splits that `evaluate` searched for all users."""
    folder = workdir / "evaluation"
    if not config.reuse or not (folder / artifacts.MANIFEST).is_file():
        return []
    made = artifacts.load_manifest(folder, verify=False)
    recommender = artifacts.load_manifest(workdir / "recommender", verify=False)
    if (
        made.inputs["recommender"] != recommender.content_hash
        or made.config["search"] != json_files.canonical(search)
        or config.depth > metrics.MAX_CUTOFF
    ):
        return []
    theirs = made.config["config"]
    limit = {
        "test": theirs["max_users"],
        "validation": theirs["max_validation_users"] or theirs["max_users"],
    }
    return [
        split
        for split in SPLITS
        if limit[split] is None and f"{LISTS}/tiger_{split}_items.npy" in made.files
    ]
