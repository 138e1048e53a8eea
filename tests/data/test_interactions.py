"""k-core, numbering and order, against slow and obvious references."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shops import shop_of

from tiger_jax.data import interactions
from tiger_jax.data.interactions import (
    InteractionsConfig,
    build_histories,
    chronological_order,
    find_repeated,
    k_core,
    shuffle_rows,
)
from tiger_jax.errors import InputError

EVENTS = st.lists(
    st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("abcdefg"), st.integers(0, 4)),
    max_size=60,
)


def slow_k_core(
    pairs: list[tuple[str, str]], min_user: int, min_item: int
) -> list[int]:
    """Removes one interaction at a time until none has to go."""
    rows = list(range(len(pairs)))
    while True:
        users = Counter(pairs[r][0] for r in rows)
        items = Counter(pairs[r][1] for r in rows)
        for r in rows:
            if users[pairs[r][0]] < min_user or items[pairs[r][1]] < min_item:
                rows.remove(r)
                break
        else:
            return rows


def histories_of(shop, config, seed=0):
    """The histories as lists of item identifiers, by user."""
    numbered = build_histories(shop, config, seed=seed)
    ids = shop.items["item_id"].to_pylist()
    ids = [ids[row] for row in numbered.items_file_rows]
    return {
        user: [ids[item] for item in numbered.histories.of(number)]
        for number, user in enumerate(numbered.user_ids.to_pylist())
    }


@given(events=EVENTS, min_user=st.integers(0, 5), min_item=st.integers(0, 5))
def test_k_core_is_what_removing_one_by_one_leaves(events, min_user, min_item):
    users = np.array([ord(u) - ord("u") for u, _, _ in events], np.int64)
    items = np.array([ord(i) - ord("a") for _, i, _ in events], np.int64)
    mask = k_core(users, items, min_user=min_user, min_item=min_item)
    expected = slow_k_core([(u, i) for u, i, _ in events], min_user, min_item)
    assert np.flatnonzero(mask).tolist() == expected


@given(
    rows=st.lists(st.tuples(st.integers(0, 70_000), st.integers(0, 3)), max_size=80),
    has_ties=st.booleans(),
    few_users=st.booleans(),
    block_rows=st.sampled_from([1, 8, 1 << 14]),
)
def test_order_by_blocks_is_the_order_by_one_sort(
    rows, has_ties, few_users, block_rows
):
    users = np.array([user for user, _ in rows], np.int64)
    users = users % 7 if few_users else users
    times = np.array([time for _, time in rows]) / 2
    ties = np.arange(len(rows))[::-1] // 2 if has_ties else None
    keys = (times, users) if ties is None else (ties, times, users)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interactions, "_BLOCK_ROWS", block_rows)
        order = chronological_order(users, times, ties)
    assert order.tolist() == np.lexsort(keys).tolist()


@given(events=EVENTS, k=st.integers(0, 4), tie_order=st.sampled_from(["data", "item"]))
def test_histories_are_what_plain_python_makes_of_them(events, k, tie_order):
    kept = slow_k_core([(u, i) for u, i, _ in events], max(k, 3), k)
    expected: dict[str, list[str]] = {}
    key = {
        "data": lambda r: (events[r][2], r),
        "item": lambda r: (events[r][2], events[r][1]),
    }[tie_order]
    for row in sorted(kept, key=key):
        expected.setdefault(events[row][0], []).append(events[row][1])
    config = InteractionsConfig(k_core=k, tie_order=tie_order)
    if max(map(len, expected.values()), default=0) <= 3:
        with pytest.raises(InputError):
            build_histories(shop_of(events), config, seed=0)
        return
    found = histories_of(shop_of(events), config)
    assert found == expected
    first_seen = dict.fromkeys(u for u, _, _ in events if u in expected)
    assert list(found) == list(first_seen)


@given(num_rows=st.integers(1, 500), seed=st.integers(0, 2**31))
def test_item_numbers_are_a_permutation_that_the_seed_decides(num_rows, seed):
    rows = np.arange(num_rows) * 3
    shuffled = shuffle_rows(rows, seed)
    assert sorted(shuffled) == rows.tolist()
    np.testing.assert_array_equal(shuffled, shuffle_rows(rows, seed))


def test_item_numbers_carry_no_order():
    shuffled = shuffle_rows(np.arange(10_000), 0)
    assert abs(np.corrcoef(shuffled, np.arange(10_000))[0, 1]) < 0.05
    assert (shuffled != shuffle_rows(np.arange(10_000), 1)).mean() > 0.99


def test_the_numbering_does_not_change_the_histories():
    shop = shop_of([("u", i, t) for t, i in enumerate("abcdefgh")])
    config = InteractionsConfig(k_core=0)
    first, second = (histories_of(shop, config, seed=s) for s in (0, 1))
    assert first == second == {"u": list("abcdefgh")}


def test_ties_follow_the_rule_that_is_asked_for():
    shop = shop_of([("u", i, 7) for i in "hgfedcba"])
    config = InteractionsConfig(k_core=0, tie_order="data")
    assert histories_of(shop, config) == {"u": list("hgfedcba")}
    config = InteractionsConfig(k_core=0, tie_order="item")
    assert histories_of(shop, config) == {"u": list("abcdefgh")}
    config = InteractionsConfig(k_core=0, tie_order="shuffle")
    orders = {tuple(histories_of(shop, config, seed=s)["u"]) for s in range(8)}
    assert len(orders) == 8
    assert all(sorted(order) == list("abcdefgh") for order in orders)
    assert histories_of(shop, config, 3) == histories_of(shop, config, 3)


def test_shuffled_ties_keep_the_order_of_time():
    events = [("u", f"{t}-{n}", t) for t in (3, 1, 2) for n in range(5)]
    config = InteractionsConfig(k_core=0, tie_order="shuffle")
    times = [item[0] for item in histories_of(shop_of(events), config)["u"]]
    assert times == sorted(times)


def test_repeat_purchases_stay_even_at_the_same_time():
    shop = shop_of([("u", "a", 1), ("u", "a", 1), ("u", "b", 1), ("u", "a", 2)])
    config = InteractionsConfig(k_core=0)
    assert histories_of(shop, config) == {"u": ["a", "a", "b", "a"]}


def test_users_with_two_interactions_are_left_out_and_counted():
    events = [("short", i, t) for t, i in enumerate("ab")]
    events += [("long", i, t) for t, i in enumerate("abcab")]
    numbered = build_histories(shop_of(events), InteractionsConfig(k_core=1), seed=0)
    assert numbered.user_ids.to_pylist() == ["long"]
    assert numbered.counts["users_with_too_short_history"] == 1


def test_items_without_interactions_stay_where_asked():
    events = [("u", i, t) for t, i in enumerate("abcab")]
    shop = shop_of(events, item_ids="abcxyz")
    config = InteractionsConfig(k_core=1)
    assert len(build_histories(shop, config, seed=0).items_file_rows) == 3
    config = InteractionsConfig(k_core=1, keep_all_items=True)
    rows = build_histories(shop, config, seed=0).items_file_rows
    assert sorted(rows) == [0, 1, 2, 3, 4, 5]


def test_an_empty_core_says_how_to_lower_it():
    shop = shop_of([("u", i, t) for t, i in enumerate("abcdef")])
    with pytest.raises(InputError) as caught:
        build_histories(shop, InteractionsConfig(), seed=0)
    assert str(caught.value) == (
        "of 6 interactions of 1 users with 6 items, none are left when each user and "
        "item must have 5: lower it with --gin.interactions.InteractionsConfig.k_core=2"
        ", or bring more data"
    )


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_histories_too_short_to_learn_from_are_refused(length):
    shop = shop_of(
        [(u, i, t) for u in "uv" for t, i in enumerate("abc"[:length])], "abc"
    )
    with pytest.raises(InputError, match="bring (longer histories|more data)"):
        build_histories(shop, InteractionsConfig(k_core=1), seed=0)


def test_impossible_configs_are_refused():
    with pytest.raises(InputError, match="tie_order is 'time': choose one of data"):
        InteractionsConfig(tie_order="time")
    with pytest.raises(InputError, match="k_core is -1"):
        InteractionsConfig(k_core=-1)


@given(events=EVENTS)
def test_repeated_interactions_are_all_but_the_first(events):
    numbers = [(ord(u) - ord("u"), ord(i) - ord("a"), t) for u, i, t in events]
    expected = [event in numbers[:row] for row, event in enumerate(numbers)]
    columns = np.array(numbers, np.int64).reshape(-1, 3).T
    assert find_repeated(*columns).tolist() == expected


def test_exact_duplicates_are_counted_and_can_be_dropped():
    events = [("u", item, time) for time, item in enumerate("abcd")] * 3
    events += [("u", "a", 9)]  # again, at another time: no duplicate
    config = InteractionsConfig(k_core=0)
    assert histories_of(shop_of(events), config) == {"u": [*"aaabbbcccddd", "a"]}
    assert build_histories(shop_of(events), config, seed=0).notes == (
        "8 of 13 interactions repeat an earlier one (same user, item and time) and "
        "count; leave them out with "
        "--gin.interactions.InteractionsConfig.duplicates=drop",
    )
    config = InteractionsConfig(k_core=0, duplicates="drop")
    assert histories_of(shop_of(events), config) == {"u": [*"abcd", "a"]}
    with pytest.raises(InputError, match="no user has the 3"):  # and before the k-core
        histories_of(shop_of(events), InteractionsConfig(k_core=2, duplicates="drop"))
