"""Entropy and coverage by hand."""

import math

import numpy as np

from tiger_jax.evaluation import diversity

CATEGORIES = ["soap", "soap", "oil", "", "comb"]


def test_entropy_by_hand():
    lists = np.array([[0, 1, 2, 4], [0, 1, 0, 1], [2, 3, 3, -1], [3, -1, -1, -1]])
    found = diversity.category_entropy(lists.astype(np.int32), CATEGORIES, 4)
    # 2 soap, 1 oil, 1 comb of 4.
    mixed = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    np.testing.assert_allclose(found, [mixed, 0, 0, 0], atol=1e-12)


def test_entropy_looks_at_the_first_k_only():
    lists = np.array([[0, 1, 2, 4]], np.int32)
    assert diversity.category_entropy(lists, CATEGORIES, 2)[0] == 0
    np.testing.assert_allclose(
        diversity.category_entropy(lists, ["a", "b", "c", "d", "e"], 4)[0], math.log(4)
    )


def test_coverage_counts_items_that_anybody_gets():
    lists = np.array([[0, 1, 2], [1, 0, 4], [0, -1, -1]], np.int32)
    assert diversity.catalogue_coverage(lists, 5, 2) == 2 / 5
    assert diversity.catalogue_coverage(lists, 5, 3) == 4 / 5


def test_popularity_rank_shares_the_place_of_equal_counts():
    counts = np.array([9, 4, 4, 0])
    # Item 0 first (0), items 1 and 2 share 1.5 / 3 = .5, item 3 last (1).
    lists = np.array([[0, 1], [2, 3]], np.int32)
    found = diversity.mean_popularity_rank(lists, counts, 2)
    np.testing.assert_allclose(found, (0 + 0.5 + 0.5 + 1) / 4)
