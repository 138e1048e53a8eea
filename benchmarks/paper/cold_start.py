"""Recall of items that the training has never seen, as epsilon grows.

The work directory's data keeps some test items out of all training
(`splits.SplitsConfig.unseen_share`, Rajput et al. 2023, 4.3). A list of K items keeps
the share epsilon of its places, rounded up, for the unseen items that are best, and the
others for seen ones. What fills these places is compared: the recommender with its
dense head if it has one, its codes alone, the dense head alone, nearest neighbours of
the text, and chance. Beside them, Semantic KNN ranks all items by their text, as in the
paper's figure.

An unseen item counts where it is listed itself: the paper counts any item that shares
its first three codewords. Measured on test users, since unseen items are nobody's
validation target; nothing is chosen by it.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import lib
from benchmarks.lib import Row
from benchmarks.paper.study import Study, interval, join
from tiger_jax.data.item_vectors import load_embeddings
from tiger_jax.errors import InputError
from tiger_jax.evaluation import bootstrap, evaluator, metrics
from tiger_jax.evaluation.baselines.semantic_knn import build_semantic_knn
from tiger_jax.evaluation.recommend_fn import ScoredCatalogue
from tiger_jax.histories import HeldOut
from tiger_jax.recommending.numbered_recommender import load_numbered_recommender
from tiger_jax.recommending.requests import places_for_new
from tiger_jax.recommending.searcher import SearchConfig

CUTOFFS = (5, 10, 20, 30, 40, 50)
EPSILONS = (0.0, 0.05, 0.1, 0.2, 0.5)
KNN, CHANCE, OURS = "Semantic KNN", "chance", "TIGER"
HIT = "recall@10, target unseen"
SHOWN = (HIT, "recall@50, target unseen", "recall@10, all users", "above Semantic KNN")
_ALONE = 1e4  # a weight with which the dense head alone decides


def list_both(by_group: Any, users: HeldOut, k: int, what: str) -> tuple[Any, Any]:
    """Ranks [U] of the targets among k seen and among k unseen items."""

    def recommend(
        user_numbers: Any, histories: Any, exclude: Any, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        both = by_group(user_numbers, histories, exclude, width // 2)
        listed = np.concatenate(both, axis=1)  # [B, 2k]
        return listed, np.zeros(listed.shape, np.float32)  # the order says all

    listed, _ = evaluator.list_items(
        recommend, users, k=2 * k, batch_size=128, description=f"{what}, both groups"
    )
    found = []
    for group in np.split(listed, 2, axis=1):  # [U, k]
        is_target = group == users.targets[:, None]
        found.append(np.where(is_target.any(1), is_target.argmax(1), metrics.MISS))
    return found[0], found[1]


def ranks_at(
    epsilon: float, k: int, seen_ranks: np.ndarray, unseen_ranks: np.ndarray
) -> np.ndarray:
    """Ranks in a list of k items that keeps places at its end for unseen ones.

    The ranks given are 0-based, among the seen and among the unseen items; MISS for
    targets of the other kind.
    """
    kept = places_for_new(k, epsilon)
    at_end = np.where(unseen_ranks < kept, k - kept + unseen_ranks, metrics.MISS)
    return np.where(seen_ranks < k - kept, seen_ranks, at_end).astype(np.int32)


def measure(study: Study, epsilons: Sequence[float] = EPSILONS) -> Iterator[Row]:
    """Rows for every list and epsilon, on two samples of test users."""
    data, seed = study.data, study.seed
    if not len(data.unseen_items):
        raise InputError(f"the data of {study.workdir} have no unseen items")
    is_unseen = np.isin(np.arange(data.num_items), data.unseen_items)
    cold = data.test.select(np.flatnonzero(is_unseen[data.test.targets]))
    samples = {
        name: evaluator.sample_users(users, study.max_users, seed=seed)[0]
        for name, users in (("target unseen", cold), ("all users", data.test))
    }
    width = max(CUTOFFS) + 1
    text = load_embeddings(study.workdir / "embeddings", data.num_items)
    knn: Any = build_semantic_knn(text)
    groups = [_only(knn, inside) for inside in (~is_unseen, is_unseen)]
    lists = {"KNN": lambda *args: [near(*args)[0] for near in groups]}
    ours = study.load(width - 1)
    lists[OURS] = ours.recommend_by_group
    if ours.dense_weights.item:
        alone = SearchConfig(
            num_beams=width - 1, dense_weight=_ALONE, popularity_weight=0.0
        )
        dense = load_numbered_recommender(study.workdir, data, alone)
        lists[f"{OURS}, its codes alone"] = ours.by_codes_alone().recommend_by_group
        lists[f"{OURS}, its dense head alone"] = dense.recommend_by_group
    about = {
        "split": "test",
        "unseen_items": len(data.unseen_items),
        "users": {name: len(users.targets) for name, users in samples.items()},
    }
    near: dict[str, np.ndarray] = {}
    ranks: dict[str, dict[str, Any]] = {}
    for name, users in samples.items():
        study.users = users
        near[name] = study.evaluate(knn, width, f"{KNN}, {name}").ranks
        ranks[name] = {w: list_both(fn, users, width, w) for w, fn in lists.items()}
        seen, unseen = ranks[name][OURS]
        drawn = np.random.default_rng(seed).integers(
            about["unseen_items"], size=len(seen)
        )
        drawn = np.where(is_unseen[users.targets], drawn, metrics.MISS)
        ranks[name][CHANCE] = seen, drawn

    def row(case: Row, by_sample: dict[str, dict[int, np.ndarray]]) -> Row:
        facts = []
        for name, by_cutoff in by_sample.items():
            for k, own in by_cutoff.items():
                values = metrics.values_per_user(f"recall@{k}", own)
                title = f"recall@{k}, {name}"
                ends = {title: interval(values, seed)}
                facts.append(
                    {"metrics": {title: float(values.mean())}, "intervals": ends}
                )
        pair = by_sample["target unseen"][10], near["target unseen"]
        gain, *ends = bootstrap.paired_difference(*pair, "recall@10", seed=seed)
        title = "above Semantic KNN"
        facts.append({"metrics": {title: gain}, "intervals": {title: ends}})
        return {**about, "case": case, **join(*facts)}

    share = f"{len(data.unseen_items):,}"
    all_items = {n: dict.fromkeys(CUTOFFS, own) for n, own in near.items()}
    yield row({"unseen items": share, "list": KNN, "ε": ""}, all_items)
    for what in ranks["all users"]:
        for e in epsilons:
            at = {
                name: {k: ranks_at(e, k, *own[what]) for k in CUTOFFS}
                for name, own in ranks.items()
            }
            yield row({"unseen items": share, "list": what, "ε": f"{e:g}"}, at)


def _only(knn: ScoredCatalogue, inside: np.ndarray) -> ScoredCatalogue:
    """Neighbours among some items."""

    def score(user_numbers: Any, histories: Any) -> np.ndarray:
        scores = knn.score_fn(user_numbers, histories)
        return np.where(inside, scores, np.float32(-np.inf))

    return dataclasses.replace(knn, score_fn=score)


def draw(rows: Sequence[Row], file: Path) -> None:
    """Recall@K of unseen targets over K; a picture for each number of unseen items."""
    shown = [row for row in rows if row["case"]["list"] in (KNN, OURS)]
    sizes = list(dict.fromkeys(row["unseen_items"] for row in shown))
    size = (2 + 4.0 * len(sizes), 3.4)
    with lib.draw(file, 1, len(sizes), figsize=size, sharey=True) as (figure, axes):
        for place, items in zip(axes[0], sizes, strict=True):
            of = [row for row in shown if row["unseen_items"] == items]
            for label in dict.fromkeys((r["case"]["list"], r["case"]["ε"]) for r in of):
                own = [r for r in of if (r["case"]["list"], r["case"]["ε"]) == label]
                names = [f"recall@{k}, target unseen" for k in CUTOFFS]
                lines = np.array([[r["metrics"][n] for n in names] for r in own])
                is_knn = label[0] == KNN
                style = {"color": "0.4"} if is_knn else {"marker": "o"}
                title = KNN if is_knn else f"{OURS}, ε = {label[1]}"
                (line,) = place.plot(CUTOFFS, lines.mean(0), label=title, **style)
                ends = np.array([[r["intervals"][n] for n in names] for r in own])
                color = line.get_color()
                place.fill_between(
                    CUTOFFS, *ends.mean(0).T, alpha=0.15, color=color, linewidth=0
                )
            place.set(xlabel="K", title=f"{items:,} unseen items")
            place.grid(alpha=0.3)
        axes[0][0].set(ylabel="recall@K, target unseen", ylim=(0, None))
        lines, names = axes[0][-1].get_legend_handles_labels()
        figure.legend(lines, names, frameon=False, loc="outside right center")
