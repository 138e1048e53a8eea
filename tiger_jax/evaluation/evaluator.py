"""Runs any recommender over held-out interactions and ranks every target."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from tiger_jax.evaluation import metrics
from tiger_jax.evaluation.recommend_fn import RecommendFn, shown_items
from tiger_jax.histories import HeldOut
from tiger_jax.progress import Progress

MIN_EXCLUDE_WIDTH = 8


class InvalidRecommendation(ValueError):
    """A recommender broke its promise: an unknown, repeated or excluded item."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a recommender listed for each held-out interaction.

    Attributes:
        ranks: 0-based rank of the target, ties against it; `metrics.MISS` or any
          rank past the list where it wasn't found.
        item_numbers: The list of each user, best first, padded with -1.
        scores: Beside it, padded with -inf.
        num_invalid: Entries that were unknown, repeated or excluded.
        num_listed: All entries, the base of the share of invalid ones.
    """

    ranks: Int32[np.ndarray, " U"]
    item_numbers: Int32[np.ndarray, "U k"]
    scores: Float32[np.ndarray, "U k"]
    num_invalid: int
    num_listed: int


def evaluate(
    recommend: RecommendFn,
    held_out: HeldOut,
    *,
    num_items: int,
    exclude_seen: bool,
    k: int = metrics.MAX_CUTOFF,
    history_length: int | None = None,
    batch_size: int = 256,
    count_invalid: bool = False,
    description: str = "Evaluating",
) -> Evaluation:
    """Asks for k + 1 items per user, checks every list, and ranks the targets.

    Users with histories of like length share a batch, and widths come from a
    short ladder: a jitted recommender compiles a handful of times and most users
    don't pay for the longest history. Every batch has `batch_size` rows; the
    last repeats its first user to get there. Results are in `held_out`'s order.

    Args:
        exclude_seen: Whether the user's own items are out of the running (masked).
            A target that the user had before is then a miss by definition.
        history_length: The recommender is shown this many of the last items; None
            for its `max_items`, or 20. What is excluded is never cut.
        count_invalid: Counts invalid entries (an unconstrained search has some)
            instead of raising.

    Raises:
        InvalidRecommendation: A list holds an item that doesn't exist, comes
            twice, or was excluded; the message names the user.
    """
    num_users = len(held_out.targets)
    ranks = np.full(num_users, metrics.MISS, np.int32)
    item_numbers = np.full((num_users, k), -1, np.int32)
    scores = np.full((num_users, k), -np.inf, np.float32)
    num_invalid = num_listed = 0
    batches = _recommend_in_batches(
        recommend,
        held_out,
        k + 1,
        exclude_seen=exclude_seen,
        history_length=history_length,
        batch_size=batch_size,
        description=description,
    )
    for rows, exclude, listed, listed_scores in batches:
        bad = find_invalid(listed, exclude, num_items)
        if bad.any() and not count_invalid:
            row = int(bad.any(1).argmax())
            raise InvalidRecommendation(
                f"{int(bad.sum())} invalid recommendations in this batch; the first "
                f"for user {int(held_out.user_numbers[rows[row]])}: item numbers "
                f"{listed[row][bad[row]].tolist()} are unknown, repeated or excluded"
            )
        ranks[rows] = metrics.ranks_in_lists(
            listed, listed_scores, held_out.targets[rows]
        )
        item_numbers[rows] = listed[:, :k]
        scores[rows] = listed_scores[:, :k]
        num_invalid += int(bad.sum())
        num_listed += int((listed != -1).sum())
    return Evaluation(ranks, item_numbers, scores, num_invalid, num_listed)


def list_items(
    recommend: RecommendFn,
    held_out: HeldOut,
    *,
    k: int,
    history_length: int | None = None,
    batch_size: int = 256,
    description: str = "Recommending",
) -> tuple[Int32[np.ndarray, "U k"], Float32[np.ndarray, "U k"]]:
    """Asks for k items per user, nothing masked, without looking at the targets.

    Returns:
        Item numbers and scores in `held_out`'s order, padded with -1 and -inf.
    """
    num_users = len(held_out.user_numbers)
    item_numbers = np.full((num_users, k), -1, np.int32)
    scores = np.full((num_users, k), -np.inf, np.float32)
    for rows, _, listed, listed_scores in _recommend_in_batches(
        recommend,
        held_out,
        k,
        exclude_seen=False,
        history_length=history_length,
        batch_size=batch_size,
        description=description,
    ):
        item_numbers[rows], scores[rows] = listed, listed_scores
    return item_numbers, scores


def _recommend_in_batches(
    recommend: RecommendFn,
    held_out: HeldOut,
    k: int,
    *,
    exclude_seen: bool,
    history_length: int | None,
    batch_size: int,
    description: str,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields rows [b], what was excluded [b, X], item numbers and scores [b, k]."""
    history_length = history_length or shown_items(recommend)
    lengths = held_out.histories.lengths  # [U]
    order = np.argsort(-lengths, kind="stable")  # long ones first: memory fails early
    with Progress(len(order), description, unit="user") as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            filled = np.concatenate([rows, np.full(batch_size - len(rows), rows[0])])
            batch = held_out.select(filled)
            longest = int(lengths[filled].max())
            width = max(MIN_EXCLUDE_WIDTH, 1 << (longest - 1).bit_length())
            exclude = batch.histories.last(width if exclude_seen else 0)
            listed, scores = recommend(
                batch.user_numbers,
                batch.histories.last(_history_width(longest, history_length)),
                exclude,
                k,
            )
            own = slice(len(rows))
            yield rows, exclude[own], np.asarray(listed)[own], np.asarray(scores)[own]
            bar.advance(len(rows))


def find_invalid(
    item_numbers: Int32[np.ndarray, "B C"],
    exclude: Int32[np.ndarray, "B X"],
    num_items: int,
) -> Bool[np.ndarray, "B C"]:
    """Marks entries that are no item, come a second time, or were excluded.

    -1 is padding and always fine; -2 and below stand for invalid Semantic IDs
    of an unconstrained search.
    """
    out_of_range = (item_numbers < -1) | (item_numbers >= num_items)
    excluded = (item_numbers[:, :, None] == exclude[:, None, :]).any(2)  # [B, C]
    order = np.argsort(item_numbers, axis=1, kind="stable")
    in_order = np.take_along_axis(item_numbers, order, axis=1)
    is_repeat = in_order[:, 1:] == in_order[:, :-1]
    repeats = np.zeros(item_numbers.shape, bool)
    np.put_along_axis(repeats, order[:, 1:], is_repeat, axis=1)
    return (item_numbers != -1) & (out_of_range | excluded | repeats)


def _history_width(longest: int, history_length: int) -> int:
    ladder = (history_length // 4, history_length // 2, history_length)
    return next((width for width in ladder if longest <= width), history_length)


def sample_users(
    held_out: HeldOut, num_users: int | None, *, seed: int
) -> tuple[HeldOut, Int64[np.ndarray, " C"]]:
    """Takes a random part of the users where not all are wanted.

    Returns:
        The part, and the rows it came from (ascending).
    """
    total = len(held_out.targets)
    if num_users is None or num_users >= total:
        return held_out, np.arange(total)
    key = np.random.default_rng(seed)
    rows = np.sort(key.choice(total, size=num_users, replace=False))
    return held_out.select(rows), rows
