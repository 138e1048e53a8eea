"""BSARec: its filter is the Fourier transform's, and its loss sees no target.

What it shares with SASRec is tested there.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tiger_jax.errors import InputError
from tiger_jax.models.bsarec import BsaRecConfig
from tiger_jax.models.layers import low_pass_matrix
from tiger_jax.models.sasrec import init_params, make_loss_fn, make_score_fn

CONFIG = BsaRecConfig(max_length=8, d_model=16, num_heads=2)
NUM_ITEMS = 11
MODEL = CONFIG.build(NUM_ITEMS)


@functools.cache
def params():
    return nn.unbox(jax.jit(functools.partial(init_params, MODEL))(jax.random.key(0)))


LOSS_FN = jax.jit(make_loss_fn(MODEL))
SCORE_FN = jax.jit(make_score_fn(MODEL))
ITEMS = jnp.array([[3, 1, 4, 1, 5], [9, 2, 6, -1, -1], [7, 8, -1, -1, -1]])


def test_the_loss_is_of_the_last_item_given_those_before():
    """The scores are computed without the target, so that it can't have been seen."""
    loss, sums = LOSS_FN(params(), {"items": ITEMS}, None)
    expected, correct = 0.0, 0
    for row in np.asarray(ITEMS):
        *history, target = row[row >= 0]
        scores = np.float64(SCORE_FN(params(), jnp.array([history]))[0])
        expected += np.log(np.exp(scores).sum()) - scores[target]
        correct += scores.argmax() == target
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert (float(sums["weight"]), float(sums["correct"])) == (len(ITEMS), correct)


def test_rows_without_a_target_weigh_nothing():
    alone = jnp.array([[3, -1, -1], [-1, -1, -1]])
    loss, sums = LOSS_FN(params(), {"items": alone}, None)
    assert (float(loss), float(sums["weight"])) == (0.0, 0.0)


@pytest.mark.parametrize(("length", "window", "cutoff"), [(5, 50, 5), (8, 8, 7)])
def test_the_low_pass_matrix_is_the_fourier_transforms(length, window, cutoff):
    x = np.random.default_rng(0).normal(size=(length, 3))
    padded = np.concatenate([np.zeros((window - length, 3)), x])
    spectrum = np.fft.rfft(padded, axis=0)
    spectrum[cutoff // 2 + 1 :] = 0
    expected = np.fft.irfft(spectrum, n=window, axis=0)[-length:]
    found = low_pass_matrix(length, window, cutoff) @ x
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_every_item_of_a_history_counts():
    scores = SCORE_FN(params(), ITEMS)
    for place in range(5):
        changed = SCORE_FN(params(), ITEMS.at[0, place].set(10))
        assert abs(changed - scores)[0].max() > 1e-5, place


def test_without_a_share_the_filter_plays_no_part():
    def scores(share, params):
        model = BsaRecConfig(
            max_length=8, d_model=16, num_heads=2, filter_share=share
        ).build(NUM_ITEMS)
        return make_score_fn(model)(params, ITEMS)

    other = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 1.0 if "beta" in jax.tree_util.keystr(path) else x, params()
    )
    np.testing.assert_array_equal(scores(0.0, params()), scores(0.0, other))
    assert abs(scores(0.7, params()) - scores(0.7, other)).max() > 1e-4


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="cutoff = 8 must be below max_length = 8"):
        BsaRecConfig(max_length=8, cutoff=8)
    with pytest.raises(InputError, match="num_blocks"):
        BsaRecConfig(num_blocks=0)
