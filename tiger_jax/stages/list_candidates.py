"""A trained recommender to the lists it gives every user: the folder `candidates/`.

Searching for all users is what costs in an evaluation. Done once a split and kept,
the lists can be fused, masked and looked into as often as one likes.
"""

import json
from pathlib import Path

import gin
import numpy as np
from jaxtyping import Float32, Int32

from tiger_jax.config import config
from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError
from tiger_jax.evaluation import evaluator
from tiger_jax.evaluation.fusion import ListedRecommender
from tiger_jax.evaluation.recommend_fn import RecommendFn
from tiger_jax.histories import HeldOut
from tiger_jax.recommending.numbered_recommender import load_numbered_recommender
from tiger_jax.recommending.searcher import SearchConfig
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.arrays import load_arrays, save_arrays
from tiger_jax.workdir.chunks import load_chunk, remove_chunks, save_chunk
from tiger_jax.workdir.json_files import canonical

INPUTS = ("data", "semantic_ids", "recommender")
SPLITS = ("validation", "test")
CHUNK = 2048  # users that a kill costs at most


@config("list_candidates")
class CandidatesConfig:
    """Whose lists are made, and how long they are.

    Attributes:
        depth: Items of a list; at most the search's beams. Items that the user
            already has may be among them, and are left out when the lists are used.
        reuse: Take the test lists that `evaluate` wrote, where they are long enough
            and come from the same recommender, search and users; else search.
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
        config: How many users and items.
        search: How the recommender finds its items.

    Raises:
        InputError: An input is missing or doesn't belong to the others, or there are
            fewer beams than items in a list.
    """
    config, search = config or CandidatesConfig(), search or SearchConfig()
    if search.method == "beam" and not 0 < config.depth <= search.num_beams:
        raise InputError(
            f"list_candidates.CandidatesConfig.depth is {config.depth}: it must lie "
            f"between 1 and recommendation.SearchConfig.num_beams = {search.num_beams}"
        )
    reused = config.reuse and _can_reuse(context.workdir, config, search)
    run = artifacts.begin(
        context.workdir,
        "candidates",
        stage="list_candidates",
        inputs=(*INPUTS, "evaluation") if reused else INPUTS,
        config={"config": config, "search": search, "seed": seed},
        resumable=True,
    )
    if run.is_current:
        return
    data = PreparedData.load(context.workdir / "data")
    ours = load_numbered_recommender(context.workdir, data, search)
    limits = {"validation": config.max_validation_users, "test": config.max_users}
    counts = {}
    for split in SPLITS:
        held_out, rows = evaluator.sample_users(
            getattr(data, split), limits[split], seed=seed
        )
        if split == "test" and reused:
            items, scores = _read_predictions(
                context.workdir / "evaluation", data, held_out, config.depth
            )
        else:
            items, scores = _search(
                ours, held_out, run.folder, split, config, ours.max_items
            )
        arrays = {"rows": rows, "items": items, "scores": scores}
        save_arrays(
            run.folder, {f"{split}_{name}": array for name, array in arrays.items()}
        )
        counts[f"{split}_users"] = len(rows)
    remove_chunks(run.folder)
    run.commit(
        summary={**counts, "depth": config.depth, "test lists from evaluate": reused}
    )


def _can_reuse(workdir: Path, config: CandidatesConfig, search: SearchConfig) -> bool:
    """Whether `evaluate` searched for the same lists already."""
    folder = workdir / "evaluation"
    if not (folder / artifacts.MANIFEST).is_file():
        return False
    made = artifacts.load_manifest(folder, verify=False)
    recommender = artifacts.load_manifest(workdir / "recommender", verify=False)
    theirs = made.config["config"]
    return (
        made.inputs["recommender"] == recommender.content_hash
        and made.config["search"] == canonical(search)
        and theirs["max_users"] == config.max_users is None
        and theirs["predictions"] >= config.depth
    )


def _read_predictions(
    folder: Path, data: PreparedData, held_out: HeldOut, depth: int
) -> tuple[Int32[np.ndarray, "U D"], Float32[np.ndarray, "U D"]]:
    """The lists in ``predictions.jsonl``; scores there have four decimals."""
    user_of = {user_id: n for n, user_id in enumerate(data.user_ids)}
    item_of = {item_id: n for n, item_id in enumerate(data.item_ids)}
    row_of = {n: row for row, n in enumerate(held_out.user_numbers.tolist())}
    items = np.full((len(row_of), depth), -1, np.int32)
    scores = np.full((len(row_of), depth), -np.inf, np.float32)
    path = folder / "predictions.jsonl"
    with open(path, encoding="utf-8", errors="surrogatepass") as file:
        for line in file:
            found = json.loads(line)
            row, listed = row_of[user_of[found["user"]]], found["recommended"][:depth]
            items[row, : len(listed)] = [item_of[one["item_id"]] for one in listed]
            scores[row, : len(listed)] = [one["score"] for one in listed]
    return items, scores


def _search(
    recommend: RecommendFn,
    held_out: HeldOut,
    folder: Path,
    split: str,
    config: CandidatesConfig,
    history_length: int,
) -> tuple[Int32[np.ndarray, "U D"], Float32[np.ndarray, "U D"]]:
    """Lists of all users, chunk by chunk; chunks on disk aren't searched again."""
    found = []
    total = len(held_out.targets)
    for start in range(0, total, CHUNK):
        rows = np.arange(start, min(start + CHUNK, total))
        names = [f"{split}_{start:08}_{name}" for name in ("items", "scores")]
        lists = [load_chunk(folder, name) for name in names]
        if any(array is None for array in lists):
            made = evaluator.list_items(
                recommend,
                held_out.select(rows),
                k=config.depth,
                history_length=history_length,
                batch_size=config.batch_size,
                description=f"{split}, {start + len(rows):,} of {total:,}",
            )
            for name, array in zip(names, made, strict=True):
                save_chunk(folder, name, array)
            lists = [*made]
        found.append([array for array in lists if array is not None])
    items, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return items, scores


def load_candidates(
    workdir: Path, data: PreparedData, split: str
) -> tuple[ListedRecommender, HeldOut]:
    """Reads the lists of a split.

    Returns:
        A recommender of these users, and their held-out interactions.

    Raises:
        InputError: The folder can't be read.
    """
    folder = workdir / "candidates"
    names = [f"{split}_{name}" for name in ("rows", "items", "scores")]
    try:
        rows, items, scores = load_arrays(folder, names).values()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} holds no lists ({error}): run --stage=list_candidates again"
        ) from error
    held_out = getattr(data, split).select(rows)
    return ListedRecommender(held_out.user_numbers, items, scores), held_out
