"""One way to search: whoever lists items, or scores them, asks a `Searcher`.

Evaluation wraps item numbers around it (`numbered_recommender`), serving a shop's own
ids (`recommender`), training asks it for validation metrics and t5x for predictions.
All run the same functions of a model's two seams, `init_decode` and `decode_step`,
compiled once for a model and a batch's shapes, or read from a bundle's programs.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Bool, Float32, Int, Int32, Int64

from tiger_jax.config import config
from tiger_jax.decoding.search import (
    CatalogueWalk,
    Normalize,
    beam_search,
    find_allowed_items,
    sample_distinct_items,
    score_catalogue,
    score_items,
    unconstrained_search,
)
from tiger_jax.decoding.search.top_k import top_k
from tiger_jax.decoding.trie import Trie
from tiger_jax.errors import InputError
from tiger_jax.models.generator import (
    GeneratorConfig,
    ItemVectors,
    has_dense_head,
    make_decode_fns,
)
from tiger_jax.training.partitioning import Partitioner
from tiger_jax.workdir.json_files import ADDED_LATER

METHODS = ("beam", "exact")
NORMALIZE = ("auto", "level", "given", "children")
MAX_EXACT_ROWS = 16  # each has a thousand decoder rows in flight


@config("recommendation")
class SearchConfig:
    """How the best items are found.

    Attributes:
        method: "beam" searches the trie; "exact" scores every item of the
            catalogue, which costs as many decoder rows as there are items.
        num_beams: Beams of the search, at least as many as items asked for.
        normalize: What makes a level's logits log-probabilities (see
            `beam_search`); "auto" takes what the model was trained with.
        dense_weight: Of log p(item) beside log p(codes), for a model with a dense
            head; None takes what was best on validation, 0 ranks by codes alone.
        popularity_weight: Of the logarithm of an item's occurrences, taken from
            log p(item); None takes what was best on validation.
    """

    method: str = "beam"
    num_beams: int = 50
    normalize: str = "auto"
    dense_weight: float | None = dataclasses.field(default=None, metadata=ADDED_LATER)
    popularity_weight: float | None = dataclasses.field(
        default=None, metadata=ADDED_LATER
    )

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("normalize", NORMALIZE)):
            if (value := getattr(self, name)) not in known:
                raise InputError(
                    f"recommendation.SearchConfig.{name} is {value!r}: choose one of "
                    f"{', '.join(known)}"
                )
        if self.num_beams < 1:
            raise InputError(
                f"recommendation.SearchConfig.num_beams is {self.num_beams}: it must "
                "be positive"
            )
        for name in ("dense_weight", "popularity_weight"):
            weight = getattr(self, name)
            if weight is not None and not 0 <= weight < math.inf:
                raise InputError(
                    f"recommendation.SearchConfig.{name} is {weight}: it must not be "
                    "negative"
                )

    def normalize_for(self, model: GeneratorConfig) -> Normalize:
        """What is in force for a model."""
        if self.normalize == "auto":
            return model.normalize
        return cast(Normalize, self.normalize)

    def weights_for(self, chosen: "DenseWeights") -> "DenseWeights":
        """What is in force, where validation has chosen some."""
        item, popularity = self.dense_weight, self.popularity_weight
        return DenseWeights(
            chosen.item if item is None else item,
            chosen.popularity if popularity is None else popularity,
        )


class DenseWeights(NamedTuple):
    """How a dense head's log p(item) counts beside log p(codes).

    An item's score is

        log p(codes) + item * (log p(item) - popularity * log(1 + occurrences))

    Softmaxes trained on few examples favour what is frequent; the second term takes
    some of that back (logit adjustment; Menon et al. 2021, arXiv 2007.07314).
    """

    item: float = 0.0
    popularity: float = 0.0


class Queries(NamedTuple):
    """Encoded histories, and what may be found for each; None restricts nothing.

    Attributes:
        inputs: int32 [B S]; encoder tokens. `ItemInputs` of tokens and item numbers
            for a model that takes content vectors.
        exclude: int32 [B X]; item numbers, padded with -1.
        allowed: uint32 [B]; one bit of the trie's attributes.
        prefix: int32 [B T]; codewords that Semantic IDs begin with, -1 for any.
        seeds: uint32 [B]; of the draws, needed by `Searcher.sample` only.
        temperatures: float32 [B]; the same.
    """

    inputs: Any
    exclude: Any = None
    allowed: Any = None
    prefix: Any = None
    seeds: Any = None
    temperatures: Any = None


NO_DENSE_HEAD = DenseWeights()


class ItemTable(NamedTuple):
    """A catalogue's items as a model sees their content; made by `embed_items`.

    Attributes:
        vectors: Rows of items, and any after them.
        is_item: bool [N]; False for the rows after the items.
        popularity: float32 [N]; what is taken from each item's log p(item).
        weight: float32 []; of what is left of it beside log p(codes).
    """

    vectors: ItemVectors
    is_item: Any
    popularity: Any
    weight: Any

    def over(self, searched: Any) -> "WithItems":
        """What is searched, with these items beside it."""
        return WithItems(searched, self)


class WithItems(NamedTuple):
    """A trie, or a walk through a catalogue, with its items' content beside it."""

    searched: Any
    table: ItemTable


