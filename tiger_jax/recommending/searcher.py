"""A trained recommender as one function: what `evaluate` and `recommend` share."""

import functools
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, Key, UInt32

from tiger_jax.config import config
from tiger_jax.data.prepared import PreparedData
from tiger_jax.decoding.search.beam_search import BeamResult, Normalize, beam_search
from tiger_jax.decoding.search.exact_scoring import CatalogueWalk, exact_search
from tiger_jax.decoding.search.sampling import sample_distinct_items
from tiger_jax.decoding.search.unconstrained import unconstrained_search
from tiger_jax.decoding.trie.trie import Trie
from tiger_jax.errors import InputError
from tiger_jax.models.tiger import Params, Tiger, TigerConfig, make_decode_fns
from tiger_jax.recommending.trained_model import (
    load_card_and_table,
    load_recommender,
)
from tiger_jax.semantic_ids.encoder_inputs import encode_histories
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.training.partitioning import Partitioner

Search = Callable[..., Any]

MOST_EXACT_USERS = 16
METHODS = ("beam", "exact")
NORMALIZE = ("auto", "level", "given", "children")


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
        if self.method not in METHODS:
            raise InputError(
                f"recommendation.SearchConfig.method is {self.method!r}: choose one "
                f"of {', '.join(METHODS)}"
            )
        if self.normalize not in NORMALIZE:
            raise InputError(
                f"recommendation.SearchConfig.normalize is {self.normalize!r}: choose "
                f"one of {', '.join(NORMALIZE)}"
            )
        if self.num_beams < 1:
            raise InputError(
                f"recommendation.SearchConfig.num_beams is {self.num_beams}: it must "
                "be positive"
            )

    def normalize_for(self, model: TigerConfig) -> Normalize:
        """What is in force for a model."""
        if self.normalize == "auto":
            return model.normalize
        return typing.cast(Normalize, self.normalize)


