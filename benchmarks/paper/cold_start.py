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

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib import write_between
from benchmarks.paper.analyses import Row, Study, format_short, interval
from benchmarks.paper.results_rows import read_rows, write_rows
from tiger_jax.evaluation import evaluator, metrics
from tiger_jax.evaluation.baselines.semantic_knn import build_semantic_knn
from tiger_jax.histories import HeldOut
from tiger_jax.recommending.searcher import Recommendation
from tiger_jax.workdir.array_files import load_array

CUTOFFS = (5, 10, 20, 30, 40, 50)
EPSILONS = (0.0, 0.05, 0.1, 0.2, 0.5)
SHOWN_AT = 10
KNN = "semantic_knn"


def list_both(ours: Recommendation, users: HeldOut, k: int) -> tuple[np.ndarray, ...]:
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
    epsilon: float,
    k: int,
    seen_ranks: np.ndarray,
    unseen_ranks: np.ndarray,
) -> np.ndarray:
    """Ranks in a list of k items that keeps round(epsilon k) places at its end.

    Args:
        seen_ranks: 0-based rank of each target among the seen items; MISS for others.
        unseen_ranks: The same among the unseen.
    """
    kept = round(epsilon * k)
    is_listed = seen_ranks < k - kept
    is_kept = unseen_ranks < kept
    return np.where(
        is_listed,
        seen_ranks,
        np.where(is_kept, k - kept + unseen_ranks, metrics.MISS),
    ).astype(np.int32)


def measure(study: Study, epsilons: Sequence[float], max_users: int) -> list[Row]:
    """Rows for every epsilon and for Semantic_KNN, on two samples of test users."""
    data, seed = study.data, study.seed
    is_unseen_target = np.isin(data.test.targets, data.unseen_items)
    cold = data.test.select(np.flatnonzero(is_unseen_target))
    samples: dict[str, HeldOut] = {}
    samples["unseen"], _ = evaluator.sample_users(cold, max_users, seed=seed)
    samples["all"], _ = evaluator.sample_users(data.test, max_users, seed=seed)
    longest = max(CUTOFFS)
    ours = study.load(longest)
    knn = build_semantic_knn(
        load_array(study.workdir / "embeddings" / "embeddings.npy")
    )
    started = time.perf_counter()
    found: dict[str, list[Row]] = {}
    for name, users in samples.items():
        study.users = users
        knn_ranks = study.evaluate(knn, longest + 1, f"{KNN}, {name}").ranks
        by_group = list_both(ours, users, longest + 1)
        found[name] = [
            _recalls({k: knn_ranks for k in CUTOFFS}, seed),
            *(
                _recalls({k: ranks_at(e, k, *by_group) for k in CUTOFFS}, seed)
                for e in epsilons
            ),
        ]
        found[name][0]["users"] = len(users.targets)
    cases = [{"method": KNN}, *({"method": "tiger", "epsilon": e} for e in epsilons)]
    about = {
        **study.about,
        "split": "test",
        "unseen_items": len(data.unseen_items),
        "users": {name: own[0]["users"] for name, own in found.items()},
        "minutes": round((time.perf_counter() - started) / 60, 1),
    }
    return [
        {
            "benchmark": "cold_start",
            "workdir": study.workdir.name,
            "case": case,
            **{
                n: {k: own[i][k] for k in ("recall", "intervals")}
                for n, own in found.items()
            },
            **about,
        }
        for i, case in enumerate(cases)
    ]


def _recalls(ranks: dict[int, np.ndarray], seed: int) -> Row:
    """Recall at every cutoff, with intervals over users."""
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
    lines = [
        f"| unseen test items | list | recall@{SHOWN_AT}, target unseen "
        f"| recall@{CUTOFFS[-1]}, target unseen | recall@{SHOWN_AT}, all users |",
        "|--:|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            _cell(row["unseen"], SHOWN_AT),
            _cell(row["unseen"], CUTOFFS[-1]),
            _cell(row["all"], SHOWN_AT),
        ]
        lines.append(
            f"| {row['unseen_items']:,} | {_name(row)} | {' | '.join(cells)} |"
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
    return "\n".join([*lines, "", about])


def _name(row: Row) -> str:
    if row["case"]["method"] == KNN:
        return "Semantic KNN"
    return f"TIGER, ε = {row['case']['epsilon']:g}"


def _cell(side: Row, k: int) -> str:
    low, high = (format_short(end) for end in side["intervals"][f"recall@{k}"])
    return f"{format_short(side['recall'][f'recall@{k}'])} ({low}–{high})"


def draw(rows: Sequence[Row], file: Path) -> None:
    """Recall@K of unseen targets over K; one picture a work directory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    groups = list(dict.fromkeys(row["workdir"] for row in rows))
    figure, axes = plt.subplots(
        1,
        len(groups),
        figsize=(2 + 4.0 * len(groups), 3.4),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for place, group in zip(axes[0], groups, strict=True):
        own = [row for row in rows if row["workdir"] == group]
        for row in own:
            is_knn = row["case"]["method"] == KNN
            values = [row["unseen"]["recall"][f"recall@{k}"] for k in CUTOFFS]
            style = {"color": "0.4", "linestyle": "--"} if is_knn else {"marker": "o"}
            place.plot(CUTOFFS, values, label=_name(row), **style)
        place.set(xlabel="K", title=f"{own[0]['unseen_items']:,} unseen items")
        place.grid(alpha=0.3)
    axes[0][0].set(ylabel="recall@K, target unseen", ylim=(0, None))
    lines, names = axes[0][-1].get_legend_handles_labels()
    figure.legend(lines, names, frameon=False, loc="outside right center")
    figure.savefig(file, dpi=144)
    plt.close(figure)


def main() -> int:
    """Prints the rows as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workdir", type=Path, required=True)
    add("--max_users", type=int, default=2000, help="of each sample")
    add("--seed", type=int, default=0)
    add("--epsilons", type=float, nargs="+", default=EPSILONS)
    add("--rows", type=Path, help="merge the rows into this file")
    add("--plot", type=Path, help="a PNG file, of all rows")
    add("--document", type=Path, help="a Markdown file with marks for the table")
    options = parser.parse_args()
    study = Study(options.workdir, max_users=options.max_users, seed=options.seed)
    rows = measure(study, options.epsilons, options.max_users)
    for row in rows:
        print(json.dumps(row), flush=True)
    if options.rows:
        name = options.workdir.name
        others = [r for r in read_rows(options.rows) if r["workdir"] != name]
        rows = sorted([*others, *rows], key=lambda row: row["unseen_items"])
        write_rows(options.rows, rows)
    if options.plot:
        draw(rows, options.plot)
    if options.document:
        write_between(options.document, "cold_start", build_table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
