"""The evaluator: fixed shapes, nothing cut, nothing invalid, order kept."""

import numpy as np
import pytest

from tiger_jax.evaluation import evaluator, metrics
from tiger_jax.evaluation.recommend_fn import ScoredCatalogue
from tiger_jax.histories import HeldOut, Histories

NUM_ITEMS = 60


def _held_out(num_users: int = 23, longest: int = 33) -> HeldOut:
    key = np.random.default_rng(0)
    lists = [
        key.choice(NUM_ITEMS, size=key.integers(1, longest), replace=False).tolist()
        for _ in range(num_users)
    ]
    return HeldOut(
        np.arange(num_users, dtype=np.int32),
        Histories.from_lists(lists),
        key.integers(0, NUM_ITEMS, size=num_users).astype(np.int32),
    )


SCORES = np.random.default_rng(1).normal(size=(23, NUM_ITEMS)).astype(np.float32)
BY_USER = ScoredCatalogue(lambda users, histories: SCORES[users], NUM_ITEMS)


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("batch_size", [4, 23, 64])
def test_it_agrees_with_ranking_each_user_alone(exclude_seen, batch_size):
    held_out = _held_out()
    found = evaluator.evaluate(
        BY_USER,
        held_out,
        num_items=NUM_ITEMS,
        exclude_seen=exclude_seen,
        batch_size=batch_size,
    )
    for user, target in enumerate(held_out.targets):
        seen = set(held_out.histories.of(user).tolist()) if exclude_seen else set()
        best = sorted(set(range(NUM_ITEMS)) - seen, key=lambda i: -SCORES[user, i])
        assert found.item_numbers[user].tolist() == (best + [-1] * 20)[:20]
        rank = best.index(target) if target in best else metrics.MISS
        assert min(found.ranks[user], 20) == min(rank, 20)
    assert found.num_invalid == 0


def test_every_batch_has_one_size_and_few_widths():
    shapes = set()

    def recommend(user_numbers, histories, exclude, k):
        assert k == 21
        shapes.add((len(user_numbers), histories.shape, exclude.shape))
        return BY_USER(user_numbers, histories, exclude, k)

    evaluator.evaluate(
        recommend, _held_out(), num_items=NUM_ITEMS, exclude_seen=True, batch_size=4
    )
    assert {rows for rows, _, _ in shapes} == {4}
    assert {width for _, (_, width), _ in shapes} <= {5, 10, 20}
    assert {width for _, _, (_, width) in shapes} <= {8, 16, 32}


def test_the_recommender_sees_the_most_recent_items_oldest_first():
    held_out = _held_out()
    seen = {}

    def recommend(user_numbers, histories, exclude, k):
        for user, history in zip(user_numbers, histories, strict=True):
            seen[int(user)] = [int(i) for i in history if i >= 0]
        return BY_USER(user_numbers, histories, exclude, k)

    evaluator.evaluate(
        recommend, held_out, num_items=NUM_ITEMS, exclude_seen=False, batch_size=5
    )
    assert seen == {
        user: held_out.histories.of(user)[-20:].tolist() for user in range(23)
    }


@pytest.mark.parametrize(
    ("spoil", "num_bad"),
    [
        (lambda listed, exclude: listed.__setitem__((0, 1), listed[0, 0]), 1),
        (lambda listed, exclude: listed.__setitem__((0, 3), NUM_ITEMS), 1),
        (lambda listed, exclude: listed.__setitem__((0, 3), -2), 1),
        (lambda listed, exclude: listed.__setitem__((0, 2), exclude[0, 0]), 1),
    ],
    ids=["repeated", "beyond the catalogue", "no such ID", "excluded"],
)
def test_invalid_recommendations_are_refused_or_counted(spoil, num_bad):
    """An invalid recommendation stops the evaluation or is counted."""
    held_out = _held_out(num_users=1, longest=10)

    def recommend(user_numbers, histories, exclude, k):
        listed, scores = BY_USER(user_numbers, histories, exclude, k)
        spoil(listed, exclude)
        return listed, scores

    arguments = dict(num_items=NUM_ITEMS, exclude_seen=True, batch_size=1)
    with pytest.raises(evaluator.InvalidRecommendation, match="user 0"):
        evaluator.evaluate(recommend, held_out, **arguments)
    counted = evaluator.evaluate(recommend, held_out, **arguments, count_invalid=True)
    assert counted.num_invalid == num_bad
    assert counted.num_listed >= 20


def test_a_seen_target_is_a_miss_only_when_masked():
    """A target among the seen items is a miss only when masked."""
    scores = np.zeros((1, NUM_ITEMS), np.float32)
    scores[0, 7] = 1.0
    first_is_7 = ScoredCatalogue(lambda users, histories: scores, NUM_ITEMS)
    held_out = HeldOut(
        np.array([0], np.int32),
        Histories.from_lists([[7, 8]]),
        np.array([7], np.int32),
    )
    for exclude_seen, expected in ((False, 1.0), (True, 0.0)):
        found = evaluator.evaluate(
            first_is_7,
            held_out,
            num_items=NUM_ITEMS,
            exclude_seen=exclude_seen,
            batch_size=1,
        )
        assert metrics.compute_metrics(found.ranks)["recall@20"] == expected


def test_a_sample_of_users_is_seeded_and_keeps_rows_together():
    held_out = _held_out()
    sample, rows = evaluator.sample_users(held_out, 6, seed=1)
    again, _ = evaluator.sample_users(held_out, 6, seed=1)
    assert sample.user_numbers.tolist() == again.user_numbers.tolist() == rows.tolist()
    assert sample.targets.tolist() == held_out.targets[rows].tolist()
    assert (
        sample.histories.of(2).tolist() == held_out.histories.of(int(rows[2])).tolist()
    )
    everybody, _ = evaluator.sample_users(held_out, None, seed=1)
    assert len(everybody.targets) == 23
