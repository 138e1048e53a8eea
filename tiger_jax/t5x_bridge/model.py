"""TIGER in the shape of a t5x model, without importing t5x.

t5x calls these methods and reads `FEATURE_CONVERTER_CLS` and `optimizer_def`; it
asks for no base class. So this file needs nothing of t5x, its tests run without
it, and `python -m t5x.train` trains the same module on the same tasks as
`tiger_jax.training` does. Losses and random numbers agree with that engine's.
"""

import functools
from collections.abc import Mapping
from typing import Any

import clu.metrics
import flax
import flax.linen as nn
import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.linen.partitioning import AxisMetadata
from jaxtyping import Array, Float, Int

from tiger_jax.decoding.trie import Trie
from tiger_jax.errors import InputError
from tiger_jax.input_pipeline.item_content import SpelledItems
from tiger_jax.input_pipeline.quiet_tensorflow import seqio
from tiger_jax.models.generator import (
    GeneratorConfig,
    Params,
    build_model,
    has_dense_head,
    init_params,
    make_loss_fn,
    needs_content,
)
from tiger_jax.models.tiger import TigerConfig
from tiger_jax.recommending.searcher import (
    NO_DENSE_HEAD,
    DenseWeights,
    Queries,
    Searcher,
    Settings,
)
from tiger_jax.semantic_ids.encoder_inputs import ItemInputs

Batch = Mapping[str, Array]
Metrics = dict[str, clu.metrics.Metric]


