"""Scoring items that something else than the search has proposed."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, UInt32

from tiger_jax.decoding.search import candidates
from tiger_jax.decoding.search.restrictions import Restriction
from tiger_jax.decoding.trie.trie import ExclusionIndex, Trie
from tiger_jax.errors import InputError


def score_items(
    params: Any,
    inputs: Any,
    trie: Trie,
    items: Int32[Array, "B M"],
    *,
    init_decode: candidates.InitDecode,
    decode_step: candidates.DecodeStep,
    normalize: candidates.Normalize = "level",
    exclude: Int[Array, "B X"] | None = None,
    allowed: UInt32[Array, " B"] | UInt32[Array, "B A"] | None = None,
    prefix: Int[Array, "B T"] | None = None,
) -> Float[Array, "B M"]:
    """Computes each request's log-probabilities of items of its own.

    Other arguments are those of `beam_search`, whose score of an item this is. What a
    request may take matters if its "children" are what is normalised over.

    Args:
        items: Item numbers; -1 for none, whose score is -inf.
    """
    is_item = items >= 0
    leaves = jnp.where(is_item, _index_of(trie).leaves_of(items), 0)
    view = None
    if normalize == "children":
        view = Restriction.build(
            trie, len(items), exclude=exclude, allowed=allowed, prefix=prefix
        )
    cache = init_decode(params, inputs)
    words = parents = jnp.zeros_like(leaves)[:, :1]
    everyone = jnp.broadcast_to(
        jnp.arange(items.shape[1], dtype=jnp.int32)[None], items.shape
    )
    scores = jnp.zeros(items.shape)
    for number, (nodes, taken) in enumerate(_paths_to(trie, leaves)):
        logits, cache = decode_step(params, cache, words, parents, number)
        at = nodes[:, : logits.shape[1]]  # the root is one beam
        if view is not None:
            children = view.children(number, at)
            is_child = candidates.mask_of_children(children, logits.shape[2])
            logits = jnp.where(is_child, logits, -jnp.inf)
            scores -= candidates.log_sum_of_masked(logits)
        elif normalize == "level":
            scores -= candidates.log_sum_exp(logits)
        words = taken
        logits = jnp.broadcast_to(logits, (*items.shape, logits.shape[2]))
        scores += jnp.take_along_axis(logits, words[..., None], axis=2)[..., 0]
        parents = everyone if number else jnp.zeros_like(everyone)
    return jnp.where(is_item, scores, -jnp.inf)


def find_allowed_items(
    trie: Trie,
    batch: int,
    num_items: int,
    *,
    exclude: Int[Array, "B X"] | None = None,
    allowed: UInt32[Array, " B"] | UInt32[Array, "B A"] | None = None,
    prefix: Int[Array, "B T"] | None = None,
) -> Bool[Array, "B N"]:
    """Finds which items each request may get; arguments are those of `beam_search`."""
    items = jnp.arange(num_items, dtype=jnp.int32)
    leaves = _index_of(trie).leaves_of(items)  # [N]
    is_item = leaves < trie.plan.item_capacity
    leaves = jnp.where(is_item, leaves, 0)
    passes = jnp.broadcast_to(is_item[None], (batch, num_items))
    wanted = Restriction.build(trie, batch, allowed=allowed).wanted
    if wanted is not None:
        own = trie.attributes[-1][leaves]  # [N, W]
        passes &= ((own[None] & wanted[:, None]) != 0).any(-1)
    if prefix is not None:
        for number, (_, words) in enumerate(_paths_to(trie, leaves)):
            codeword = prefix[:, number, None]
            passes &= (codeword < 0) | (words[None] == codeword)
    if exclude is not None:
        request = jnp.arange(batch, dtype=jnp.int32)[:, None]
        outside = jnp.where(exclude < 0, num_items, exclude)
        passes = passes.at[request, outside].set(False, mode="drop")
    return passes


def _paths_to(
    trie: Trie, leaves: Int32[Array, "*n"]
) -> Iterator[tuple[Int32[Array, "*n"], Int32[Array, "*n"]]]:
    """Each level's node above each leaf, and the codeword that leads on from there."""
    index, nodes = _index_of(trie), jnp.zeros_like(leaves)
    for depth, level in enumerate(trie.levels, start=1):
        is_last = depth == len(trie.levels)
        children = leaves if is_last else index.ancestors_of(leaves, depth)
        yield nodes, level.codeword(nodes, children)
        nodes = children


def _index_of(trie: Trie) -> ExclusionIndex:
    if trie.exclusion is None:
        raise InputError("this trie can't tell an item's leaf: build it with exclusion")
    return trie.exclusion
