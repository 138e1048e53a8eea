"""One step of a search: from beams and logits to the best of their children."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, UInt32

from tiger_jax.decoding.search import top_k as ranking
from tiger_jax.decoding.search.top_k import Ranked, pick
from tiger_jax.decoding.trie import bits
from tiger_jax.decoding.trie.levels import CsrLevel, Level

# Sums of exponentials between these lost nothing to float32's range: the smallest
# terms that matter to a sum of 1e-30 are far above the smallest normal number.
_MIN_SUM, _MAX_SUM = 1e-30, 1e30

Normalize = Literal["level", "given", "children"]
InitDecode = Callable[[Any, Any], Any]
DecodeStep = Callable[..., tuple[Array, Any]]


class BeamResult(NamedTuple):
    """The best items of each request, best first.

    Attributes:
        item_numbers: -1 where fewer than M items exist.
        scores: Log-probabilities; -inf where there is no item.
    """

    item_numbers: Int32[Array, "B M"]
    scores: Float[Array, "B M"]


class NarrowChildren(NamedTuple):
    """Children as a list of codewords per beam, and which of its places count."""

    tokens: Int32[Array, "B M F"]
    is_child: Bool[Array, "B M F"]


# A list per beam, or a row of K bits.
Children = NarrowChildren | UInt32[Array, "B M W"]


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
        zero = jnp.zeros((batch, 1), jnp.int32)
        return cls(zero, jnp.zeros((batch, 1)), zero, zero)


def choose(
    children: Children,
    logits: Float[Array, "B M K"],
    offset: Float[Array, "B M"],
    *,
    width: int,
    by_score: bool,
) -> Ranked:
    """Chooses the best of all beams' children, by `logits + offset`.

    Returns:
        Their scores, -inf where they are fewer, and their places among the M * F or
        M * K candidates: best first if `by_score`, or else in order.
    """
    if isinstance(children, NarrowChildren):
        candidates = masked_logits(children, logits) + offset[:, :, None]
        fan = candidates.shape[2]
        candidates = candidates.reshape(len(candidates), -1)
        if fan == 1 and width == candidates.shape[1] and not by_score:
            # Every beam has one child: there is nothing to choose.
            index = jnp.arange(width, dtype=jnp.int32)[None, :]
            return candidates, jnp.broadcast_to(index, candidates.shape)
        rank = ranking.top_k if by_score else ranking.top_k_in_order
        return rank(candidates, width)
    scores, index = ranking.masked_top_k(logits, children, offset, width)
    if by_score:
        return scores, index
    is_alive, index = ranking.in_order(scores, index)
    own = pick(logits.reshape(len(logits), -1), index)
    scores = own + pick(offset, index // logits.shape[2])
    return jnp.where(is_alive, scores, -jnp.inf), index


def masked_logits(
    children: Children, logits: Float[Array, "B M K"]
) -> Float[Array, "B M F"]:
    """Each child's logit; -inf for what is no child."""
    if isinstance(children, NarrowChildren):
        own = jnp.take_along_axis(
            logits, children.tokens, axis=2, mode="promise_in_bounds"
        )
        return jnp.where(children.is_child, own, -jnp.inf)
    is_child = bits.unpack(children, logits.shape[2])
    return jnp.where(is_child, logits, -jnp.inf)


def mask_of_children(children: Children, num_codewords: int) -> Bool[Array, "B M K"]:
    """Which of the K codewords lead to a child."""
    if not isinstance(children, NarrowChildren):
        return bits.unpack(children, num_codewords)
    batch, beams, _ = children.tokens.shape
    request = jnp.arange(batch, dtype=jnp.int32)[:, None, None]
    beam = jnp.arange(beams, dtype=jnp.int32)[None, :, None]
    none = jnp.zeros((batch, beams, num_codewords), bool)
    return none.at[request, beam, children.tokens].max(children.is_child)


def log_sum_of_masked(masked: Float[Array, "B M F"]) -> Float[Array, "B M"]:
    """Log of the summed exponentials; 0 where all are -inf."""
    norm = jax.nn.logsumexp(masked, axis=-1)
    return jnp.where(norm > -jnp.inf, norm, 0.0)


def take(
    level: Level, beams: Beams, scores: Float[Array, "B m"], index: Int32[Array, "B m"]
) -> Beams:
    """Turns what was chosen of some beams' children into beams."""
    is_alive = scores > -jnp.inf
    index = jnp.where(is_alive, index, 0)
    plan = level.plan
    fan = plan.max_fan_out if isinstance(level, CsrLevel) else plan.codebook_size
    parents = index // fan
    nodes = pick(beams.nodes, parents)  # any, for places without a candidate
    if isinstance(level, CsrLevel):
        chosen = jnp.where(is_alive, level.first[nodes] + index % fan, 0)
        codewords = level.codeword(nodes, chosen)
    else:
        codewords = index % fan
        chosen = level.child(nodes, codewords)
    return Beams(
        nodes=jnp.where(is_alive, chosen, plan.child_capacity),
        scores=scores,
        parents=parents,
        codewords=jnp.where(is_alive, codewords, 0),
    )


def padded(
    item_numbers: Int32[Array, "B m"], scores: Float[Array, "B m"], num_results: int
) -> BeamResult:
    """Fills results up to M with item -1 and score -inf."""
    missing = [(0, 0), (0, num_results - scores.shape[1])]
    return BeamResult(
        jnp.pad(item_numbers, missing, constant_values=-1),
        jnp.pad(scores, missing, constant_values=-jnp.inf),
    )


def log_sum_exp(logits: Float[Array, "*batch K"]) -> Float[Array, "*batch"]:
    """Log of the summed exponentials over the last axis.

    The usual way subtracts the maximum first, one more pass over the logits. On CPUs
    that pass is a quarter of a wide codebook's search step, so there the plain sum
    comes first, and the usual way is taken only if one of the sums left the range in
    which it is as accurate. Accelerators would wait for such a decision; they always
    take the usual way.
    """
    by_maximum = functools.partial(jax.nn.logsumexp, axis=-1)

    def plain_first(logits: Float[Array, "*batch K"]) -> Float[Array, "*batch"]:
        sums = jnp.exp(logits).sum(-1)
        is_in_range = ((sums > _MIN_SUM) & (sums < _MAX_SUM)).all()
        return jax.lax.cond(
            is_in_range,
            lambda sums, logits: jnp.log(sums),
            lambda sums, logits: by_maximum(logits),
            sums,
            logits,
        )

    return jax.lax.platform_dependent(logits, cpu=plain_first, default=by_maximum)
