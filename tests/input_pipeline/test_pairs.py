import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_workdir import CODEBOOK_SIZES, small_histories, small_table

from tiger_jax.data.splits import Splits
from tiger_jax.errors import InputError
from tiger_jax.histories import HeldOut, Histories
from tiger_jax.input_pipeline.pair_source import PairSource, Shop
from tiger_jax.input_pipeline.pairs import Pairs, locate
from tiger_jax.input_pipeline.preprocessors import (
    feature_lengths,
    keep_last_items,
    make_preprocessors,
)
from tiger_jax.input_pipeline.quiet_tensorflow import seqio, tf
from tiger_jax.semantic_ids.token_ids import TokenLayout

NOBODY = np.empty(0, np.int32)


def _shop(histories: Histories, num_user_tokens: int = 0) -> Shop:
    splits = Splits.leave_one_out(histories, NOBODY)
    hashes = np.arange(histories.num_users, dtype=np.uint32) + 2**31
    layout = TokenLayout(CODEBOOK_SIZES, num_user_tokens)
    return Shop(
        splits.train, splits.validation, splits.test, hashes, small_table(), layout
    )


def _pairs(dataset: tf.data.Dataset) -> list[tuple[int, tuple[int, ...], int]]:
    """(user hash, history, target) of every pair, in order."""
    pairs = []
    for block in dataset:
        histories = block["history"].to_list()
        users, targets = block["user_hash"].numpy(), block["target"].numpy()
        rows = zip(users, histories, targets, strict=True)
        pairs += [(int(u), tuple(h), int(t)) for u, h, t in rows]
    return pairs


SHOP = _shop(small_histories(num_users=100))
SOURCE = PairSource(SHOP)


@given(st.lists(st.lists(st.integers(0, 49), max_size=6), min_size=1, max_size=8))
def test_pairs_are_all_prefixes_with_their_next_items(lists):
    histories = Histories.from_lists(lists)
    pairs = Pairs.of_prefixes(histories)
    expected = [(h[:j], h[j]) for h in lists for j in range(1, len(h))]
    row, start, target = locate(pairs, np.arange(pairs.num_pairs))
    items = pairs.items.tolist()
    found = [(items[s:t], items[t]) for s, t in zip(start, target, strict=True)]
    assert found == expected
    users, windows, targets = pairs.windows(np.arange(pairs.num_pairs), 3)
    for number, (history, item) in enumerate(expected):
        kept = windows[number][windows[number] >= 0].tolist()
        assert (kept, targets[number]) == (history[-3:], item)
    assert users.tolist() == row.tolist() == sorted(row)
    last = Pairs.of_last(histories)
    _, start, target = locate(last, np.arange(last.num_pairs))
    found = [(items[s:t], items[t]) for s, t in zip(start, target, strict=True)]
    assert found == [(h[:-1], h[-1]) for h in lists if len(h) > 1]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_yields_each_of_its_pairs_once_shuffled_or_not(split):
    in_order = _pairs(SOURCE.get_dataset(split, shuffle=False))
    shuffled = _pairs(SOURCE.get_dataset(split, shuffle=True, seed=5))
    assert len(in_order) == SOURCE.num_pairs(split)
    assert collections.Counter(shuffled) == collections.Counter(in_order)
    assert shuffled != in_order


def test_held_out_pairs_are_the_splits_own():
    found = _pairs(SOURCE.get_dataset("validation", shuffle=False))
    held_out = SHOP.validation
    expected = [
        (int(SHOP.user_hashes[user]), tuple(held_out.histories.of(row)), target)
        for row, (user, target) in enumerate(
            zip(held_out.user_numbers, held_out.targets, strict=True)
        )
    ]
    assert found == expected


def test_a_held_out_user_without_history_is_an_example():
    """A held-out user without history is an example all the same."""
    histories = Histories.from_lists([[], [3]])
    held_out = HeldOut(
        np.array([1, 0], np.int32), histories, np.array([7, 8], np.int32)
    )
    pairs = Pairs.of_held_out(held_out)
    assert pairs.num_pairs == 2
    assert pairs.items.tolist() == [7, 3, 8]
    assert pairs.users.tolist() == [1, 0]


