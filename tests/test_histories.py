import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiger_jax.histories import HeldOut, Histories

lists = st.lists(st.lists(st.integers(0, 50), max_size=8), min_size=1, max_size=8)


@given(lists, st.integers(0, 9))
def test_last_and_drop_last_equal_slices_of_lists(users, n):
    histories = Histories.from_lists(users)
    dropped = histories.drop_last(n)
    window = histories.last(n)
    for row, items in enumerate(users):
        kept = items[-n:] if n else []
        assert window[row].tolist() == kept + [-1] * (n - len(kept))
        assert dropped.of(row).tolist() == items[: max(len(items) - n, 0)]


@given(lists, st.data())
def test_select_keeps_the_order_asked_for(users, data):
    chosen = data.draw(st.lists(st.integers(0, len(users) - 1), max_size=6))
    selected = Histories.from_lists(users).select(np.array(chosen, np.int64))
    assert [selected.of(i).tolist() for i in range(len(chosen))] == [
        users[c] for c in chosen
    ]


def test_offsets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="offsets must rise"):
        Histories(np.arange(3, dtype=np.int32), np.array([0, 2], np.int64))


def test_held_out_parts_of_different_length_are_refused():
    histories = Histories.from_lists([[1], [2]])
    with pytest.raises(ValueError, match="differ in number"):
        HeldOut(np.zeros(1, np.int32), histories, np.zeros(1, np.int32))
