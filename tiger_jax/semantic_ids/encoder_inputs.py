"""Histories of item numbers to the tokens that the encoder reads."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, UInt32

from tiger_jax.semantic_ids.token_ids import PADDING, TokenLayout


class ItemInputs(NamedTuple):
    """What an encoder reads that also takes the items' content vectors.

    Attributes:
        tokens: int32 [B S]; what `encode_histories` makes.
        items: The items that the tokens spell: their numbers, int32 [B I], where
            histories come from outside, and what the model makes of their content,
            float32 [B I D], where it reads them; None for codes alone.
        windows: int32 [B I]; which history each item is of, where a row holds several;
            None where it holds one.
    """

    tokens: Any
    items: Any = None
    windows: Any = None


def encode_histories(
    histories: Int32[np.ndarray, "B I"],
    codes: Int32[np.ndarray, "N T"],
    layout: TokenLayout,
    *,
    user_hashes: UInt32[np.ndarray, " B"] | None = None,
    is_known: Bool[np.ndarray, " B"] | None = None,
    with_items: bool = False,
) -> Int32[np.ndarray, "B S"] | ItemInputs:
    """Lays out each history as one row: the user's token, then T tokens per item.

    The same rows as in training: oldest item first, padding on the right. A row's
    items must stand at its left end. S = I * T, and one more with user tokens.

    Args:
        histories: Item numbers, padded with -1 on the right.
        user_hashes: Needed when `layout` has user tokens.
        is_known: Users without a hash (False) get padding in place of a token: the
            encoder attends to their items alone, which keep their places.
        with_items: Give `ItemInputs`, for a model that takes content vectors.

    Examples:
        >>> layout = TokenLayout((4, 2), num_user_tokens=3)
        >>> codes = np.array([[3, 0], [1, 1]], np.int32)
        >>> history = np.array([[1, 0, -1]], np.int32)
        >>> user = np.array([5], np.uint32)
        >>> encode_histories(history, codes, layout, user_hashes=user).tolist()
        [[9, 2, 6, 4, 5, 0, 0]]
    """
    if with_items:
        rows = encode_histories(
            histories, codes, layout, user_hashes=user_hashes, is_known=is_known
        )
        return ItemInputs(rows, histories.astype(np.int32))
    is_item = histories >= 0  # [B, I]
    tokens = layout.tokens_of(codes)[np.where(is_item, histories, 0)]  # [B, I, T]
    if not layout.num_user_tokens:
        return lay_out_tokens(tokens, is_item)
    if user_hashes is None:
        raise ValueError("a layout with user tokens needs user_hashes")
    user_tokens = layout.user_tokens(user_hashes)  # [B]
    if is_known is not None:
        user_tokens = np.where(is_known, user_tokens, PADDING).astype(np.int32)
    return lay_out_tokens(tokens, is_item, user_tokens)


def lay_out_tokens(
    tokens: Any, is_item: Any, user_tokens: Any = None, *, xp: Any = np
) -> Any:
    """The rows of `encode_histories`, of tokens already looked up.

    Args:
        tokens: Int32 [B I T], whatever stands where there is no item.
        user_tokens: Int32 [B], where the layout has user tokens.
        xp: The arrays' library: `numpy` or `jax.numpy`.
    """
    tokens = xp.where(is_item[:, :, None], tokens, PADDING)
    inputs = tokens.reshape(tokens.shape[0], -1)  # [B, I * T]
    if user_tokens is None:
        return inputs
    return xp.concatenate([user_tokens[:, None], inputs], axis=1)
