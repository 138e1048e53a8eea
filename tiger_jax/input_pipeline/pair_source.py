"""A shop's pairs as a seqio source, gathered a block at a time inside TensorFlow."""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
from jaxtyping import UInt32

from tiger_jax.errors import InputError
from tiger_jax.histories import HeldOut, Histories
from tiger_jax.input_pipeline.pairs import SPLITS, Pairs, locate
from tiger_jax.input_pipeline.quiet_tensorflow import as_written, seqio, tf
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.semantic_ids.token_ids import TokenLayout

# Pairs gathered by one call of TensorFlow's operations. The cost of a call is
# spread over a block; a larger one would only use more memory.
BLOCK_SIZE = 512
# Rounds of the cipher that permutes positions. After its default, 4, neighbours in
# the shuffled order are still correlated (up to 40 standard errors at lag 2 over
# 50,000 pairs); after 8 they are not.
_SHUFFLE_ROUNDS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Shop:
    """What a task is made from: the splits, by user number, and what tokens mean."""

    train: Histories
    validation: HeldOut
    test: HeldOut
    user_hashes: UInt32[np.ndarray, " U"]
    table: SemanticIdTable
    layout: TokenLayout


class PairSource(seqio.DataSource):
    """A seqio source of a shop's pairs.

    Its elements are blocks of up to `BLOCK_SIZE` pairs, which the preprocessors
    pass on and `split_blocks` takes apart at the end:

        user_hash  int64[block]
        history    int32 ragged [block, items before the target]
        target     int32[block]

    With whole histories, training has one element per history instead, for a model
    that predicts at every position: `history` is all but its last item, and `next`,
    ragged as well, the item after each of these.

    Shuffled, an epoch is one pseudo-random permutation of all pairs, computed by
    the pair's position rather than drawn from a buffer. So the shuffle is perfect
    at any size, every host takes its share of the same permutation, and the saved
    position is a few numbers. Each epoch has a permutation of its own.
    """

    def __init__(self, shop: Shop, *, whole_histories: bool = False) -> None:
        self.shop, self.whole_histories = shop, whole_histories
        super().__init__(splits=SPLITS, caching_permitted=False)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    @property
    def performs_internal_shuffling(self) -> bool:
        return True

    def num_input_examples(self, split: str) -> None:
        """Unknown to seqio: see `num_pairs`.

        A small source whose size it knows seqio keeps in memory in the order of
        the first epoch, and so would repeat that order for ever.
        """
        del split

    def num_pairs(self, split: str) -> int:
        return self._pairs(split).num_pairs

    def _pairs(self, split: str) -> Pairs:
        if self._is_whole(split):
            return Pairs.of_last(self.shop.train)
        return Pairs.of_split(self.shop, split)

    def _is_whole(self, split: str) -> bool:
        return self.whole_histories and split == "train"

    def list_shards(self, split: str) -> list[str]:
        return [split]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        """One epoch of a split, or a host's share of it; InputError if it is empty."""
        pairs = self._pairs(split)
        if not pairs.num_pairs:
            raise InputError(
                f"the {split} split has no examples: no history is long enough"
            )
        shard = shard_info or seqio.ShardInfo(index=0, num_shards=1)
        hashes = self.shop.user_hashes[pairs.users].astype(np.int64)
        arrays = {**vars(pairs), "user_hashes": hashes}
        tensors = SimpleNamespace(**{n: tf.constant(a) for n, a in arrays.items()})
        is_whole = self._is_whole(split)
        make_epoch = functools.partial(_make_epoch, tensors, shard, is_whole)
        if not shuffle:
            return make_epoch(None).with_options(_options())
        # One more draw of this generator every time the data set is repeated.
        seeds = tf.data.Dataset.random(seed, rerandomize_each_iteration=True)
        seeds = seeds.batch(3, drop_remainder=True).take(1)
        return seeds.flat_map(make_epoch).with_options(_options())


@as_written
def _make_epoch(
    pairs: SimpleNamespace,
    shard: seqio.ShardInfo,
    is_whole: bool,
    shuffle_seed: tf.Tensor | None,
) -> tf.data.Dataset:
    """One epoch; `pairs` has the arrays of `Pairs` and `user_hashes` as tensors."""
    num_pairs = pairs.pair_offsets[-1]

    @as_written
    def gather_block(position: tf.Tensor) -> dict[str, tf.Tensor]:
        pair = position
        if shuffle_seed is not None:
            pair = tf.raw_ops.RandomIndexShuffle(
                index=position,
                seed=tf.cast(shuffle_seed, tf.uint32),
                max_index=num_pairs - 1,
                rounds=_SHUFFLE_ROUNDS,
            )
        search = functools.partial(tf.searchsorted, out_type=tf.int64)
        row, start, target = locate(pairs, pair, take=tf.gather, searchsorted=search)
        block = {
            "user_hash": tf.gather(pairs.user_hashes, row),
            "history": tf.gather(pairs.items, tf.ragged.range(start, target)),
            "target": tf.gather(pairs.items, target),
        }
        if is_whole:
            after = tf.ragged.range(start + 1, target + 1)
            block["next"] = tf.gather(pairs.items, after)
        return block

    positions = tf.data.Dataset.range(shard.index, num_pairs, shard.num_shards)
    return positions.batch(BLOCK_SIZE).map(gather_block)


def _options() -> tf.data.Options:
    options = tf.data.Options()
    # seqio strings together a dozen small maps; fused they cost a third less.
    options.experimental_optimization.map_fusion = True
    options.deterministic = True
    return options
