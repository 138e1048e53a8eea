"""Scores the whole catalogue, item by item, with nothing pruned.

The walk visits every node of the trie once or so: while a depth has few nodes, all
at once; below, leaves come in chunks, and a chunk's ancestors, which are contiguous
at every depth, are visited anew for each chunk. So the model runs on at most
`chunk_size` nodes at a time, and the cache never holds more.

It is the oracle of the beam search's tests, and an alternative to it for small
catalogues: the work grows with the items, not with the beams.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from tiger_jax.decoding.search import candidates
from tiger_jax.decoding.search.candidates import BeamResult, log_sum_exp
from tiger_jax.decoding.search.restrictions import Restriction
from tiger_jax.decoding.search.top_k import top_k
from tiger_jax.decoding.trie.trie import Trie


class Window(NamedTuple):
    """A contiguous piece of the nodes of one depth; [..., W], or [chunks, W].

    Attributes:
        parents: Where each one's parent stands in the window of the depth before.
        codewords: The codeword that leads from there to it.
    """

    nodes: Any
    parents: Any
    codewords: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CatalogueWalk:
    """A way through all nodes of a trie, in pieces the model can take at once.

    Attributes:
        whole: Windows of whole depths, from the root on.
        chunked: Windows [chunks, W] of the depths below, and of the leaves.
        num_chunks: int32 []; chunks that hold a leaf.
        leaf_of_item: int32 [N].
    """

    trie: Trie
    whole: tuple[Window, ...]
    chunked: tuple[Window, ...]
    num_chunks: Any
    leaf_of_item: Any

    @classmethod
    def build(
        cls, trie: Trie, *, chunk_size: int = 1024, fills_plan: bool = False
    ) -> "CatalogueWalk":
        """Plans the walk, on the host.

        Args:
            chunk_size: Leaves in a chunk, and most nodes of a depth to take whole.
            fills_plan: Whether shapes follow from the trie's plan alone, so that
                another catalogue of the same plan compiles nothing anew. N is the
                plan's capacity then; what no item has is -inf.
        """
        codes, plan = trie.semantic_ids(), trie.plan
        num_items, length = codes.shape
        is_new = np.ones((num_items, length), bool)
        is_new[1:] = np.logical_or.accumulate(codes[1:] != codes[:-1], axis=1)
        # node[d]: each leaf's ancestor at depth d, numbered along the leaves.
        node = [np.zeros(num_items, np.int64)]
        node += [np.cumsum(is_new[:, d]) - 1 for d in range(length)]
        capacity = plan.item_capacity if fills_plan else num_items

        def room(depth: int) -> int:
            """The nodes of a depth, or the most that the plan can have there."""
            if not fills_plan:
                return int(node[depth][-1]) + 1
            return min(capacity, math.prod(plan.codebook_sizes[:depth]))

        starts: Any
        whole, depth = [], 0
        while depth < length and room(depth) <= chunk_size:
            starts = np.flatnonzero(np.diff(node[depth], prepend=-1))
            starts = np.pad(starts, (0, room(depth) - len(starts)), mode="edge")
            above = node[depth - 1][starts] if depth else np.zeros(1, np.int64)
            token = codes[starts, depth - 1] if depth else np.zeros(1, np.int64)
            whole.append(_window(node[depth][starts], above, token))
            depth += 1
        chunk = min(chunk_size, capacity)
        begins = np.arange(0, capacity, chunk)
        # Places behind the last leaf repeat it.
        leaves = np.minimum(begins[:, None] + np.arange(chunk), num_items - 1)
        chunked = []
        above_first = np.zeros((len(begins), 1), np.int64)
        for d in range(depth, length + 1):
            first, last = node[d][leaves[:, :1]], node[d][leaves[:, -1:]]
            width = int((last - first).max()) + 1
            width = min(chunk, room(d)) if fills_plan else width
            numbers = np.minimum(first + np.arange(width), last)
            starts = np.searchsorted(node[d], numbers)
            above = node[d - 1][starts] - above_first
            # A window may begin inside a node whose first leaf lies before it.
            chunked.append(_window(numbers, above, codes[starts, d - 1]))
            above_first = first
        leaf_of_item = np.arange(capacity, dtype=np.int32)
        leaves = np.arange(num_items, dtype=np.int32)
        leaf_of_item[np.asarray(trie.item_numbers(jnp.asarray(leaves)))] = leaves
        num_chunks = jnp.int32(-(-num_items // chunk))
        return cls(
            trie, tuple(whole), tuple(chunked), num_chunks, jnp.asarray(leaf_of_item)
        )


def _window(nodes: np.ndarray, parents: np.ndarray, codewords: np.ndarray) -> Window:
    return Window(*(jnp.asarray(a, jnp.int32) for a in (nodes, parents, codewords)))


def score_catalogue(
    params: Any,
    inputs: Any,
    walk: CatalogueWalk,
    *,
    init_decode: candidates.InitDecode,
    decode_step: candidates.DecodeStep,
    normalize: candidates.Normalize = "level",
    by_leaf: bool = False,
) -> Float32[Array, "B N"]:
    """Computes every item's log-probability, by item number or by leaf.

    Other arguments are those of `beam_search`; jit it with `params`, `inputs` and
    `walk` as arguments.
    """
    batch = jax.tree.leaves(inputs)[0].shape[0]
    length = len(walk.trie.levels)
    every_item = Restriction(walk.trie, wanted=None, prefix=None, dead=None)

    def visit(
        cache: Any, scores: Array, log_probs: Array | None, window: Window, depth: int
    ) -> tuple[Any, Array, Array | None]:
        """Goes to a window of nodes, and asks the model for their children."""
        parents = jnp.broadcast_to(window.parents[None], (batch, *window.parents.shape))
        words = jnp.broadcast_to(window.codewords[None], parents.shape)
        if log_probs is not None:
            # The same sum, in the same order, as in the beam search.
            scores = log_probs[:, window.parents, window.codewords]
        if depth == length:
            return cache, scores, None
        logits, cache = decode_step(params, cache, words, parents, depth)
        if normalize == "level":
            scores -= log_sum_exp(logits)
        elif normalize == "children":
            children = every_item.children(depth, window.nodes[None])
            is_child = candidates.mask_of_children(children, logits.shape[2])
            scores -= log_sum_exp(jnp.where(is_child, logits, -jnp.inf))
        return cache, scores, logits + scores[:, :, None]

    cache = init_decode(params, inputs)
    scores: Array = jnp.zeros((batch, 1))
    log_probs = None
    for depth, window in enumerate(walk.whole):
        cache, scores, log_probs = visit(cache, scores, log_probs, window, depth)

    def score_next(number: Array, by_chunk: Array) -> Array:
        state = (cache, scores, log_probs)
        for depth, chunks in enumerate(walk.chunked, start=len(walk.whole)):
            window = Window(*(own[number] for own in chunks))
            state = visit(*state, window, depth)
        return by_chunk.at[number].set(state[1])

    chunks = walk.chunked[-1].nodes.shape
    by_chunk = jnp.zeros((chunks[0], batch, chunks[1]))
    by_chunk = jax.lax.fori_loop(0, walk.num_chunks, score_next, by_chunk)
    leaves = jnp.moveaxis(by_chunk, 0, 1).reshape(batch, -1)
    leaves = leaves[:, : walk.leaf_of_item.shape[0]]
    is_leaf = jnp.arange(leaves.shape[1]) < walk.trie.num_items
    leaves = jnp.where(is_leaf[None, :], leaves, -jnp.inf)
    return leaves if by_leaf else leaves[:, walk.leaf_of_item]


def exact_search(
    params: Any,
    inputs: Any,
    walk: CatalogueWalk,
    *,
    init_decode: candidates.InitDecode,
    decode_step: candidates.DecodeStep,
    num_results: int,
    normalize: candidates.Normalize = "level",
    exclude: Int[Array, "B X"] | None = None,
) -> BeamResult:
    """Finds each request's best items by scoring all of them.

    Returns what `beam_search` does whose beams are never too few, ties included.
    """
    scores = score_catalogue(
        params,
        inputs,
        walk,
        init_decode=init_decode,
        decode_step=decode_step,
        normalize=normalize,
        by_leaf=True,
    )
    num_items = scores.shape[1]
    if exclude is not None:
        is_item = (exclude >= 0) & (exclude < num_items)
        leaves = walk.leaf_of_item[jnp.where(is_item, exclude, 0)]
        leaves = jnp.where(is_item, leaves, num_items)
        request = jnp.arange(len(scores))[:, None]
        scores = scores.at[request, leaves].set(-jnp.inf, mode="drop")
    best, leaf = top_k(scores, min(num_results, num_items))
    items = jnp.where(best > -jnp.inf, walk.trie.item_numbers(leaf), -1)
    return candidates.padded(items, best, num_results)
