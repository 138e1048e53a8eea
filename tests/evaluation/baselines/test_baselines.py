"""Each baseline on a shop of five items, by hand, and on real Beauty."""

import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from tiger_jax.evaluation import evaluator, metrics, recommend_fn
from tiger_jax.evaluation.baselines import item_cooccurrence, popularity, semantic_knn
from tiger_jax.histories import HeldOut, Histories

TRAIN = Histories.from_lists([[0, 1, 2], [0, 1], [3, 0]])
ONE_USER = np.array([0], np.int32)
NOTHING = np.full((1, 1), -1, np.int32)


def _scores(recommend, history: list[int], num_items: int) -> list[float]:
    """Every item's score, in item order (-inf where it isn't listed)."""
    padded = np.array([history + [-1] * (6 - len(history))], np.int32)
    listed, scores = recommend(ONE_USER, padded, NOTHING, num_items)
    by_item = dict(zip(listed[0].tolist(), scores[0].tolist(), strict=True))
    return [by_item.get(item, -math.inf) for item in range(num_items)]


def test_popularity_counts_the_training_histories():
    recommend = popularity.build_popularity(TRAIN, 5)
    assert _scores(recommend, [4], 5) == [3.0, 2.0, 1.0, 1.0, 0.0]


def test_cooccurrence_weights_by_hand():
    """Distance, direction, recency and popularity weigh in as computed by hand."""
    recommend = item_cooccurrence.build_item_cooccurrence(TRAIN, 5)
    # After item 1: item 2 followed it once at distance 1, item 0 stood before it
    # twice at distance 1 (half each). Counts: 0 three times, 2 once.
    after_1 = [2 * 0.5 / math.sqrt(4), 0.0, 1.0 / math.sqrt(2), 0.0, 0.0]
    np.testing.assert_allclose(_scores(recommend, [1], 5), after_1, rtol=1e-6)
    # After 3, then 1: the older item counts half; 0 followed 3 once.
    after_3_1 = [after_1[0] + 0.5 / math.sqrt(4), 0.0, after_1[2], 0.0, 0.0]
    np.testing.assert_allclose(_scores(recommend, [3, 1], 5), after_3_1, rtol=1e-6)
    # Items 0 and 2 of the first history are two apart: 1 / 2 forwards.
    neighbours = item_cooccurrence.count_neighbours(TRAIN, 5).toarray()
    assert neighbours[0, 2] == 0.5
    assert neighbours[2, 0] == 0.25


def test_cooccurrence_never_joins_two_users():
    apart = Histories.from_lists([[0], [1], [], [2, 3]])
    neighbours = item_cooccurrence.count_neighbours(apart, 4).toarray()
    assert np.argwhere(neighbours).tolist() == [[2, 3], [3, 2]]


def test_semantic_knn_is_the_cosine_by_hand():
    """Semantic KNN is the cosine with the recent items, computed by hand."""
    embeddings = np.array([[2, 0], [0, 3], [1, 1], [-1, 0]], np.float32)
    recommend = semantic_knn.build_semantic_knn(embeddings)
    root = math.sqrt(0.5)
    np.testing.assert_allclose(_scores(recommend, [0], 4), [1, 0, root, -1], atol=1e-6)
    # First 1, then 0: the query is (1, 0) / 1 + (0, 1) / 2 = (1, .5).
    length = math.hypot(1, 0.5)
    expected = [1 / length, 0.5 / length, root * 1.5 / length, -1 / length]
    np.testing.assert_allclose(_scores(recommend, [1, 0], 4), expected, atol=1e-6)


def test_items_of_one_text_are_ties():
    key = np.random.default_rng(0)
    embeddings = key.normal(size=(300, 64)).astype(np.float32)
    embeddings[151] = embeddings[3]
    recommend = semantic_knn.build_semantic_knn(embeddings)
    scores = _scores(recommend, [10, 20], 300)
    assert scores[151] == scores[3]


