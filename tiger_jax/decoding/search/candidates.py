"""One step of beam search: from beams and logits to the best of their children."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from tiger_jax.decoding.search.normalizers import log_sum_exp
from tiger_jax.decoding.search.restrictions import NarrowChildren, WideChildren
from tiger_jax.decoding.search.top_k import in_order, masked_top_k, pick, top_k
from tiger_jax.decoding.trie import bits
from tiger_jax.decoding.trie.levels import CsrLevel, Level

Normalize = Literal["level", "given", "children"]


class Beams(NamedTuple):
    """Prefixes of each request, in the order of their Semantic IDs.

    Attributes:
        nodes: Node numbers at the current depth; the sentinel for dead beams.
        scores: -inf for dead beams.
        parents: Which beam of the depth before each extends.
        codewords: The codeword it took there.
    """

    nodes: Int32[Array, "B M"]
    scores: Float[Array, "B M"]
    parents: Int32[Array, "B M"]
    codewords: Int32[Array, "B M"]

    @classmethod
    def root(cls, batch: int) -> "Beams":
        """The one empty prefix of each request."""
        zero = jnp.zeros((batch, 1), jnp.int32)
        return cls(zero, jnp.zeros((batch, 1)), zero, zero)


def best_children(
    level: Level,
    children: WideChildren | NarrowChildren,
    logits: Float[Array, "B M K"],
    beams: Beams,
    *,
    width: int,
    normalize: Normalize,
    log_norm: Float[Array, "B M"] | None = None,
    by_score: bool = False,
) -> Beams:
    """Replaces beams by the best of all their children.

    Args:
        level: The level that the logits are for.
        children: Those that each beam may take.
        logits: The model's.
        beams: At the depth of `level`.
        width: How many to keep.
        normalize: See `beam_search`.
        log_norm: The logarithm that "children" subtracts, if known already.
        by_score: Order the new beams by score, ties as ever, not by node.
    """
    offset = beams.scores
    if normalize == "level":
        offset -= log_sum_exp(logits)
    elif normalize == "children":
        if log_norm is None:
            log_norm = log_sum_of_children(children, logits)
        offset -= log_norm
    if isinstance(children, NarrowChildren):
        candidates = masked_logits(children, logits) + offset[:, :, None]
        fan = candidates.shape[2]
        candidates = candidates.reshape(len(candidates), -1)
        if fan == 1 and width == candidates.shape[1] and not by_score:
            # Every beam has one child: there is nothing to choose.
            index = jnp.arange(width, dtype=jnp.int32)[None, :]
            index = jnp.broadcast_to(index, candidates.shape)
            return take(level, beams, candidates, index, fan)
        scores, index = top_k(candidates, width)
        if not by_score:
            is_alive, index = in_order(scores, index)
            scores = jnp.where(is_alive, pick(candidates, index), -jnp.inf)
    else:
        fan = logits.shape[2]
        scores, index = masked_top_k(logits, children.rows, offset, width)
        if not by_score:
            is_alive, index = in_order(scores, index)
            own = pick(logits.reshape(len(logits), -1), index)
            scores = own + pick(offset, index // fan)
            scores = jnp.where(is_alive, scores, -jnp.inf)
    return take(level, beams, scores, index, fan)


def masked_logits(
    children: WideChildren | NarrowChildren, logits: Float[Array, "B M K"]
) -> Float[Array, "B M F"]:
    """Each child's logit; -inf for what is no child."""
    if isinstance(children, NarrowChildren):
        own = jnp.take_along_axis(
            logits, children.tokens, axis=2, mode="promise_in_bounds"
        )
        return jnp.where(children.is_child, own, -jnp.inf)
    is_child = bits.unpack(children.rows, logits.shape[2])
    return jnp.where(is_child, logits, -jnp.inf)


def log_sum_of_children(
    children: WideChildren | NarrowChildren, logits: Float[Array, "B M K"]
) -> Float[Array, "B M"]:
    """Log of the children's summed exponentials; 0 where there are none."""
    return _log_sum(masked_logits(children, logits))


def log_sum_of_codewords(
    is_child: Bool[Array, "B M K"], logits: Float[Array, "B M K"]
) -> Float[Array, "B M"]:
    """The same over a mask of all codewords.

    At the root, whose children a `ShardedTrie` spreads over devices, this form is
    used by whole tries too: sums in another order would round differently.
    """
    return _log_sum(jnp.where(is_child, logits, -jnp.inf))


def mask_of_children(
    children: WideChildren | NarrowChildren, num_codewords: int
) -> Bool[Array, "B M K"]:
    """Which of the K codewords lead to a child."""
    if isinstance(children, WideChildren):
        return bits.unpack(children.rows, num_codewords)
    batch, beams, _ = children.tokens.shape
    request = jnp.arange(batch, dtype=jnp.int32)[:, None, None]
    beam = jnp.arange(beams, dtype=jnp.int32)[None, :, None]
    none = jnp.zeros((batch, beams, num_codewords), bool)
    return none.at[request, beam, children.tokens].max(children.is_child)


def _log_sum(logits: Float[Array, "B M F"]) -> Float[Array, "B M"]:
    norm = jax.nn.logsumexp(logits, axis=-1)
    return jnp.where(norm > -jnp.inf, norm, 0.0)


def take(
    level: Level,
    beams: Beams,
    scores: Float[Array, "B m"],
    index: Int32[Array, "B m"],
    fan: int,
) -> Beams:
    """Turns chosen candidates into beams.

    Args:
        level: The level of the step.
        beams: Those that the candidates extend.
        scores: -inf for places without a candidate.
        index: Candidate j of beam i is number i * fan + j.
        fan: Candidates a beam: F or K.
    """
    is_alive = scores > -jnp.inf
    index = jnp.where(is_alive, index, 0)
    parents = index // fan
    nodes = pick(beams.nodes, parents)  # any, for places without a candidate
    if isinstance(level, CsrLevel):
        children = jnp.where(is_alive, level.first[nodes] + index % fan, 0)
        codewords = level.codeword_of(children)
    else:
        codewords = index % fan
        children = level.child(nodes, codewords)
    return Beams(
        nodes=jnp.where(is_alive, children, level.plan.child_capacity),
        scores=scores,
        parents=parents,
        codewords=jnp.where(is_alive, codewords, 0),
    )
