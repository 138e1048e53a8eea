"""Arithmetic on rows of bits: 32 codewords to a uint32, the lowest bit first."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

WORD_BITS = 32


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


def count_before(
    rows: UInt32[Array, "*n W"], position: Int[Array, "*n"]
) -> Int[Array, "*n"]:
    """How many bits of a row are set before `position`."""
    word = jnp.arange(rows.shape[-1], dtype=jnp.int32)
    word = word.reshape((1,) * position.ndim + (-1,))
    own = (position // WORD_BITS)[..., None]
    partial = jnp.where(word == own, rows & below(position)[..., None], 0)
    counted = jnp.where(word < own, rows, partial)
    return popcount(counted).sum(-1, dtype=jnp.int32)


def position_of_nth(
    rows: UInt32[Array, "*n W"], n: Int[Array, "*n"]
) -> Int[Array, "*n"]:
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


def unpack(rows: UInt32[Array, "*n W"], num_bits: int) -> Bool[Array, "*n K"]:
    """One boolean a bit."""
    shifts = jnp.arange(WORD_BITS, dtype=jnp.uint32)
    shifts = shifts.reshape((1,) * rows.ndim + (-1,))
    bits = ((rows[..., None] >> shifts) & 1).astype(bool)  # [*n, W, 32]
    return bits.reshape(*rows.shape[:-1], -1)[..., :num_bits]


def pack(bits: Bool[Array, "*n K"]) -> UInt32[Array, "*n W"]:
    """The inverse of `unpack`; the last word is filled up with zeros."""
    missing = -bits.shape[-1] % WORD_BITS
    bits = jnp.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, missing)])
    bits = bits.reshape(*bits.shape[:-1], -1, WORD_BITS).astype(jnp.uint32)
    shifts = jnp.arange(WORD_BITS, dtype=jnp.uint32)
    shifts = shifts.reshape((1,) * (bits.ndim - 1) + (-1,))
    return (bits << shifts).sum(-1, dtype=jnp.uint32)
