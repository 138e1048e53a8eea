"""What new items would be bought with, by their neighbours in text."""

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from tiger_jax.data.item_vectors import estimate_collaborative, fill_collaborative

RNG = np.random.default_rng(0)
TEXT = RNG.normal(size=(40, 6)).astype(np.float32)
VECTORS = RNG.normal(size=(40, 3)).astype(np.float32)


def test_estimates_are_weighted_means_of_the_nearest_ten():
    new = RNG.normal(size=(1030, 6)).astype(np.float32)  # more than a block
    found = estimate_collaborative(new, TEXT, VECTORS)
    for row in (0, 511, 512, 1029):
        cosines = TEXT @ new[row] / np.linalg.norm(TEXT, axis=1)
        cosines = np.maximum(cosines / np.linalg.norm(new[row]), 0)
        nearest = np.argsort(-cosines)[:10]
        weights = cosines[nearest] ** 4
        expected = weights @ VECTORS[nearest] / weights.sum()
        assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)


def test_what_is_like_nothing_known_has_zeros():
    apart = np.eye(4, 6, dtype=np.float32)
    found = estimate_collaborative(apart[:1], apart[1:], VECTORS[:3])
    assert_array_equal(found, 0)
    assert estimate_collaborative(TEXT, TEXT[:0], VECTORS[:0]).shape == (40, 3)


def test_only_vectors_of_zeros_are_filled():
    some = VECTORS.copy()
    some[[3, 39]] = 0
    filled = fill_collaborative(TEXT, some)
    known = np.delete(np.arange(40), [3, 39])
    assert_array_equal(filled[known], some[known])
    expected = estimate_collaborative(TEXT[[3, 39]], TEXT[known], some[known])
    assert_array_equal(filled[[3, 39]], expected)
    assert filled[[3, 39]].any()
    assert_array_equal(fill_collaborative(TEXT, 0 * some), 0)
