"""Scores the whole catalogue, item by item, with nothing pruned.

The walk visits every node of the trie once or so: while a depth has few nodes, all
at once; below, leaves come in chunks, and a chunk's ancestors, which are contiguous
at every depth, are visited anew for each chunk. So the model runs on at most
`chunk_size` nodes at a time, and the cache never holds more.

It is the oracle of the beam search's tests, and for small catalogues a fair
alternative to it: the work grows with the items, not with the beams.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from tiger_jax.decoding.search.beam_search import (
    BeamResult,
    DecodeStep,
    InitDecode,
    padded,
)
from tiger_jax.decoding.search.candidates import Normalize
from tiger_jax.decoding.search.normalizers import log_sum_exp
from tiger_jax.decoding.search.top_k import top_k
from tiger_jax.decoding.trie.levels import Level
from tiger_jax.decoding.trie.trie import Trie


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Window:
    """A contiguous piece of the nodes of one depth; [..., W], or [chunks, W].

    Attributes:
        nodes: Their numbers.
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
        trie: The trie it leads through.
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
            trie: The catalogue.
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
    init_decode: InitDecode,
    decode_step: DecodeStep,
    normalize: Normalize = "level",
) -> Float32[Array, "B N"]:
    """Computes every item's log-probability, by item number.

    Arguments are those of `beam_search`; jit it with `params`, `inputs` and `walk`
    as arguments.
    """
    scores = _score_leaves(params, inputs, walk, init_decode, decode_step, normalize)
    return scores[:, walk.leaf_of_item]


def exact_search(
    params: Any,
    inputs: Any,
    walk: CatalogueWalk,
    *,
    init_decode: InitDecode,
    decode_step: DecodeStep,
    num_results: int,
    normalize: Normalize = "level",
    exclude: Int[Array, "B X"] | None = None,
) -> BeamResult:
    """Finds each request's best items by scoring all of them.

    Returns what `beam_search` does whose beams are never too few, ties included.
    """
    scores = _score_leaves(params, inputs, walk, init_decode, decode_step, normalize)
    num_items = scores.shape[1]
    if exclude is not None:
        is_item = (exclude >= 0) & (exclude < num_items)
        leaves = walk.leaf_of_item[jnp.where(is_item, exclude, 0)]
        leaves = jnp.where(is_item, leaves, num_items)
        request = jnp.arange(len(scores))[:, None]
        scores = scores.at[request, leaves].set(-jnp.inf, mode="drop")
    best, leaf = top_k(scores, min(num_results, num_items))
    items = jnp.where(best > -jnp.inf, walk.trie.item_numbers(leaf), -1)
    return padded(items, best, num_results)


def _score_leaves(
    params: Any,
    inputs: Any,
    walk: CatalogueWalk,
    init_decode: InitDecode,
    decode_step: DecodeStep,
    normalize: Normalize,
) -> Float32[Array, "B N"]:
    """Every item's log-probability, in the order of the leaves."""
    batch = jax.tree.leaves(inputs)[0].shape[0]
    levels = walk.trie.levels
    length = len(levels)

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
        norm = _log_norm(levels[depth], window.nodes, logits, normalize)
        return cache, scores, logits + (scores - norm)[:, :, None]

    cache = init_decode(params, inputs)
    scores: Array = jnp.zeros((batch, 1))
    log_probs = None
    for depth, window in enumerate(walk.whole):
        cache, scores, log_probs = visit(cache, scores, log_probs, window, depth)

    def score_chunk(windows: tuple[Window, ...]) -> Array:
        state = (cache, scores, log_probs)
        for depth, window in enumerate(windows, start=len(walk.whole)):
            state = visit(*state, window, depth)
        return state[1]

    def score_next(number: Array, by_chunk: Array) -> Array:
        windows = jax.tree.map(lambda own: own[number], walk.chunked)
        return by_chunk.at[number].set(score_chunk(windows))

    chunks = walk.chunked[-1].nodes.shape
    by_chunk = jnp.zeros((chunks[0], batch, chunks[1]))
    by_chunk = jax.lax.fori_loop(0, walk.num_chunks, score_next, by_chunk)
    leaves = jnp.moveaxis(by_chunk, 0, 1).reshape(batch, -1)
    leaves = leaves[:, : walk.leaf_of_item.shape[0]]
    is_leaf = jnp.arange(leaves.shape[1]) < walk.trie.num_items
    return jnp.where(is_leaf[None, :], leaves, -jnp.inf)


def _log_norm(
    level: Level,
    nodes: Int32[Array, " W"],
    logits: Float[Array, "B W K"],
    normalize: Normalize,
) -> Float[Array, "B W"]:
    """What to subtract from a node's logits to make them log-probabilities."""
    if normalize == "given":
        return jnp.zeros(logits.shape[:2])
    if normalize == "children":
        logits = jnp.where(level.children_mask(nodes)[None], logits, -jnp.inf)
    return log_sum_exp(logits)
