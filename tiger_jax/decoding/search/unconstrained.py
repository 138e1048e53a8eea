"""Beam search over every codeword, as in the TIGER paper, and how often it errs.

Nothing keeps this search to the catalogue. It returns Semantic IDs that no item has
("invalid IDs"; Rajput et al. 2023, section 4.5 and appendix), and counts them.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from tiger_jax.decoding.search import candidates, top_k
from tiger_jax.decoding.trie.bits import num_words
from tiger_jax.decoding.trie.trie import Trie
from tiger_jax.errors import InputError


class UnconstrainedResult(NamedTuple):
    """The best Semantic IDs of each request, best first.

    Attributes:
        item_numbers: -1 for invalid IDs, and where fewer than M IDs exist.
        scores: Log-probabilities, of invalid IDs too; -inf where there is no ID.
        num_invalid: How many of a request's IDs are invalid.
    """

    item_numbers: Int32[Array, "B M"]
    scores: Float[Array, "B M"]
    semantic_ids: Int32[Array, "B M T"]
    num_invalid: Int32[Array, " B"]


def unconstrained_search(
    params: Any,
    inputs: Any,
    trie: Trie,
    *,
    init_decode: candidates.InitDecode,
    decode_step: candidates.DecodeStep,
    num_beams: int,
    normalize: candidates.Normalize = "level",
) -> UnconstrainedResult:
    """Finds each request's best Semantic IDs, valid or not.

    Arguments are those of `beam_search`. Ties go to the lexicographically smaller
    Semantic ID, as they do there.

    Raises:
        InputError: `normalize` is "children", which needs the trie's constraint.
    """
    if normalize == "children":
        raise InputError("an unconstrained search has no children to normalise over")
    batch = jax.tree.leaves(inputs)[0].shape[0]
    sizes = trie.plan.codebook_sizes
    scores = jnp.zeros((batch, 1))
    nodes = codewords = parents = jnp.zeros((batch, 1), jnp.int32)
    semantic_ids = jnp.zeros((batch, 1, 0), jnp.int32)
    cache = init_decode(params, inputs)
    for number, level in enumerate(trie.levels):
        logits, cache = decode_step(params, cache, codewords, parents, number)
        size = sizes[number]
        if normalize == "level":
            scores -= candidates.log_sum_exp(logits)
        every = jnp.full((batch, logits.shape[1], num_words(size)), ~jnp.uint32(0))
        scores, index = candidates.choose(
            every,
            logits,
            scores,
            width=min(num_beams, math.prod(sizes[: number + 1])),
            by_score=number == len(sizes) - 1,
        )
        parents, codewords = index // size, index % size
        # An ID that has left the trie stays at the sentinels, which have no child.
        nodes = level.find(top_k.pick(nodes, parents), codewords)
        semantic_ids = jnp.concatenate(
            [top_k.pick(semantic_ids, parents), codewords[:, :, None]], axis=2
        )
    items = trie.item_numbers(nodes)
    exists = scores > -jnp.inf
    missing = [(0, 0), (0, num_beams - scores.shape[1]), (0, 0)]
    return UnconstrainedResult(
        *candidates.padded(jnp.where(exists, items, -1), scores, num_beams),
        jnp.pad(semantic_ids, missing, constant_values=-1),
        (exists & (items < 0)).sum(axis=1, dtype=jnp.int32),
    )
