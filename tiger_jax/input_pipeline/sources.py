"""Training and held-out examples, drawn straight from flat arrays.

An example is a pair: a prefix of a user's history, and the item that came next.
Training has one for every prefix; a held-out split has one a user. Pairs are never
written out: pair number p is found by a binary search in the users' cumulative
pair counts, and its items are gathered from the flat array, a block of pairs at a
time, inside TensorFlow.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt32

from tiger_jax.errors import InputError
from tiger_jax.histories import HeldOut, Histories
from tiger_jax.input_pipeline.quiet_tensorflow import as_written, seqio, tf
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.semantic_ids.token_ids import TokenLayout

SPLITS = ("train", "validation", "test")
# Pairs gathered by one call of TensorFlow's operations. The cost of a call is
# spread over a block; a larger one would only use more memory.
BLOCK_SIZE = 512
# Rounds of the cipher that permutes positions. After its default, 4, neighbours in
# the shuffled order are still correlated (up to 40 standard errors at lag 2 over
# 50,000 pairs); after 8 they are not.
_SHUFFLE_ROUNDS = 16


class Shop:
    """What a task is made from: `ShopArrays`, or a work directory read when needed.

    Attributes:
        train: Histories to train on, by user number.
        validation: Held-out interactions to choose a model by.
        test: Held-out interactions to report.
        user_hashes: Hash of each user, for the user token.
        table: The items' Semantic IDs.
        layout: How codewords and users become tokens.
    """

    train: Histories
    validation: HeldOut
    test: HeldOut
    user_hashes: UInt32[np.ndarray, " U"]
    table: SemanticIdTable
    layout: TokenLayout


@dataclasses.dataclass(frozen=True)
class ShopArrays(Shop):
    """A shop whose arrays are at hand."""

    train: Histories
    validation: HeldOut
    test: HeldOut
    user_hashes: UInt32[np.ndarray, " U"]
    table: SemanticIdTable
    layout: TokenLayout


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of one split, as arrays to be searched.

    Row r holds ``items[offsets[r]:offsets[r + 1]]``. Its places from
    `first_targets[r]` on are targets, each a pair with everything before it.

    Attributes:
        pair_offsets: Number of pairs before each row's first; its last is their
            total.
        user_hashes: Hash of each row's user.
    """

    items: Int32[np.ndarray, " total"]
    offsets: Int64[np.ndarray, " ends"]
    first_targets: Int64[np.ndarray, " rows"]
    pair_offsets: Int64[np.ndarray, " ends"]
    user_hashes: UInt32[np.ndarray, " rows"]

    @classmethod
    def of_prefixes(
        cls, histories: Histories, user_hashes: UInt32[np.ndarray, " U"]
    ) -> "Pairs":
        """Every non-empty prefix of every history with the item after it.

        Example:
            >>> histories = Histories.from_lists([[5, 6, 7], [8], [2, 3]])
            >>> Pairs.of_prefixes(histories, np.zeros(3, np.uint32)).num_pairs
            3
        """
        first = np.ones(histories.num_users, np.int64)
        return cls._of(histories, first, user_hashes)

    @classmethod
    def of_held_out(
        cls, held_out: HeldOut, user_hashes: UInt32[np.ndarray, " U"]
    ) -> "Pairs":
        """One pair a user: the history before the target, and the target."""
        before = held_out.histories
        ends = before.offsets[1:]
        items = np.insert(before.items, ends, held_out.targets).astype(np.int32)
        offsets = before.offsets + np.arange(len(before.offsets))
        rows = Histories(items, offsets)
        return cls._of(rows, before.lengths, user_hashes[held_out.user_numbers])

    @classmethod
    def _of(
        cls,
        histories: Histories,
        first_targets: Int64[np.ndarray, " rows"],
        user_hashes: UInt32[np.ndarray, " rows"],
    ) -> "Pairs":
        counts = np.maximum(histories.lengths - first_targets, 0)
        pair_offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(
            histories.items, histories.offsets, first_targets, pair_offsets, user_hashes
        )

    @property
    def num_pairs(self) -> int:
        """Number of examples."""
        return int(self.pair_offsets[-1])