class Found(NamedTuple):
    """Each query's items, best (or first drawn) first; -1 and -inf where none."""

    item_numbers: Any
    scores: Any


class Settings(NamedTuple):
    """What is fixed when a search is compiled, beside the shapes."""

    num_beams: int
    normalize: Normalize


Params = Mapping[str, Any]
Programs = Callable[[str, Params, Trie, Queries], Found]
"""Compiled beforehand: (kind, params, trie, queries) -> found."""


@dataclasses.dataclass(frozen=True, eq=False)
class Searcher:
    """A model with its parameters; catalogues are given to each search.

    Attributes:
        model: A hashable Flax module with the methods `init_decode` and `decode_step`
            (see `make_decode_fns`).
        params: On the devices; exchange them with `dataclasses.replace`.
        settings: Beams, and what makes logits log-probabilities.
        programs: What "search" and "sample" run in place of the model's code.
        partitioner: Splits the rows of exact scoring over devices.
    """

    model: nn.Module
    params: Params
    settings: Settings
    programs: Programs | None = None
    partitioner: Partitioner | None = None

    def with_beams(self, num_beams: int) -> "Searcher":
        """The same with other beams, compiled from the model's code."""
        settings = Settings(num_beams, self.settings.normalize)
        return dataclasses.replace(self, settings=settings, programs=None)

    def embed_items(
        self,
        content: Float32[np.ndarray, "N E"],
        *,
        occurrences: Int64[np.ndarray, " N"],
        weights: DenseWeights,
        numbers: Int[np.ndarray, " N"] | None = None,
        num_rows: int | None = None,
    ) -> ItemTable:
        """What the model makes of a catalogue's content; once for many searches.

        Args:
            occurrences: Of each item in the histories of training.
            numbers: The items' in the training catalogue, if this is another one; -1
                for new ones.
            num_rows: Rows of the table, so that a larger catalogue has its shape.
        """
        missing = (num_rows or len(content)) - len(content)
        filled = np.pad(content, ((0, missing), (0, 0)))
        trained = np.pad(
            trained_numbers(occurrences, numbers), (0, missing), constant_values=-1
        )
        vectors = _embed_items(self.model, self.params, filled, trained)
        is_item = np.arange(len(filled)) < len(content)
        popularity = np.pad(log_occurrences(occurrences), (0, missing))
        popularity *= np.float32(weights.popularity)
        return ItemTable(vectors, is_item, popularity, np.float32(weights.item))

    def search(self, trie: Trie | WithItems, queries: Queries) -> Found:
        """Finds the best items by beams, and by the dense head if there is one.

        With a dense head of some weight, its own most likely items stand beside those
        of the beams, half as many, with the log-probability of their codes. All are
        ordered by the score of `DenseWeights`, where p(item) is among all items.
        """
        return self._run("search", trie, queries)

    def search_by_codes(self, trie: Trie | WithItems, queries: Queries) -> Found:
        """The same without the dense head, in a trie of any prefixes."""
        return self._run("codes", trie, queries)

    def search_weighed(
        self, catalogue: Trie | WithItems, queries: Queries, weights: DenseWeights
    ) -> Found:
        """`search` with these weights; where codes alone count, for less."""
        if has_dense_head(self.model.config) and not weights.item:
            return self.search_by_codes(catalogue, queries)
        return self.search(catalogue, queries)

    def search_candidates(
        self, catalogue: WithItems, queries: Queries
    ) -> tuple[Found, Float32[jax.Array, "B candidates"]]:
        """What `search` puts in order (see `reorder`), and the model's log p(item)."""
        return self._run("candidates", catalogue, queries)

    def sample(self, trie: Trie | WithItems, queries: Queries) -> Found:
        """Draws distinct items; scores are log p at each query's temperature.

        Each row has a seed of its own, so that its items depend on nothing else. They
        are drawn by their codes: a dense head takes no part.
        """
        return self._run("sample", trie, queries)

    def search_unconstrained(self, trie: Trie | WithItems, queries: Queries) -> Found:
        """Finds the best Semantic IDs; -1 with a score stands for one of no item."""
        return self._run("unconstrained", trie, queries)

    def search_exactly(
        self,
        walk: CatalogueWalk | WithItems,
        inputs: Any,
        allowed: Bool[np.ndarray, "B N"],
        k: int,
    ) -> tuple[Int32[np.ndarray, "B k"], Float32[np.ndarray, "B k"]]:
        """Scores every item, so that none can be overlooked, and takes the best.

        Ties go to the smaller Semantic ID, as in the search by beams.

        Args:
            walk: Through the catalogue; it may have room for more than N items.
            inputs: Encoded histories (see `Queries`), searched a few at a time.
            allowed: Items that may be found.
            k: Items wanted.
        """
        num_items = allowed.shape[1]
        leaves = walk.searched if isinstance(walk, WithItems) else walk
        by_leaf = np.argsort(np.asarray(leaves.leaf_of_item)[:num_items])
        count = len(allowed)
        item_numbers = np.full((count, k), -1, np.int32)
        best = np.full((count, k), -np.inf, np.float32)
        size = 1 if count == 1 else MAX_EXACT_ROWS
        for start in range(0, count, size):
            part = slice(start, min(start + size, count))
            index = np.minimum(start + np.arange(size), part.stop - 1)
            rows: Any = jax.tree.map(operator.itemgetter(index), inputs)
            if self.partitioner is not None:
                rows = put_rows(self.partitioner, rows)
            found = jax.device_get(self._run("scores", walk, Queries(rows)))
            scores = found[: part.stop - start, :num_items]
            scores = np.where(allowed[part], scores, -np.inf)[:, by_leaf]
            places = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            listed = np.take_along_axis(scores, places, axis=1)
            best[part, : places.shape[1]] = listed
            is_item = listed > -np.inf
            item_numbers[part, : places.shape[1]] = np.where(
                is_item, by_leaf[places], -1
            )
        return item_numbers, best

    def first_codeword_log_probs(
        self, trie: Trie | WithItems, inputs: Any
    ) -> Float32[jax.Array, "B K"]:
        """The distribution of the first codeword: the coarsest view of the output."""
        return self._run("first_codeword", trie, Queries(inputs))

    def _run(self, kind: str, catalogue: Any, queries: Queries) -> Any:
        if self.programs is not None and kind in ("search", "sample"):
            return self.programs(kind, self.params, catalogue, queries)
        return _run_compiled(
            kind, self.model, self.settings, self.params, catalogue, queries
        )


