"""Rows of bits, and integers in fewer bytes than int32.

A row holds 32 codewords per uint32, the lowest bit first.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, Integer, UInt32

WORD_BITS = 32
Rows = UInt32[Array, "*n W"]
# Numbers of a `RisingNumbers` that share one plainly stored number.
BLOCK = 16


def num_words(num_bits: int) -> int:
    """Words that hold `num_bits` bits."""
    return -(-num_bits // WORD_BITS)


def bit_of(position: Int[Array, "*n"]) -> UInt32[Array, "*n"]:
    """A word with the one bit set that stands for `position`."""
    return jnp.uint32(1) << (position % WORD_BITS).astype(jnp.uint32)


def below(position: Int[Array, "*n"]) -> UInt32[Array, "*n"]:
    """A word with every bit set that stands before `position` in its word."""
    return bit_of(position) - jnp.uint32(1)


def popcount(words: UInt32[Array, "*n"]) -> Int[Array, "*n"]:
    """How many bits of each word are set."""
    return jax.lax.population_count(words).astype(jnp.int32)


def count_before(rows: Rows, position: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """How many bits of a row are set before `position`."""
    word = jnp.arange(rows.shape[-1], dtype=jnp.int32)
    word = word.reshape((1,) * position.ndim + (-1,))
    own = (position // WORD_BITS)[..., None]
    partial = jnp.where(word == own, rows & below(position)[..., None], 0)
    counted = jnp.where(word < own, rows, partial)
    return popcount(counted).sum(-1, dtype=jnp.int32)


def position_of_nth(rows: Rows, n: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """Where a row's bit number `n` (0-based, among its set bits) stands.

    Rows without such a bit give a meaningless position.
    """
    counts = popcount(rows)
    ends = jnp.cumsum(counts, axis=-1, dtype=jnp.int32)
    is_before = ends <= n[..., None]
    word = jnp.minimum(is_before.sum(-1, dtype=jnp.int32), rows.shape[-1] - 1)
    left = n - jnp.where(is_before, counts, 0).sum(-1, dtype=jnp.int32)
    bits = jnp.take_along_axis(rows, word[..., None], axis=-1)[..., 0]
    position = jnp.zeros_like(word)
    # Halve the word five times, stepping over the half that lies before the bit.
    for width in (16, 8, 4, 2, 1):
        low = popcount((bits >> position.astype(jnp.uint32)) & ((1 << width) - 1))
        is_above = low <= left
        position += jnp.where(is_above, width, 0)
        left -= jnp.where(is_above, low, 0)
    return word * WORD_BITS + position


def unpack(rows: Rows, num_bits: int) -> Bool[Array, "*n K"]:
    """One boolean per bit."""
    shifts = jnp.arange(WORD_BITS, dtype=jnp.uint32)
    shifts = shifts.reshape((1,) * rows.ndim + (-1,))
    bits = ((rows[..., None] >> shifts) & 1).astype(bool)  # [*n, W, 32]
    return bits.reshape(*rows.shape[:-1], -1)[..., :num_bits]


def pack(bits: Bool[Array, "*n K"]) -> Rows:
    """The inverse of `unpack`; the last word is filled up with zeros."""
    missing = -bits.shape[-1] % WORD_BITS
    bits = jnp.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, missing)])
    bits = bits.reshape(*bits.shape[:-1], -1, WORD_BITS).astype(jnp.uint32)
    shifts = jnp.arange(WORD_BITS, dtype=jnp.uint32)
    shifts = shifts.reshape((1,) * (bits.ndim - 1) + (-1,))
    return (bits << shifts).sum(-1, dtype=jnp.uint32)


def read(array: Array, index: Int[Array, "*n"]) -> Array:
    """Looks up without a bounds check: the trie's own numbers are never outside."""
    return array.at[index].get(mode="promise_in_bounds")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedNumbers:
    """Numbers in any order: 3 bytes each if all are below 2^24, 4 otherwise.

    Attributes:
        low: uint16 [n], the lower bits, beside `high`; or int32 [n], alone.
        high: uint8 [n], or None.
    """

    low: Any
    high: Any = None

    @classmethod
    def build(
        cls, numbers: Integer[np.ndarray, " n"], *, upper_bound: int
    ) -> "PackedNumbers":
        """Packs numbers from 0 to `upper_bound`, which alone decides the form."""
        if upper_bound >= 1 << 24:
            return cls(jnp.asarray(numbers, jnp.int32))
        low = jnp.asarray(numbers.astype(np.uint16))
        return cls(low, jnp.asarray((numbers >> 16).astype(np.uint8)))

    def __getitem__(self, index: Int[Array, "*n"]) -> Int32[Array, "*n"]:
        low = read(self.low, index).astype(jnp.int32)
        if self.high is None:
            return low
        return low + (read(self.high, index).astype(jnp.int32) << 16)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RisingNumbers:
    """Numbers that never fall: one plain in 16, the rest as the distance to it.

    Attributes:
        anchors: int32 [n / 16], or [n] when `deltas` is None.
        deltas: uint8 or uint16 [n], or None.
    """

    anchors: Any
    deltas: Any = None

    @classmethod
    def build(
        cls, numbers: Int32[np.ndarray, " n"], *, delta_bits: int
    ) -> "RisingNumbers":
        """Packs the numbers; `delta_bits` is 8, 16, or 32 for plain numbers."""
        if delta_bits == 32:
            return cls(jnp.asarray(numbers))
        anchors = np.ascontiguousarray(numbers[::BLOCK])
        deltas = np.empty(len(numbers), {8: np.uint8, 16: np.uint16}[delta_bits])
        whole = len(numbers) // BLOCK
        # By blocks of rows, so that no array of int32 as long as `numbers` is made.
        rows = numbers[: whole * BLOCK].reshape(whole, BLOCK)
        out = deltas[: whole * BLOCK].reshape(whole, BLOCK)
        for start in range(0, whole, 1 << 16):
            part = slice(start, start + (1 << 16))
            out[part] = rows[part] - anchors[:whole][part, None]
        deltas[whole * BLOCK :] = numbers[whole * BLOCK :] - anchors[-1]
        return cls(jnp.asarray(anchors), jnp.asarray(deltas))

    def __getitem__(self, index: Int[Array, "*n"]) -> Int32[Array, "*n"]:
        if self.deltas is None:
            return read(self.anchors, index)
        return read(self.anchors, index // BLOCK) + read(self.deltas, index)

    def on_host(self) -> Int32[np.ndarray, " n"]:
        """All of the numbers."""
        anchors = np.asarray(self.anchors)
        if self.deltas is None:
            return anchors
        return np.repeat(anchors, BLOCK)[: len(self.deltas)] + np.asarray(self.deltas)


def largest_delta(numbers: Int32[np.ndarray, " n"]) -> int:
    """The largest distance of a number to its block's first."""
    last = np.minimum(np.arange(len(numbers[::BLOCK])) * BLOCK + BLOCK, len(numbers))
    return int((numbers[last - 1] - numbers[::BLOCK]).max())
