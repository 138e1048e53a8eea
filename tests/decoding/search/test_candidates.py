import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiger_jax.decoding.search.candidates import log_sum_exp


@pytest.mark.parametrize(
    "shift",
    [0.0, 60.0, -60.0, 100.0, -100.0, 3e4, -3e4],
    ids=lambda shift: f"{shift:g}",
)
def test_log_sum_exp_is_exact_far_from_zero_too(shift):
    rng = np.random.default_rng(0)
    logits = (3 * rng.normal(size=(4, 5, 300)) + shift).astype(np.float32)
    logits[0, 0, :290] = -np.inf
    wide = logits.astype(np.float64)
    top = wide.max(-1, keepdims=True)
    expected = top[..., 0] + np.log(np.exp(wide - top).sum(-1))
    found = jax.jit(log_sum_exp)(jnp.asarray(logits))
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=2e-6)


def test_one_row_out_of_range_leaves_the_others_as_they_are():
    rows = jnp.asarray([[0.0, 1.0], [500.0, 501.0], [-jnp.inf, -jnp.inf]])
    found = np.asarray(jax.jit(log_sum_exp)(rows))
    np.testing.assert_allclose(found[:2], [1.3132617, 501.3132617], rtol=1e-6)
    assert found[2] == -np.inf