def run(
    kind: str,
    model: nn.Module,
    settings: Settings,
    params: Params,
    catalogue: Any,
    queries: Queries,
) -> Any:
    """Runs a search of a kind, as a pure function to be compiled or exported."""
    table: Any = None
    if isinstance(catalogue, WithItems):
        catalogue, table = catalogue
        rows = queries.inputs
        read = table.vectors.read[jnp.maximum(rows.items, 0)]  # [B, I, D]
        queries = queries._replace(inputs=rows._replace(items=read))
    init_decode, decode_step = make_decode_fns(model)
    seams: Any = {"init_decode": init_decode, "decode_step": decode_step}
    more = {**seams, "normalize": settings.normalize}
    if kind == "first_codeword":
        batch = jax.tree.leaves(queries.inputs)[0].shape[0]
        first = jnp.zeros((batch, 1), jnp.int32)
        cache = init_decode(params, queries.inputs)
        logits, _ = decode_step(params, cache, first, first, 0)
        return jax.nn.log_softmax(logits[:, 0])

    def item_log_probs() -> Float32[jax.Array, "B N"]:
        # The compiler finds that the search has encoded these histories too.
        state = init_decode(params, queries.inputs).state
        ranked = table.vectors.ranked
        logits = model.apply({"params": params}, state, ranked, method="item_logits")
        return jax.nn.log_softmax(jnp.where(table.is_item[None], logits, -jnp.inf))

    is_dense = table is not None and has_dense_head(model.config)
    if kind == "scores":
        scores = score_catalogue(params, queries.inputs, catalogue, **more)
        if not is_dense:
            return scores
        return scores + table.weight * (item_log_probs() - table.popularity[None])
    if kind == "unconstrained":
        more["num_beams"] = settings.num_beams
        ids = unconstrained_search(params, queries.inputs, catalogue, **more)
        return Found(ids.item_numbers, ids.scores)

    def restrictions(rows: Queries) -> dict[str, Any]:
        names = ("exclude", "allowed", "prefix")
        return {name: getattr(rows, name) for name in names}

    if kind in ("search", "codes", "candidates"):
        more |= restrictions(queries)
        num_beams = settings.num_beams
        asked = (params, queries.inputs, catalogue)
        found = Found(*beam_search(*asked, num_beams=num_beams, **more))
        if kind == "codes" or not is_dense:
            return found
        log_probs = item_log_probs()
        batch, num_items = log_probs.shape
        may_be_found = find_allowed_items(
            catalogue, batch, num_items, **restrictions(queries)
        )
        best, proposed = top_k(
            jnp.where(may_be_found, log_probs, -jnp.inf),
            min(num_proposals(num_beams), num_items),
        )
        is_known = (proposed[:, :, None] == found.item_numbers[:, None]).any(-1)
        proposed = jnp.where(is_known | (best == -jnp.inf), -1, proposed)
        scores = score_items(*asked, proposed, **more)
        found = Found(
            jnp.concatenate([found.item_numbers, proposed], axis=1),
            jnp.concatenate([found.scores, scores], axis=1),
        )
        items = jnp.maximum(found.item_numbers, 0)
        log_probs = jnp.take_along_axis(log_probs, items, axis=1)
        if kind == "candidates":
            return found, log_probs
        log_probs -= table.popularity[items]
        return reorder(found, log_probs, table.weight, num_beams)

    def draw(row: Queries) -> Found:
        one: Queries = jax.tree.map(lambda array: array[None], row)
        found = sample_distinct_items(
            params,
            one.inputs,
            catalogue,
            jax.random.key(row.seeds),
            num_samples=settings.num_beams,
            temperature=row.temperatures,
            **restrictions(one),
            **seams,
        )
        return Found(found.item_numbers[0], found.scores[0])

    return jax.vmap(draw)(queries)


