"""One way to search: whoever lists items, or scores them, asks a `Searcher`.

Evaluation wraps item numbers around it (`numbered_recommender`), serving a shop's own
ids (`recommender`), training asks it for validation metrics and t5x for predictions.
All run the same functions of a model's two seams, `init_decode` and `decode_step`,
compiled once for a model and a batch's shapes, or read from a bundle's programs.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Bool, Float32, Int32

from tiger_jax.config import config
from tiger_jax.decoding.search import (
    CatalogueWalk,
    Normalize,
    beam_search,
    sample_distinct_items,
    score_catalogue,
    unconstrained_search,
)
from tiger_jax.decoding.trie import Trie
from tiger_jax.errors import InputError
from tiger_jax.models.generator import GeneratorConfig, make_decode_fns
from tiger_jax.training.partitioning import Partitioner

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
    """

    method: str = "beam"
    num_beams: int = 50
    normalize: str = "auto"

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

    def normalize_for(self, model: GeneratorConfig) -> Normalize:
        """What is in force for a model."""
        if self.normalize == "auto":
            return model.normalize
        return cast(Normalize, self.normalize)


class Queries(NamedTuple):
    """Encoded histories, and what may be found for each; None restricts nothing.

    Attributes:
        inputs: int32 [B S]; encoder tokens.
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

    def search(self, trie: Trie, queries: Queries) -> Found:
        """Finds the best items by beams."""
        return self._run("search", trie, queries)

    def sample(self, trie: Trie, queries: Queries) -> Found:
        """Draws distinct items; scores are log p at each query's temperature.

        Each row has a seed of its own, so that its items depend on nothing else.
        """
        return self._run("sample", trie, queries)

    def search_unconstrained(self, trie: Trie, queries: Queries) -> Found:
        """Finds the best Semantic IDs; -1 with a score stands for one of no item."""
        return self._run("unconstrained", trie, queries)

    def search_exactly(
        self,
        walk: CatalogueWalk,
        inputs: Int32[np.ndarray, "B S"],
        allowed: Bool[np.ndarray, "B N"],
        k: int,
    ) -> tuple[Int32[np.ndarray, "B k"], Float32[np.ndarray, "B k"]]:
        """Scores every item, so that none can be overlooked, and takes the best.

        Ties go to the smaller Semantic ID, as in the search by beams.

        Args:
            walk: Through the catalogue; it may have room for more than N items.
            inputs: Encoded histories, searched a few at a time.
            allowed: Items that may be found.
            k: Items wanted.
        """
        num_items = allowed.shape[1]
        by_leaf = np.argsort(np.asarray(walk.leaf_of_item)[:num_items])
        item_numbers = np.full((len(inputs), k), -1, np.int32)
        best = np.full((len(inputs), k), -np.inf, np.float32)
        size = 1 if len(inputs) == 1 else MAX_EXACT_ROWS
        for start in range(0, len(inputs), size):
            part = slice(start, min(start + size, len(inputs)))
            rows: Any = inputs[np.minimum(start + np.arange(size), part.stop - 1)]
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
        self, inputs: Int32[np.ndarray, "B S"] | jax.Array
    ) -> Float32[jax.Array, "B K"]:
        """The distribution of the first codeword: the coarsest view of the output."""
        return self._run("first_codeword", None, Queries(inputs))

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
    init_decode, decode_step = make_decode_fns(model)
    seams: Any = {"init_decode": init_decode, "decode_step": decode_step}
    more = {**seams, "normalize": settings.normalize}
    if kind == "first_codeword":
        first = jnp.zeros((len(queries.inputs), 1), jnp.int32)
        cache = init_decode(params, queries.inputs)
        logits, _ = decode_step(params, cache, first, first, 0)
        return jax.nn.log_softmax(logits[:, 0])
    if kind == "scores":
        return score_catalogue(params, queries.inputs, catalogue, **more)
    if kind == "unconstrained":
        more["num_beams"] = settings.num_beams
        found = unconstrained_search(params, queries.inputs, catalogue, **more)
        return Found(found.item_numbers, found.scores)

    def restrictions(rows: Queries) -> dict[str, Any]:
        names = ("exclude", "allowed", "prefix")
        return {name: getattr(rows, name) for name in names}

    if kind == "search":
        more |= {"num_beams": settings.num_beams, **restrictions(queries)}
        return Found(*beam_search(params, queries.inputs, catalogue, **more))

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


# Compiled once for a model and a shape, however many searchers share them.
_run_compiled = jax.jit(run, static_argnums=(0, 1, 2))


def put_rows(partitioner: Partitioner, rows: Any) -> Any:
    """Fills arrays up to a multiple of the devices and splits them over these."""

    def fill(array: np.ndarray) -> np.ndarray:
        missing = -len(array) % partitioner.num_data_shards
        return np.concatenate([array, np.repeat(array[:1], missing, axis=0)])

    return partitioner.put(jax.tree.map(fill, rows), batch_axis=0, is_global=True)
