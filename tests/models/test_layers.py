"""The building blocks, each against its definition written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiger_jax.models.layers import RmsNorm
from tiger_jax.models.tuned_ops import dropout, linear, random_bits, relu_dropout

SHAPE = (32, 64, 32)
NUM_ELEMENTS = 32 * 64 * 32
drop = jax.jit(dropout, static_argnums=1)
bits_of = jax.jit(lambda key: random_bits(key, SHAPE))


ones = np.ones(SHAPE, np.float32)


@given(st.integers(0, 2**31), st.sampled_from([0.1, 0.5, 0.9]))
def test_dropout_keeps_its_share_and_the_expectation(seed, rate):
    y = np.asarray(drop(ones, rate, jax.random.key(seed)))
    kept = y != 0
    std = (rate * (1 - rate) / NUM_ELEMENTS) ** 0.5
    assert abs(kept.mean() - (1 - rate)) < 6 * std
    np.testing.assert_allclose(y[kept], 1 / (1 - rate), rtol=1e-6)


@given(st.integers(0, 2**31))
def test_dropped_elements_are_independent(seed):
    """Correlations of +-1 signs: each has std 1 / sqrt(n) if independent."""
    first, second = jax.random.split(jax.random.key(seed))
    sign = np.where(np.asarray(bits_of(first)) >> 31, 1.0, -1.0)
    other = np.where(np.asarray(bits_of(second)) >> 31, 1.0, -1.0)
    bound = 6 / NUM_ELEMENTS**0.5
    assert abs(sign.mean()) < bound
    assert abs((sign * other).mean()) < bound
    for axis in range(3):
        for shift in (1, 2, 16):
            assert abs((sign * np.roll(sign, shift, axis)).mean()) < 1.1 * bound


@pytest.mark.parametrize("bit", range(16, 32))
def test_each_of_the_high_bits_is_fair(bit):
    bits = np.asarray(bits_of(jax.random.key(bit)))
    assert abs((bits >> bit & 1).mean() - 0.5) < 6 * 0.5 / NUM_ELEMENTS**0.5


def test_dropouts_gradient_is_its_mask():
    x = jax.random.normal(jax.random.key(0), (40, 50))
    key = jax.random.key(1)
    y, vjp = jax.vjp(lambda x: drop(x, 0.3, key), x)
    np.testing.assert_allclose(vjp(x)[0], y, rtol=1e-6)


def test_relu_dropout_is_dropout_of_relu_and_so_is_its_gradient():
    x = jax.random.normal(jax.random.key(0), (40, 50))
    g = jax.random.normal(jax.random.key(1), (40, 50))
    key = jax.random.key(2)
    y, vjp = jax.vjp(lambda x: relu_dropout(x, 0.3, key), x)
    expected_y, expected_vjp = jax.vjp(lambda x: drop(jax.nn.relu(x), 0.3, key), x)
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_allclose(vjp(g)[0], expected_vjp(g)[0], rtol=1e-6)


@pytest.mark.parametrize(("fan_in", "fan_out"), [(5, 9), (9, 5)])
def test_linear_has_the_gradients_of_a_product(fan_in, fan_out):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (4, 3, fan_in))
    kernel = jax.random.normal(keys[1], (fan_in, fan_out))
    g = jax.random.normal(keys[2], (4, 3, fan_out))
    y, vjp = jax.vjp(linear, x, kernel)
    expected_y, expected_vjp = jax.vjp(jnp.matmul, x, kernel)
    np.testing.assert_array_equal(y, expected_y)
    for ours, expected in zip(vjp(g), expected_vjp(g), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_rms_norm_of_three_and_four():
    # mean square = (9 + 16) / 2 = 12.5
    x = jnp.array([[3.0, 4.0]])
    norm = RmsNorm()
    y = norm.apply(norm.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(y, [[3 / 12.5**0.5, 4 / 12.5**0.5]], rtol=1e-6)


def test_rms_norm_of_zeros_is_zero():
    x = jnp.zeros((2, 4))
    norm = RmsNorm()
    assert not norm.apply(norm.init(jax.random.key(0), x), x).any()
