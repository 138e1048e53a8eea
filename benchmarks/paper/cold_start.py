"""Recall of items that the training has never seen, as epsilon grows.

    python -m benchmarks.paper.cold_start --workdir=runs/cold_start_5 \
        --rows=docs/cold_start.jsonl --plot=docs/cold_start.png

The work directory's data keeps some test items out of all training
(`splits.SplitsConfig.unseen_share`, Rajput et al. 2023, 4.3). A list of K items keeps
round(epsilon K) places for the unseen ones that the search finds best, and the others
for seen items; `semantic_knn` ranks all items by their text, as in the paper's figure.
An unseen item counts where it is listed itself: the paper counts any item that shares
its first three codewords. Measured on test users, since unseen items are nobody's
validation target; nothing is chosen by it.

Rows with the same work directory name are replaced in the file. --document writes the
table of all rows between <!-- cold_start --> marks.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import lib
from benchmarks.lib import Row
from benchmarks.paper.study import Study, interval
from tiger_jax.evaluation import evaluator, metrics
from tiger_jax.evaluation.baselines.semantic_knn import build_semantic_knn
from tiger_jax.histories import HeldOut
from tiger_jax.workdir.arrays import load_array

CUTOFFS = (5, 10, 20, 30, 40, 50)
EPSILONS = (0.0, 0.05, 0.1, 0.2, 0.5)
SHOWN_AT = 10
KNN = "semantic_knn"


def list_both(ours: Any, users: HeldOut, k: int) -> tuple[np.ndarray, ...]:
    """Ranks [U] of the targets among k seen and among k unseen items, by one search."""

    def recommend(
        user_numbers: Any, histories: Any, exclude: Any, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        both = ours.recommend_by_group(user_numbers, histories, exclude, width // 2)
        listed = np.concatenate(both, axis=1)  # [B, 2k]
        return listed, np.zeros(listed.shape, np.float32)  # the order says all

    listed, _ = evaluator.list_items(
        recommend, users, k=2 * k, batch_size=128, description="TIGER, both groups"
    )
    found = []
    for group in np.split(listed, 2, axis=1):  # [U, k]
        is_target = group == users.targets[:, None]
        found.append(np.where(is_target.any(1), is_target.argmax(1), metrics.MISS))
    return tuple(found)


def ranks_at(
    epsilon: float, k: int, seen_ranks: np.ndarray, unseen_ranks: np.ndarray
) -> np.ndarray:
    """Ranks in a list of k items that keeps round(epsilon k) places at its end.

    The ranks given are 0-based, among the seen and among the unseen items; MISS for
    targets of the other kind.
    """
    kept = round(epsilon * k)
    at_end = np.where(unseen_ranks < kept, k - kept + unseen_ranks, metrics.MISS)
    return np.where(seen_ranks < k - kept, seen_ranks, at_end).astype(np.int32)


def measure(study: Study, epsilons: Sequence[float], max_users: int) -> list[Row]:
    """Rows for every epsilon and for Semantic_KNN, on two samples of test users."""
    data, seed = study.data, study.seed
    is_unseen_target = np.isin(data.test.targets, data.unseen_items)
    cold = data.test.select(np.flatnonzero(is_unseen_target))
    samples = {
        name: evaluator.sample_users(users, max_users, seed=seed)[0]
        for name, users in (("unseen", cold), ("all", data.test))
    }
    width = max(CUTOFFS) + 1
    ours = study.load(width - 1)
    knn = build_semantic_knn(
        load_array(study.workdir / "embeddings" / "embeddings.npy")
    )
    started = time.perf_counter()
    cases = [{"method": KNN}, *({"method": "tiger", "epsilon": e} for e in epsilons)]
    rows: list[Row] = [
        {"benchmark": "cold_start", "workdir": study.workdir.name, "case": case}
        for case in cases
    ]
    for name, users in samples.items():
        study.users = users
        knn_ranks = study.evaluate(knn, width, f"{KNN}, {name}").ranks
        by_group = list_both(ours, users, width)
        rows[0][name] = _recalls(dict.fromkeys(CUTOFFS, knn_ranks), seed)
        for row, e in zip(rows[1:], epsilons, strict=True):
            ranks = {k: ranks_at(e, k, *by_group) for k in CUTOFFS}
            row[name] = _recalls(ranks, seed)
    about = {
        **study.about,
        "split": "test",
        "unseen_items": len(data.unseen_items),
        "users": {name: len(users.targets) for name, users in samples.items()},
        "minutes": round((time.perf_counter() - started) / 60, 1),
    }
    return [row | about for row in rows]


def _recalls(ranks: dict[int, np.ndarray], seed: int) -> Row:
    values = {
        f"recall@{k}": metrics.values_per_user(f"recall@{k}", own)
        for k, own in ranks.items()
    }
    return {
        "recall": {name: float(own.mean()) for name, own in values.items()},
        "intervals": {name: interval(own, seed) for name, own in values.items()},
    }


def build_table(rows: Sequence[Row]) -> str:
    """Recall at 10 for every share of unseen items, and what was measured."""

    def cell(side: Row, k: int) -> str:
        name = f"recall@{k}"
        return lib.format_interval(side["recall"][name], side["intervals"][name])

    shown = (("unseen", SHOWN_AT), ("unseen", CUTOFFS[-1]), ("all", SHOWN_AT))
    titles = ["unseen test items", "list"]
    titles += [f"recall@{k}, target unseen" for _, k in shown[:2]]
    cells = [
        [f"{row['unseen_items']:,}", _name(row), *(cell(row[n], k) for n, k in shown)]
        for row in rows
    ]
    table = lib.markdown_table(
        [*titles, f"recall@{SHOWN_AT}, all users"], cells, "|--:|---|"
    )
    groups = {row["workdir"]: row for row in rows}
    measured = "; ".join(
        f"{row['unseen_items']:,} items: {row['users']['unseen']:,} users whose target "
        f"is unseen, {row['users']['all']:,} drawn from all"
        for row in groups.values()
    )
    first = rows[0]
    commits = ", ".join(dict.fromkeys(f"`{row['commit']}`" for row in rows))
    about = (
        f"{first['data']}, test; {measured}; seed {first['seed']}, 95 % bootstrap "
        f"intervals over users, commit {commits}; by `python -m "
        f"benchmarks.paper.cold_start --workdir=…` for "
        f"{', '.join(f'`{g}`' for g in groups)}."
    )
    return "\n".join([*table, "", about])


def _name(row: Row) -> str:
    if row["case"]["method"] == KNN:
        return "Semantic KNN"
    return f"TIGER, ε = {row['case']['epsilon']:g}"


def draw(rows: Sequence[Row], file: Path) -> None:
    """Recall@K of unseen targets over K; one picture per work directory."""
    groups = list(dict.fromkeys(row["workdir"] for row in rows))
    size = (2 + 4.0 * len(groups), 3.4)
    with lib.draw(file, 1, len(groups), figsize=size, sharey=True) as (figure, axes):
        for place, group in zip(axes[0], groups, strict=True):
            own = [row for row in rows if row["workdir"] == group]
            for row in own:
                is_knn = row["case"]["method"] == KNN
                style = (
                    {"color": "0.4", "linestyle": "--"} if is_knn else {"marker": "o"}
                )
                values = [row["unseen"]["recall"][f"recall@{k}"] for k in CUTOFFS]
                place.plot(CUTOFFS, values, label=_name(row), **style)
            place.set(xlabel="K", title=f"{own[0]['unseen_items']:,} unseen items")
            place.grid(alpha=0.3)
        axes[0][0].set(ylabel="recall@K, target unseen", ylim=(0, None))
        lines, names = axes[0][-1].get_legend_handles_labels()
        figure.legend(lines, names, frameon=False, loc="outside right center")


def main() -> None:
    """Prints the rows as JSON."""
    parser = lib.make_parser(__doc__, "workdir", "seed", "rows", "plot", "document")
    add = parser.add_argument
    add("--max_users", type=int, default=2000, help="of each sample")
    add("--epsilons", type=float, nargs="+", default=EPSILONS)
    options = parser.parse_args()
    study = Study(options.workdir, max_users=options.max_users, seed=options.seed)
    rows = measure(study, options.epsilons, options.max_users)
    for row in rows:
        lib.report(row)
    if options.rows:
        rows = lib.merge_rows(lib.read_rows(options.rows), rows, "workdir")
        rows.sort(key=lambda row: row["unseen_items"])
        lib.write_rows(options.rows, rows)
    lib.publish(options, "cold_start", rows, build_table, draw)


if __name__ == "__main__":
    lib.run(main)