def reorder(found: Found, log_probs: Any, weight: Any, num_beams: int) -> Found:
    """Orders candidates by their scores and weighted log p(item), and takes M.

    Args:
        found: What the M beams found, then what the dense head proposed, which counts
            only if this has a weight.
    """
    is_beam = jnp.arange(found.scores.shape[1]) < num_beams
    counts = (found.item_numbers >= 0) & (is_beam | (weight > 0))[None]
    scores = jnp.where(counts, found.scores + weight * log_probs, -jnp.inf)
    order = jnp.argsort(-scores, axis=1, stable=True)[:, :num_beams]
    scores = jnp.take_along_axis(scores, order, 1)
    items = jnp.take_along_axis(found.item_numbers, order, 1)
    return Found(jnp.where(scores > -jnp.inf, items, -1), scores)


def num_proposals(num_beams: int) -> int:
    """A dense head's own candidates: more change no metric, and take longer."""
    return -(-num_beams // 2)


def trained_numbers(
    occurrences: Int64[np.ndarray, " N"], numbers: Int[np.ndarray, " N"] | None = None
) -> Int32[np.ndarray, " N"]:
    """The numbers of items that training has seen; -1 for all others."""
    if numbers is None:
        numbers = np.arange(len(occurrences))
    return np.where(occurrences > 0, numbers, -1).astype(np.int32)


def log_occurrences(counts: Int64[np.ndarray, " N"]) -> Float32[np.ndarray, " N"]:
    """The logarithm of how often each item was seen, and once more."""
    return np.log1p(counts).astype(np.float32)


# Compiled once for a model and a shape, however many searchers share them.
_run_compiled = jax.jit(run, static_argnums=(0, 1, 2))


@functools.partial(jax.jit, static_argnums=0)
def _embed_items(
    model: nn.Module,
    params: Params,
    content: Float32[jax.Array, "N E"],
    numbers: Int32[jax.Array, " N"],
) -> ItemVectors:
    return model.apply({"params": params}, content, numbers, method="embed_items")


def put_rows(partitioner: Partitioner, rows: Any) -> Any:
    """Fills arrays up to a multiple of the devices and splits them over these."""

    def fill(array: np.ndarray) -> np.ndarray:
        missing = -len(array) % partitioner.num_data_shards
        return np.concatenate([array, np.repeat(array[:1], missing, axis=0)])

    return partitioner.put(jax.tree.map(fill, rows), batch_axis=0, is_global=True)
