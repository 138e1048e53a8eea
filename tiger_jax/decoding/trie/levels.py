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
from jaxtyping import Array, Bool, Int, Int32, Integer, UInt8

from tiger_jax.decoding.trie import bits, prefixes
from tiger_jax.decoding.trie.bits import RisingNumbers, largest_delta, read
from tiger_jax.errors import InputError

Kind = Literal["bitset", "bitmap", "csr"]
# Of nodes, children or codewords.
Numbers = Int[Array, "*n"]


@dataclasses.dataclass(frozen=True)
class LevelPlan:
    """The static shape of one level; equal plans mean no recompilation.

    Attributes:
        codebook_size: K, the codewords to choose from.
        node_capacity: Nodes that the arrays have room for.
        child_capacity: Children that they have room for, over all nodes.
        max_fan_out: Children that one node can have.
        word_capacity: Non-empty words of 32 codewords ("bitmap" only).
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

    def fan_out(self, nodes: Numbers) -> Numbers:
        return self.first[nodes + 1] - self.first[nodes]


class _WideLevel(_Level):
    """What the two kinds share that offer all K codewords under a mask."""

    plan: LevelPlan

    def rows(self, nodes: Numbers) -> bits.Rows:
        """Bit k of a node's row says that codeword k leads to a child."""
        raise NotImplementedError

    def child(self, nodes: Numbers, codewords: Numbers) -> Numbers:
        """The child that a codeword leads to, which has to be there."""
        return self.first[nodes] + bits.count_before(self.rows(nodes), codewords)

    def codeword(self, nodes: Numbers, children: Numbers) -> Numbers:
        """The codeword that leads from a node to its child."""
        return bits.position_of_nth(self.rows(nodes), children - self.first[nodes])

    def find(self, nodes: Numbers, codewords: Numbers) -> Numbers:
        """The child that a codeword leads to, or else the sentinel."""
        word = (codewords // bits.WORD_BITS)[..., None]
        row = jnp.take_along_axis(self.rows(nodes), word, axis=-1)[..., 0]
        is_child = (row & bits.bit_of(codewords)) != 0
        child = self.child(nodes, codewords)
        return jnp.where(is_child, child, self.plan.child_capacity)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BitsetLevel(_WideLevel):
    """A row of K bits per node.

    Attributes:
        words: uint32 [nodes + 1, K / 32].
    """

    words: Any
    plan: LevelPlan = dataclasses.field(metadata={"static": True})

    def rows(self, nodes: Numbers) -> bits.Rows:
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

    def rows(self, nodes: Numbers) -> bits.Rows:
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
        self, nodes: Numbers
    ) -> tuple[Int32[Array, "*n F"], Bool[Array, "*n F"]]:
        """The codewords of a node's children, and which of F places hold one."""
        rank = jnp.arange(self.plan.max_fan_out, dtype=jnp.int32)
        rank = rank.reshape((1,) * nodes.ndim + (-1,))
        children = self.first[nodes][..., None] + rank
        is_child = rank < self.fan_out(nodes)[..., None]
        return read(self.tokens, children).astype(jnp.int32), is_child

    def codeword(self, nodes: Numbers, children: Numbers) -> Numbers:
        del nodes  # the child tells it
        return read(self.tokens, children).astype(jnp.int32)

    def find(self, nodes: Numbers, codewords: Numbers) -> Numbers:
        tokens, is_child = self.window(nodes)
        is_found = is_child & (tokens == codewords[..., None])
        child = self.first[nodes] + jnp.argmax(is_found, axis=-1).astype(jnp.int32)
        return jnp.where(is_found.any(-1), child, self.plan.child_capacity)


Level = BitsetLevel | BitmapLevel | CsrLevel
LEVEL_OF_KIND = {"bitset": BitsetLevel, "bitmap": BitmapLevel, "csr": CsrLevel}


