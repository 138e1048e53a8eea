"""From an item to its leaf, and from a leaf to its ancestors, in one look-up each."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, UInt8

from tiger_jax.decoding.trie import bits
from tiger_jax.decoding.trie.packed import PackedNumbers, read
from tiger_jax.decoding.trie.planner import TriePlan


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AncestorBits:
    """The number of each leaf's ancestor at one depth: a count of set bits.

    Attributes:
        words: uint32 [items / 32]; a bit is set where a leaf is its ancestor's first.
        before: int32 [items / 32]; how many are set before each word.
    """

    words: Any
    before: Any

    @classmethod
    def build(cls, is_first: np.ndarray, room: int) -> "AncestorBits":
        """Packs one flag a leaf."""
        packed = np.zeros(4 * bits.num_words(room + 1), np.uint8)
        found = np.packbits(is_first, bitorder="little")
        packed[: len(found)] = found
        words = packed.view("<u4").astype(np.uint32)
        counts = np.bitwise_count(words)
        before = np.cumsum(counts, dtype=np.int32) - counts
        return cls(jnp.asarray(words), jnp.asarray(before, jnp.int32))

    def __getitem__(self, leaves: Int[Array, "*n"]) -> Int32[Array, "*n"]:
        word = leaves // bits.WORD_BITS
        upto = bits.bit_of(leaves) | bits.below(leaves)
        return (
            read(self.before, word) + bits.popcount(read(self.words, word) & upto) - 1
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExclusionIndex:
    """What it takes to find the nodes above an item.

    Attributes:
        leaves: Leaf of each item; `item_capacity` where there is no item.
        ancestors: Of depths 1 … T - 1.
    """

    leaves: PackedNumbers
    ancestors: tuple[AncestorBits, ...]

    @classmethod
    def build(
        cls,
        order: Int32[np.ndarray, " N"],
        first_difference: UInt8[np.ndarray, " N"],
        plan: TriePlan,
    ) -> "ExclusionIndex":
        """Inverts the order of the leaves and marks where ancestors begin.

        Args:
            order: Item number of each leaf.
            first_difference: First level at which a leaf differs from the one before.
            plan: The trie's.
        """
        room = plan.item_capacity
        leaves = np.full(room, room, np.int32)
        leaves[order] = np.arange(len(order), dtype=np.int32)
        return cls(
            PackedNumbers.build(leaves, upper_bound=room),
            tuple(
                AncestorBits.build(first_difference < depth, room)
                for depth in range(1, len(plan.levels))
            ),
        )

    def leaves_of(self, items: Int[Array, "*n"]) -> Int32[Array, "*n"]:
        """The items' leaves; `item_capacity` for numbers that are no item's."""
        room = self.leaves.low.shape[0]
        is_item = (items >= 0) & (items < room)
        return jnp.where(is_item, self.leaves[jnp.where(is_item, items, 0)], room)

    def ancestors_of(
        self, leaves: Int32[Array, "*n"], depth: int
    ) -> Int32[Array, "*n"]:
        """The numbers of the leaves' ancestors at a depth below T."""
        if depth == 0:
            return jnp.zeros_like(leaves)
        return self.ancestors[depth - 1][leaves]
