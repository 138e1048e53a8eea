"""Several recommenders on the same held-out users."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Int64

from tiger_jax.errors import InputError, flag
from tiger_jax.evaluation.baselines.baseline import Baseline
from tiger_jax.evaluation.evaluator import Evaluation, evaluate, sample_users
from tiger_jax.evaluation.lists import SavedLists
from tiger_jax.evaluation.recommend_fn import RecommendFn, shown_items
from tiger_jax.histories import HeldOut

if TYPE_CHECKING:
    from tiger_jax.data.prepared import PreparedData

OURS = "tiger"  # the recommender that the others are compared with
# Name in metrics.json: (which held-out items, whether seen items are masked).
SPLITS = {
    "test": ("test", False),
    "test_masked": ("test", True),
    "validation": ("validation", False),
}


class Users(NamedTuple):
    """Held-out interactions of a split, and the rows in it that they came from."""

    held_out: HeldOut
    rows: Int64[np.ndarray, " U"]


def draw_users(
    data: "PreparedData", max_test: int | None, max_validation: int | None, *, seed: int
) -> dict[str, Users]:
    """The users of both splits, drawn by seed; InputError if a split is empty."""
    users = {}
    for split, limit in (("test", max_test), ("validation", max_validation)):
        users[split] = Users(*sample_users(getattr(data, split), limit, seed=seed))
        if not len(users[split].held_out.targets):
            raise InputError(
                f"the {split} split is empty: no user has enough interactions; run "
                "--stage=prepare_data again with "
                + flag("interactions.InteractionsConfig.k_core", 2)
            )
    return users


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What several recommenders listed for the same users.

    Attributes:
        evaluations: By recommender and split; ours last.
        users: By "test" and "validation".
    """

    evaluations: Mapping[str, Mapping[str, Evaluation]]
    titles: Mapping[str, str]
    users: Mapping[str, Users]
    metrics: tuple[str, ...]

    @property
    def ours(self) -> Mapping[str, Evaluation]:
        return self.evaluations[OURS]

    @property
    def baselines(self) -> Mapping[str, Mapping[str, Evaluation]]:
        return {n: found for n, found in self.evaluations.items() if n != OURS}

    def save_lists(self, folder: Path) -> None:
        """Writes the lists of every recommender as ``RECOMMENDER_SPLIT``."""
        for name, splits in self.evaluations.items():
            for split, found in splits.items():
                rows = self.users[SPLITS[split][0]].rows
                lists = SavedLists(rows, found.item_numbers, found.scores)
                lists.save(folder, f"{name}_{split}")


def compare(
    ours: RecommendFn,
    baselines: Sequence[Baseline],
    data: "PreparedData",
    workdir: Path,
    users: Mapping[str, Users],
    *,
    batch_size: int,
    metrics: tuple[str, ...],
) -> Comparison:
    """Evaluates our recommender on every split, the baselines on the test splits.

    A baseline that doesn't say how much of a history it reads is shown as much as
    ours.
    """
    usual = shown_items(ours)
    titles = {baseline.name: baseline.title_in(workdir) for baseline in baselines}
    recommenders = {b.name: b.build(data, workdir) for b in baselines}
    evaluations: dict[str, dict[str, Evaluation]] = {}
    for name, recommend in {**recommenders, OURS: ours}.items():
        evaluations[name] = {
            split: evaluate(
                recommend,
                users[of].held_out,
                num_items=data.num_items,
                exclude_seen=masked,
                history_length=shown_items(recommend, usual),
                batch_size=batch_size,
                description=f"{titles.get(name, 'TIGER')}, {split}",
            )
            for split, (of, masked) in SPLITS.items()
            if name == OURS or of == "test"
        }
    return Comparison(evaluations, titles, users, metrics)
