"""Fused lists against sums by hand, and weights that find the part that knows."""

import numpy as np
import pytest

from tiger_jax.evaluation import evaluator, fusion, recommend_fn
from tiger_jax.evaluation.lists import ListedRecommender
from tiger_jax.histories import HeldOut, Histories

NUM_ITEMS, USERS, DEPTH = 30, 40, 12
RNG = np.random.default_rng(0)
GOOD = RNG.normal(size=(USERS, NUM_ITEMS)).astype(np.float32)
NOISE = RNG.normal(size=(USERS, NUM_ITEMS)).astype(np.float32)
HELD_OUT = HeldOut(
    np.arange(USERS, dtype=np.int32),
    Histories.from_lists(RNG.integers(0, NUM_ITEMS, (USERS, 3)).tolist()),
    np.argsort(-GOOD, axis=1)[:, 1].astype(np.int32),  # its second choice
)


def _dense(scores):
    return recommend_fn.ScoredCatalogue(lambda users, _: scores[users], NUM_ITEMS)


def _lists(scores, depth=DEPTH):
    nothing = np.empty((USERS, 0), np.int32)
    histories = HELD_OUT.histories.last(3)
    return _dense(scores)(HELD_OUT.user_numbers, histories, nothing, depth)


@pytest.mark.parametrize("normalization", fusion.NORMALIZATIONS)
def test_a_fused_list_is_the_weighted_sum_of_the_parts_lists(normalization):
    whole = [_lists(GOOD), _lists(NOISE, 7)]
    exclude = HELD_OUT.histories.last(4)
    arguments = HELD_OUT.user_numbers, HELD_OUT.histories.last(3), exclude
    listed = ListedRecommender(HELD_OUT.user_numbers, *whole[1])
    parts = {
        "good": _dense(GOOD)(*arguments, DEPTH),
        "noise": listed(*arguments, DEPTH),
    }
    items, scores = fusion.fuse_lists(
        parts, {"good": 0.7, "noise": 0.3}, normalization=normalization, k=10
    )
    for user in (0, 17):
        expected = {}
        for (numbers, found), weight, dense in (
            (whole[0], 0.7, GOOD),
            (whole[1], 0.3, None),
        ):
            out = set(exclude[user].tolist())
            if dense is not None:  # asked for DEPTH items after the exclusion
                best = [i for i in np.argsort(-dense[user]) if i not in out][:DEPTH]
                kept = [(i, dense[user, i]) for i in best]
            else:  # shortened by it
                pairs = zip(numbers[user], found[user], strict=True)
                kept = [(i, s) for i, s in pairs if i not in out]
            values = fusion.normalize_scores(
                np.array([[s for _, s in kept]], np.float32), normalization
            )[0]
            for (item, _), value in zip(kept, values, strict=True):
                expected[int(item)] = expected.get(int(item), 0) + weight * value
        wanted = sorted(expected, key=lambda i: (-expected[i], i))[:10]
        np.testing.assert_allclose(
            scores[user], [expected[i] for i in wanted], rtol=1e-4, atol=1e-6
        )
        assert set(items[user].tolist()) <= set(expected)


def test_fused_lists_pass_the_evaluators_checks_though_short(monkeypatch):
    monkeypatch.setattr(fusion, "USERS_AT_ONCE", 7)
    arguments = HELD_OUT.user_numbers, HELD_OUT.histories.last(3)
    exclude = HELD_OUT.histories.last(4)
    parts = {
        "good": _dense(GOOD)(*arguments, exclude, 4),
        "noise": _dense(NOISE)(*arguments, exclude, 4),
    }
    fused = fusion.fuse_lists(
        parts, {"good": 1.0, "noise": 0.5}, normalization="min_max", k=21
    )
    found = evaluator.evaluate(
        ListedRecommender(HELD_OUT.user_numbers, *fused),
        HELD_OUT,
        num_items=NUM_ITEMS,
        exclude_seen=True,
        batch_size=16,
    )
    listed = (found.item_numbers >= 0).sum(1)
    assert (listed <= 8).all()
    assert (listed >= 4).all()
    alone = {"good": 1.0, "noise": 0.0}
    fused = fusion.fuse_lists(parts, alone, normalization="min_max", k=21)
    np.testing.assert_array_equal(np.sort(fused[0][:, :4]), np.sort(parts["good"][0]))
    assert (fused[0][:, 4:] == -1).all()


def test_normalised_scores_by_hand():
    scores = np.array([[5.0, 3.0, 3.0, 1.0, -np.inf]], np.float32)

    def rows(how):
        return fusion.normalize_scores(scores, how)[0]

    np.testing.assert_allclose(
        rows("reciprocal_rank"), [1 / 61, 1 / 63, 1 / 63, 1 / 64, 0], rtol=1e-6
    )
    np.testing.assert_allclose(rows("min_max"), [1, 0.5, 0.5, 0, 0])
    spread = np.sqrt(2.0)  # of 5, 3, 3, 1 about 3
    np.testing.assert_allclose(
        rows("z_score"), np.array([4, 2, 2, 0, 0]) / spread, rtol=1e-6
    )
    z = np.exp(np.array([4, 2, 2, 0]) / spread)
    np.testing.assert_allclose(rows("softmax"), [*(z / z.sum()), 0], rtol=1e-5)
    flat = fusion.normalize_scores(np.ones((1, 3), np.float32), "softmax")
    assert not flat.any()


def test_weights_go_to_the_part_that_knows():
    pool = fusion.pool_lists([_lists(NOISE), _lists(GOOD)], "reciprocal_rank")
    weights, reached = fusion.choose_weights(pool, HELD_OUT.targets)
    assert weights[1] > 0.8
    assert weights.sum() == pytest.approx(1)
    ranks = fusion.ranks_in_pool(pool, weights, HELD_OUT.targets)
    items, scores = fusion.rank_pool(pool, weights, 21)
    from tiger_jax.evaluation import metrics

    again = metrics.ranks_in_lists(items, scores, HELD_OUT.targets)
    near = ranks < 10
    np.testing.assert_array_equal(ranks[near], again[near])
    assert reached == pytest.approx(metrics.ndcg_at_k(ranks, 10).mean())
    # Each user's target is the second of the good list.
    assert reached >= 0.9 / np.log2(3)


def test_a_target_that_no_part_lists_is_a_miss():
    pool = fusion.pool_lists([_lists(GOOD, 1)], "min_max")
    ranks = fusion.ranks_in_pool(pool, np.ones(1), HELD_OUT.targets)
    assert (ranks > NUM_ITEMS).all()


def test_lists_of_unknown_users_and_unknown_names_are_refused():
    listed = ListedRecommender(HELD_OUT.user_numbers, *_lists(GOOD))
    nothing = np.empty((1, 0), np.int32)
    with pytest.raises(ValueError, match="user 99"):
        listed(np.array([99], np.int32), np.zeros((1, 2), np.int32), nothing, 5)
    with pytest.raises(ValueError, match="choose one of"):
        fusion.normalize_scores(_lists(GOOD)[1], "sum")
