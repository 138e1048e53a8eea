"""The numbers that tell whether two people speak of the same data set."""

from typing import Any

import numpy as np

from tiger_jax.data.splits import Splits
from tiger_jax.histories import Histories


def compute_statistics(
    histories: Histories, splits: Splits, *, num_items: int
) -> dict[str, Any]:
    """Counts users, items, interactions, and what the split leaves of them.

    A training pair is a prefix of a training history and the item after it: a
    history of n items gives n - 1. A test item is a user's last one, so that there
    are as many as users.
    """
    lengths = histories.lengths
    train = splits.train
    in_training = np.zeros(num_items, bool)
    in_training[train.items] = True
    before, targets = splits.test.histories, splits.test.targets
    users = np.repeat(np.arange(before.num_users), before.lengths)
    repeats = users[before.items == targets[users]]
    return {
        "users": histories.num_users,
        "items": num_items,
        "interactions": len(histories.items),
        "mean_history": round(float(lengths.mean()), 3),
        "median_history": float(np.median(lengths)),
        "min_history": int(lengths.min()),
        "max_history": int(lengths.max()),
        "density": len(histories.items) / (histories.num_users * num_items),
        "training_pairs": int(np.maximum(train.lengths - 1, 0).sum()),
        "training_items": int(in_training.sum()),
        "test_items": len(targets),
        "test_items_never_in_training": int((~in_training[targets]).sum()),
        "test_users_who_had_the_target_before": len(np.unique(repeats)),
        "distinct_test_items": len(np.unique(targets)),
    }


def describe_statistics(statistics: dict[str, Any]) -> str:
    """The short block that is shown to the user."""
    s = statistics
    lines = [
        f"{s['name']}: {s['users']:,} users, {s['items']:,} items, "
        f"{s['interactions']:,} interactions",
        f"  found            {s['raw_users']:,} users, {s['raw_items']:,} items, "
        f"{s['raw_interactions']:,} interactions; "
        + (f"{s['k_core']}-core kept" if s["k_core"] else "not filtered")
        + (
            f"; the newest {n} of each user left out"
            if (n := s.get("left_out"))
            else ""
        ),
        f"  history length   mean {s['mean_history']:.3f}, median "
        f"{s['median_history']:g}, longest {s['max_history']:,}",
        f"  training pairs   {s['training_pairs']:,} (prefix, next item)",
        f"  test items       {s['test_items']:,} ({s['distinct_test_items']:,} distinct"
        f"), {s['test_items_never_in_training']:,} never in training",
    ]
    if repeated := s.get("test_users_who_had_the_target_before"):
        lines.append(
            f"  seen before      {repeated:,} ({repeated / s['test_items']:.1%}) test "
            "items are in their user's history already"
        )
    if s["users_with_too_short_history"]:
        lines.append(
            f"  left out         {s['users_with_too_short_history']:,} users with "
            "fewer than 3 interactions"
        )
    lines += [f"  note             {note}" for note in s["notes"]]
    return "\n".join(lines)
