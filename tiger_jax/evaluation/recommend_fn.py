"""The one shape of a recommender, and how dense scores are put into it."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32

MAX_SCORES_AT_ONCE = 1 << 24  # 64 MiB of float32, whatever the catalogue's size
USUAL_ITEMS = 20  # of a history that a recommender is shown

Users = Int32[np.ndarray, " B"]
Shown = Int32[np.ndarray, "B I"]  # histories
Excluded = Int32[np.ndarray, "B X"]
Lists = tuple[Int32[np.ndarray, "B k"], Float32[np.ndarray, "B k"]]
ScoreFn = Callable[[Users, Shown], Float32[np.ndarray, "B N"]]


@runtime_checkable
class RecommendFn(Protocol):
    """Recommends k items to each of B users.

    Where it has an attribute `max_items`, it is shown that many items of a history.
    """

    def __call__(
        self, user_numbers: Users, histories: Shown, exclude: Excluded, k: int
    ) -> Lists:
        """Returns item numbers and scores, best first.

        Args:
            user_numbers: Row in the users table; -1 for somebody unknown.
            histories: Most recent items, oldest first, padded with -1 on the right.
            exclude: Items that must not be recommended, padded with -1.
            k: Length of the list; missing items are -1 with score -inf.
        """
        ...


def top_k(
    scores: Float32[np.ndarray, "B N"], exclude: Int32[np.ndarray, "B X"], k: int
) -> tuple[Int32[np.ndarray, "B k"], Float32[np.ndarray, "B k"]]:
    """Sorts out the k best of N scored items; equal scores by item number.

    Which members of a group of ties at the end of the list get in is left open
    (it can't matter: see `metrics.ranks_in_lists`).
    """
    num_users, num_items = scores.shape
    row = np.arange(num_users)[:, None]  # [B, 1]
    # One more column, where the padding of `exclude` can write.
    allowed = np.concatenate([scores, np.empty((num_users, 1), np.float32)], axis=1)
    allowed[row, np.where(exclude >= 0, exclude, num_items)] = -np.inf
    allowed = allowed[:, :num_items]
    kept = min(k, num_items)
    best = np.argpartition(-allowed, kept - 1, axis=1)[:, :kept]  # [B, kept]
    best.sort(axis=1)
    order = np.argsort(-allowed[row, best], axis=1, kind="stable")
    best = best[row, order]
    best_scores = allowed[row, best]
    item_numbers = np.where(np.isneginf(best_scores), -1, best)
    return pad_lists(item_numbers, best_scores, k)


def pad_lists(item_numbers: np.ndarray, scores: np.ndarray, k: int) -> Lists:
    """Fills lists of at most k items up to k, with -1 and -inf."""
    missing = ((0, 0), (0, k - item_numbers.shape[1]))
    return (
        np.pad(item_numbers, missing, constant_values=-1).astype(np.int32),
        np.pad(scores, missing, constant_values=-np.inf).astype(np.float32),
    )


@dataclasses.dataclass(frozen=True)
class ScoredCatalogue:
    """A recommender made of a function that scores the whole catalogue.

    Users are scored a few at a time where B x N scores would be many.

    Attributes:
        max_items: Items of a history that are scored, the most recent; None for all
            that are shown.
    """

    score_fn: ScoreFn
    num_items: int
    max_items: int | None = None

    def __call__(
        self, user_numbers: Users, histories: Shown, exclude: Excluded, k: int
    ) -> Lists:
        """Recommends k items per user (`RecommendFn`)."""
        step = max(1, MAX_SCORES_AT_ONCE // max(1, self.num_items))
        if self.max_items is not None:
            histories = last_items(histories, self.max_items)
        parts = [
            top_k(
                self.score_fn(user_numbers[at : at + step], histories[at : at + step]),
                exclude[at : at + step],
                k,
            )
            for at in range(0, len(histories), step)
        ]
        item_numbers, scores = zip(*parts, strict=True)
        return np.concatenate(item_numbers), np.concatenate(scores)


def shown_items(recommend: RecommendFn, usual: int = USUAL_ITEMS) -> int:
    """How many items of a history a recommender is shown: its `max_items`, if any."""
    return getattr(recommend, "max_items", None) or usual


def recency_weights(
    histories: Int32[np.ndarray, "B I"], last: int
) -> Float32[np.ndarray, "B I"]:
    """Weighs the last items of each history by 1 / recency; others by 0.

    The newest item has recency 1, the one before it 2, and so on.

    Examples:
        >>> recency_weights(np.array([[7, 8, 9, -1]], np.int32), last=2).tolist()
        [[0.0, 0.5, 1.0, 0.0]]
    """
    is_item = histories >= 0  # [B, I]
    recency = is_item.sum(1)[:, None] - np.arange(histories.shape[1])[None, :]
    weighed = is_item & (recency <= last)
    return np.where(weighed, 1.0 / np.maximum(recency, 1), 0.0).astype(np.float32)


def last_items(
    histories: Int32[np.ndarray, "B I"], n: int
) -> Int32[np.ndarray, "B kept"]:
    """Cuts histories to their `n` most recent items, padding on the right again.

    Examples:
        >>> last_items(np.array([[7, 8, 9], [5, -1, -1]], np.int32), 2).tolist()
        [[8, 9], [5, -1]]
    """
    if histories.shape[1] <= n:
        return histories
    lengths = (histories >= 0).sum(1)  # [B]
    first = np.maximum(lengths - n, 0)
    column = np.arange(n)[None, :] + first[:, None]  # [B, n]
    return np.take_along_axis(histories, column, axis=1)
