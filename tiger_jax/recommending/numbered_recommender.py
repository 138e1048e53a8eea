"""The trained recommender of a work directory as a `RecommendFn` of item numbers."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt32

from tiger_jax.data.prepared import PreparedData
from tiger_jax.decoding.search import CatalogueWalk
from tiger_jax.decoding.trie import Trie
from tiger_jax.errors import InputError, flag
from tiger_jax.evaluation.baselines.baseline import Baseline
from tiger_jax.evaluation.recommend_fn import Excluded, Lists, Shown, Users
from tiger_jax.models.generator import needs_content
from tiger_jax.recommending.searcher import (
    NO_DENSE_HEAD,
    DenseWeights,
    Found,
    ItemTable,
    Queries,
    SearchConfig,
    Searcher,
    Settings,
    WithItems,
    put_rows,
)
from tiger_jax.recommending.trained_model import (
    load_card_and_table,
    load_content,
    load_recommender,
)
from tiger_jax.semantic_ids.encoder_inputs import encode_histories
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.training.partitioning import Partitioner

_SEEN, _UNSEEN = np.uint32(1), np.uint32(2)  # attribute bits of a trie


class NumberedRecommender:
    """Recommends item numbers to user numbers, its batches split over all devices.

    Attributes:
        searcher: Its parameters are replicated over the devices.
        is_unseen: Items that `recommend_by_group` lists apart.
    """

    def __init__(
        self,
        searcher: Searcher,
        table: SemanticIdTable,
        user_hashes: UInt32[np.ndarray, " U"],
        *,
        max_items: int,
        method: str = "beam",
        unseen_items: Int32[np.ndarray, " unseen"] | None = None,
        content: Float32[np.ndarray, "N E"] | None = None,
        occurrences: Int64[np.ndarray, " N"] | None = None,
        dense_weights: DenseWeights = NO_DENSE_HEAD,
    ) -> None:
        """Builds the trie; it moves to the devices when it is first searched.

        Args:
            searcher: With a partitioner.
            table: The catalogue; the layout's codebooks must be its.
            user_hashes: By user number; anonymous users (-1) need none.
            content: The items' content vectors, for a model that takes these.
            occurrences: Of each item in the histories of training, with content.
        """
        assert searcher.partitioner is not None
        self.searcher, self._table, self._user_hashes = searcher, table, user_hashes
        self._partitioner, self._method = searcher.partitioner, method
        self.max_items, self.num_items = max_items, table.num_items
        self._content, self.dense_weights = content, dense_weights
        self._occurrences = occurrences
        self._host_trie = Trie.build(table.codes, table.codebook_sizes)
        self.is_unseen = np.zeros(table.num_items, bool)  # [N]
        if unseen_items is not None:
            self.is_unseen[unseen_items] = True

    @property
    def in_force(self) -> dict[str, Any]:
        """What was left to the model of how it searches, for a record."""
        return {
            "normalize": self.searcher.settings.normalize,
            "history_length": self.max_items,
            "dense_weight": self.dense_weights.item,
            "popularity_weight": self.dense_weights.popularity,
        }

    def by_codes_alone(self) -> "NumberedRecommender":
        """The same without the dense head's part in the order."""
        return NumberedRecommender(
            self.searcher,
            self._table,
            self._user_hashes,
            max_items=self.max_items,
            method=self._method,
            unseen_items=np.flatnonzero(self.is_unseen).astype(np.int32),
            content=self._content,
            occurrences=self._occurrences,
        )

    @functools.cached_property
    def _trie(self) -> Trie | WithItems:
        return self._with_items(self._host_trie)

    @functools.cached_property
    def _walk(self) -> CatalogueWalk | WithItems:
        return self._with_items(CatalogueWalk.build(self._host_trie))

    def _with_items(self, searched: Any) -> Any:
        """What is searched, on the devices, with the items' content if the model's."""
        on_devices = self._put_whole(searched)
        return on_devices if self._items is None else self._items.over(on_devices)

    @functools.cached_property
    def _items(self) -> ItemTable | None:
        if self._content is None:
            return None
        assert self._occurrences is not None
        table = self.searcher.embed_items(
            self._content, occurrences=self._occurrences, weights=self.dense_weights
        )
        return self._put_whole(jax.device_get(table))

    def __call__(
        self, user_numbers: Users, histories: Shown, exclude: Excluded, k: int
    ) -> Lists:
        """Recommends k items per user (`RecommendFn`); compiled once per batch shape.

        Raises:
            InputError: The search has fewer beams than items asked for.
        """
        if self._method == "exact":
            return self.recommend_exactly(user_numbers, histories, exclude, k)
        if k > (num_beams := self.searcher.settings.num_beams):
            raise InputError(
                f"{k} items a user need at least as many beams, and there are "
                f"{num_beams}: {flag('recommendation.SearchConfig.num_beams', k)}"
            )
        queries = self._queries(user_numbers, histories, exclude)
        search = functools.partial(
            self.searcher.search_weighed, weights=self.dense_weights
        )
        return self._find(search, self._trie, queries, k)

    def recommend_exactly(
        self, user_numbers: Users, histories: Shown, exclude: Excluded, k: int
    ) -> Lists:
        """The same by scoring the whole catalogue: no item can be overlooked."""
        allowed = np.ones((len(histories), self.num_items + 1), bool)
        np.put_along_axis(allowed, exclude, False, axis=1)  # -1 is the column beyond
        inputs = self._encode(user_numbers, histories)
        return self.searcher.search_exactly(self._walk, inputs, allowed[:, :-1], k)

    def recommend_unconstrained(
        self, user_numbers: Users, histories: Shown, exclude: Excluded, k: int
    ) -> Lists:
        """The best k of all Semantic IDs, with k beams, as the paper searches.

        -2 stands for an ID that no item has (Rajput et al. 2023, 4.5). Excluded
        items aren't left out: the search knows no catalogue to leave them out of.
        """
        del exclude
        queries = self._queries(user_numbers, histories)
        search = self.searcher.with_beams(k).search_unconstrained
        item_numbers, scores = self._find(search, self._trie, queries, k)
        is_invalid = (item_numbers < 0) & np.isfinite(scores)
        return np.where(is_invalid, np.int32(-2), item_numbers), scores

    def recommend_by_group(
        self, user_numbers: Users, histories: Shown, exclude: Excluded, k: int
    ) -> tuple[Int32[np.ndarray, "B k"], Int32[np.ndarray, "B k"]]:
        """The k best items that the training has seen, and the k best unseen ones.

        What a list keeps for unseen items is taken from the second (Rajput et al.
        2023, 4.3); each group has k beams of its own.

        Returns:
            Item numbers of both, best first, padded with -1.

        Raises:
            InputError: There are no unseen items.
        """
        if not self.is_unseen.any():
            raise InputError(
                "this data has no unseen items: prepare it with "
                + flag("splits.SplitsConfig.unseen_share", 0.05)
            )
        queries = self._queries(user_numbers, histories, exclude)
        search, found = self.searcher.with_beams(k).search, []
        for bit in (_SEEN, _UNSEEN):
            own = queries._replace(allowed=np.full(len(histories), bit))
            found.append(self._find(search, self._trie_by_group, own, k)[0])
        return found[0], found[1]

    @functools.cached_property
    def _trie_by_group(self) -> Trie | WithItems:
        table, groups = self._table, np.where(self.is_unseen, _UNSEEN, _SEEN)
        return self._with_items(
            Trie.build(table.codes, table.codebook_sizes, attributes=groups)
        )

    def sample(
        self,
        user_numbers: Users,
        histories: Shown,
        exclude: Excluded,
        k: int,
        *,
        temperature: float,
        rng: np.random.Generator,
    ) -> Lists:
        """Draws k different items from the model's distribution at a temperature.

        In the order of the draws; scores only fall along the list.
        """
        size = len(histories)
        queries = self._queries(user_numbers, histories, exclude)._replace(
            seeds=rng.integers(1 << 32, size=size, dtype=np.uint32),
            temperatures=np.full(size, temperature, np.float32),
        )
        search = self.searcher.with_beams(k).sample
        item_numbers, scores = self._find(search, self._trie, queries, k)
        falling = np.broadcast_to(-np.arange(k, dtype=np.float32), scores.shape)
        return item_numbers, np.where(item_numbers >= 0, falling, scores)

    def first_codeword_log_probs(
        self, user_numbers: Users, histories: Shown
    ) -> Float32[np.ndarray, "B K"]:
        """The distribution of the first codeword: the coarsest view of the output."""
        rows = put_rows(self._partitioner, self._encode(user_numbers, histories))
        log_probs = self.searcher.first_codeword_log_probs(self._trie, rows)
        return np.asarray(log_probs, np.float32)[: len(histories)]

    def _find(
        self, search: Callable[..., Found], trie: Any, queries: Queries, k: int
    ) -> Lists:
        """Splits a batch over the devices; takes its own rows and the k best off."""
        found = jax.device_get(search(trie, put_rows(self._partitioner, queries)))
        rows = len(jax.tree.leaves(queries.inputs)[0])
        return found.item_numbers[:rows, :k], found.scores[:rows, :k]

    def _queries(
        self,
        user_numbers: Users,
        histories: Shown,
        exclude: Excluded | None = None,
    ) -> Queries:
        has_some = exclude is not None and exclude.shape[1]
        inputs = self._encode(user_numbers, histories)
        return Queries(inputs, exclude=exclude if has_some else None)

    def _encode(self, user_numbers: Users, histories: Shown) -> Any:
        is_known = user_numbers >= 0
        hashes = np.zeros(len(user_numbers), np.uint32)
        hashes[is_known] = self._user_hashes[user_numbers[is_known]]
        return encode_histories(
            histories,
            self._table.codes,
            self.searcher.model.layout,
            user_hashes=hashes,
            is_known=is_known,
            with_items=self._content is not None,
        )

    def _put_whole(self, tree: Any) -> Any:
        return self._partitioner.put(tree, batch_axis=None, is_global=True)


