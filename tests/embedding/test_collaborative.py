import numpy as np
import pytest

from tiger_jax.data.item_vectors import join_text
from tiger_jax.embedding.collaborative import (
    CollaborativeConfig,
    embed_cooccurrence,
)
from tiger_jax.errors import InputError
from tiger_jax.histories import Histories

# Items 0-3 are bought together, 4-7 are bought together, 8 is never bought.
TRAIN = Histories.from_lists(
    [[0, 1, 2, 3], [3, 1, 0, 2], [2, 0, 3], [4, 5, 6, 7], [7, 5, 4, 6], [6, 4, 7]]
)
CONFIG = CollaborativeConfig(dims=2)


def test_items_that_are_bought_together_lie_together():
    vectors = embed_cooccurrence(TRAIN, 9, CONFIG)
    cosines = vectors @ vectors.T
    assert cosines[:4, :4].min() > 0.9
    assert cosines[4:8, 4:8].min() > 0.9
    assert abs(cosines[:4, 4:8]).max() < 0.1


def test_vectors_have_length_one_or_none_and_repeat():
    vectors = embed_cooccurrence(TRAIN, 9, CONFIG)
    lengths = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(lengths, [1.0] * 8 + [0.0], atol=1e-5)
    np.testing.assert_array_equal(vectors, embed_cooccurrence(TRAIN, 9, CONFIG))


def test_only_pairs_of_two_items_of_one_user_count():
    """Pairs of different users and of an item with itself do not count."""
    apart = Histories.from_lists([[0], [1], [2, 2, 2], []])
    assert not embed_cooccurrence(apart, 4, CONFIG).any()


def test_more_dimensions_than_items_are_filled_with_zeros():
    vectors = embed_cooccurrence(TRAIN, 9, CollaborativeConfig(dims=12))
    assert vectors.shape == (9, 12)
    assert not vectors[:, 8:].any()


def test_joined_vectors_keep_their_weights():
    text = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    joined = join_text(text, np.array([[0.5], [0.0]], np.float32))
    np.testing.assert_allclose(joined, [[0.6, 0.8, 0.5], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize("bad", [{"dims": 0}, {"weight": -1.0}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(InputError, match="collaborative.CollaborativeConfig"):
        CollaborativeConfig(**bad)
