"""Intervals against the textbook and against drawing users one by one."""

import math

import numpy as np

from tiger_jax.evaluation import bootstrap, metrics


def _ranks(num_hits: int, num_users: int) -> np.ndarray:
    ranks = np.full(num_users, metrics.MISS, np.int32)
    ranks[:num_hits] = 0
    return ranks


def test_the_interval_of_a_share_is_the_textbook_one():
    # 300 hits of 1,000: p ± 1.96 sqrt(p (1 - p) / n) = .3 ± .0284.
    low, high = bootstrap.metric_intervals(_ranks(300, 1000), num_resamples=20_000)[
        "recall@10"
    ]
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    np.testing.assert_allclose([low, high], [0.3 - half, 0.3 + half], atol=0.002)


def test_it_matches_drawing_the_users_one_by_one():
    key = np.random.default_rng(3)
    ranks = key.integers(0, 30, size=400).astype(np.int32)
    values = metrics.values_per_user("ndcg@20", ranks)
    drawn = values[key.integers(0, 400, size=(4000, 400))].mean(1)
    low, high = bootstrap.metric_intervals(ranks, ("ndcg@20",), num_resamples=4000)[
        "ndcg@20"
    ]
    np.testing.assert_allclose(
        [low, high], np.quantile(drawn, [0.025, 0.975]), atol=0.003
    )


def test_the_same_seed_gives_the_same_interval():
    ranks = _ranks(40, 200)
    assert bootstrap.metric_intervals(ranks, seed=5) == bootstrap.metric_intervals(
        ranks, seed=5
    )
    assert bootstrap.metric_intervals(ranks, seed=5) != bootstrap.metric_intervals(
        ranks, seed=6
    )


def test_an_interval_holds_its_mean_and_shrinks_with_users():
    """An interval holds its own mean and shrinks with more users."""
    few = bootstrap.metric_intervals(_ranks(30, 100))["recall@5"]
    many = bootstrap.metric_intervals(_ranks(3000, 10_000))["recall@5"]
    assert few[0] < 0.3 < few[1]
    assert many[0] < 0.3 < many[1]
    # sqrt(100) times narrower.
    assert 7 < (few[1] - few[0]) / (many[1] - many[0]) < 14


def test_pairing_sees_a_difference_that_two_intervals_hide():
    # The same users are hard for both; B finds 20 of 1,000 users more.
    a, b = _ranks(300, 1000), _ranks(320, 1000)
    intervals = [bootstrap.metric_intervals(r)["recall@10"] for r in (a, b)]
    assert intervals[0][1] > intervals[1][0]  # they overlap
    mean, low, high = bootstrap.paired_difference(b, a, "recall@10")
    assert abs(mean - 0.02) < 1e-12
    assert 0 < low < 0.02 < high


def test_two_equal_recommenders_differ_by_nothing():
    ranks = _ranks(10, 50)
    assert bootstrap.paired_difference(ranks, ranks, "ndcg@10") == (0.0, 0.0, 0.0)
