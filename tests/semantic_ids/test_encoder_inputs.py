"""Encoder rows, by hand."""

import numpy as np
import pytest

from tiger_jax.semantic_ids.encoder_inputs import encode_histories
from tiger_jax.semantic_ids.token_ids import TokenLayout

CODES = np.array([[0, 1, 0], [2, 0, 1], [1, 1, 1]], np.int32)


def test_items_come_oldest_first_and_padding_last():
    layout = TokenLayout((3, 2, 2))  # levels start at 1, 4, 6
    histories = np.array([[2, 0, -1], [-1, -1, -1]], np.int32)
    item_2, item_0 = [2, 5, 7], [1, 5, 6]
    assert encode_histories(histories, CODES, layout).tolist() == [
        [*item_2, *item_0, 0, 0, 0],
        [0] * 9,
    ]


def test_the_user_token_stands_before_the_items():
    """A user token stands before the items, and nobody has padding there."""
    layout = TokenLayout((3, 2, 2), num_user_tokens=10)  # user tokens from 8
    inputs = encode_histories(
        np.array([[1], [1]], np.int32),
        CODES,
        layout,
        user_hashes=np.array([23, 23], np.uint32),
        is_known=np.array([True, False]),
    )
    assert inputs.tolist() == [[8 + 3, 3, 4, 7], [0, 3, 4, 7]]


def test_user_tokens_without_hashes_are_refused():
    layout = TokenLayout((3, 2, 2), num_user_tokens=10)
    with pytest.raises(ValueError, match="user_hashes"):
        encode_histories(np.array([[1]], np.int32), CODES, layout)