def test_the_order_depends_on_the_seed_and_changes_every_epoch():
    first = _pairs(SOURCE.get_dataset("train", seed=1).repeat(2))
    again = _pairs(SOURCE.get_dataset("train", seed=1).repeat(2))
    other = _pairs(SOURCE.get_dataset("train", seed=2))
    n = SOURCE.num_pairs("train")
    assert first == again
    assert first[:n] != first[n:]
    assert first[:n] != other
    assert sorted(first[:n]) == sorted(first[n:])


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("num_shards", [2, 3, 4])
def test_hosts_share_out_every_pair(shuffle, num_shards):
    shards = [
        _pairs(
            SOURCE.get_dataset("train", shuffle, 4, seqio.ShardInfo(index, num_shards))
        )
        for index in range(num_shards)
    ]
    whole = _pairs(SOURCE.get_dataset("train", shuffle=False))
    assert collections.Counter(sum(shards, [])) == collections.Counter(whole)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_the_shuffle_mixes_far_apart_pairs():
    """A buffer of a thousand would leave neighbours near each other."""
    n = 50_000
    histories = Histories(
        np.arange(2 * n, dtype=np.int32), np.arange(0, 2 * n + 1, 2, dtype=np.int64)
    )
    held_out = HeldOut(NOBODY, Histories.from_lists([]), NOBODY)
    hashes = np.zeros(n, np.uint32)
    shop = Shop(histories, held_out, held_out, hashes, small_table(), TokenLayout((4,)))
    dataset = PairSource(shop).get_dataset("train", shuffle=True, seed=0)
    order = np.concatenate([block["target"].numpy() // 2 for block in dataset])
    assert np.array_equal(np.sort(order), np.arange(n))
    # Correlations of independent positions have a standard error of 1 / sqrt(n).
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 5 / np.sqrt(n)
    for lag in (1, 2, 3, 64):
        neighbours = np.corrcoef(order[lag:], order[:-lag])[0, 1]
        assert abs(neighbours) < 5 / np.sqrt(n)


def test_a_split_without_examples_is_refused():
    lonely = _shop(Histories.from_lists([[1, 2, 3]]))
    with pytest.raises(InputError, match="no history is long enough"):
        PairSource(lonely).get_dataset("train")


def test_one_pair_is_enough():
    source = PairSource(_shop(Histories.from_lists([[1, 2, 3, 4]])))
    assert _pairs(source.get_dataset("train", seed=0)) == [(2**31, (1,), 2)]


@pytest.mark.parametrize("num_user_tokens", [0, 13])
def test_preprocessors_write_the_last_items_as_tokens(num_user_tokens):
    shop = _shop(small_histories(num_users=30), num_user_tokens)
    source = PairSource(shop)
    dataset = source.get_dataset("train", shuffle=False)
    for preprocessor in make_preprocessors(shop, num_items=5):
        dataset = preprocessor(dataset)
    tokens = shop.layout.tokens_of(shop.table.codes)
    pairs = _pairs(source.get_dataset("train", shuffle=False))
    examples = list(dataset.as_numpy_iterator())
    assert len(examples) == len(pairs)
    for example, (user, history, target) in zip(examples, pairs, strict=True):
        expected = tokens[list(history[-5:])].reshape(-1).tolist()
        if num_user_tokens:
            expected = [shop.layout.first_user_token + user % 13, *expected]
        assert example["inputs"].tolist() == expected
        assert example["targets"].tolist() == tokens[target].tolist()
        assert example["inputs"].dtype == example["targets"].dtype == np.int32


@pytest.mark.parametrize(("room", "kept"), [(4 * 4 + 1, 4), (4 * 4 + 4, 4), (400, 20)])
def test_short_feature_lengths_cut_the_oldest_items(room, kept):
    shop = _shop(small_histories(), num_user_tokens=5)
    dataset = keep_last_items(
        PairSource(shop).get_dataset("train", shuffle=False),
        {"inputs": room, "targets": 4},
        shop=shop,
    )
    whole = _pairs(PairSource(shop).get_dataset("train", shuffle=False))
    assert _pairs(dataset) == [(u, h[-kept:], t) for u, h, t in whole]


def test_no_room_for_an_item_is_an_error():
    with pytest.raises(ValueError, match="no room for one item"):
        keep_last_items(
            SOURCE.get_dataset("train"), {"inputs": 3}, shop=SHOP, num_items=20
        )


def test_feature_lengths_count_the_user_token():
    assert feature_lengths(TokenLayout((8, 8, 4), 7), 10) == {
        "inputs": 31,
        "targets": 3,
    }
    assert feature_lengths(TokenLayout((8, 8, 4), 0), 10) == {
        "inputs": 30,
        "targets": 3,
    }