@dataclasses.dataclass(frozen=True)
class CodesAlone(Baseline):
    """A model with a dense head, ranked by its codes alone."""

    recommender: NumberedRecommender

    name, title = "codes_alone", "TIGER by its codes alone"

    def build(self, data: PreparedData, workdir: Path) -> NumberedRecommender:
        """The recommender, which has been loaded already."""
        del data, workdir
        return self.recommender


def load_numbered_recommender(
    workdir: Path,
    data: PreparedData,
    search: SearchConfig,
    *,
    step: int | None = None,
) -> NumberedRecommender:
    """Loads the trained recommender of a work directory.

    Args:
        step: Another checkpoint that was kept, instead of the best.

    Raises:
        InputError: It can't be read, was trained on other Semantic IDs, or those are
            not of the data's items.
    """
    card, table = load_card_and_table(workdir, data)
    partitioner = Partitioner()
    _, _, model, params = load_recommender(
        workdir / "recommender", sharding=partitioner.replicated, step=step
    )
    settings = Settings(search.num_beams, search.normalize_for(model.config))
    takes = needs_content(model.config)
    return NumberedRecommender(
        Searcher(model, params, settings, partitioner=partitioner),
        table,
        data.user_hashes,
        max_items=card.max_items,
        method=search.method,
        unseen_items=data.unseen_items,
        content=load_content(workdir, data.num_items) if takes else None,
        occurrences=data.occurrences,
        dense_weights=search.weights_for(card.dense_weights),
    )
