"""A recommender made of recommenders: lists are normalised, weighted and summed.

Recommenders score on scales of their own (log-probabilities, cosines, counts), so
each one's list is first brought to a common one, in which a missing item has 0:

    score(b) = sum_p w_p n_p(b),   n_p(b) = normalised score of b in p's list, or 0

The weights are chosen on validation users and then left alone.

References:
  Fox and Shaw 1994, "Combination of Multiple Searches" (sums of scores); Cormack et
  al. 2009, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
  Methods".
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float32, Int, Int32

from tiger_jax.evaluation import evaluator, metrics, recommend_fn

NORMALIZATIONS = ("reciprocal_rank", "min_max", "z_score", "softmax")
RANK_OFFSET = 60  # of reciprocal rank fusion; its authors' constant
MULTIPLIERS = (0.0, 0.25, 0.5, 0.7, 0.85, 1.2, 1.4, 2.0, 4.0)
REVIVED = (0.1, 0.3, 1.0)  # what a weight of 0 is tried at
MAX_ROUNDS = 20
# Item numbers and scores, best first; each part's are as long as it likes.
PartLists = tuple[Int32[np.ndarray, "U _"], Float32[np.ndarray, "U _"]]
USERS_AT_ONCE = 4096  # a pool may hold every item that any part lists


@dataclasses.dataclass(frozen=True)
class Pool:
    """Every item that some part listed for a user, with what each part says of it.

    Attributes:
        item_numbers: Ascending in each row, then -1.
        features: Normalised score by part; 0 where the part doesn't list the item.
    """

    item_numbers: Int32[np.ndarray, "U C"]
    features: Float32[np.ndarray, "U C P"]


def fuse_lists(
    lists: Mapping[str, PartLists],
    weights: Mapping[str, float],
    *,
    normalization: str,
    k: int,
) -> tuple[Int32[np.ndarray, "U k"], Float32[np.ndarray, "U k"]]:
    """Sums the parts' lists, a few users at a time.

    Args:
        lists: Item numbers and scores by part; a part of weight 0 isn't looked at.
    """
    asked = [name for name in lists if weights[name]]
    shares = np.array([weights[name] for name in asked], np.float32)
    total = len(lists[asked[0]][0])
    found = []
    for at in range(0, total, USERS_AT_ONCE):
        rows = slice(at, at + USERS_AT_ONCE)
        few = [(lists[name][0][rows], lists[name][1][rows]) for name in asked]
        found.append(rank_pool(pool_lists(few, normalization), shares, k))
    items, scores = zip(*found, strict=True)
    return np.concatenate(items), np.concatenate(scores)


def normalize_scores(
    scores: Float32[np.ndarray, "U D"], how: str
) -> Float32[np.ndarray, "U D"]:
    """Brings each list's scores to a common scale; 0 where the list has no item.

    *   ``reciprocal_rank``: 1 / (60 + rank), from rank 1; equal scores share the
        worst rank of their group.
    *   ``min_max``: from 0 for the list's last to 1 for its first.
    *   ``z_score``: in standard deviations of the list, above its last.
    *   ``softmax``: probabilities, of scores in standard deviations of the list.

    A list of equal scores says nothing: all are 0, but for `reciprocal_rank`.

    Args:
        scores: Best first, -inf where there is no item.

    Examples:
        >>> normalize_scores(np.array([[4, 2, 0]], np.float32), "min_max").tolist()
        [[1.0, 0.5, 0.0]]
    """
    if how not in NORMALIZATIONS:
        raise ValueError(f"{how!r}: choose one of {', '.join(NORMALIZATIONS)}")
    is_item = np.isfinite(scores)
    if how == "reciprocal_rank":
        rank = _worst_ranks(scores)
        return np.where(is_item, 1.0 / (RANK_OFFSET + rank), 0.0).astype(np.float32)
    count = np.maximum(is_item.sum(1, keepdims=True), 1)
    values = np.where(is_item, scores, 0.0).astype(np.float64)
    mean = values.sum(1, keepdims=True) / count
    centred = np.where(is_item, values - mean, 0.0)
    spread = np.sqrt((centred**2).sum(1, keepdims=True) / count)
    lowest = np.where(is_item, centred, np.inf).min(1, keepdims=True)
    above = np.where(is_item, centred - np.where(spread > 0, lowest, 0.0), 0.0)
    if how == "min_max":
        found = above / np.maximum(above.max(1, keepdims=True), 1e-12)
    else:
        found = above / np.maximum(spread, 1e-12)
        if how == "softmax":
            found = np.where(is_item, np.exp(found - found.max(1, keepdims=True)), 0.0)
            found /= np.maximum(found.sum(1, keepdims=True), 1e-12)
    return np.where(spread > 0, found, 0.0).astype(np.float32)


def _worst_ranks(scores: Float32[np.ndarray, "U D"]) -> Int[np.ndarray, "U D"]:
    """Rank of each entry from 1, the last of its group where scores are equal."""
    depth = scores.shape[1]
    is_last = np.ones(scores.shape, bool)
    is_last[:, :-1] = scores[:, 1:] != scores[:, :-1]
    place = np.where(is_last, np.arange(1, depth + 1)[None, :], depth)
    return np.minimum.accumulate(place[:, ::-1], axis=1)[:, ::-1]


def pool_lists(lists: Sequence[PartLists], normalization: str) -> Pool:
    """Unites the parts' lists, user by user."""
    items = np.concatenate([numbers for numbers, _ in lists], axis=1)  # [U, sum of D]
    values = np.concatenate(
        [normalize_scores(scores, normalization) for _, scores in lists], axis=1
    )
    part = np.repeat(np.arange(len(lists)), [n.shape[1] for n, _ in lists])
    # Sorted by item, with padding last; the same items stand together.
    order = np.argsort(np.where(items < 0, np.iinfo(np.int32).max, items), axis=1)
    items = np.take_along_axis(items, order, axis=1)
    values = np.take_along_axis(values, order, axis=1)
    is_new = items >= 0
    is_new[:, 1:] &= items[:, 1:] != items[:, :-1]
    place = np.cumsum(is_new, axis=1) - 1  # [U, sum of D]
    width = max(1, int(place.max(initial=0)) + 1)
    user, column = np.nonzero(items >= 0)
    at = place[user, column]
    features = np.zeros((len(items), width, len(lists)), np.float32)
    np.add.at(features, (user, at, part[order[user, column]]), values[user, column])
    pooled = np.full((len(items), width), -1, np.int32)
    pooled[user, at] = items[user, column]
    return Pool(pooled, features)