@gin.register(module="model")
class T5xTiger:
    """A TIGER over one task's vocabulary and catalogue.

    `optimizer_def` is what t5x makes its optimizer with; None if it only infers.
    """

    FEATURE_CONVERTER_CLS = seqio.EncDecFeatureConverter

    def __init__(
        self,
        task: str,
        config: GeneratorConfig | None = None,
        optimizer_def: Any = None,
        num_beams: int = 20,
        num_microbatches: int = 1,
        dense_weights: tuple[float, float] = NO_DENSE_HEAD,
    ) -> None:
        """Reads the task's token layout, and its items' content for a model of such.

        Args:
            task: Name of a registered seqio task or mixture: its vocabulary decides
                the model's, and its items are what inference searches.
            num_beams: Beams of the search, and items it returns.
            num_microbatches: The trainer's number of microbatches. t5x adds up
                their gradients, so that each one's loss must be its share.
            dense_weights: How a dense head counts in the search (`DenseWeights`).

        Raises:
            InputError: The model takes content vectors, and the task has none or is a
                mixture.
        """
        self._task = seqio.get_mixture_or_task(task)
        layout = self._task.output_features["targets"].vocabulary.layout
        config = config or TigerConfig()
        self._items = self._read_items() if needs_content(config) else None
        shape = (0, 0) if self._items is None else self._items.content.shape
        self.module = build_model(config, layout, shape)
        self._dense_weights = DenseWeights(*dense_weights)
        self.optimizer_def = optimizer_def
        self._num_beams = num_beams
        self._num_microbatches = num_microbatches
        self._loss_fn = make_loss_fn(self.module)

    def get_initial_variables(
        self,
        rng: Array,
        input_shapes: Mapping[str, Any],
        input_types: Mapping[str, Any] | None = None,
    ) -> flax.core.FrozenDict:
        """Draws parameters; ``params_axes`` holds their logical axis names."""
        del input_shapes, input_types  # no parameter's shape depends on them
        boxed = init_params(self.module, rng)
        specs = traverse_util.flatten_dict(nn.get_partition_spec(boxed))
        axes = {
            (*path[:-1], f"{path[-1]}_axes"): AxisMetadata(tuple(spec))
            for path, spec in specs.items()
        }
        return flax.core.freeze(
            {
                "params": nn.meta.unbox(boxed),
                "params_axes": traverse_util.unflatten_dict(axes),
            }
        )

    def loss_fn(
        self, params: Params, batch: Batch, dropout_rng: Array | None
    ) -> tuple[Float[Array, ""], Metrics]:
        """The mean loss of a batch's target tokens, and metrics to be averaged."""
        if self._items is not None:
            is_dense = has_dense_head(self.module.config)
            batch = self._items.add_to(dict(batch), ranks_items=is_dense)
        loss_sum, sums = self._loss_fn(params, batch, dropout_rng)
        weight = jnp.maximum(sums["weight"], 1e-9)
        accuracies = {
            name.replace("correct", "accuracy"): total
            for name, total in sums.items()
            if name.startswith("correct")
        }
        totals = {"loss": loss_sum, "nll": sums["nll"], **accuracies}
        metrics: Metrics = {
            name: clu.metrics.Average(total=total, count=weight)
            for name, total in totals.items()
        }
        return loss_sum / weight / self._num_microbatches, metrics

    def eval_fn(self, params: Params, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
        """The loss without dropout."""
        return self.loss_fn(params, batch, None)

    def predict_batch_with_aux(
        self, params: Params, batch: Batch, rng: Array | None = None
    ) -> tuple[Int[Array, "B T"], dict[str, Array]]:
        """Searches the catalogue for each history's best items.

        The best item's tokens, and ``beams[B M T]`` with ``scores[B M]``, best first.
        Where fewer than M items exist, beams are padding with a score of -inf.
        """
        del rng  # the search is deterministic
        settings = Settings(self._num_beams, self.module.config.normalize)
        searcher = Searcher(self.module, params, settings)
        catalogue: Any = jax.tree.map(jnp.asarray, self._trie)
        inputs: Any = batch["encoder_input_tokens"]
        if self._items is not None:
            length = self.module.layout.semantic_id_length
            rows = inputs.reshape(len(inputs), -1, length)
            inputs = ItemInputs(inputs, self._items.find(rows))
            table = searcher.embed_items(
                self._items.content,
                occurrences=self._occurrences,
                weights=self._dense_weights,
            )
            catalogue = table.over(catalogue)
        queries = Queries(inputs)
        found = searcher.search_weighed(catalogue, queries, self._dense_weights)
        is_item = found.item_numbers >= 0  # [B, M]
        item_tokens = jnp.asarray(self.module.layout.tokens_of(self._codes))  # [N, T]
        beams = item_tokens[jnp.where(is_item, found.item_numbers, 0)]
        beams = jnp.where(is_item[:, :, None], beams, 0)  # [B, M, T]
        return beams[:, 0], {"beams": beams, "scores": found.scores}

    def predict_batch(
        self, params: Params, batch: Batch, rng: Array | None = None
    ) -> Int[Array, "B T"]:
        """The best item's tokens."""
        return self.predict_batch_with_aux(params, batch, rng)[0]

    def score_batch(
        self, params: Params, batch: Batch, return_intermediates: bool = False
    ) -> Float[Array, " B"]:
        """The log-probability of each target."""
        if return_intermediates:
            raise NotImplementedError("TIGER keeps no intermediates of its scores")
        if self._items is not None:
            batch = self._items.add_to(dict(batch), ranks_items=False)
        row = {name: array[:, None] for name, array in batch.items()}
        # One example at a time, since the loss function sums over its batch.
        sums = jax.vmap(lambda one: self._loss_fn(params, one, None)[1])(row)
        return -sums["nll"]

    def _read_items(self) -> SpelledItems:
        """The content of the task's items, numbered as the shop does."""
        shops = self._shops
        if len(shops) > 1 or not hasattr(shops[0], "load_content"):
            raise InputError(
                f"the items of {self._task.name} have no content vectors, as one work "
                "directory's have: turn reads_content and dense_head off"
            )
        shop = shops[0]
        self._occurrences = np.bincount(shop.train.items, minlength=len(self._codes))
        return SpelledItems.of(
            self._codes, shop.layout, shop.load_content(), self._occurrences
        )

    @property
    def _shops(self) -> list[Any]:
        return [task.source.shop for task in seqio.get_subtasks(self._task)]

    @functools.cached_property
    def _codes(self) -> np.ndarray:
        """The Semantic IDs of all the task's items, each once: [N, T].

        In the order of the shop's items if it is one, or else of the Semantic IDs.
        """
        tables = [shop.table.codes for shop in self._shops]
        return (
            tables[0] if len(tables) == 1 else np.unique(np.concatenate(tables), axis=0)
        )

    @functools.cached_property
    def _trie(self) -> Trie:
        sizes = self.module.layout.codebook_sizes
        # An index of leaves is what a dense head's own items are scored by.
        indexed = has_dense_head(self.module.config)
        with jax.ensure_compile_time_eval():  # first asked for while tracing
            trie = Trie.build(self._codes, sizes, exclusion=indexed)
            return jax.tree.map(np.asarray, trie)  # of no device or mesh
