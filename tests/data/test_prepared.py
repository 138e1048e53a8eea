"""Prepared data: what is saved is what is loaded, and the views agree."""

import dataclasses
import hashlib
import json

import numpy as np
import pyarrow as pa
import pytest
from shops import shop_of

from tiger_jax.data.interactions import InteractionsConfig
from tiger_jax.data.prepare import prepare_shop
from tiger_jax.data.prepared import PreparedData, hash_user_ids
from tiger_jax.data.raw_shop import CATEGORY_PATHS
from tiger_jax.data.splits import SplitsConfig
from tiger_jax.data.statistics import describe_statistics
from tiger_jax.errors import InputError

EVENTS = [
    ("u", "a", 1),
    ("u", "b", 2),
    ("u", "c", 3),
    ("u", "a", 4),
    ("u", "d", 5),
    ("v", "b", 1),
    ("v", "c", 2),
    ("v", "a", 3),
    ("v", "e", 4),
    ("w", "a", 1),
    ("w", "b", 2),
]


def prepare(events=EVENTS, shop=None, *, k_core=1, unseen_share=0.0, **options):
    return prepare_shop(
        shop or shop_of(events),
        InteractionsConfig(k_core=k_core, **options),
        SplitsConfig(unseen_share),
        seed=0,
    )


def assert_same(left: PreparedData, right: PreparedData) -> None:
    assert left.items.equals(right.items)
    for field in dataclasses.fields(PreparedData):
        one, other = getattr(left, field.name), getattr(right, field.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other, strict=True)
        elif field.name == "histories":
            np.testing.assert_array_equal(one.items, other.items, strict=True)
            np.testing.assert_array_equal(one.offsets, other.offsets, strict=True)
        elif field.name not in ("items", "statistics"):
            assert one == other, field.name


@pytest.mark.parametrize("unseen_share", [0.0, 0.5])
def test_what_is_saved_is_what_is_loaded(tmp_path, unseen_share):
    data = prepare(unseen_share=unseen_share)
    data.save(tmp_path)
    loaded = PreparedData.load(tmp_path)
    assert_same(loaded, data)
    assert loaded.statistics == {"name": "small shop", **data.statistics}


def test_statistics_are_counted_by_hand():
    data = prepare()
    expected = {
        "users": 2,  # w has two interactions only
        "items": 5,
        "interactions": 9,
        "mean_history": 4.5,
        "median_history": 4.5,
        "min_history": 4,
        "max_history": 5,
        "density": 9 / (2 * 5),
        "training_pairs": 2 + 1,  # of (a, b, c) and (b, c)
        "training_items": 3,
        "test_items": 2,
        "test_items_never_in_training": 2,  # d and e
        "test_users_who_had_the_target_before": 0,
        "distinct_test_items": 2,
        "raw_users": 3,
        "raw_items": 5,
        "raw_interactions": 11,
        "users_with_too_short_history": 1,
        "k_core": 1,
        "tie_order": "data",
        "unseen_items": 0,
        "notes": [],
    }
    assert data.statistics == expected
    block = describe_statistics({"name": data.name, **data.statistics})
    assert "left out         1 users with fewer than 3 interactions" in block


def test_a_target_that_the_user_had_before_is_counted():
    data = prepare([("u", i, t) for t, i in enumerate("abca")], k_core=0)
    assert data.statistics["test_users_who_had_the_target_before"] == 1
    assert data.statistics["test_items_never_in_training"] == 0


def test_rows_of_the_items_file_lead_back_to_the_items():
    shop = shop_of(EVENTS)
    data = prepare(shop=shop)
    raw_ids = shop.items["item_id"].to_pylist()
    assert [raw_ids[row] for row in data.items_file_rows] == list(data.item_ids)
    titles = data.items["title"].to_pylist()
    assert titles == [f"Title of {i}" for i in data.item_ids]
    history = [data.item_ids[item] for item in data.histories.of(0)]
    assert history == list("abcad")


