"""Each guard passes a sound run and catches the failure it is there for."""

import numpy as np

from tiger_jax.evaluation import guards, recommend_fn
from tiger_jax.histories import HeldOut, Histories

NUM_ITEMS = 40
USERS = 12


def _held_out() -> HeldOut:
    key = np.random.default_rng(0)
    lists = [key.integers(0, NUM_ITEMS, size=4).tolist() for _ in range(USERS)]
    return HeldOut(
        np.arange(USERS, dtype=np.int32),
        Histories.from_lists(lists),
        np.zeros(USERS, np.int32),
    )


TABLE = np.random.default_rng(1).normal(size=(NUM_ITEMS, 8)).astype(np.float32)


def _log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_a_model_that_reads_the_history_passes():
    found = guards.check_history_matters(
        lambda users, histories: _log_softmax(TABLE[histories[:, 0]]),
        _held_out(),
        history_length=4,
    )
    assert found.is_fine
    assert 0.1 < found.value <= 1


def test_a_model_that_only_knows_the_user_is_caught():
    found = guards.check_history_matters(
        lambda users, histories: _log_softmax(TABLE[users]),
        _held_out(),
        history_length=4,
    )
    assert not found.is_fine
    assert found.value == 0
    assert "ignores its encoder" in found.explanation


def test_the_shift_is_the_total_variation_by_hand():
    # Even users .9 / .1, odd users .5 / .5: each swap moves .4.
    rows = np.log(np.array([[0.9, 0.1], [0.5, 0.5]]))
    held_out = HeldOut(
        np.arange(2, dtype=np.int32),
        Histories.from_lists([[0], [1]]),
        np.zeros(2, np.int32),
    )
    found = guards.check_history_matters(
        lambda users, histories: rows[histories[:, 0]], held_out, history_length=1
    )
    np.testing.assert_allclose(found.value, 0.4)


def test_a_search_that_misses_good_items_is_caught():
    scores = np.random.default_rng(2).normal(size=(USERS, NUM_ITEMS))
    scores = scores.astype(np.float32)
    exact = recommend_fn.ScoredCatalogue(lambda users, _: scores[users], NUM_ITEMS)

    def narrow(user_numbers, histories, exclude, k):
        # Blind to the first half of the catalogue.
        half = np.broadcast_to(np.arange(20, dtype=np.int32), (len(user_numbers), 20))
        return exact(user_numbers, histories, half, k)

    same = guards.check_search_is_exact(exact, exact, _held_out())
    assert (same.value, same.is_fine) == (1.0, True)
    worse = guards.check_search_is_exact(narrow, exact, _held_out())
    assert 0.2 < worse.value < 0.8
    assert not worse.is_fine


def test_one_list_for_everybody_is_caught():
    everybody = np.tile(np.arange(5, dtype=np.int32), (1000, 1))
    assert not guards.check_lists_differ(everybody, num_items=1000).is_fine
    mixed = np.random.default_rng(0).integers(0, 1000, (1000, 5)).astype(np.int32)
    assert guards.check_lists_differ(mixed, num_items=1000).is_fine
