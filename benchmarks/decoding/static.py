"""STATIC's constrained decoding as the other side of the decoding benchmark.

Its package, `static_decoding` (youtube/static-constraint-decoding, arXiv 2602.22647),
is imported where it is installed and is no part of this project. Its index, its
lookup of sparse children and its whole loop are its own functions. Its loop has no
cache, and its dense step is written inside the loop; so one candidate step, and a
loop around a real decoder, are put together here from its functions in the same way.

Both of its settings are compared: `d_dense=2`, which it recommends, and 1. It is
exact only if `tokens_per_beam` is at least the number of beams; that is what it gets.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.decoding.cases import Catalogue


class StaticIndex:
    """An index built by STATIC."""

    def __init__(self, catalogue: Catalogue, d_dense: int) -> None:
        from static_decoding.csr_utils import build_static_index

        size, sorted_codes = catalogue.codebook_size, catalogue.sorted_codes
        self.size, self.d_dense = size, d_dense
        found = build_static_index(sorted_codes, size, dense_lookup_layers=d_dense)
        self.branches = tuple(int(b) for b in found[2])
        names = ("packed_csr", "csr_indptr", "start_mask", "dense_mask", "dense_states")
        arrays = map(jnp.asarray, (*found[:2], *found[3:6]))
        self.arrays = dict(zip(names, arrays, strict=True))
        # States are numbered level by level in lexicographic order, as our nodes
        # are: at depth 1 by codeword, then one after another.
        differs = np.ones(sorted_codes.shape, bool)
        differs[1:] = np.logical_or.accumulate(
            sorted_codes[1:] != sorted_codes[:-1], axis=1
        )
        nodes = differs.sum(axis=0)
        self.first_state = [0, 1, size + 1]
        for depth in range(2, sorted_codes.shape[1] - 1):
            self.first_state.append(self.first_state[-1] + int(nodes[depth - 1]))

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def search(self, params: Any, batch: int, beams: int, length: int):
        """A jitted whole loop around a `TrivialModel`; returns tokens [B M T]."""
        from static_decoding.decoding_jax import sparse_transition_jax

        def run(params: jax.Array, arrays: dict[str, jax.Array]) -> jax.Array:
            def callback(tokens: jax.Array, key: jax.Array) -> tuple:
                requests = jnp.repeat(jnp.arange(batch), len(tokens) // batch)
                row = (tokens[:, 0] + requests) % self.size
                logits = params.at[row].get(mode="promise_in_bounds")
                return logits[:, None], key

            return sparse_transition_jax(
                model=callback,
                key=jax.random.key(0),
                batch_size=batch,
                beam_size=beams,
                tokens_per_beam=min(beams, self.size),
                start_token=0,
                max_sample_len=length,
                vocab_size=self.size,
                max_branch_factors=self.branches,
                d_dense=self.d_dense,
                **arrays,
            )

        return functools.partial(jax.jit(run), params, self.arrays)

    def step(self, level: int, beams: int):
        """A jitted candidate step: (logits, scores, states) to the best children."""

        def run(logits, scores, states, arrays):
            return static_step(self, arrays, level, beams, logits, scores, states)

        return functools.partial(jax.jit(run), arrays=self.arrays)


static_index = functools.lru_cache(maxsize=2)(StaticIndex)  # a catalogue's, kept


def static_step(
    index: StaticIndex,
    arrays: dict[str, jax.Array],
    level: int,
    beams: int,
    logits: jax.Array,
    scores: jax.Array,
    states: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """One step of STATIC's loop at a level after the first.

    Returns scores, parents, tokens and states, [B M] each.
    """
    from static_decoding.decoding_jax import generate_and_apply_logprobs_mask

    batch, num_beams, size = logits.shape
    log_probs = jax.nn.log_softmax(logits.reshape(batch * num_beams, size))
    flat = states.reshape(-1)
    if level < index.d_dense:
        token = flat - 1
        log_probs = jnp.where(arrays["dense_mask"][token], log_probs, -jnp.inf)
        limit = min(beams, size)
        best, tokens = jax.lax.top_k(log_probs, limit)
        next_states = arrays["dense_states"][token[:, None], tokens]
    else:
        limit = index.branches[level]
        best, tokens, next_states = generate_and_apply_logprobs_mask(
            log_probs, flat, arrays["packed_csr"], arrays["csr_indptr"], limit, size
        )
    total = scores[:, :, None] + best.reshape(batch, num_beams, limit)
    scores, chosen = jax.lax.top_k(total.reshape(batch, -1), beams)
    tokens = jnp.take_along_axis(tokens.reshape(batch, -1), chosen, axis=1)
    states = jnp.take_along_axis(next_states.reshape(batch, -1), chosen, axis=1)
    return scores, chosen // limit, tokens, states


def static_real_search(
    index: StaticIndex, model: Any, beams: int, length: int, *, is_tiled: bool
):
    """A jitted loop of STATIC's steps around a `RealModel` or what its `encoded` gives.

    With `is_tiled`, every beam is a row of the batch with its own copy of the
    cross-attention's keys and values, as in decoders that know no beams; else the
    decoder shares them, as it does with our beam search.
    """

    def run(params: Any, inputs: jax.Array, arrays: dict[str, jax.Array]):
        batch = jax.tree.leaves(inputs)[0].shape[0]
        cache = model.init_decode(params, inputs)
        root = jnp.zeros((batch, 1), jnp.int32)
        logits, cache = model.decode_step(params, cache, root, root, 0)
        # The root.
        log_probs = jax.nn.log_softmax(logits[:, 0])  # [B K]
        log_probs = jnp.where(arrays["start_mask"], log_probs, -jnp.inf)
        scores, tokens = jax.lax.top_k(log_probs, beams)
        parents, states = jnp.zeros_like(tokens), tokens + 1
        found = tokens[:, :, None]
        if is_tiled:
            cache = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), cache)
            rows = jnp.arange(batch)[:, None] * beams
        for level in range(1, length):
            if is_tiled:
                if level > 1:
                    order = (rows + parents).reshape(-1)
                    # Keys and values of a request's beams are alike: only what the
                    # beams wrote themselves has to move.
                    pasts = jax.tree.map(lambda x: x[order], cache.pasts)  # noqa: B023
                    cache = cache._replace(pasts=pasts)
                flat = tokens.reshape(-1, 1)
                logits, cache = model.decode_step(
                    params, cache, flat, jnp.zeros_like(flat), level
                )
                logits = logits.reshape(batch, beams, -1)
            else:
                logits, cache = model.decode_step(params, cache, tokens, parents, level)
            scores, parents, tokens, states = static_step(
                index, arrays, level, beams, logits, scores, states
            )
            found = jnp.take_along_axis(found, parents[:, :, None], axis=1)
            found = jnp.concatenate([found, tokens[:, :, None]], axis=2)
        return found, scores

    return functools.partial(jax.jit(run), arrays=index.arrays)
