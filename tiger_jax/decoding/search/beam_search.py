"""Exact beam search over the items of a trie.

Scores are sums of log-probabilities, level by level. At every level the M best of
all children of all beams go on; nothing is pruned before. Ties go to the
lexicographically smaller Semantic ID, everywhere in this package: beams are kept in
the order of their nodes, which is that order, and a top-k that prefers the smaller
index does the rest.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt32

from tiger_jax.decoding.search import candidates
from tiger_jax.decoding.search.candidates import BeamResult, Beams
from tiger_jax.decoding.search.restrictions import Group, Restriction
from tiger_jax.decoding.search.sharded import ShardedRestriction
from tiger_jax.decoding.trie.sharded_trie import ShardedTrie
from tiger_jax.decoding.trie.trie import Trie
from tiger_jax.errors import InputError


def beam_search(
    params: Any,
    inputs: Any,
    trie: Trie | ShardedTrie,
    *,
    init_decode: candidates.InitDecode,
    decode_step: candidates.DecodeStep,
    num_beams: int,
    normalize: candidates.Normalize = "level",
    exclude: Int[Array, "B X"] | None = None,
    allowed: UInt32[Array, " B"] | UInt32[Array, "B A"] | None = None,
    prefix: Int[Array, "B T"] | None = None,
    num_unseen_beams: int = 0,
) -> BeamResult:
    """Finds each request's best items.

    Meant to be jitted with all arrays as arguments: `params`, `inputs`, `trie`, and
    those of `exclude`, `allowed` and `prefix` that are used.

    Args:
        inputs: Passed to `init_decode`; the first axis of every array is the batch.
        trie: The catalogue; a `ShardedTrie` gives the same items and scores.
        init_decode: (params, inputs) -> cache.
        decode_step: (params, cache, codewords[B M], parents[B M], level) ->
            (logits[B M K], cache). Beam m extends the call before's beam
            `parents[:, m]` by `codewords[:, m]`. At level 0, M is 1 and both are 0.
        num_beams: M. Every level keeps as many beams, or all nodes if fewer.
        normalize: What makes a level's logits log-probabilities: a softmax over the
            "level"'s K codewords, over the "children" that the request may take, or
            nothing, if they are "given" as log-probabilities.
        exclude: Item numbers not to return, in any order, padded with -1.
        allowed: Attribute bits; an item needs one of them.
        prefix: Codewords that Semantic IDs must begin with; -1 leaves a level free.
        num_unseen_beams: Beams of the M that are kept for the trie's unseen items,
            M * epsilon in the paper; the others are for seen items. The two groups
            compete only for the places in the result (Rajput et al. 2023, 4.3).

    Returns:
        M items per request. Items that the model gives probability 0 are never among
        them.

    Raises:
        InputError: An argument needs what the trie was built without, or the counts
            of beams make no sense.
    """
    if num_beams < 1 or not 0 <= num_unseen_beams <= num_beams:
        raise InputError(
            f"can't search with {num_beams} beams, {num_unseen_beams} of them for "
            "unseen items"
        )
    if num_unseen_beams and not trie.has_unseen:
        raise InputError("this trie has no unseen items: build it with unseen=...")
    batch = jax.tree.leaves(inputs)[0].shape[0]
    view: Any = ShardedRestriction if isinstance(trie, ShardedTrie) else Restriction
    groups: list[tuple[int, Group | None]] = [(num_beams, None)]
    if num_unseen_beams:
        groups = [(num_unseen_beams, "unseen")]
        if num_beams > num_unseen_beams:
            groups.insert(0, (num_beams - num_unseen_beams, "seen"))
    restrictions = [
        view.build(
            trie, batch, exclude=exclude, allowed=allowed, prefix=prefix, group=group
        )
        for _, group in groups
    ]
    beams = [Beams.root(batch)] * len(groups)
    codewords = parents = beams[0].codewords
    cache = init_decode(params, inputs)
    for number in range(len(trie.levels)):
        logits, cache = decode_step(params, cache, codewords, parents, number)
        begin = 0
        for i, restriction in enumerate(restrictions):
            # At level 0 the groups share the one beam.
            own = beams[i]
            end = begin + own.nodes.shape[1]
            new = restriction.best_children(
                number,
                logits[:, begin:end],
                own,
                width=trie.width(number + 1, groups[i][0]),
                normalize=normalize,
                by_score=len(groups) == 1 and number == len(trie.levels) - 1,
            )
            # The model numbers the beams of all groups together.
            beams[i] = new._replace(parents=new.parents + begin)
            begin = end if number else 0
        codewords = jnp.concatenate([b.codewords for b in beams], axis=1)
        parents = jnp.concatenate([b.parents for b in beams], axis=1)
    leaves = jnp.concatenate([b.nodes for b in beams], axis=1)
    scores = jnp.concatenate([b.scores for b in beams], axis=1)
    if len(groups) > 1:
        scores = jnp.where(scores == 0, 0.0, scores)  # 0 and -0 tie
        negative, leaves = jax.lax.sort((-scores, leaves), num_keys=2)
        scores = -negative
    return candidates.padded(trie.item_numbers(leaves), scores, num_beams)
