"""One step of the trie, from the nodes of one depth to those of the next.

The nodes of a depth are numbered in the order of their Semantic IDs, so the
children of a node are contiguous: a child is its node's first child plus its rank.
Node `node_capacity` is the sentinel that dead beams point to: it has no children.

========  ==============================  ======================================
kind      when the planner takes it       work per beam
========  ==============================  ======================================
bitset    wide fan-out, few nodes         the K codewords, masked by a row of bits
bitmap    wide fan-out, many nodes        the same, after K / 32 gathers
csr       narrow fan-out                  as many gathers as the largest fan-out
========  ==============================  ======================================
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, UInt32

from tiger_jax.decoding.trie import bits
from tiger_jax.decoding.trie.packed import RisingNumbers, read

Kind = Literal["bitset", "bitmap", "csr"]


@dataclasses.dataclass(frozen=True)
class LevelPlan:
    """The static shape of one level; equal plans mean no recompilation.

    Attributes:
        kind: How the children are stored.
        codebook_size: K, the codewords to choose from.
        node_capacity: Most nodes that the arrays have room for.
        child_capacity: Most children, summed over the nodes.
        max_fan_out: Most children of one node.
        word_capacity: Most non-empty words of 32 codewords ("bitmap" only).
        delta_bits: How the numbers of the first children are packed; see
            `RisingNumbers`.
    """

    kind: Kind
    codebook_size: int
    node_capacity: int
    child_capacity: int
    max_fan_out: int
    word_capacity: int = 0
    delta_bits: int = 32


def summary_shape(codebook_size: int) -> tuple[int, type[np.unsignedinteger]]:
    """Columns and type of a "bitmap" level's summaries."""
    width = bits.num_words(codebook_size)
    if width <= 8:
        return 1, np.uint8
    if width <= 16:
        return 1, np.uint16
    return bits.num_words(width), np.uint32


@dataclasses.dataclass(frozen=True)
class _Level:
    """What all kinds share.

    Attributes:
        first: The number of each node's first child; [nodes + 2].
    """

    first: RisingNumbers

    def fan_out(self, nodes: Int[Array, "*n"]) -> Int32[Array, "*n"]:
        """How many children a node has."""
        return self.first[nodes + 1] - self.first[nodes]


