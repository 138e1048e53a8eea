"""Checks that make a bad run loud: is the encoder heard, is the search exact?"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int32

from tiger_jax.evaluation import evaluator, recommend_fn
from tiger_jax.histories import HeldOut

MIN_SHIFT = 0.01  # total variation; a decoder that ignores its encoder shows 0
MIN_OVERLAP = 0.9  # of the search's list with the exact one
MIN_EXACT_USERS = 4


@dataclasses.dataclass(frozen=True)
class GuardResult:
    """A measured property of a run, and whether it is as it should be.

    Attributes:
        explanation: One sentence for a person, with the number in it.
    """

    name: str
    value: float
    is_fine: bool
    explanation: str


def check_recommender(
    recommend: Any,
    held_out: HeldOut,
    *,
    num_users: int,
    exact_scores: int,
    batch_size: int,
    seed: int,
) -> list[GuardResult]:
    """Checks on a few users that the history is heard and the search is exact.

    Args:
        recommend: A `RecommendFn` with `first_codeword_log_probs`, `recommend_exactly`,
            `num_items` and `max_items`.
        exact_scores: Item scores that the exact scoring may cost; it is left out where
            they pay for fewer than `MIN_EXACT_USERS` users.
        batch_size: As in the evaluation, which then finds its search compiled.
    """
    sample, _ = evaluator.sample_users(held_out, num_users, seed=seed)
    total = len(sample.targets) if num_users else 0
    affordable = exact_scores // recommend.num_items
    found = []
    if total > 1:
        distribution_fn = recommend.first_codeword_log_probs
        found.append(
            check_history_matters(
                distribution_fn, sample, history_length=recommend.max_items
            )
        )
    if total and affordable >= MIN_EXACT_USERS:
        few = sample.select(np.arange(min(affordable, total)))
        exact = recommend.recommend_exactly
        found.append(check_search_is_exact(recommend, exact, few, batch_size))
    return found


def check_history_matters(
    distribution_fn: Callable[
        [Int32[np.ndarray, " B"], Int32[np.ndarray, "B I"]], Float[np.ndarray, "B C"]
    ],
    held_out: HeldOut,
    *,
    history_length: int,
) -> GuardResult:
    """Gives every user somebody else's history: the output has to move.

    Measures the mean total variation distance, half of sum |p - q|, between a
    user's distribution with their own history and with their neighbour's (the
    user themselves stay, so that a model living off its user token is found out
    too). 0: the history is ignored. 1: nothing is shared.

    Args:
        distribution_fn: Log-probabilities over any fixed set of outcomes, such as
            the first codeword, for some users with some histories.
        held_out: A sample of users, at least two.
    """
    users = held_out.user_numbers
    histories = held_out.histories.last(history_length)
    own = np.exp(np.asarray(distribution_fn(users, histories), np.float64))
    swapped = np.roll(histories, 1, axis=0)
    other = np.exp(np.asarray(distribution_fn(users, swapped), np.float64))
    shift = float(np.abs(own - other).sum(1).mean() / 2)
    return _judge(
        "history_matters",
        shift,
        MIN_SHIFT,
        f"another user's history moves {shift:.1%} of the first codeword's probability",
        f"{MIN_SHIFT:.0%}): the decoder ignores its encoder. Lower the learning rate, "
        "or train longer with warm-up",
    )


def check_search_is_exact(
    search: recommend_fn.RecommendFn,
    exact: recommend_fn.RecommendFn,
    held_out: HeldOut,
    batch_size: int = 256,
    k: int = 10,
) -> GuardResult:
    """Compares a beam search's lists with those of scoring every item.

    Measures the mean share of the exact top k that the search found too. Order
    within the list is left out: near-ties may swap between two ways to add.
    """
    found, wanted = (
        evaluator.list_items(
            recommend,
            held_out,
            k=k,
            batch_size=size,
            description=f"Checking the search on {len(held_out.targets)} users",
        )[0]
        for recommend, size in ((search, batch_size), (exact, len(held_out.targets)))
    )  # [B, k] each
    is_there = (wanted[:, :, None] == found[:, None, :]).any(2) & (wanted >= 0)
    overlap = float(is_there.sum() / max(1, (wanted >= 0).sum()))
    return _judge(
        "search_is_exact",
        overlap,
        MIN_OVERLAP,
        f"the search finds {overlap:.1%} of the exact top {k} over the whole catalogue",
        f"{MIN_OVERLAP:.0%}): use more beams, or score the whole catalogue",
    )


def check_lists_differ(
    item_numbers: Int32[np.ndarray, "U k"], num_items: int
) -> GuardResult:
    """Counts the distinct first choices: a collapsed decoder has a handful.

    Fine from one in a hundred users (or items, where those are fewer) on.
    """
    first = item_numbers[:, 0]
    distinct = len(np.unique(first[first >= 0]))
    expected = max(1, min(len(first), num_items) // 100)
    return _judge(
        "lists_differ",
        float(distinct),
        float(expected),
        f"{distinct:,} different items come first in the lists of {len(first):,} users",
        f"{expected:,}): the recommender has collapsed",
    )


def _judge(
    name: str, value: float, least: float, measured: str, expected: str
) -> GuardResult:
    is_fine = value >= least
    explanation = measured if is_fine else f"{measured} (expected at least {expected}"
    return GuardResult(name, value, is_fine, explanation)
