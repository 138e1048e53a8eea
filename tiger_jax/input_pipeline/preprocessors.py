"""From item numbers to tokens: the preprocessors of a TIGER task.

They work on the blocks of pairs that `sources.PairSource` yields; `split_blocks`
comes last and leaves one example an element, as every other seqio preprocessor
expects. A task lists them in this order:

    keep_last_items, items_to_tokens, add_user_token, split_blocks
"""

import functools
from collections.abc import Callable, Mapping

from tiger_jax.input_pipeline.quiet_tensorflow import as_written, tf
from tiger_jax.input_pipeline.sources import Shop
from tiger_jax.semantic_ids.token_ids import TokenLayout

Preprocessor = Callable[..., tf.data.Dataset]


def feature_lengths(layout: TokenLayout, num_items: int = 20) -> dict[str, int]:
    """Tokens in a task's features: a history of `num_items`, and one item.

    Example:
        >>> feature_lengths(TokenLayout((256, 256, 256, 256), num_user_tokens=2000))
        {'inputs': 81, 'targets': 4}
    """
    length = layout.semantic_id_length
    user = 1 if layout.num_user_tokens else 0
    return {"inputs": user + num_items * length, "targets": length}


def make_preprocessors(shop: Shop, *, num_items: int = 20) -> list[Preprocessor]:
    """The four preprocessors of a task over a shop, in order."""
    return [
        functools.partial(keep_last_items, shop=shop, num_items=num_items),
        functools.partial(items_to_tokens, shop=shop),
        functools.partial(add_user_token, shop=shop),
        split_blocks,
    ]


def keep_last_items(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int] | None = None,
    *,
    shop: Shop,
    num_items: int = 20,
) -> tf.data.Dataset:
    """Keeps the most recent items of every history.

    Args:
        sequence_length: seqio's feature lengths. Where "inputs" has room for fewer
            items, fewer are kept: seqio itself would cut off the newest.
    """
    if sequence_length and sequence_length.get("inputs") is not None:
        layout = shop.layout
        room = sequence_length["inputs"] - (1 if layout.num_user_tokens else 0)
        num_items = min(num_items, room // layout.semantic_id_length)
    if num_items < 1:
        raise ValueError(
            f"feature lengths {dict(sequence_length or {})} leave no room for one "
            f"item; twenty need {feature_lengths(shop.layout)}"
        )

    @as_written
    def keep(block: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {**block, "history": block["history"][:, -num_items:]}

    return dataset.map(keep)


def items_to_tokens(dataset: tf.data.Dataset, *, shop: Shop) -> tf.data.Dataset:
    """Replaces item numbers by their Semantic IDs' tokens: "inputs" and "targets"."""
    item_tokens = tf.constant(shop.layout.tokens_of(shop.table.codes))  # [N, T]

    @as_written
    def replace(block: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        history = tf.gather(item_tokens, block["history"])  # [block, items, T]
        return {
            "user_hash": block["user_hash"],
            "inputs": history.merge_dims(1, 2),  # [block, items * T]
            "targets": tf.gather(item_tokens, block["target"]),  # [block, T]
        }

    return dataset.map(replace)


def add_user_token(dataset: tf.data.Dataset, *, shop: Shop) -> tf.data.Dataset:
    """Puts the user's hashed token first, where the layout has user tokens."""
    layout = shop.layout
    if not layout.num_user_tokens:
        return dataset

    @as_written
    def prepend(block: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        user = layout.first_user_token + block["user_hash"] % layout.num_user_tokens
        user = tf.cast(user, tf.int32)[:, None]
        return {**block, "inputs": tf.concat([user, block["inputs"]], axis=1)}

    return dataset.map(prepend)


def split_blocks(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Turns blocks into single examples with "inputs" and "targets"."""

    @as_written
    def pad(block: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        # A ragged tensor would be packed and unpacked again for every example.
        inputs = block["inputs"]
        return {
            "inputs": inputs.to_tensor(),
            "length": inputs.row_lengths(),
            "targets": block["targets"],
        }

    @as_written
    def trim(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        inputs = example["inputs"][: example["length"]]
        return {"inputs": inputs, "targets": example["targets"]}

    return dataset.map(pad).unbatch().map(trim)
