"""Scores a model in training on a fixed sample of validation users."""

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float32, Int, Int32, Int64

from tiger_jax.config import config
from tiger_jax.decoding.trie import Trie
from tiger_jax.errors import InputError
from tiger_jax.evaluation.metrics import compute_metrics, ranks_in_lists
from tiger_jax.histories import HeldOut
from tiger_jax.models.generator import (
    Batch,
    ItemVectors,
    Params,
    has_dense_head,
    make_loss_fn,
)
from tiger_jax.recommending.searcher import (
    DenseWeights,
    Found,
    ItemTable,
    Queries,
    Searcher,
    Settings,
    log_occurrences,
    reorder,
    trained_numbers,
)
from tiger_jax.recommending.trained_model import DENSE_WEIGHT, POPULARITY_WEIGHT
from tiger_jax.semantic_ids.collisions import group_rows
from tiger_jax.semantic_ids.encoder_inputs import encode_histories
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.training.partitioning import Partitioner

_CUTOFF = 10
# The best pair is chosen among these (see `DenseWeights`).
ITEM_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
POPULARITY_WEIGHTS = (0.0, 0.25, 0.5, 1.0)
# A permutation of more rows would take memory worth saving.
_MAX_PERMUTED = 1 << 27
MetricsByWeights = dict[tuple[float, float], dict[str, float]]


@config("validation")
class ValidationConfig:
    """How a checkpoint is judged while training goes on.

    Attributes:
        num_users: Users drawn once, by seed; all of them if there are fewer.
        batch_size: Users searched at a time.
        num_beams: Beams of the search; at least 11, to see past a tie at rank 10.
        with_search: Measure recall@10 and ndcg@10, and not only the loss.
    """

    num_users: int = 2000
    batch_size: int = 200
    num_beams: int = 20
    with_search: bool = True


@dataclasses.dataclass(frozen=True)
class ValidationSample:
    """Held-out interactions as the model sees them, and the items they are of.

    Attributes:
        inputs: Encoder tokens, or `ItemInputs`.
        targets: The target items' tokens.
        items: The target items' numbers.
    """

    inputs: Any
    targets: Int32[np.ndarray, "U T"]
    items: Int[np.ndarray, " U"]

    @classmethod
    def of_users(
        cls,
        held_out: HeldOut,
        table: SemanticIdTable,
        layout: TokenLayout,
        *,
        num_users: int,
        max_items: int,
        user_hashes: np.ndarray,
        seed: int,
        with_items: bool = False,
    ) -> "ValidationSample":
        """Draws users by seed."""
        sample = held_out.select(draw_rows(len(held_out.targets), num_users, seed))
        inputs = encode_histories(
            sample.histories.last(max_items),
            table.codes,
            layout,
            user_hashes=user_hashes[sample.user_numbers],
            with_items=with_items,
        )
        targets = layout.tokens_of(table.codes)[sample.targets]  # [U T]
        return cls(inputs, targets, sample.targets)

    @classmethod
    def of_tokens(
        cls,
        inputs: Int32[np.ndarray, "U S"],
        targets: Int32[np.ndarray, "U T"],
        table: SemanticIdTable,
        layout: TokenLayout,
    ) -> "ValidationSample":
        """Takes examples that were made beforehand.

        Raises:
            InputError: A target is no item's Semantic ID.
        """
        codes = np.concatenate([table.codes, layout.codes_of(targets)])
        groups = group_rows(codes)  # equal Semantic IDs, equal numbers
        item_of = np.full(len(codes), -1)
        item_of[groups[: table.num_items]] = np.arange(table.num_items)
        items = item_of[groups[table.num_items :]]
        if (items < 0).any():
            raise InputError(
                "a validation example's target is no item's Semantic ID: the token "
                "files were made of other Semantic IDs; run --stage=assign_shards again"
            )
        return cls(inputs, targets, items)


def draw_rows(total: int, count: int, seed: int) -> Int64[np.ndarray, " C"]:
    """Draws the numbers of some rows, ascending; of so many rows, always the same."""
    rng = np.random.default_rng(seed)
    if total > _MAX_PERMUTED:
        return np.sort(rng.choice(total, count, replace=False))
    return np.sort(rng.permutation(total)[:count])


