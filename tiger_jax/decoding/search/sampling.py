"""Items drawn at random from the model's distribution over the catalogue.

At a temperature t, a child c of a node is drawn with probability

    p(c | node) = exp(logit_c / t) / sum over the node's children of exp(logit / t)

over the children that the request may take, so that the items' probabilities, the
products along their Semantic IDs, sum to 1.

M draws without replacement are the M largest of log p(item) + Gumbel noise, which
stochastic beam search finds without visiting the others. A node's perturbed
log-probability is the maximum over its leaves, so a child's noise is drawn given that
its siblings' maximum is what their parent got (Kool et al. 2019, "Stochastic Beams
and Where to Find Them", 3.2 and appendix B.3).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32, Key, UInt32

from tiger_jax.decoding.search import candidates, restrictions
from tiger_jax.decoding.search.candidates import Beams, padded
from tiger_jax.decoding.search.top_k import pick, top_k, top_k_in_order
from tiger_jax.decoding.trie.trie import Trie


class SampleResult(NamedTuple):
    """Distinct items of each request, in the order in which they were drawn.

    Attributes:
        item_numbers: -1 where fewer than M items exist.
        scores: log p of each item at the temperature; -inf where there is no item.
        perturbed_scores: log p plus Gumbel noise, falling. The last one is the
            threshold that importance weights are made with (Kool et al. 2019, 4.2).
    """

    item_numbers: Int32[Array, "B M"]
    scores: Float[Array, "B M"]
    perturbed_scores: Float[Array, "B M"]


def sample_distinct_items(
    params: Any,
    inputs: Any,
    trie: Trie,
    key: Key[Array, ""],
    *,
    init_decode: candidates.InitDecode,
    decode_step: candidates.DecodeStep,
    num_samples: int,
    temperature: float | Float[Array, ""] = 1.0,
    exclude: Int[Array, "B X"] | None = None,
    allowed: UInt32[Array, " B"] | UInt32[Array, "B A"] | None = None,
    prefix: Int[Array, "B T"] | None = None,
) -> SampleResult:
    """Draws `num_samples` different items, one after the other.

    Other arguments are those of `beam_search`.
    """
    batch = jax.tree.leaves(inputs)[0].shape[0]
    restriction = restrictions.Restriction.build(
        trie, batch, exclude=exclude, allowed=allowed, prefix=prefix
    )
    beams = Beams.root(batch)
    key, noise_key = jax.random.split(key)
    perturbed = jax.random.gumbel(noise_key, (batch, 1))
    cache = init_decode(params, inputs)
    for number, level in enumerate(trie.levels):
        logits, cache = decode_step(
            params, cache, beams.codewords, beams.parents, number
        )
        children = restriction.children(number, beams.nodes)
        masked = candidates.masked_logits(children, logits / temperature)
        # Of the children, and of all that led to them.
        offset = beams.scores - candidates.log_sum_of_masked(masked)
        log_probs = masked + offset[:, :, None]  # [B, M, F]
        key, noise_key = jax.random.split(key)
        noisy = log_probs + jax.random.gumbel(noise_key, log_probs.shape)
        noisy = _with_maximum(noisy, perturbed[:, :, None])
        noisy = noisy.reshape(batch, -1)
        is_last = number == len(trie.levels) - 1
        choose = top_k if is_last else top_k_in_order
        perturbed, index = choose(noisy, trie.width(number + 1, num_samples))
        scores = pick(log_probs.reshape(batch, -1), index)
        scores = jnp.where(perturbed > -jnp.inf, scores, -jnp.inf)
        beams = candidates.take(level, beams, scores, index)
    items = trie.item_numbers(beams.nodes)
    noise = padded(items, perturbed, num_samples).scores
    return SampleResult(*padded(items, beams.scores, num_samples), noise)


def _with_maximum(
    noisy: Float[Array, "B M F"], maximum: Float[Array, "B M 1"]
) -> Float[Array, "B M F"]:
    """Moves Gumbel variables to have a given maximum (Kool et al. 2019, eq. 23).

        G' = -log(exp(-maximum) - exp(-Z) + exp(-G)),    Z = max of the G

    written so that nothing overflows: with v = maximum - G + log(1 - exp(G - Z)),
    G' = maximum - max(0, v) - log(1 + exp(-|v|)).
    """
    largest = noisy.max(axis=-1, keepdims=True)
    is_there = noisy > -jnp.inf
    # Where there is no child, numbers that make no infinities of their own.
    g = jnp.where(is_there, noisy, 0.0)
    z = jnp.where(is_there, largest, 1.0)
    t = jnp.where(is_there, maximum, 0.0)
    v = t - g + _log1mexp(z - g)
    moved = t - jnp.maximum(v, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(v)))
    return jnp.where(is_there, moved, -jnp.inf)


def _log1mexp(x: Float[Array, "B M F"]) -> Float[Array, "B M F"]:
    """log(1 - exp(-x)) for x >= 0, precise near 0 and far from it; -inf at 0."""
    near = jnp.log(-jnp.expm1(-x))
    far = jnp.log1p(-jnp.exp(-x))
    return jnp.where(x < 0.693, near, far)
