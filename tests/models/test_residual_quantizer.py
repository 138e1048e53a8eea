import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiger_jax.models.residual_quantizer import nearest_codewords, residual_quantize

quantize = jax.jit(residual_quantize)


def draw(seed, sizes=(7, 5, 3), num_points=20, dimension=4):
    rng = np.random.default_rng(seed)
    codebooks = [rng.normal(size=(k, dimension)).astype(np.float32) for k in sizes]
    return rng.normal(size=(num_points, dimension)).astype(np.float32), codebooks


@given(st.integers(0, 10**6))
def test_codewords_are_those_of_nested_loops(seed):
    points, codebooks = draw(seed)
    codewords, residuals, chosen = (np.asarray(a) for a in quantize(points, codebooks))
    for b, point in enumerate(points):
        residual = point.astype(np.float64)
        for l, codebook in enumerate(codebooks):
            np.testing.assert_allclose(residuals[l, b], residual, atol=1e-5)
            distances = [((residual - e) ** 2).sum() for e in codebook.astype(float)]
            # Near-ties may fall either way: compare the distance, not the index.
            assert distances[codewords[b, l]] == pytest.approx(min(distances), abs=1e-5)
            np.testing.assert_array_equal(chosen[l, b], codebook[codewords[b, l]])
            residual = residual - codebook[codewords[b, l]]


@given(st.integers(0, 10**6))
def test_chosen_codewords_and_what_is_left_add_up_to_the_point(seed):
    points, codebooks = draw(seed)
    _, residuals, chosen = quantize(points, codebooks)
    last = residuals[-1] - chosen[-1]
    np.testing.assert_allclose(chosen.sum(0) + last, points, atol=1e-5)


def test_ties_go_to_the_smallest_codeword():
    codebook = jnp.array([[2.0], [1.0], [-1.0], [1.0]])
    assert nearest_codewords(jnp.array([[0.0], [1.0]]), codebook).tolist() == [1, 1]


def test_a_codeword_gets_gradient_only_where_it_was_chosen():
    points, codebooks = jax.tree.map(jnp.asarray, draw(0))

    def total(codebooks):
        codewords, _, chosen = residual_quantize(points, codebooks)
        return (chosen**2).sum() / 2, codewords

    grads, codewords = jax.grad(total, has_aux=True)(codebooks)
    for level, (codebook, grad) in enumerate(zip(codebooks, grads, strict=True)):
        counts = np.bincount(codewords[:, level], minlength=len(codebook))
        # The gradient of |e|^2 / 2 is e, once for each time it was chosen.
        np.testing.assert_allclose(grad, counts[:, None] * codebook, rtol=1e-5)
