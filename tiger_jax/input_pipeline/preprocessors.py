"""From item numbers to tokens: the preprocessors of a TIGER task.

`keep_last_items` works on the blocks of pairs that `PairSource` yields;
`split_blocks` comes after it and leaves one example per element, as every other
seqio preprocessor expects.
"""

import functools
from collections.abc import Callable, Mapping

from tiger_jax.input_pipeline.pair_source import Shop
from tiger_jax.input_pipeline.quiet_tensorflow import as_written, tf
from tiger_jax.semantic_ids.token_ids import TokenLayout

Preprocessor = Callable[..., tf.data.Dataset]


def feature_lengths(
    layout: TokenLayout, num_items: int = 20, *, whole_histories: bool = False
) -> dict[str, int]:
    """Tokens in a task's features: a history of `num_items`, and one item.

    In training on whole histories, there is a target for each item of the history.

    Examples:
        >>> feature_lengths(TokenLayout((256, 256, 256, 256), num_user_tokens=2000))
        {'inputs': 81, 'targets': 4}
    """
    length = layout.semantic_id_length
    user = 1 if layout.num_user_tokens else 0
    targets = num_items * length if whole_histories else length
    return {"inputs": user + num_items * length, "targets": targets}


def make_preprocessors(shop: Shop, *, num_items: int = 20) -> list[Preprocessor]:
    """The preprocessors of a task over a shop, in order."""
    return [
        functools.partial(keep_last_items, shop=shop, num_items=num_items),
        functools.partial(split_blocks, shop=shop),
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
        ragged = {"history", "next"} & block.keys()
        return {**block, **{name: block[name][:, -num_items:] for name in ragged}}

    return dataset.map(keep)


def split_blocks(dataset: tf.data.Dataset, *, shop: Shop) -> tf.data.Dataset:
    """Turns blocks of pairs into single examples: tokens, "inputs" and "targets"."""
    layout = shop.layout
    item_tokens = tf.constant(layout.tokens_of(shop.table.codes))  # [N, T]

    @as_written
    def encode(block: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        history = tf.gather(item_tokens, block["history"]).merge_dims(1, 2)
        # A ragged tensor would be packed and unpacked again for every example.
        inputs, lengths = history.to_tensor(), history.row_lengths()
        if layout.num_user_tokens:
            user = layout.first_user_token + block["user_hash"] % layout.num_user_tokens
            inputs = tf.concat([tf.cast(user, tf.int32)[:, None], inputs], axis=1)
            lengths += 1
        targets = tf.gather(item_tokens, block["target"])
        if "next" in block:  # one per item of the history, which has no user token
            targets = tf.gather(item_tokens, block["next"]).merge_dims(1, 2).to_tensor()
        return {"inputs": inputs, "length": lengths, "targets": targets}

    @as_written
    def trim(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        inputs = example["inputs"][: example["length"]]
        # One item's tokens are no more than a history's.
        return {"inputs": inputs, "targets": example["targets"][: example["length"]]}

    return dataset.map(encode).unbatch().map(trim)
