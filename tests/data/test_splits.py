"""Leave-one-out and unseen items, against nested lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiger_jax.data.splits import Splits, choose_unseen_items
from tiger_jax.errors import InputError
from tiger_jax.histories import Histories

HISTORIES = st.lists(
    st.lists(st.integers(0, 9), min_size=3, max_size=12), min_size=1, max_size=12
)


def lists_of(histories: Histories) -> list[list[int]]:
    return [histories.of(user).tolist() for user in range(histories.num_users)]


@given(lists=HISTORIES)
def test_leave_one_out_is_slicing(lists):
    splits = Splits.leave_one_out(Histories.from_lists(lists), np.array([], np.int32))
    assert lists_of(splits.train) == [h[:-2] for h in lists]
    assert lists_of(splits.validation.histories) == [h[:-2] for h in lists]
    assert splits.validation.targets.tolist() == [h[-2] for h in lists]
    assert lists_of(splits.test.histories) == [h[:-1] for h in lists]
    assert splits.test.targets.tolist() == [h[-1] for h in lists]
    for held_out in (splits.validation, splits.test):
        assert held_out.user_numbers.tolist() == list(range(len(lists)))


@given(lists=HISTORIES, unseen=st.sets(st.integers(0, 9), min_size=1, max_size=9))
def test_unseen_items_appear_nowhere_before_the_test(lists, unseen):
    removed = np.array(sorted(unseen), np.int32)
    splits = Splits.leave_one_out(Histories.from_lists(lists), removed)
    train = [[i for i in h[:-2] if i not in unseen] for h in lists]
    kept = [u for u, h in enumerate(lists) if h[-2] not in unseen]
    assert lists_of(splits.train) == train
    assert splits.validation.user_numbers.tolist() == kept
    assert splits.validation.targets.tolist() == [lists[u][-2] for u in kept]
    assert lists_of(splits.validation.histories) == [train[u] for u in kept]
    assert lists_of(splits.test.histories) == [h[:-1] for h in lists]
    assert splits.test.targets.tolist() == [h[-1] for h in lists]


@given(lists=HISTORIES, share=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_unseen_items_are_a_share_of_the_test_items(lists, share, seed):
    histories = Histories.from_lists(lists)
    unseen = choose_unseen_items(histories, share, seed=seed)
    test_items = {h[-1] for h in lists}
    assert len(set(unseen.tolist())) == len(unseen)
    assert len(unseen) == max(1, round(share * len(test_items)))
    assert set(unseen.tolist()) <= test_items
    again = choose_unseen_items(histories, share, seed=seed)
    np.testing.assert_array_equal(unseen, again)


def test_no_items_are_unseen_by_default_and_shares_are_checked():
    histories = Histories.from_lists([[0, 1, 2]])
    assert choose_unseen_items(histories, 0.0, seed=0).size == 0
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match="unseen_share"):
            choose_unseen_items(histories, share, seed=0)


def test_histories_that_cannot_be_split_are_a_mistake():
    with pytest.raises(ValueError, match="at least three"):
        Splits.leave_one_out(Histories.from_lists([[1, 2]]), np.array([], np.int32))