class _WideLevel(_Level):
    """What the two kinds share that offer all K codewords under a mask."""

    plan: LevelPlan

    def rows(self, nodes: Int[Array, "*n"]) -> UInt32[Array, "*n W"]:
        """Bit k of a node's row says that codeword k leads to a child."""
        raise NotImplementedError

    def child(
        self, nodes: Int32[Array, "*n"], codewords: Int32[Array, "*n"]
    ) -> Int32[Array, "*n"]:
        """The child that a codeword leads to, which has to be there."""
        return self.first[nodes] + bits.count_before(self.rows(nodes), codewords)

    def codeword(
        self, nodes: Int32[Array, "*n"], children: Int32[Array, "*n"]
    ) -> Int32[Array, "*n"]:
        """The codeword that leads from a node to its child."""
        return bits.position_of_nth(self.rows(nodes), children - self.first[nodes])

    def has_child(
        self, nodes: Int32[Array, "*n"], codewords: Int32[Array, "*n"]
    ) -> Bool[Array, "*n"]:
        """Whether a codeword leads anywhere from a node."""
        word = (codewords // bits.WORD_BITS)[..., None]
        row = jnp.take_along_axis(self.rows(nodes), word, axis=-1)[..., 0]
        return (row & bits.bit_of(codewords)) != 0

    def children_mask(self, nodes: Int[Array, "*n"]) -> Bool[Array, "*n K"]:
        """Which of the K codewords lead to a child."""
        return bits.unpack(self.rows(nodes), self.plan.codebook_size)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BitsetLevel(_WideLevel):
    """A row of K bits per node.

    Attributes:
        words: uint32 [nodes + 1, K / 32].
    """

    words: Any
    plan: LevelPlan = dataclasses.field(metadata={"static": True})

    def rows(self, nodes: Int[Array, "*n"]) -> UInt32[Array, "*n W"]:
        """Bit k of a node's row says that codeword k leads to a child."""
        return read(self.words, nodes)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BitmapLevel(_WideLevel):
    """The same rows, without the words that are zero.

    Attributes:
        summaries: unsigned [nodes + 1, columns]; bit w says that word w of a node's
            row is not empty.
        pointer: Where each node's words begin; [nodes + 2].
        words: uint32 [words + 1]; the non-empty words of all rows.
    """

    summaries: Any
    pointer: RisingNumbers
    words: Any
    plan: LevelPlan = dataclasses.field(metadata={"static": True})

    def rows(self, nodes: Int[Array, "*n"]) -> UInt32[Array, "*n W"]:
        """Bit k of a node's row says that codeword k leads to a child."""
        summary = read(self.summaries, nodes)  # [*n, columns]
        bits_per_column = 8 * summary.dtype.itemsize
        shifts = jnp.arange(bits_per_column, dtype=summary.dtype)
        shifts = shifts.reshape((1,) * summary.ndim + (-1,))
        is_stored = ((summary[..., None] >> shifts) & 1).astype(jnp.int32)
        is_stored = is_stored.reshape(*nodes.shape, -1)
        is_stored = is_stored[..., : bits.num_words(self.plan.codebook_size)]
        rank = jnp.cumsum(is_stored, axis=-1, dtype=jnp.int32) - is_stored
        none = self.words.shape[0] - 1
        place = jnp.where(is_stored == 1, self.pointer[nodes][..., None] + rank, none)
        return read(self.words, place)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CsrLevel(_Level):
    """The children's codewords one after another.

    Attributes:
        tokens: uint8 or uint16 [children + max_fan_out]; each child's codeword.
    """

    tokens: Any
    plan: LevelPlan = dataclasses.field(metadata={"static": True})

    def window(
        self, nodes: Int32[Array, "*n"]
    ) -> tuple[Int32[Array, "*n F"], Bool[Array, "*n F"]]:
        """The codewords of a node's children, and which of F places hold one."""
        rank = jnp.arange(self.plan.max_fan_out, dtype=jnp.int32)
        rank = rank.reshape((1,) * nodes.ndim + (-1,))
        children = self.first[nodes][..., None] + rank
        is_child = rank < self.fan_out(nodes)[..., None]
        return self.codeword_of(children), is_child

    def codeword_of(self, children: Int[Array, "*n"]) -> Int32[Array, "*n"]:
        """The codeword that leads to a child."""
        return read(self.tokens, children).astype(jnp.int32)

    def codeword(
        self, nodes: Int32[Array, "*n"], children: Int32[Array, "*n"]
    ) -> Int32[Array, "*n"]:
        """The codeword that leads from a node to its child."""
        del nodes
        return self.codeword_of(children)

    def _find(
        self, nodes: Int32[Array, "*n"], codewords: Int32[Array, "*n"]
    ) -> Bool[Array, "*n F"]:
        tokens, is_child = self.window(nodes)
        return is_child & (tokens == codewords[..., None])

    def child(
        self, nodes: Int32[Array, "*n"], codewords: Int32[Array, "*n"]
    ) -> Int32[Array, "*n"]:
        """The child that a codeword leads to, which has to be there."""
        rank = jnp.argmax(self._find(nodes, codewords), axis=-1)
        return self.first[nodes] + rank.astype(jnp.int32)

    def has_child(
        self, nodes: Int32[Array, "*n"], codewords: Int32[Array, "*n"]
    ) -> Bool[Array, "*n"]:
        """Whether a codeword leads anywhere from a node."""
        return self._find(nodes, codewords).any(-1)

    def children_mask(self, nodes: Int[Array, "*n"]) -> Bool[Array, "*n K"]:
        """Which of the K codewords lead to a child."""
        tokens, is_child = self.window(nodes)
        codewords = jnp.arange(self.plan.codebook_size, dtype=jnp.int32)
        codewords = codewords.reshape((1,) * tokens.ndim + (-1,))
        return (is_child[..., None] & (tokens[..., None] == codewords)).any(-2)


Level = BitsetLevel | BitmapLevel | CsrLevel
