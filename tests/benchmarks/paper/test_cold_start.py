"""Lists that keep places for unseen items, and the benchmark that measures them."""

import dataclasses

import numpy as np
import pytest
from trained_workdir import NUM_ITEMS, make_trained_workdir

from benchmarks.paper import cold_start
from benchmarks.paper.study import Study
from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError
from tiger_jax.evaluation.metrics import MISS
from tiger_jax.recommending.numbered_recommender import load_numbered_recommender
from tiger_jax.recommending.searcher import SearchConfig


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


def test_a_list_keeps_its_last_places_for_unseen_items():
    seen = np.array([0, 8, 9, MISS, MISS, MISS], np.int32)
    unseen = np.array([MISS, MISS, MISS, 0, 1, 2], np.int32)
    found = cold_start.ranks_at(0.2, 10, seen, unseen)
    assert found.tolist() == [0, MISS, MISS, 8, 9, MISS]
    found = cold_start.ranks_at(0.0, 10, seen, unseen)
    assert found.tolist() == [0, 8, 9, MISS, MISS, MISS]


def test_rows_have_recall_for_both_samples_and_become_a_table(study, tmp_path):
    rows = cold_start.measure(study, (0.0, 0.5), 12)
    assert [row["case"].get("epsilon") for row in rows] == [None, 0.0, 0.5]
    nothing, half = rows[1]["unseen"]["recall"], rows[2]["unseen"]["recall"]
    # Without a place for them unseen items can't be found; there are few, so all
    # of them fit into half of the longest list.
    assert set(nothing.values()) == {0.0}
    assert half["recall@50"] == 1.0
    table = cold_start.build_table(rows)
    assert "TIGER, ε = 0.5" in table
    assert "Semantic KNN" in table
    cold_start.draw(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