class Recommendation:
    """A model, a catalogue and a way to search it.

    Attributes:
        max_items: Items of a history that the model was trained to see.
        num_items: Size of the catalogue.
        normalize: What is in force for "auto".
    """

    def __init__(
        self,
        model: Tiger,
        params: Params,
        table: SemanticIdTable,
        user_hashes: UInt32[np.ndarray, " U"],
        *,
        max_items: int,
        search: SearchConfig,
        unseen_items: Int32[np.ndarray, " unseen"] | None = None,
        partitioner: Partitioner | None = None,
    ) -> None:
        """Builds the trie and moves everything to the devices.

        Args:
            params: Replicated over the partitioner's devices.
            table: The catalogue; the layout's codebooks must be its.
            user_hashes: By user number; anonymous users (-1) need none.
            unseen_items: Those that `recommend_by_group` lists apart.
            partitioner: Splits batches over devices; all of them by default.
        """
        self._partitioner = partitioner or Partitioner()
        self._model, self._table = model, table
        self._user_hashes, self._params = user_hashes, params
        self._search = search
        self.max_items, self.num_items = max_items, table.num_items
        self.normalize = search.normalize_for(model.config)
        self._trie = Trie.build(table.codes, table.codebook_sizes)
        self.is_unseen = np.zeros(table.num_items, bool)  # [N]
        if unseen_items is not None:
            self.is_unseen[unseen_items] = True

    @functools.cached_property
    def _trie_on_devices(self) -> Trie:
        return self._partitioner.put(self._trie, batch_axis=None, is_global=True)

    @functools.cached_property
    def _walk(self) -> CatalogueWalk:
        walk = CatalogueWalk.build(self._trie)
        return self._partitioner.put(walk, batch_axis=None, is_global=True)

    def __call__(
        self,
        user_numbers: Int32[np.ndarray, " B"],
        histories: Int32[np.ndarray, "B I"],
        exclude: Int32[np.ndarray, "B X"],
        k: int,
    ) -> tuple[Int32[np.ndarray, "B k"], Float32[np.ndarray, "B k"]]:
        """Recommends k items a user (`RecommendFn`); compiled once a batch shape.

        Raises:
            InputError: The search has fewer beams than items asked for.
        """
        if self._search.method == "exact":
            return self.recommend_exactly(user_numbers, histories, exclude, k)
        if k > self._search.num_beams:
            raise InputError(
                f"{k} items a user need at least as many beams, and "
                f"recommendation.SearchConfig.num_beams is {self._search.num_beams}"
            )
        return self._run(
            beam_search,
            self._trie_on_devices,
            self._put(user_numbers, histories, exclude),
            len(histories),
            k,
            num_beams=self._search.num_beams,
            normalize=self.normalize,
        )

    def recommend_exactly(
        self,
        user_numbers: Int32[np.ndarray, " B"],
        histories: Int32[np.ndarray, "B I"],
        exclude: Int32[np.ndarray, "B X"],
        k: int,
    ) -> tuple[Int32[np.ndarray, "B k"], Float32[np.ndarray, "B k"]]:
        """The same by scoring the whole catalogue: no item can be overlooked.

        A few users at a time: each has a thousand decoder rows in flight.
        """
        parts = []
        for at in range(0, len(histories), MOST_EXACT_USERS):
            rows = slice(at, at + MOST_EXACT_USERS)
            batch = self._put(user_numbers[rows], histories[rows], exclude[rows])
            parts.append(
                self._run(
                    exact_search,
                    self._walk,
                    batch,
                    len(histories[rows]),
                    k,
                    num_results=k,
                    normalize=self.normalize,
                )
            )
        item_numbers, scores = zip(*parts, strict=True)
        return np.concatenate(item_numbers), np.concatenate(scores)

    def recommend_unconstrained(
        self,
        user_numbers: Int32[np.ndarray, " B"],
        histories: Int32[np.ndarray, "B I"],
        exclude: Int32[np.ndarray, "B X"],
        k: int,
    ) -> tuple[Int32[np.ndarray, "B k"], Float32[np.ndarray, "B k"]]:
        """The best k of all Semantic IDs, with k beams, as the paper searches.

        -2 stands for an ID that no item has (Rajput et al. 2023, 4.5). Excluded
        items aren't left out: the search knows no catalogue to leave them out of.
        """
        del exclude
        item_numbers, scores = self._run(
            unconstrained_search,
            self._trie_on_devices,
            self._put(user_numbers, histories),
            len(histories),
            k,
            num_beams=k,
            normalize=self.normalize,
        )
        is_invalid = (item_numbers < 0) & np.isfinite(scores)
        return np.where(is_invalid, np.int32(-2), item_numbers), scores

    def recommend_by_group(
        self,
        user_numbers: Int32[np.ndarray, " B"],
        histories: Int32[np.ndarray, "B I"],
        exclude: Int32[np.ndarray, "B X"],
        k: int,
    ) -> tuple[Int32[np.ndarray, "B k"], Int32[np.ndarray, "B k"]]:
        """The k best items that the training has seen, and the k best unseen ones.

        What a list keeps for unseen items is taken from the second (Rajput et al.
        2023, 4.3); each group has k beams of its own.

        Returns:
            Item numbers of both, best first, padded with -1.

        Raises:
            InputError: There are no unseen items.
        """
        item_numbers, _ = self._run(
            beam_search,
            self._trie_by_group,
            self._put(user_numbers, histories, exclude),
            len(histories),
            2 * k,
            num_beams=2 * k,
            num_unseen_beams=k,
            normalize=self.normalize,
        )
        is_item, is_unseen = item_numbers >= 0, self.is_unseen[item_numbers]
        return (
            _first_of(item_numbers, is_item & ~is_unseen, k),
            _first_of(item_numbers, is_item & is_unseen, k),
        )

    @functools.cached_property
    def _trie_by_group(self) -> Trie:
        if not self.is_unseen.any():
            raise InputError(
                "this data has no unseen items: prepare it with "
                "splits.SplitsConfig.unseen_share"
            )
        trie = Trie.build(
            self._table.codes, self._table.codebook_sizes, unseen=self.is_unseen
        )
        return self._partitioner.put(trie, batch_axis=None, is_global=True)

    def sample(
        self,
        user_numbers: Int32[np.ndarray, " B"],
        histories: Int32[np.ndarray, "B I"],
        exclude: Int32[np.ndarray, "B X"],
        k: int,
        *,
        temperature: float,
        key: jax.Array,
    ) -> tuple[Int32[np.ndarray, "B k"], Float32[np.ndarray, "B k"]]:
        """Draws k different items from the model's distribution at a temperature.

        In the order of the draws; scores are those of the draws, not the items'.
        """
        batch = self._put(user_numbers, histories, exclude)
        return self._run(
            _sample_in_order,
            self._trie_on_devices,
            {**batch, "key": key, "temperature": jnp.float32(temperature)},
            len(histories),
            k,
            num_samples=k,
        )

    def first_codeword_log_probs(
        self, user_numbers: Int32[np.ndarray, " B"], histories: Int32[np.ndarray, "B I"]
    ) -> Float32[np.ndarray, "B K"]:
        """The distribution of the first codeword: the coarsest view of the output."""
        log_probs = _first_level(
            self._model, self._params, **self._put(user_numbers, histories)
        )
        return np.asarray(log_probs, np.float32)[: len(histories)]

    def _run(
        self,
        search: Search,
        catalogue: Trie | CatalogueWalk,
        batch: dict[str, jax.Array],
        num_rows: int,
        k: int,
        **settings: int | str,
    ) -> tuple[Int32[np.ndarray, "B k"], Float32[np.ndarray, "B k"]]:
        """Runs a search and takes the batch's own rows and the k best off it."""
        found = _search(
            self._model,
            self._params,
            catalogue,
            batch,
            search=search,
            settings=tuple(sorted(settings.items())),
        )
        item_numbers, scores = jax.device_get(found)
        return item_numbers[:num_rows, :k], scores[:num_rows, :k]

    def _encode(
        self, user_numbers: Int32[np.ndarray, " B"], histories: Int32[np.ndarray, "B I"]
    ) -> Int32[np.ndarray, "B S"]:
        is_known = user_numbers >= 0
        hashes = np.zeros(len(user_numbers), np.uint32)
        hashes[is_known] = self._user_hashes[user_numbers[is_known]]
        return encode_histories(
            histories,
            self._table.codes,
            self._model.layout,
            user_hashes=hashes,
            is_known=is_known,
        )

    def _put(
        self,
        user_numbers: Int32[np.ndarray, " B"],
        histories: Int32[np.ndarray, "B I"],
        exclude: Int32[np.ndarray, "B X"] | None = None,
    ) -> dict[str, jax.Array]:
        """Fills the batch up to a multiple of the devices and splits it over them."""
        arrays = {"inputs": self._encode(user_numbers, histories)}
        if exclude is not None and exclude.shape[1]:
            arrays["exclude"] = exclude
        missing = -len(histories) % self._partitioner.num_data_shards
        filled = {
            name: np.concatenate([array, np.repeat(array[:1], missing, axis=0)])
            for name, array in arrays.items()
        }
        return self._partitioner.put(filled, batch_axis=0, is_global=True)