@pytest.mark.parametrize("last", [1, 3])
def test_older_items_than_the_last_few_have_no_weight(last):
    histories = np.array([[5, 6, 7, 8, -1], [-1] * 5], np.int32)
    weights = recommend_fn.recency_weights(histories, last)
    expected = [0, 1 / 3, 1 / 2, 1, 0] if last == 3 else [0, 0, 0, 1, 0]
    np.testing.assert_allclose(weights[0], expected)
    assert not weights[1].any()


def test_a_large_catalogue_is_scored_a_few_users_at_a_time(monkeypatch):
    monkeypatch.setattr(recommend_fn, "MAX_SCORES_AT_ONCE", 100)
    sizes = []

    def score(users, histories):
        sizes.append(len(users))
        return np.tile(np.arange(40, dtype=np.float32), (len(users), 1))

    recommend = recommend_fn.ScoredCatalogue(score, 40)
    users = np.arange(5, dtype=np.int32)
    listed, _ = recommend(users, users[:, None], np.full((5, 1), 39, np.int32), 2)
    assert sizes == [2, 2, 1]
    assert listed.tolist() == [[38, 37]] * 5


# --- Real Beauty ------------------------------------------------------------------

needs_data = pytest.mark.skipif(
    "TIGER_DATA" not in os.environ, reason="TIGER_DATA names no folder of real data"
)


@pytest.fixture(scope="module")
def beauty() -> tuple[Histories, HeldOut, int]:
    folder = Path(os.environ["TIGER_DATA"]) / "amazon2014_beauty"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    with open(folder / "items.jsonl", encoding="utf-8") as file:
        item_ids = [json.loads(line)["item_id"] for line in file]
    number = {item_id: i for i, item_id in enumerate(item_ids)}
    lists: dict[str, list[int]] = {}
    with open(folder / "interactions.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):  # in time order already
            lists.setdefault(row["user_id"], []).append(number[row["item_id"]])
    histories = Histories.from_lists(lists.values())
    test = HeldOut(
        np.arange(histories.num_users, dtype=np.int32),
        histories.drop_last(1),
        histories.last(1)[:, 0],
    )
    return histories.drop_last(2), test, len(item_ids)


def _measure(recommend, test: HeldOut, num_items: int, *, masked: bool) -> list[float]:
    found = evaluator.evaluate(
        recommend, test, num_items=num_items, exclude_seen=masked
    )
    means = metrics.compute_metrics(found.ranks)
    return [means[m] for m in ("recall@5", "ndcg@5", "recall@10", "ndcg@10")]


@needs_data
@pytest.mark.slow
def test_popularity_on_beauty_is_the_known_number(beauty):
    train, test, num_items = beauty
    found = _measure(
        popularity.build_popularity(train, num_items), test, num_items, masked=True
    )
    np.testing.assert_allclose(found, [0.0072, 0.0040, 0.0114, 0.0053], atol=0.0005)
    # With ties against the target, to the digit.
    np.testing.assert_allclose(found, [0.0068, 0.0039, 0.0110, 0.0053], atol=0.00006)


@needs_data
@pytest.mark.slow
def test_item_cooccurrence_on_beauty_is_the_known_number(beauty):
    train, test, num_items = beauty
    recommend = item_cooccurrence.build_item_cooccurrence(train, num_items)
    found = _measure(recommend, test, num_items, masked=True)
    np.testing.assert_allclose(found, [0.0551, 0.0411, 0.0756, 0.0477], atol=0.00006)


@needs_data
@pytest.mark.slow
def test_semantic_knn_on_beauty_is_the_known_number(beauty):
    _, test, num_items = beauty
    path = Path(os.environ["TIGER_DATA"]) / "embeddings" / "beauty_minilm_f16.npy"
    embeddings = np.load(path, allow_pickle=False).astype(np.float32)
    recommend = semantic_knn.build_semantic_knn(embeddings)
    found = _measure(recommend, test, num_items, masked=True)
    np.testing.assert_allclose(found, [0.0442, 0.0308, 0.0622, 0.0366], atol=0.00015)
