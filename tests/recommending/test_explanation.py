"""What is shown of a search is what the search did."""

import math

import numpy as np
import pytest
from trained_workdir import TINY_TWO_LEVEL, make_trained_workdir

from tiger_jax.errors import InputError
from tiger_jax.recommending.explanation import explain
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.recommending.requests import Request
from tiger_jax.recommending.searcher import NO_DENSE_HEAD, DenseWeights, SearchConfig

HISTORY = ["item-1", "item-2", "item-3"]


@pytest.fixture(scope="module")
def explanation(recommender):
    return explain(recommender, Request(HISTORY, 10))


def test_the_answer_is_the_usual_one(recommender, explanation):
    assert explanation.answer == recommender.recommend(HISTORY, k=10)


def test_every_item_comes_from_beams_that_go_on(recommender, explanation):
    levels = explanation.levels
    assert len(levels) == recommender.catalogue.table.codes.shape[1] - 1
    for item in explanation.answer.items:
        for depth, beams in enumerate(levels):
            (own,) = (
                b for b in beams if b.prefix == tuple(item.semantic_id[: depth + 1])
            )
            assert own.goes_on
            assert own.log_prob >= item.score - 1e-4
            if depth:
                assert levels[depth - 1][own.parent].prefix == own.prefix[:-1]


def test_a_prefix_is_as_likely_as_what_is_below(recommender, explanation):
    """As many beams as items: nothing was pruned, so probabilities add up."""
    first, second = explanation.levels[:2]
    below = [0.0] * len(first)
    for beam in second:
        below[beam.parent] += math.exp(beam.log_prob)
    for beam, total in zip(first, below, strict=True):
        # Codewords that no item has take the rest.
        assert total <= math.exp(beam.log_prob) + 1e-5
    assert [b.log_prob for b in first] == sorted(
        (b.log_prob for b in first), reverse=True
    )


def test_excluded_and_filtered_items_leave_no_beam(recommender):
    request = Request(HISTORY, 10, filter={"category": ["Shelf 1"]})
    found = explain(recommender, request)
    catalogue = recommender.catalogue
    allowed = catalogue.mask({"category": ["Shelf 1"]})
    allowed[[catalogue.number_of[item] for item in HISTORY]] = False
    expected = {tuple(code) for code in catalogue.table.codes[allowed, :1].tolist()}
    assert {beam.prefix for beam in found.levels[0]} == expected


def test_contributions_are_differences_of_exact_scores(recommender, explanation):
    def scores(history):
        options = {"k": 50, "exact": True, "exclude_history": False}
        listed = recommender.recommend(history, **options).items
        return {item.item_id: item.score for item in listed}

    whole = scores(HISTORY)
    without = [scores(HISTORY[:i] + HISTORY[i + 1 :]) for i in range(3)]
    assert explanation.history == HISTORY
    for item, own in zip(
        explanation.answer.items, explanation.contributions, strict=True
    ):
        expected = [whole[item.item_id] - less[item.item_id] for less in without]
        np.testing.assert_allclose(own, expected, atol=1e-4)


def test_one_item_has_nobody_to_compare_with(recommender):
    found = explain(recommender, Request(["item-1"], 5))
    assert found.contributions == []
    assert found.levels


def test_without_a_known_item_nothing_was_searched(recommender):
    found = explain(recommender, Request(["gone"], 5))
    assert (found.levels, found.contributions) == ([], [])
    assert found.answer.by == "popularity"


@pytest.mark.parametrize(
    "options", [{"temperature": 1.0}, {"epsilon": 0.5}, {"exact": True}]
)
def test_other_ways_to_list_have_no_beams(recommender, options):
    with pytest.raises(InputError, match="no beams to show"):
        explain(recommender, Request(HISTORY, 5, **options))


def test_a_dense_head_orders_what_the_beams_found(tmp_path):
    """Beams are ranked by their codewords, the list by content too."""
    workdir = make_trained_workdir(
        tmp_path / "work",
        model=TINY_TWO_LEVEL,
        num_user_tokens=0,
        dense_weights=DenseWeights(0.5, 0.25),
        with_quantizer=True,
    )
    recommender = Recommender.of_workdir(workdir, SearchConfig(num_beams=50))
    found = explain(recommender, Request(HISTORY, 5))
    assert found.answer == recommender.recommend(HISTORY, k=5)
    for item in found.answer.items:
        for depth, beams in enumerate(found.levels):
            prefix = tuple(item.semantic_id[: depth + 1])
            assert [b.goes_on for b in beams if b.prefix == prefix] == [True]
    recommender.dense_weights = NO_DENSE_HEAD
    by_codes = explain(recommender.fork(), Request(HISTORY, 5))
    assert found.levels[0]
    own, other = ([b.log_prob for b in x.levels[0]] for x in (found, by_codes))
    assert own == other
    assert all(math.isfinite(x) for row in found.contributions for x in row)