def make_evaluate_fn(
    model: nn.Module,
    table: SemanticIdTable,
    sample: ValidationSample,
    config: ValidationConfig,
    partitioner: Partitioner,
    content: Float32[np.ndarray, "N E"] | None = None,
    occurrences: Int64[np.ndarray, " N"] | None = None,
    on_weights: Callable[[MetricsByWeights], None] | None = None,
) -> Callable[[Params], dict[str, float]]:
    """Makes params -> {"loss", "recall@10", "ndcg@10"}.

    The loss is the codewords' mean over target tokens without dropout. The ranking is
    the trie-constrained beam search over the whole catalogue, seen items not masked.
    With a dense head there are also "recall@10_with_dense" and "ndcg@10_with_dense",
    and "dense_weight" and "popularity_weight", which they are the best with. For these
    the items of a history are masked, as they are in a shop's lists: a dense head puts
    them first, so that what is right for the others can't be seen behind them.

    Args:
        occurrences: Of each item in the histories of training, with `content`.
        on_weights: Is told the metrics with all weights that are chosen among.
    """
    inputs, targets, count = sample.inputs, sample.targets, len(sample.items)
    shards = partitioner.num_data_shards
    batch_size = -(-min(config.batch_size, count) // shards) * shards
    batches = []
    for start in range(0, count, batch_size):
        # The last batch is filled up with users that count for nothing.
        index = np.arange(start, start + batch_size)
        is_user, index = index < count, np.minimum(index, count - 1)
        batch = {
            "inputs": jax.tree.map(operator.itemgetter(index), inputs),
            "decoder_input_tokens": np.pad(targets[index, :-1], ((0, 0), (1, 0))),
            "decoder_target_tokens": targets[index],
            "decoder_loss_weights": np.repeat(
                is_user[:, None].astype(np.int32), targets.shape[1], axis=1
            ),
        }
        batches.append(partitioner.put(batch, batch_axis=0, is_global=True))

    loss_fn = make_loss_fn(model)
    settings = Settings(config.num_beams, model.config.normalize)
    trie = partitioner.put(
        Trie.build(table.codes, table.codebook_sizes), batch_axis=None, is_global=True
    )
    replicated = partitioner.replicated
    is_dense = has_dense_head(model.config)

    def sum_losses(
        params: Params, batch: Batch, vectors: ItemVectors | None
    ) -> dict[str, jax.Array]:
        inputs: Any = batch["inputs"]
        batch = {**batch, "encoder_input_tokens": inputs}
        if vectors is not None:
            read = vectors.read[jnp.maximum(inputs.items, 0)]
            batch |= {"encoder_input_tokens": inputs.tokens, "read": read}
        loss_sum, sums = loss_fn(params, batch, None)
        return {**sums, "loss": loss_sum}

    def search(
        params: Params, inputs: Any, trie: Trie, vectors: ItemVectors | None
    ) -> tuple[Found, jax.Array, jax.Array]:
        """Candidates, the dense head's log p of each, and which the history has."""
        searcher, catalogue = Searcher(model, params, settings), cast(Any, trie)
        if vectors is not None:
            rows = jnp.ones(table.num_items, bool), jnp.zeros(table.num_items)
            catalogue = ItemTable(vectors, *rows, jnp.zeros(())).over(trie)
        if not is_dense:
            found = searcher.search(catalogue, Queries(inputs))
            return found, jnp.zeros_like(found.scores), jnp.zeros(len(found.scores))
        found, log_probs = searcher.search_candidates(catalogue, Queries(inputs))
        is_own = (found.item_numbers[:, :, None] == inputs.items[:, None]).any(-1)
        return found, log_probs, is_own

    embed = jax.jit(
        lambda params, *items: model.apply(
            {"params": params}, *items, method="embed_items"
        ),
        out_shardings=replicated,
    )
    sum_losses = jax.jit(sum_losses, out_shardings=replicated)
    search = jax.jit(search, out_shardings=replicated)

    def evaluate_fn(params: Params) -> dict[str, float]:
        vectors = None
        if content is not None:
            assert occurrences is not None
            vectors = embed(params, content, trained_numbers(occurrences))
        # One batch at a time: hundreds under way at once can starve one another of
        # the threads that CPU devices meet in.
        sums = [jax.device_get(sum_losses(params, b, vectors)) for b in batches]
        total = jax.tree.map(lambda *xs: float(np.sum(xs)), *sums)
        metrics = {"loss": total["loss"] / total["weight"]}
        if config.with_search:
            parts = [
                jax.device_get(search(params, b["inputs"], trie, vectors))
                for b in batches
            ]
            found, log_probs, is_own = jax.tree.map(
                lambda *arrays: np.concatenate(arrays)[:count], *parts
            )
            by_codes = reorder(found, log_probs, 0.0, config.num_beams)
            metrics |= _measure(by_codes, sample.items)
            if is_dense:
                assert occurrences is not None
                items = np.where(is_own, -1, found.item_numbers)
                taken = log_occurrences(occurrences)[np.maximum(items, 0)]
                masked = Found(items, found.scores)
                metrics |= _choose_weights(
                    lambda weights: reorder(
                        masked,
                        log_probs - np.float32(weights.popularity) * taken,
                        weights.item,
                        config.num_beams,
                    ),
                    sample.items,
                    on_weights,
                )
        return metrics

    return evaluate_fn


def _measure(found: Found, targets: Int[np.ndarray, " U"]) -> dict[str, float]:
    items, scores = map(np.asarray, found)
    ranks = ranks_in_lists(items, scores, targets)
    return compute_metrics(ranks, (f"recall@{_CUTOFF}", f"ndcg@{_CUTOFF}"))


def _choose_weights(
    order_by: Callable[[DenseWeights], Found],
    targets: Int[np.ndarray, " U"],
    on_weights: Callable[[MetricsByWeights], None] | None,
) -> dict[str, float]:
    """The weights with which the product of both metrics is largest, and these."""
    pairs = [(0.0, 0.0), *itertools.product(ITEM_WEIGHTS[1:], POPULARITY_WEIGHTS)]
    found = {pair: _measure(order_by(DenseWeights(*pair)), targets) for pair in pairs}
    if on_weights is not None:
        on_weights(found)
    best = max(found, key=lambda pair: math.prod(found[pair].values()))
    metrics = {f"{name}_with_dense": value for name, value in found[best].items()}
    return {**metrics, DENSE_WEIGHT: best[0], POPULARITY_WEIGHT: best[1]}
