"""Several finished runs over the same users, to stand side by side."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from tiger_jax.errors import InputError
from tiger_jax.evaluation.bootstrap import paired_difference
from tiger_jax.evaluation.lists import SavedLists
from tiger_jax.evaluation.metrics import ranks_in_lists, recall_at_k
from tiger_jax.evaluation.record import LISTS, TARGET_COUNTS
from tiger_jax.reporting.sections import describe_items
from tiger_jax.reporting.workdir_parts import (
    WorkdirParts,
    finished_folders,
    read_parts,
)
from tiger_jax.workdir import artifacts

SPLITS, COMPARED = ("test", "test_masked"), ("recall@10", "ndcg@10")
HISTORY_LENGTHS = (
    ("1–3", 1, 3),
    ("4–6", 4, 6),
    ("7–15", 7, 15),
    ("over 15", 16, np.inf),
)
ITEMS_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """A run, and where its recommender put each user's target.

    Attributes:
        ranks: By split, of the users that all runs share, in one order.
        rows: Those users' rows in the run's test split.
    """

    name: str
    parts: WorkdirParts
    ranks: dict[str, Int32[np.ndarray, " U"]]
    rows: Int64[np.ndarray, " U"]


def load_runs(workdirs: Sequence[Path], seed: int) -> list[ComparedRun]:
    """Reads runs and finds the users whom all of them were measured on.

    Raises:
        InputError: A run has no evaluation with lists, or they share no user with the
            same held-out item.
    """
    names = _names(workdirs)
    parts, ranks, rows = [], [], []
    for path in workdirs:
        for folder in ("data", "evaluation"):
            artifacts.load_manifest(path / folder, needed_by="compare", verify=False)
        manifests = {
            folder: artifacts.load_manifest(path / folder)
            for folder in finished_folders(path)
        }
        parts.append(read_parts(path, manifests, seed=seed))
        found = {s: _ranks(path, parts[-1], s) for s in SPLITS}
        ranks.append({split: of_key for split, (of_key, _) in found.items()})
        rows.append(found["test"][1])
    shared = sorted(set.intersection(*(set(own["test"]) for own in ranks)))
    if not shared:
        raise InputError(
            f"{', '.join(names)} share no user with the same held-out item: they are "
            "of different data, or measured on different users"
        )
    return [
        ComparedRun(
            name,
            part,
            {s: np.array([own[s][k] for k in shared], np.int32) for s in SPLITS},
            np.array([place[key] for key in shared]),
        )
        for name, part, own, place in zip(names, parts, ranks, rows, strict=True)
    ]


def _names(workdirs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    longest = max(len(path.parts) for path in workdirs)
    for length in range(1, longest + 1):
        names = ["/".join(path.parts[-length:]) for path in workdirs]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in workdirs]


_Key = tuple[str, str]  # a user's id and that of the held-out item


def _ranks(
    workdir: Path, parts: WorkdirParts, split: str
) -> tuple[dict[_Key, int], dict[_Key, int]]:
    """The rank of each target, and the user's row in the test split."""
    data = parts.data
    assert data is not None
    lists = SavedLists.load(workdir / "evaluation" / LISTS, f"tiger_{split}")
    users, targets = data.test.user_numbers[lists.rows], data.test.targets[lists.rows]
    ranks = ranks_in_lists(lists.items, lists.scores, targets)
    keys = [
        (data.user_ids[user], data.item_ids[target])
        for user, target in zip(users.tolist(), targets.tolist(), strict=True)
    ]
    return dict(zip(keys, ranks.tolist(), strict=True)), dict(
        zip(keys, lists.rows.tolist(), strict=True)
    )


def differences(runs: Sequence[ComparedRun], seed: int) -> list[dict[str, Any]]:
    """Each run minus the first, on the same users, with 95 % intervals."""
    found = []
    for run in runs[1:]:
        for split in SPLITS:
            for metric in COMPARED:
                difference, low, high = paired_difference(
                    run.ranks[split], runs[0].ranks[split], metric, seed=seed
                )
                row: dict[str, Any] = {
                    "run": run.name,
                    "split": split,
                    "metric": metric,
                }
                row |= {"difference": difference, "low": low, "high": high}
                found.append(row)
    return found


def groups(runs: Sequence[ComparedRun], seed: int) -> list[dict[str, Any]]:
    """Recall@10 by how rare the target is and how long the history.

    Of each run; and of those after the first, what they gain with its interval.
    """
    data, rows = runs[0].parts.data, runs[0].rows
    assert data is not None
    test = data.test
    counts = data.occurrences
    targets, lengths = counts[test.targets[rows]], test.histories.lengths[rows]
    found = []
    for title, of_user, bounds in (
        ("training interactions of the target", targets, TARGET_COUNTS),
        ("items in the history", lengths, HISTORY_LENGTHS),
    ):
        for name, low, high in bounds:
            inside = (of_user >= low) & (of_user <= high)
            if inside.any():
                ranks = [run.ranks["test"][inside] for run in runs]
                row = {"title": title, "name": name, "users": int(inside.sum())}
                row["recalls"] = [float(recall_at_k(r, 10).mean()) for r in ranks]
                row["gains"] = [
                    paired_difference(r, ranks[0], "recall@10", seed=seed)
                    for r in ranks[1:]
                ]
                found.append(row)
    return found


def changed_items(first: ComparedRun, other: ComparedRun) -> list[dict[str, Any]]:
    """The targets that one run finds more often than the other, both ways."""
    data = first.parts.data
    assert data is not None
    targets = data.test.targets[first.rows]
    hits = [recall_at_k(run.ranks["test"], 10) for run in (first, other)]
    before, after = (
        np.bincount(targets, weights=h, minlength=data.num_items).astype(int)
        for h in hits
    )
    wanted = np.bincount(targets, minlength=data.num_items)
    gain = after - before
    order = np.argsort(-gain, kind="stable")
    chosen = [i for i in order[:ITEMS_SHOWN] if gain[i] > 0]
    chosen += [i for i in order[-ITEMS_SHOWN:] if gain[i] < 0]
    described = describe_items(data)
    return [
        {
            **described[data.item_ids[i]],
            "wanted": int(wanted[i]),
            "before": int(before[i]),
            "after": int(after[i]),
        }
        for i in chosen
    ]


def config_differences(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """Settings in which the runs are not alike, of the stages that all have run.

    And the versions that made them.
    """
    shared = set.intersection(*(set(run.parts.manifests) for run in runs))
    flat = [
        {
            f"{name}: {key}": str(value)
            for name, manifest in run.parts.manifests.items()
            if name in shared
            for key, value in artifacts.flatten(
                {
                    **manifest.config,
                    "commit": manifest.made.get("commit"),
                    **manifest.made.get("packages", {}),
                }
            )
        }
        for run in runs
    ]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    rows = ((key, [settings.get(key, "–") for settings in flat]) for key in keys)
    return [{"key": k, "values": v} for k, v in rows if len(set(v)) > 1]
