"""Published data sets: their statistics come out exactly (where the data is there)."""

import os
from pathlib import Path

import numpy as np
import pytest

from tiger_jax.data.prepared import PreparedData
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.prepare_data import prepare_data

ROOT = os.environ.get("TIGER_DATA")
EXPECTED = {
    "amazon2014_beauty": {
        "users": 22_363,
        "items": 12_101,
        "interactions": 198_502,
        "mean_history": 8.876,
        "median_history": 6.0,
        "max_history": 204,
        "training_pairs": 131_413,
        "test_items_never_in_training": 138,
    },
    "amazon2014_sports": {
        "users": 35_598,
        "items": 18_357,
        "interactions": 296_337,
        "mean_history": 8.325,
        "median_history": 6.0,
        "max_history": 296,
        "training_pairs": 189_543,
        "test_items_never_in_training": 317,
    },
    "movielens_latest_small": {
        "raw_users": 610,
        "raw_items": 9_742,
        "raw_interactions": 100_836,
        "users": 610,
    },
}


@pytest.fixture(scope="module", params=sorted(EXPECTED))
def prepared(request, tmp_path_factory):
    folder = Path(ROOT or "absent") / request.param
    if not folder.is_dir():
        pytest.skip(f"TIGER_DATA={ROOT} holds no {request.param}")
    workdir = tmp_path_factory.mktemp(request.param)
    prepare_data(RunContext(workdir, folder))
    return PreparedData.load(workdir / "data")


def test_the_statistics_are_the_published_ones(prepared):
    found = {key: prepared.statistics[key] for key in EXPECTED[prepared.name]}
    assert found == EXPECTED[prepared.name]


def test_every_user_has_one_item_each_to_validate_and_to_test_on(prepared):
    assert len(prepared.validation.targets) == len(prepared.test.targets)
    assert len(prepared.test.targets) == prepared.num_users
    lengths = prepared.histories.lengths
    np.testing.assert_array_equal(prepared.train.lengths, lengths - 2)


def test_categories_tell_items_apart(prepared):
    categories = prepared.category_of_items()
    names, counts = np.unique([c for c in categories if c], return_counts=True)
    assert 5 <= len(names) <= 100
    assert counts.max() < 0.9 * prepared.num_items