class PairSource(seqio.DataSource):
    """A seqio source of a shop's pairs.

    Its elements are blocks of up to `BLOCK_SIZE` pairs, which the preprocessors
    pass on and `split_blocks` takes apart at the end:

        user_hash  int64[block]
        history    int32 ragged [block, items before the target]
        target     int32[block]

    Shuffled, an epoch is one pseudo-random permutation of all pairs, computed by
    the pair's position rather than drawn from a buffer. So the shuffle is perfect
    at any size, every host takes its share of the same permutation, and the saved
    position is a few numbers. Each epoch has a permutation of its own.
    """

    def __init__(self, shop: Shop) -> None:
        """Takes a shop; its arrays are read when examples are first asked for."""
        self.shop = shop
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
        """Number of examples in a split."""
        return self.pairs(split).num_pairs

    def pairs(self, split: str) -> Pairs:
        """The arrays of a split."""
        shop = self.shop
        if split == "train":
            return Pairs.of_prefixes(shop.train, shop.user_hashes)
        held_out = shop.validation if split == "validation" else shop.test
        return Pairs.of_held_out(held_out, shop.user_hashes)

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
        """Streams one epoch of a split, or this host's share of it.

        Raises:
            InputError: The split has no examples.
        """
        pairs = self.pairs(split)
        if not pairs.num_pairs:
            raise InputError(
                f"the {split} split has no examples: no history is long enough"
            )
        shard = shard_info or seqio.ShardInfo(index=0, num_shards=1)
        make_epoch = functools.partial(_make_epoch, _Constants.of(pairs), shard)
        if not shuffle:
            return make_epoch(None).with_options(_options())
        # One more draw of this generator every time the data set is repeated.
        seeds = tf.data.Dataset.random(seed, rerandomize_each_iteration=True)
        seeds = seeds.batch(3, drop_remainder=True).take(1)
        return seeds.flat_map(make_epoch).with_options(_options())


@dataclasses.dataclass(frozen=True)
class _Constants:
    """A split's arrays inside TensorFlow, on the host."""

    items: tf.Tensor
    offsets: tf.Tensor
    first_targets: tf.Tensor
    pair_offsets: tf.Tensor
    user_hashes: tf.Tensor

    @classmethod
    def of(cls, pairs: Pairs) -> "_Constants":
        return cls(
            items=tf.constant(pairs.items),
            offsets=tf.constant(pairs.offsets),
            first_targets=tf.constant(pairs.first_targets),
            pair_offsets=tf.constant(pairs.pair_offsets),
            user_hashes=tf.constant(pairs.user_hashes.astype(np.int64)),
        )


@as_written
def _make_epoch(
    pairs: _Constants, shard: seqio.ShardInfo, shuffle_seed: tf.Tensor | None
) -> tf.data.Dataset:
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
        row = tf.searchsorted(pairs.pair_offsets, pair, "right", tf.int64) - 1
        start = tf.gather(pairs.offsets, row)
        number_in_row = pair - tf.gather(pairs.pair_offsets, row)
        target = start + tf.gather(pairs.first_targets, row) + number_in_row
        return {
            "user_hash": tf.gather(pairs.user_hashes, row),
            "history": tf.gather(pairs.items, tf.ragged.range(start, target)),
            "target": tf.gather(pairs.items, target),
        }

    positions = tf.data.Dataset.range(shard.index, num_pairs, shard.num_shards)
    return positions.batch(BLOCK_SIZE).map(gather_block)


def _options() -> tf.data.Options:
    """Options that hold for the whole pipeline built on the source."""
    options = tf.data.Options()
    # seqio strings together a dozen small maps; fused they cost a third less.
    options.experimental_optimization.map_fusion = True
    options.deterministic = True
    return options
