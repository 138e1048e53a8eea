"""The k best of many candidates, exactly: ties go to the smaller index.

Over wide rows most of a top-k's time goes into candidates that are never chosen.
`masked_top_k` first takes the maximum of every 32 neighbours, a word of the mask.
The k best candidates lie in the k chunks with the largest maxima; read in the order
of their index, those hold all winners, ties included: a candidate outside of them
has k better ones, or equal ones with smaller indices, inside.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, UInt32

from tiger_jax.decoding.trie.bits import WORD_BITS, unpack

# Values, and where each stands.
Ranked = tuple[Float[Array, "B k"], Int32[Array, "B k"]]

# Chunks per winner from which on looking at the chunks first pays.
_MIN_CHUNKS_PER_WINNER = 2


def top_k(values: Float[Array, "B n"], k: int) -> Ranked:
    """The k largest values, largest first, and where they stand."""
    # To a top-k, 0 is larger than -0; to us they tie.
    values = jnp.where(values == 0, 0.0, values)
    largest, index = jax.lax.top_k(values, k)
    # XLA knows a top-k by its slices of a sort. Slices of these must not be merged
    # into them, or all n candidates are sorted, which takes twenty times as long.
    # One barrier each: around both, XLA fails to compile a top-k for many devices.
    barrier = jax.lax.optimization_barrier
    return barrier(largest), barrier(index)


def masked_top_k(
    logits: Float[Array, "B M K"],
    rows: UInt32[Array, "B M W"],
    offset: Float[Array, "B M"],
    k: int,
) -> Ranked:
    """The k largest of `logits + offset` where a bit of `rows` is set; -inf beyond.

    Returns:
        The values, largest first, and their indices into M * K.
    """
    batch, beams, num_codewords = logits.shape
    missing = rows.shape[2] * WORD_BITS - num_codewords
    if missing:
        fill = [(0, 0), (0, 0), (0, missing)]
        logits = jnp.pad(logits, fill, constant_values=-jnp.inf)
    words = rows.shape[2]
    logits = logits.reshape(batch, beams, words, WORD_BITS)
    if beams * words < _MIN_CHUNKS_PER_WINNER * k:
        is_set = unpack(rows[..., None], WORD_BITS)  # [B, M, W, 32]
        values = jnp.where(is_set, logits, -jnp.inf) + offset[:, :, None, None]
        values, index = top_k(values.reshape(batch, -1), k)
        chunk = index // WORD_BITS
    else:
        maxima = _chunk_maxima(logits, rows) + offset[:, :, None]
        maxima, chunk = top_k(maxima.reshape(batch, -1), k)
        chunk = jnp.sort(chunk, axis=1)  # [B, k]
        own = pick(logits.reshape(batch, -1, WORD_BITS), chunk)  # [B, k, 32]
        is_set = unpack(pick(rows.reshape(batch, -1), chunk)[..., None], WORD_BITS)
        values = own + pick(offset, chunk // words)[:, :, None]
        # What is below every chosen maximum can't win, and is quicker to pass over.
        is_set &= values >= maxima[:, -1, None, None]
        values = jnp.where(is_set, values, -jnp.inf)
        values, index = top_k(values.reshape(batch, -1), k)
        chunk = pick(chunk, index // WORD_BITS)
    beam, word = chunk // words, chunk % words
    codeword = word * WORD_BITS + index % WORD_BITS
    return values, beam * num_codewords + codeword


def in_order(
    values: Float[Array, "B k"], index: Int32[Array, "B k"]
) -> tuple[Bool[Array, "B k"], Int32[Array, "B k"]]:
    """Sorts a top-k by index; what has value -inf comes last, with index 0.

    Returns:
        Which places hold a candidate, and its index.
    """
    last = jnp.iinfo(jnp.int32).max
    index = jnp.sort(jnp.where(values > -jnp.inf, index, last), axis=1)
    return index < last, jnp.where(index < last, index, 0)


def top_k_in_order(values: Float[Array, "B n"], k: int) -> Ranked:
    """The k largest values as they stand, and where; -inf and 0 if they are fewer."""
    is_alive, index = in_order(*top_k(values, k))
    return jnp.where(is_alive, pick(values, index), -jnp.inf), index


def pick(array: Array, index: Int32[Array, "B k"]) -> Array:
    """Takes entries of axis 1, other ones for each request."""
    request = jnp.arange(len(index), dtype=jnp.int32)[:, None]
    return array.at[request, index].get(mode="promise_in_bounds")


def _chunk_maxima(
    logits: Float[Array, "B M W 32"], rows: UInt32[Array, "B M W"]
) -> Float[Array, "B M W"]:
    """The largest logit of each word's set bits."""
    # Unrolled: as a reduction over the last axis, XLA's code for CPUs is four times
    # slower, since it does not vectorise a masked reduction.
    maxima = jnp.full(rows.shape, -jnp.inf)
    for bit in range(WORD_BITS):
        is_set = (rows >> jnp.uint32(bit)) & 1 == 1
        maxima = jnp.maximum(maxima, jnp.where(is_set, logits[..., bit], -jnp.inf))
    return maxima
