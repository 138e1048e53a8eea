"""What to train on and what to keep back: leave-one-out, and unseen items."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from tiger_jax.config import config
from tiger_jax.errors import InputError, flag
from tiger_jax.histories import HeldOut, Histories
from tiger_jax.workdir.json_files import ADDED_LATER


@config("splits")
class SplitsConfig:
    """How interactions are kept back."""

    unseen_share: float = 0.0
    """Share of the test items to remove from all training and validation data, for
    the cold-start experiment (paper, section 4.3: 0.05)."""

    left_out: int = dataclasses.field(default=0, metadata=ADDED_LATER)
    """Each user's newest interactions to leave out altogether. With 1, validation and
    test are one interaction earlier: a recipe can be chosen on such a test split, and
    the real one is not read for it."""


@dataclass(frozen=True)
class Splits:
    """What to learn from, the last but one interaction, and the last one."""

    train: Histories
    validation: HeldOut
    test: HeldOut

    @classmethod
    def leave_one_out(
        cls, histories: Histories, unseen_items: Int32[np.ndarray, " unseen"]
    ) -> "Splits":
        """Keeps each user's last interaction for test, the one before to validate.

        Unseen items disappear from the training histories, and from validation,
        with the users whose validation target they are. They stay in the test
        histories: a shop shows its new items, it only hasn't learned from them.

        Examples:
            >>> histories = Histories.from_lists([[3, 1, 4, 1, 5]])
            >>> splits = Splits.leave_one_out(histories, np.array([1], np.int32))
            >>> splits.train.of(0).tolist(), splits.validation.targets.tolist()
            ([3, 4], [])
            >>> splits.test.histories.of(0).tolist(), splits.test.targets.tolist()
            ([3, 1, 4, 1], [5])
        """
        if (histories.lengths < 3).any():
            raise ValueError("leave-one-out needs at least three items per user")
        last = histories.offsets[1:] - 1
        users = np.arange(histories.num_users, dtype=np.int32)
        test = HeldOut(users, histories.drop_last(1), histories.items[last])
        train, targets = histories.drop_last(2), histories.items[last - 1]
        if not unseen_items.size:
            return cls(train, HeldOut(users, train, targets), test)
        train = without_items(train, unseen_items)
        seen = np.flatnonzero(~np.isin(targets, unseen_items))
        return cls(train, HeldOut(users, train, targets).select(seen), test)


def leave_out_newest(histories: Histories, count: int) -> Histories:
    """Histories without their newest interactions; InputError if too few are left."""
    if count < 0:
        raise InputError(f"SplitsConfig.left_out is {count}: it must not be negative")
    if count and (histories.lengths < count + 3).any():
        raise InputError(
            f"SplitsConfig.left_out is {count}, which leaves some users fewer than the "
            "3 interactions that a split needs: also set "
            + flag("interactions.InteractionsConfig.k_core", count + 3)
        )
    return histories.drop_last(count) if count else histories


def choose_unseen_items(
    histories: Histories, share: float, *, seed: int
) -> Int32[np.ndarray, " unseen"]:
    """Draws a share in [0, 1) of the test targets, to hide from training; 1 or more."""
    if not 0 <= share < 1:
        raise InputError(f"SplitsConfig.unseen_share is {share}: it must be in [0, 1)")
    if share == 0:
        return np.empty(0, np.int32)
    candidates = np.unique(histories.items[histories.offsets[1:] - 1])
    count = max(1, round(share * len(candidates)))
    rng = np.random.default_rng([seed, 2])
    return np.sort(rng.choice(candidates, count, replace=False))


def without_items(
    histories: Histories, items: Int32[np.ndarray, " removed"]
) -> Histories:
    """Removes items from all histories, which may become empty."""
    is_kept = ~np.isin(histories.items, items)
    kept_before = np.concatenate([[0], np.cumsum(is_kept)]).astype(np.int64)
    return Histories(histories.items[is_kept], kept_before[histories.offsets])
