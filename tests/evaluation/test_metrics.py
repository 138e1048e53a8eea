"""Ranks and metrics, by hand and against a slow reference."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ranking_reference import ranks_in_catalogue

from tiger_jax.evaluation import metrics, recommend_fn

NOTHING = np.full((1, 1), -1, np.int32)


def _rank(scores: list[float], target: int, k: int) -> int:
    """The rank through a list of k + 1 items, as the evaluator does it."""
    listed, listed_scores = recommend_fn.top_k(
        np.array([scores], np.float32), NOTHING, k + 1
    )
    return int(
        metrics.ranks_in_lists(listed, listed_scores, np.array([target], np.int32))[0]
    )


def test_metrics_of_the_third_place_by_hand():
    ranks = np.array([2], np.int32)  # third
    found = metrics.compute_metrics(ranks, ("recall@1", "recall@5", "ndcg@5", "mrr@20"))
    assert found["recall@1"] == 0.0
    assert found["recall@5"] == 1.0
    assert found["ndcg@5"] == pytest.approx(1 / math.log2(2 + 2))  # 0.5
    assert found["mrr@20"] == pytest.approx(1 / 3)


def test_metrics_are_averages_over_users_by_hand():
    ranks = np.array([0, 4, 5, metrics.MISS], np.int32)
    found = metrics.compute_metrics(ranks)
    assert found["recall@1"] == 1 / 4
    assert found["recall@5"] == 2 / 4  # ranks 0 and 4
    assert found["recall@10"] == 3 / 4
    assert found["ndcg@5"] == pytest.approx((1 + 1 / math.log2(6)) / 4)
    assert found["ndcg@10"] == pytest.approx(
        (1 + 1 / math.log2(6) + 1 / math.log2(7)) / 4
    )
    assert found["mrr@20"] == pytest.approx((1 + 1 / 5 + 1 / 6) / 4)


def test_a_cutoff_ends_before_its_own_number():
    ranks = np.array([9, 10], np.int32)
    assert metrics.recall_at_k(ranks, 10).tolist() == [1.0, 0.0]
    assert metrics.ndcg_at_k(ranks, 10).tolist() == [1 / math.log2(11), 0.0]
    assert metrics.mrr_at_k(ranks, 10).tolist() == [1 / 10, 0.0]


def test_a_tie_goes_against_the_target():
    scores = [9.0, 5.0, 5.0, 5.0, 1.0]
    # Items 1, 2 and 3 share places 1 to 3: each is ranked 3.
    assert [_rank(scores, target, k=4) for target in range(5)] == [0, 3, 3, 3, 4]


def test_a_tie_beyond_the_list_is_a_miss_at_every_cutoff():
    """A tie that runs beyond the list is a miss at every cutoff."""
    scores = [9.0] + [5.0] * 30
    for target in range(1, 31):
        assert _rank(scores, target, k=20) >= 20
    assert _rank(scores, 0, k=20) == 0


def test_scoring_everything_alike_earns_nothing():
    ranks = [_rank([0.0] * 50, target, k=20) for target in range(50)]
    assert set(metrics.compute_metrics(np.array(ranks, np.int32)).values()) == {0.0}


def test_in_a_short_list_a_tie_at_the_end_may_go_on():
    listed = np.array([[3, 7, 8, -1, -1]], np.int32)
    scores = np.array([[2.0, 1.0, 1.0, -np.inf, -np.inf]], np.float32)

    def rank(target):
        return metrics.ranks_in_lists(listed, scores, np.array([target], np.int32))[0]

    assert rank(3) == 0
    assert rank(7) == rank(8) == metrics.MISS
    assert rank(4) == metrics.MISS
    scores[0, 2] = 0.5  # now nothing is tied
    assert (rank(7), rank(8)) == (1, 2)


def test_a_target_of_minus_one_never_matches_the_padding():
    listed = np.array([[3, -1]], np.int32)
    scores = np.array([[2.0, -np.inf]], np.float32)
    assert metrics.ranks_in_lists(listed, scores, np.array([-1], np.int32))[0] == (
        metrics.MISS
    )


@given(
    scores=st.lists(st.integers(0, 6), min_size=25, max_size=25),
    excluded=st.sets(st.integers(0, 24), max_size=3),
    target=st.integers(0, 24),
)
def test_lists_rank_like_a_slow_count_over_the_catalogue(scores, excluded, target):
    # The slow way: everything not excluded that scores at least as much.
    rivals = [
        i
        for i in range(25)
        if i not in excluded and i != target and scores[i] >= scores[target]
    ]
    expected = metrics.MISS if target in excluded else len(rivals)

    table = np.array([scores], np.float32)
    exclude = np.array([[*excluded, -1]], np.int32)
    listed, listed_scores = recommend_fn.top_k(table, exclude, 11)
    targets = np.array([target], np.int32)
    rank = metrics.ranks_in_lists(listed, listed_scores, targets)[0]
    assert min(rank, 10) == min(expected, 10)  # equal as far as cutoff 10 can see

    table[0, list(excluded)] = -np.inf
    assert ranks_in_catalogue(table, targets)[0] == expected


@given(ranks=st.lists(st.integers(0, 40), min_size=1, max_size=30))
def test_metrics_grow_with_k_and_keep_their_order(ranks):
    found = metrics.compute_metrics(np.array(ranks, np.int32))
    assert found["recall@1"] <= found["recall@5"] <= found["recall@10"]
    assert found["recall@10"] <= found["recall@20"]
    assert found["ndcg@5"] <= found["ndcg@10"] <= found["ndcg@20"]
    assert found["ndcg@10"] <= found["recall@10"]
    assert found["recall@1"] <= found["mrr@20"] <= found["recall@20"]


@pytest.mark.parametrize("name", ["recall", "recall@0", "hits@10", "ndcg@x"])
def test_an_unknown_metric_is_named(name):
    with pytest.raises(ValueError, match="unknown metric"):
        metrics.values_per_user(name, np.zeros(1, np.int32))


def test_no_users_is_an_error_rather_than_nan():
    with pytest.raises(ValueError, match="no held-out"):
        metrics.compute_metrics(np.zeros(0, np.int32))


def test_an_invalid_id_takes_its_place_in_the_list():
    items = np.array([[-2, 7, -2, 9], [-2, -2, 4, -1]], np.int32)
    scores = np.array([[4.0, 3.0, 2.0, 1.0], [3.0, 2.0, 1.0, -np.inf]], np.float32)
    ranks = metrics.ranks_in_lists(items, scores, np.array([9, 4], np.int32))
    assert ranks.tolist() == [3, 2]
