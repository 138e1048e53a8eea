"""Lists that keep places for unseen items, and the benchmark that measures them."""

import dataclasses

import numpy as np
import pytest
from trained_workdir import NUM_ITEMS, TINY_TWO_LEVEL, make_trained_workdir

from benchmarks.paper import analyses, cold_start
from benchmarks.paper.study import Study
from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError
from tiger_jax.evaluation.baselines.semantic_knn import build_semantic_knn
from tiger_jax.evaluation.metrics import MISS
from tiger_jax.recommending.numbered_recommender import load_numbered_recommender
from tiger_jax.recommending.requests import Request, places_for_new
from tiger_jax.recommending.searcher import DenseWeights, SearchConfig


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    workdir = make_trained_workdir(tmp_path_factory.mktemp("cold") / "work")
    study = Study(workdir, max_users=12, seed=0)
    study.data = with_unseen(study.data)
    return study


def with_unseen(data: PreparedData) -> PreparedData:
    unseen = np.unique(data.test.targets[:6]).astype(np.int32)
    return dataclasses.replace(data, unseen_items=unseen)


@pytest.mark.slow
def test_each_group_lists_what_a_search_of_its_own_items_finds(study):
    k = 10
    ours = study.load(NUM_ITEMS)
    users = study.users
    histories, none = users.histories.last(5), np.empty((12, 0), np.int32)
    ranked, _ = ours(users.user_numbers, histories, none, NUM_ITEMS)
    seen, unseen = ours.recommend_by_group(users.user_numbers, histories, none, k)
    is_unseen = np.isin(np.arange(NUM_ITEMS), study.data.unseen_items)
    for row in range(len(histories)):
        in_order = ranked[row]
        expected = in_order[is_unseen[in_order]][:k].tolist()
        expected += [-1] * (k - len(expected))
        assert unseen[row].tolist() == expected
        # Ten beams are fewer than there are nodes: the search isn't exhaustive, but
        # what it lists is seen, complete and in the model's order.
        place = {item: at for at, item in enumerate(in_order.tolist())}
        places = [place[item] for item in seen[row].tolist()]
        assert places == sorted(set(places))
        assert not is_unseen[seen[row]].any()


def test_data_without_unseen_items_is_told_how_to_get_some(study):
    data = PreparedData.load(study.workdir / "data")
    ours = load_numbered_recommender(study.workdir, data, SearchConfig())
    users = study.users.select(np.arange(2))
    none = np.empty((2, 0), np.int32)
    with pytest.raises(InputError, match="unseen_share"):
        ours.recommend_by_group(users.user_numbers, users.histories.last(5), none, 3)


@pytest.mark.parametrize(
    ("k", "epsilon", "places"),
    [(10, 0.05, 1), (10, 0.2, 2), (100, 0.07, 7), (10, 0.0, 0), (10, 1.0, 10)],
)
def test_places_for_new_items_are_rounded_up(k, epsilon, places):
    assert places_for_new(k, epsilon) == places
    assert Request(["a"], k=k, epsilon=epsilon).num_new == places


def test_a_list_keeps_its_last_places_for_unseen_items():
    seen = np.array([0, 8, 9, MISS, MISS, MISS], np.int32)
    unseen = np.array([MISS, MISS, MISS, 0, 1, 2], np.int32)
    found = cold_start.ranks_at(0.2, 10, seen, unseen)
    assert found.tolist() == [0, MISS, MISS, 8, 9, MISS]
    found = cold_start.ranks_at(0.0, 10, seen, unseen)
    assert found.tolist() == [0, 8, 9, MISS, MISS, MISS]


@pytest.mark.parametrize(
    "has_dense_head", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_lists_with_reserved_places_become_a_table(has_dense_head, tmp_path):
    options = {"model": TINY_TWO_LEVEL, "num_user_tokens": 0, "with_quantizer": True}
    options["dense_weights"] = DenseWeights(1.0, 0.0)
    workdir = make_trained_workdir(
        tmp_path / "w", **(options if has_dense_head else {})
    )
    study = Study(workdir, max_users=12, seed=0)
    study.data = with_unseen(study.data)
    known = {"run": "cold", "seed": 0, "budget": "full"}
    found = cold_start.measure(study, (0.0, 0.5))
    rows = [{**study.about, **known, **row} for row in found]
    lists = dict.fromkeys(row["case"]["list"] for row in rows)
    dense = ["TIGER, its codes alone", "TIGER, its dense head alone"] * has_dense_head
    assert list(lists) == ["Semantic KNN", "KNN", "TIGER", *dense, "chance"]
    for nothing, half in zip(rows[1::2], rows[2::2], strict=True):
        # Without a place for them unseen items can't be found; there are few, so all
        # of them fit into half of the longest list.
        assert nothing["metrics"]["recall@50, target unseen"] == 0
        assert half["metrics"]["recall@50, target unseen"] == 1
        theirs = rows[0]["metrics"]["recall@10, target unseen"]
        gain = half["metrics"]["recall@10, target unseen"] - theirs
        assert half["metrics"]["above Semantic KNN"] == pytest.approx(gain)
    table = analyses.build_table("cold_start", rows)
    assert "| TIGER | 0.5 |" in table
    analyses.draw("cold_start", rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_neighbours_of_a_group_are_of_that_group(study):
    text = np.random.default_rng(0).normal(size=(NUM_ITEMS, 4)).astype(np.float32)
    knn = build_semantic_knn(text)
    inside = np.arange(NUM_ITEMS) % 3 == 0
    histories = study.users.histories.last(5)
    asked = study.users.user_numbers, histories, np.empty((12, 0), np.int32)
    whole, _ = knn(*asked, NUM_ITEMS)
    found, _ = cold_start._only(knn, inside)(*asked, 20)
    for row in range(len(histories)):
        expected = whole[row][inside[whole[row]]].tolist()
        assert found[row].tolist() == expected + [-1] * (20 - len(expected))