def test_user_hashes_are_the_first_bytes_of_blake2b():
    users = ["u1", "日本", ""]
    expected = [
        int.from_bytes(hashlib.blake2b(u.encode()).digest()[:4], "little")
        for u in users
    ]
    assert hash_user_ids(users).tolist() == expected
    assert hash_user_ids(users).dtype == np.uint32


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        # The root says nothing: the second level does.
        (
            [[["Beauty", "Hair"], ["Gifts"]], [["Beauty", "Skin", "Face"]], []],
            ["Hair", "Skin", ""],
        ),
        # Roots differ: they are the categories.
        (
            [[["Drama"], ["War"]], [["Comedy"]], [["Drama"]]],
            ["Drama", "Comedy", "Drama"],
        ),
        # An item whose path ends early keeps its last name.
        (
            [[["Beauty"]], [["Beauty", "Hair"]], [["Beauty", "Skin"]]],
            ["Beauty", "Hair", "Skin"],
        ),
        # Nothing tells the items apart: the root it is.
        ([[["All", "Same"]], [["All", "Same"]]], ["All", "All"]),
        ([[], []], ["", ""]),
    ],
)
def test_category_of_items_is_the_first_telling_one(paths, expected):
    data = prepare()
    items = pa.table({"categories": pa.array(paths, CATEGORY_PATHS)})
    small = dataclasses.replace(
        data,
        items=items,
        items_file_rows=np.arange(len(paths)),
        histories=data.histories.select(np.array([], np.int64)),
        user_ids=(),
        user_hashes=np.array([], np.uint32),
    )
    assert small.category_of_items() == expected


def test_unseen_items_leave_training_and_are_counted():
    events = [(f"u{u}", f"i{(u * 7 + t) % 11}", t) for u in range(40) for t in range(6)]
    data = prepare(events, unseen_share=0.3)
    assert len(data.unseen_items) == round(0.3 * data.statistics["distinct_test_items"])
    assert not np.isin(data.train.items, data.unseen_items).any()
    assert not np.isin(data.validation.targets, data.unseen_items).any()
    assert np.isin(data.test.targets, data.unseen_items).any()
    assert data.statistics["unseen_items"] == len(data.unseen_items)


def test_the_newest_interactions_can_be_left_out_of_all_splits():
    events = [(f"u{u}", f"i{(u * 7 + t) % 11}", t) for u in range(9) for t in range(5)]
    whole = prepare(events)
    data = prepare_shop(
        shop_of(events), InteractionsConfig(k_core=1), SplitsConfig(left_out=1), seed=0
    )
    assert data.items.equals(whole.items)
    np.testing.assert_array_equal(data.test.targets, whole.validation.targets)
    np.testing.assert_array_equal(data.train.items, whole.train.drop_last(1).items)
    assert data.statistics["left_out"] == 1
    with pytest.raises(InputError, match="k_core=6"):
        prepare_shop(
            shop_of(events),
            InteractionsConfig(k_core=1),
            SplitsConfig(left_out=3),
            seed=0,
        )


def test_the_ceiling_is_the_mean_over_the_users_of_a_whole_shop():
    ceilings = {"u": {"recall@1": 0.5}, "v": {"recall@1": 0.1}, "w": {"recall@1": 0.9}}
    shop = dataclasses.replace(shop_of(EVENTS), ceiling_by_user=ceilings)
    data = prepare_shop(shop, InteractionsConfig(), SplitsConfig(), seed=0)
    assert data.statistics["k_core"] == 0
    assert data.ceiling == {"recall@1": pytest.approx((0.5 + 0.1) / 2)}


def test_a_filtered_shop_has_no_ceiling_and_says_so():
    ceilings = {user: {"recall@1": 0.5} for user in "uvw"}
    shop = dataclasses.replace(shop_of(EVENTS), ceiling_by_user=ceilings)
    data = prepare_shop(shop, InteractionsConfig(k_core=2), SplitsConfig(), seed=0)
    assert data.ceiling is None
    assert any("k_core=None" in note for note in data.statistics["notes"])


def test_a_ceiling_is_saved_with_the_data(tmp_path):
    data = dataclasses.replace(prepare(), ceiling={"recall@10": 0.25})
    data.save(tmp_path)
    assert json.loads((tmp_path / "ceiling.json").read_text()) == {"recall@10": 0.25}
    assert PreparedData.load(tmp_path).ceiling == {"recall@10": 0.25}


def test_parts_that_do_not_fit_are_refused():
    data = prepare()
    with pytest.raises(InputError, match="4 items_file_rows for 5 items"):
        dataclasses.replace(data, items_file_rows=np.arange(4))
    with pytest.raises(InputError, match="3 users, but 2 histories"):
        dataclasses.replace(data, user_ids=("u", "v", "w"))
    with pytest.raises(InputError, match="beyond the 2"):
        dataclasses.replace(
            data, items=data.items.slice(0, 2), items_file_rows=np.arange(2)
        )


def test_a_folder_without_data_says_what_to_run(tmp_path):
    folder = tmp_path / "data"
    with pytest.raises(InputError, match="run --stage=prepare_data"):
        PreparedData.load(folder)
    prepare().save(folder)
    (folder / "users.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match="run --stage=prepare_data"):
        PreparedData.load(folder)
    prepare().save(folder)
    (folder / "history_items.npy").write_bytes(b"")
    with pytest.raises(InputError, match="run --stage=prepare_data"):
        PreparedData.load(folder)
