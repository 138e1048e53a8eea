"""Scores a model in training on a fixed sample of validation users."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Int, Int32, Int64

from tiger_jax.config import config
from tiger_jax.decoding.trie import Trie
from tiger_jax.errors import InputError
from tiger_jax.evaluation.metrics import compute_metrics, ranks_in_lists
from tiger_jax.histories import HeldOut
from tiger_jax.models.generator import Batch, Params, make_loss_fn
from tiger_jax.recommending.searcher import Found, Queries, Searcher, Settings
from tiger_jax.semantic_ids.collisions import group_rows
from tiger_jax.semantic_ids.encoder_inputs import encode_histories
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.training.partitioning import Partitioner

_CUTOFF = 10
# A permutation of more rows would take memory worth saving.
_MAX_PERMUTED = 1 << 27


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
        inputs: Encoder tokens.
        targets: The target items' tokens.
        items: The target items' numbers.
    """

    inputs: Int32[np.ndarray, "U S"]
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
    ) -> "ValidationSample":
        """Draws users by seed."""
        sample = held_out.select(draw_rows(len(held_out.targets), num_users, seed))
        inputs = encode_histories(
            sample.histories.last(max_items),
            table.codes,
            layout,
            user_hashes=user_hashes[sample.user_numbers],
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
) -> Callable[[Params], dict[str, float]]:
    """Makes params -> {"loss", "recall@10", "ndcg@10"}.

    The loss is the mean over target tokens without dropout. The ranking is the
    trie-constrained beam search over the whole catalogue, seen items not masked.
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
            "encoder_input_tokens": inputs[index],
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

    def sum_losses(params: Params, batch: Batch) -> dict[str, jax.Array]:
        loss_sum, sums = loss_fn(params, batch, None)
        return {**sums, "loss": loss_sum}

    def search(params: Params, inputs: jax.Array, trie: Trie) -> Found:
        return Searcher(model, params, settings).search(trie, Queries(inputs))

    sum_losses = jax.jit(sum_losses, out_shardings=replicated)
    search = jax.jit(search, out_shardings=replicated)

    def evaluate_fn(params: Params) -> dict[str, float]:
        sums = [sum_losses(params, batch) for batch in batches]
        total = jax.tree.map(lambda *xs: float(np.sum(xs)), *jax.device_get(sums))
        metrics = {"loss": total["loss"] / total["weight"]}
        if config.with_search:
            found = [search(params, b["encoder_input_tokens"], trie) for b in batches]
            items, scores = (
                np.concatenate(parts)[:count]
                for parts in zip(*jax.device_get(found), strict=True)
            )
            ranks = ranks_in_lists(items, scores, sample.items)
            names = (f"recall@{_CUTOFF}", f"ndcg@{_CUTOFF}")
            metrics.update(compute_metrics(ranks, names))
        return metrics

    return evaluate_fn
