"""How a list came about: the beams of each level, and what each history item added."""

import dataclasses

import jax
import numpy as np

from tiger_jax.decoding.trie import Trie, make_plan, worst_case
from tiger_jax.errors import InputError
from tiger_jax.recommending.recommender import Recommender, Row
from tiger_jax.recommending.requests import Answer, Request
from tiger_jax.recommending.searcher import Queries


@dataclasses.dataclass(frozen=True)
class Beam:
    """A prefix that the search kept.

    Attributes:
        log_prob: Of the prefix.
        parent: Its place among the beams of the level before; 0 at the first.
        goes_on: Whether a beam of the next level, or an item of the list, begins so.
    """

    prefix: tuple[int, ...]
    log_prob: float
    parent: int
    goes_on: bool


@dataclasses.dataclass(frozen=True)
class Explanation:
    """An answer, and the way to it.

    Attributes:
        levels: Beams of every level but the last, likeliest first; the last level's
            are the items.
        history: Ids of the items that were left out in turn, oldest first.
        contributions: By item of the answer and by left-out item: how much its
            log-probability is higher with that item than without. Empty where the
            history has one item.
    """

    answer: Answer
    levels: list[list[Beam]]
    history: list[str]
    contributions: list[list[float]]


def explain(recommender: Recommender, request: Request) -> Explanation:
    """Answers a request, and searches again to show how.

    The beams of a level are found by the same search over the tree cut off below it;
    contributions by searching, for each history with one item left out, among the
    answer's items alone. A dense head orders what the beams have found; they are shown
    as the codewords alone rank them, since no prefix has content.

    Raises:
        InputError: The list is drawn, split or scored exactly: that is no such search.
    """
    if request.exact or request.temperature is not None or request.epsilon is not None:
        raise InputError(
            "exact, temperature and epsilon have no beams to show: leave them out"
        )
    (answer,) = recommender.answer([request])
    if answer.by == "popularity" or not answer.items:
        return Explanation(answer, [], [], [])
    resolved = recommender.resolve(request, recommender.catalogue)
    row = Row(0, "any", resolved)
    allowed = row.mask(with_exclusion=True) & resolved.fits_prefix
    codes = resolved.catalogue.table.codes[allowed]
    sizes, capacity = (
        resolved.catalogue.table.codebook_sizes,
        resolved.catalogue.capacity,
    )
    inputs = recommender.encode([row])
    table = recommender.items_of(resolved.catalogue)
    found = []
    for depth in range(1, len(sizes)):
        prefixes = np.unique(codes[:, :depth], axis=0)
        plan = make_plan(worst_case(sizes[:depth], capacity))
        trie = Trie.build(prefixes, sizes[:depth], plan=plan, exclusion=False)
        searcher = dataclasses.replace(recommender.searcher, programs=None)
        searched = trie if table is None else table.over(trie)
        numbers, scores = jax.device_get(
            searcher.search_by_codes(searched, Queries(inputs))
        )
        is_beam = numbers[0] >= 0
        beams = prefixes[numbers[0][is_beam]].tolist()
        found.append(
            list(zip(map(tuple, beams), scores[0][is_beam].tolist(), strict=True))
        )
    history, contributions = _leave_out(recommender, request, answer)
    ends = [tuple(item.semantic_id) for item in answer.items]
    return Explanation(answer, _link(found, ends), history, contributions)


def _link(
    found: list[list[tuple[tuple[int, ...], float]]], ends: list[tuple[int, ...]]
) -> list[list[Beam]]:
    """Says of each beam where it came from and whether anything came of it."""
    levels = []
    for depth, beams in enumerate(found):
        before = {prefix: i for i, (prefix, _) in enumerate(found[depth - 1])}
        longer = [p for p, _ in found[depth + 1]] if depth + 1 < len(found) else ends
        goes_on = {prefix[: depth + 1] for prefix in longer}
        levels.append(
            [
                Beam(
                    prefix,
                    log_prob,
                    before.get(prefix[:-1], 0) if depth else 0,
                    prefix in goes_on,
                )
                for prefix, log_prob in beams
            ]
        )
    return levels


def _leave_out(
    recommender: Recommender, request: Request, answer: Answer
) -> tuple[list[str], list[list[float]]]:
    catalogue = recommender.catalogue
    known = [item for item in request.history if item in catalogue.number_of]
    known = known[-recommender.max_items :]
    if len(known) < 2:
        return known, []
    listed = [catalogue.number_of[item.item_id] for item in answer.items]
    others = np.setdiff1d(np.arange(catalogue.num_items), listed).astype(np.int32)
    histories = [known, *(known[:i] + known[i + 1 :] for i in range(len(known)))]
    resolved = [
        dataclasses.replace(
            recommender.resolve(
                Request(history, len(listed), user=request.user), catalogue
            ),
            exclude=others,
        )
        for history in histories
    ]
    scores = [
        {item.item_id: item.score for item in one.items}
        for one in recommender.answer_resolved(resolved)
    ]
    return known, [
        [scores[0][item.item_id] - without[item.item_id] for without in scores[1:]]
        for item in answer.items
    ]