def build_level(
    plan: LevelPlan,
    tokens: Integer[np.ndarray, " children"],
    first: Int32[np.ndarray, " nodes"],
    number: int,
) -> Level:
    """Builds one level on its plan; InputError if the catalogue is larger."""
    fan_out = largest_fan_out(tokens, first)
    _check_room(number, "nodes", len(first), plan.node_capacity)
    _check_room(number, "children", len(tokens), plan.child_capacity)
    _check_room(number, "children of one node", fan_out, plan.max_fan_out)
    plain = with_sentinels(first, len(tokens), plan.node_capacity)
    if plan.delta_bits < 32:
        most = (1 << plan.delta_bits) - 1
        _check_room(number, "children of 15 nodes", largest_delta(plain), most)
    packed = RisingNumbers.build(plain, delta_bits=plan.delta_bits)
    if plan.kind == "csr":
        room = plan.child_capacity + plan.max_fan_out
        padded = np.zeros(room, prefixes.token_dtype(plan.codebook_size))
        padded[: len(tokens)] = tokens
        return CsrLevel(packed, jnp.asarray(padded), plan)
    begins = begins_word(tokens, first)
    starts = np.flatnonzero(begins)
    bit = np.left_shift(np.uint32(1), tokens % bits.WORD_BITS, dtype=np.uint32)
    words = np.bitwise_or.reduceat(bit, starts)
    place = tokens[starts] // bits.WORD_BITS  # which word of the row
    pointer = (np.cumsum(begins, dtype=np.int32) - 1)[first]
    width = bits.num_words(plan.codebook_size)
    if plan.kind == "bitset":
        node = np.repeat(np.arange(len(first)), np.diff(pointer, append=len(words)))
        rows = np.zeros((plan.node_capacity + 1, width), np.uint32)
        rows[node, place] = words
        return BitsetLevel(packed, jnp.asarray(rows), plan)
    _check_room(number, "words of 32 codewords", len(words), plan.word_capacity)
    padded = np.zeros(plan.word_capacity + 1, np.uint32)
    padded[: len(words)] = words
    pointer = with_sentinels(pointer, len(words), plan.node_capacity)
    return BitmapLevel(
        packed,
        jnp.asarray(_summaries(place, pointer[: len(first)], plan)),
        RisingNumbers.build(pointer, delta_bits=16),
        jnp.asarray(padded),
        plan,
    )


def read_children(
    level: Level, num_nodes: int
) -> tuple[Integer[np.ndarray, " children"], Int32[np.ndarray, " children"]]:
    """Reads back each child's node and codeword, in order, on the host."""
    if isinstance(level, CsrLevel):
        fan_out = np.diff(level.first.on_host()[: num_nodes + 1])
        node = np.repeat(np.arange(num_nodes), fan_out)
        return node, np.asarray(level.tokens)[: len(node)].astype(np.int32)
    if isinstance(level, BitsetLevel):
        rows = np.asarray(level.words)[:num_nodes]
        node, place = np.nonzero(rows)
        words = rows[node, place]
    else:
        node, place = np.nonzero(_unpack(np.asarray(level.summaries)[:num_nodes]))
        words = np.asarray(level.words)[: len(node)]
    word, position = np.nonzero(_unpack(words[:, None]))
    return node[word], (place[word] * bits.WORD_BITS + position).astype(np.int32)


def _unpack(rows: np.ndarray) -> UInt8[np.ndarray, "n bits"]:
    """One number per bit of a row, the lowest bit first."""
    little = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
    return np.unpackbits(little.view(np.uint8), axis=1, bitorder="little")


def largest_fan_out(tokens: np.ndarray, first: Int32[np.ndarray, " nodes"]) -> int:
    """The number of children of the node that has most."""
    inner = int(np.diff(first).max(initial=0))
    return max(inner, len(tokens) - int(first[-1]))


def with_sentinels(
    first: Int32[np.ndarray, " nodes"], end: int, capacity: int
) -> Int32[np.ndarray, " padded"]:
    """Unused nodes and the sentinel begin, and end, where the children end."""
    padded = np.full(capacity + 2, end, np.int32)
    padded[: len(first)] = first
    return padded


def begins_word(
    tokens: Integer[np.ndarray, " children"], first: Int32[np.ndarray, " nodes"]
) -> Bool[np.ndarray, " children"]:
    """Whether a child is the first of its node's in its word of 32 codewords."""
    word = tokens // bits.WORD_BITS
    begins = np.empty(len(tokens), bool)
    np.not_equal(word[1:], word[:-1], out=begins[1:])
    begins[first] = True
    return begins


def _summaries(
    place: Integer[np.ndarray, " words"],
    pointer: Int32[np.ndarray, " nodes"],
    plan: LevelPlan,
) -> np.ndarray:
    """Per node, bit w says that word w of its row is not empty."""
    columns, dtype = summary_shape(plan.codebook_size)
    per_column = 8 * np.dtype(dtype).itemsize
    summaries = np.zeros((plan.node_capacity + 1, columns), dtype)
    for column in range(columns):
        bit = np.left_shift(1, place % per_column, dtype=np.uint32)
        bit[place // per_column != column] = 0
        summaries[: len(pointer), column] = np.bitwise_or.reduceat(bit, pointer)
    return summaries


def _check_room(level: int, what: str, found: int, room: int) -> None:
    if found > room:
        raise InputError(
            f"level {level} has {found} {what}, its plan has room for {room}: make a "
            "new plan"
        )
