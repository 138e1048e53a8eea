"""Ranking metrics over the whole catalogue, with ties counted against the target."""

import re
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32, Float64, Int32

REPORTED = (
    *(f"recall@{k}" for k in (1, 5, 10, 20)),
    *(f"ndcg@{k}" for k in (5, 10, 20)),
    "mrr@20",
)
MAX_CUTOFF = 20
MISS = np.iinfo(np.int32).max  # the rank of a target that can't be in the top

MetricFn = Callable[[Int32[np.ndarray, " U"], int], Float64[np.ndarray, " U"]]
_METRIC_FNS: dict[str, MetricFn] = {}


def ranks_in_lists(
    item_numbers: Int32[np.ndarray, "B C"],
    scores: Float32[np.ndarray, "B C"],
    targets: Int32[np.ndarray, " B"],
) -> Int32[np.ndarray, " B"]:
    """Finds each target's 0-based rank in its user's list, best first.

    A target that shares its score with other items gets the worst place of that
    group, so a recommender gains nothing by scoring everything alike:

        rank = |{items in the list with score >= the target's}| - 1

    Ask for one item more than the largest cutoff (C = k + 1): a group of ties
    that may go on beyond the list then ends at rank k or later, a miss at every
    cutoff up to k. In a shorter list (padded with -1: the search kept fewer
    candidates) nobody knows what came next, so a group of two or more that
    reaches the last entry is a `MISS`.

    An invalid Semantic ID (-2) takes its place in the list like an item.
    """
    is_target = (item_numbers == targets[:, None]) & (targets[:, None] >= 0)  # [B, C]
    found = is_target.any(1)  # [B]
    row = np.arange(len(targets))
    score = np.where(found, scores[row, is_target.argmax(1)], np.inf)  # [B]
    is_item = item_numbers != -1  # [B, C]
    at_least = (is_item & (scores >= score[:, None])).sum(1)  # [B]
    tied = (is_item & (scores == score[:, None])).sum(1)  # [B]
    num_listed = is_item.sum(1)  # [B]
    runs_off = (num_listed < item_numbers.shape[1]) & (at_least == num_listed)
    known = found & ~(runs_off & (tied > 1))
    return np.where(known, at_least - 1, MISS).astype(np.int32)


def metric(name: str) -> Callable[[MetricFn], MetricFn]:
    """Registers (ranks[U], k) -> values[U] as a metric: ``NAME@k`` is then known.

    Raises:
        ValueError: Another function has the name.

    Examples:
        >>> @metric("halves")
        ... def half_recall(ranks, k):
        ...     return 0.5 * (ranks < k)
        >>> values_per_user("halves@5", np.array([0, 7], np.int32)).tolist()
        [0.5, 0.0]
    """

    def register(function: MetricFn) -> MetricFn:
        known = _METRIC_FNS.get(name, function)
        is_other = known.__name__ != function.__name__
        if is_other or known.__module__ != function.__module__:
            raise ValueError(f"a metric {name!r} is there already: {known.__module__}")
        _METRIC_FNS[name] = function
        return function

    return register


@metric("recall")
def recall_at_k(ranks: Int32[np.ndarray, " U"], k: int) -> Float64[np.ndarray, " U"]:
    """1 where the one held-out item is among the first k, else 0.

    With a single relevant item this is the hit rate.
    """
    return (ranks < k).astype(np.float64)


@metric("ndcg")
def ndcg_at_k(ranks: Int32[np.ndarray, " U"], k: int) -> Float64[np.ndarray, " U"]:
    """1 / log2(rank + 2) where rank < k, else 0.

    The ideal ranking has the one relevant item first, so the normaliser is 1.
    """
    return np.where(ranks < k, 1.0 / np.log2(ranks.astype(np.float64) + 2.0), 0.0)


@metric("mrr")
def mrr_at_k(ranks: Int32[np.ndarray, " U"], k: int) -> Float64[np.ndarray, " U"]:
    """1 / (rank + 1) where rank < k, else 0."""
    return np.where(ranks < k, 1.0 / (ranks.astype(np.float64) + 1.0), 0.0)


def values_per_user(
    name: str, ranks: Int32[np.ndarray, " U"]
) -> Float64[np.ndarray, " U"]:
    """Evaluates a metric by its reported name, such as ``ndcg@10``.

    Raises:
        ValueError: The name isn't ``NAME@k`` of a registered metric.

    Examples:
        >>> values_per_user("mrr@20", np.array([0, 3, MISS], np.int32)).tolist()
        [1.0, 0.25, 0.0]
    """
    function, cutoff = _parse(name)
    return function(ranks, cutoff)


def check_names(names: Sequence[str]) -> None:
    """Refuses, by a ValueError, metrics that are unknown or look beyond the lists."""
    for name in names:
        if _parse(name)[1] > MAX_CUTOFF:
            raise ValueError(f"{name}: lists are cut at {MAX_CUTOFF} items")


def with_reported(names: Sequence[str]) -> tuple[str, ...]:
    """The reported metrics and others, each once."""
    return tuple(dict.fromkeys((*REPORTED, *names)))


def _parse(name: str) -> tuple[MetricFn, int]:
    match = re.fullmatch(r"(\w+)@([1-9]\d*)", name)
    if match is None or match[1] not in _METRIC_FNS:
        known = ", ".join(f"{known}@k" for known in _METRIC_FNS)
        raise ValueError(f"unknown metric {name!r}: known are {known}")
    return _METRIC_FNS[match[1]], int(match[2])


def compute_metrics(
    ranks: Int32[np.ndarray, " U"], names: tuple[str, ...] = REPORTED
) -> dict[str, float]:
    """Averages every named metric over the users; ValueError if there are none."""
    if not len(ranks):
        raise ValueError("no held-out interaction to average over")
    return {name: float(values_per_user(name, ranks).mean()) for name in names}
