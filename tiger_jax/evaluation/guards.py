"""Checks that make a bad run loud: is the encoder heard, is the search exact?"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int32

from tiger_jax.evaluation.recommend_fn import RecommendFn
from tiger_jax.histories import HeldOut

LEAST_SHIFT = 0.01  # total variation; a decoder that ignores its encoder shows 0
LEAST_OVERLAP = 0.9  # of the search's list with the exact one


@dataclasses.dataclass(frozen=True)
class GuardResult:
    """A measured property of a run, and whether it is as it should be.

    Attributes:
        name: What was checked.
        value: What was measured.
        is_fine: Whether `value` is within bounds.
        explanation: One sentence for a person, with the number in it.
    """

    name: str
    value: float
    is_fine: bool
    explanation: str


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
      history_length: Items of each history that are shown.
    """
    users = held_out.user_numbers
    histories = held_out.histories.last(history_length)
    own = np.exp(np.asarray(distribution_fn(users, histories), np.float64))
    swapped = np.roll(histories, 1, axis=0)
    other = np.exp(np.asarray(distribution_fn(users, swapped), np.float64))
    shift = float(np.abs(own - other).sum(1).mean() / 2)
    is_fine = shift >= LEAST_SHIFT
    return GuardResult(
        "history_matters",
        shift,
        is_fine,
        f"another user's history moves {shift:.1%} of the first codeword's probability"
        + (
            ""
            if is_fine
            else f" (expected at least {LEAST_SHIFT:.0%}): the decoder ignores its "
            "encoder. Lower the learning rate, or train longer with warm-up"
        ),
    )


def check_search_is_exact(
    search: RecommendFn,
    exact: RecommendFn,
    held_out: HeldOut,
    *,
    history_length: int,
    k: int = 10,
) -> GuardResult:
    """Compares a beam search's lists with those of scoring every item.

    Measures the mean share of the exact top k that the search found too. Order
    within the list is left out: near-ties may swap between two ways to add.
    """
    histories = held_out.histories.last(history_length)
    nothing = np.full((len(histories), 1), -1, np.int32)
    arguments = held_out.user_numbers, histories, nothing, k
    found = np.asarray(search(*arguments)[0])  # [B, k]
    wanted = np.asarray(exact(*arguments)[0])  # [B, k]
    is_there = (wanted[:, :, None] == found[:, None, :]).any(2) & (wanted >= 0)
    overlap = float(is_there.sum() / max(1, (wanted >= 0).sum()))
    is_fine = overlap >= LEAST_OVERLAP
    return GuardResult(
        "search_is_exact",
        overlap,
        is_fine,
        f"the search finds {overlap:.1%} of the exact top {k} over the whole catalogue"
        + (
            ""
            if is_fine
            else f" (expected at least {LEAST_OVERLAP:.0%}): use more beams, or score "
            "the whole catalogue"
        ),
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
    is_fine = distinct >= expected
    return GuardResult(
        "lists_differ",
        float(distinct),
        is_fine,
        f"{distinct:,} different items come first in the lists of {len(first):,} users"
        + (
            ""
            if is_fine
            else f" (expected at least {expected:,}): the recommender has collapsed"
        ),
    )