def load_recommendation(
    workdir: Path,
    data: PreparedData,
    search: SearchConfig,
    *,
    step: int | None = None,
) -> Recommendation:
    """Loads the trained recommender of a work directory.

    Args:
        step: Another checkpoint that was kept, instead of the best.

    Raises:
        InputError: It can't be read, was trained on other Semantic IDs, or those are
            not of the data's items.
    """
    folder = workdir / "recommender"
    card, table = load_card_and_table(workdir, data)
    partitioner = Partitioner()
    _, _, model, params = load_recommender(
        folder, sharding=partitioner.replicated, step=step
    )
    return Recommendation(
        model,
        params,
        table,
        data.user_hashes,
        max_items=card.max_items,
        search=search,
        unseen_items=data.unseen_items,
        partitioner=partitioner,
    )


def _first_of(
    item_numbers: Int32[np.ndarray, "B C"], is_wanted: np.ndarray, k: int
) -> Int32[np.ndarray, "B k"]:
    """The first k wanted items of each row, padded with -1."""
    order = np.argsort(~is_wanted, axis=1, kind="stable")[:, :k]  # [B, k]
    first = np.take_along_axis(item_numbers, order, axis=1)
    return np.where(np.take_along_axis(is_wanted, order, axis=1), first, -1)


# Compiled once for a model and a shape, however many recommenders share them.


@functools.partial(jax.jit, static_argnames=("model", "search", "settings"))
def _search(
    model: Tiger,
    params: Params,
    catalogue: Trie | CatalogueWalk,
    batch: dict[str, jax.Array],
    *,
    search: Search,
    settings: tuple[tuple[str, int | str], ...],
) -> tuple[Int32[jax.Array, "B M"], Float32[jax.Array, "B M"]]:
    init_decode, decode_step = make_decode_fns(model)
    inputs, arrays = batch["inputs"], {k: v for k, v in batch.items() if k != "inputs"}
    found = search(
        params,
        inputs,
        catalogue,
        init_decode=init_decode,
        decode_step=decode_step,
        **arrays,
        **dict(settings),
    )
    return found.item_numbers, found.scores


def _sample_in_order(
    params: Params,
    inputs: Int32[jax.Array, "B S"],
    trie: Trie,
    *,
    key: Key[jax.Array, ""],
    **arguments: Any,
) -> BeamResult:
    """A search whose scores fall with the order of the draws."""
    found = sample_distinct_items(params, inputs, trie, key, **arguments)
    return BeamResult(found.item_numbers, found.perturbed_scores)


@functools.partial(jax.jit, static_argnames="model")
def _first_level(
    model: Tiger, params: Params, inputs: Int32[jax.Array, "B S"]
) -> Float32[jax.Array, "B K"]:
    init_decode, decode_step = make_decode_fns(model)
    first = jnp.zeros((len(inputs), 1), jnp.int32)
    logits, _ = decode_step(params, init_decode(params, inputs), first, first, 0)
    return jax.nn.log_softmax(logits[:, 0])