def rank_pool(
    pool: Pool, weights: Float[np.ndarray, " P"], k: int
) -> tuple[Int32[np.ndarray, "U k"], Float32[np.ndarray, "U k"]]:
    """Sorts every user's pool by weighted sum; equal sums by item number."""
    totals = pool.features @ np.asarray(weights, np.float32)  # [U, C]
    totals = np.where(pool.item_numbers >= 0, totals, -np.inf)
    best = np.argsort(-totals, axis=1, kind="stable")[:, :k]
    items = np.take_along_axis(pool.item_numbers, best, axis=1)
    return recommend_fn.pad_lists(items, np.take_along_axis(totals, best, axis=1), k)


def ranks_in_pool(
    pool: Pool, weights: Float[np.ndarray, " P"], targets: Int32[np.ndarray, " U"]
) -> Int32[np.ndarray, " U"]:
    """0-based rank of each target by weighted sum, ties against it."""
    totals = pool.features @ np.asarray(weights, np.float32)  # [U, C]
    is_item = pool.item_numbers >= 0
    is_target = is_item & (pool.item_numbers == targets[:, None])
    found = is_target.any(1)
    score = totals[np.arange(len(targets)), is_target.argmax(1)]
    rank = (is_item & (totals >= score[:, None])).sum(1) - 1
    return np.where(found, rank, metrics.MISS).astype(np.int32)


def choose_weights(
    pool: Pool, targets: Int32[np.ndarray, " U"], *, metric: str = "ndcg@10"
) -> tuple[Float32[np.ndarray, " P"], float]:
    """Finds weights by coordinate ascent, from equal shares.

    Every part's weight in turn is multiplied by `MULTIPLIERS` and the best kept,
    until a whole round changes nothing. Equal shares means that the parts' first
    items weigh the same on average. A part alone wins if that is better.

    Args:
        targets: Of the validation users; never of test users.

    Returns:
        Weights that sum to 1, and the metric that they reach.
    """
    in_pool = (pool.item_numbers == targets[:, None]).any(1)
    few = Pool(pool.item_numbers[in_pool], pool.features[in_pool])
    sought = targets[in_pool]

    def measure(weights: Float[np.ndarray, " P"]) -> float:
        if not len(sought):
            return 0.0
        ranks = ranks_in_pool(few, weights, sought)
        return float(metrics.values_per_user(metric, ranks).sum() / len(targets))

    scale = pool.features.max(axis=1, initial=0.0).mean(axis=0)  # [P]
    weights = 1.0 / np.maximum(scale, 1e-12)
    start, best = weights.copy(), measure(weights)
    for _ in range(MAX_ROUNDS):
        before = best
        for part in range(len(weights)):
            tried = weights[part] * np.array(MULTIPLIERS)
            if not weights[part]:
                tried = start[part] * np.array(REVIVED)
            for value in tried:
                candidate = weights.copy()
                candidate[part] = value
                found = measure(candidate) if candidate.any() else 0.0
                if found > best:
                    weights, best = candidate, found
        if best == before:
            break
    for alone in np.eye(len(weights)):
        if (found := measure(alone)) > best:
            weights, best = alone, found
    return (weights / weights.sum()).astype(np.float32), best


@dataclasses.dataclass(frozen=True)
class Choice:
    """Weights by part, their scale, and the validation metric that they reach."""

    normalization: str
    weights: dict[str, float]
    value: float


def choose(
    lists: Mapping[str, evaluator.Evaluation],
    targets: Int32[np.ndarray, " U"],
    normalizations: Sequence[str],
    metric: str,
) -> Choice:
    """Chooses weights for every scale, then the scale, by validation users' lists."""
    found = []
    for how in normalizations:
        pool = pool_lists([(e.item_numbers, e.scores) for e in lists.values()], how)
        weights, value = choose_weights(pool, targets, metric=metric)
        rounded = [round(float(weight), 4) for weight in weights]
        found.append(Choice(how, dict(zip(lists, rounded, strict=True)), value))
    return max(found, key=lambda choice: choice.value)
