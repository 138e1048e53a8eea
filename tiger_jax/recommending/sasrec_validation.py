"""Scores a dense rival in training on a fixed sample of validation users."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int32, Int64

from tiger_jax.evaluation.metrics import compute_metrics
from tiger_jax.histories import HeldOut
from tiger_jax.models.sasrec import Params, make_score_fn
from tiger_jax.training.partitioning import Partitioner

_BATCH = 256
_CUTOFF = 10


def make_evaluate_fn(
    model: nn.Module,
    held_out: HeldOut,
    partitioner: Partitioner,
    *,
    num_users: int | None = None,
    seed: int = 0,
) -> Callable[[Params], dict[str, float]]:
    """Makes params -> {"loss", "recall@10", "ndcg@10"} over the whole catalogue.

    Seen items aren't masked, and a tie counts against the target, as while the
    recommender is trained.
    """
    total = len(held_out.targets)
    count = min(num_users or total, total)
    chosen = np.random.default_rng(seed).permutation(total)[:count]
    sample = held_out.select(np.sort(chosen))
    shards = partitioner.num_data_shards
    size = -(-min(_BATCH, count) // shards) * shards
    batches = [
        (rows, partitioner.put(arrays, batch_axis=0, is_global=True))
        for rows, arrays in _batches(sample, model.config.max_length, size)
    ]
    score_fn = make_score_fn(model)

    @jax.jit
    def judge(
        params: Params, items: Array, targets: Array
    ) -> tuple[Float[Array, " B"], Int32[Array, " B"]]:
        scores = score_fn(params, items)  # [B, N]
        target = jnp.take_along_axis(scores, targets[:, None], 1)  # [B, 1]
        loss = jax.nn.logsumexp(scores, -1) - target[:, 0]
        return loss, (scores >= target).sum(-1, dtype=jnp.int32) - 1

    def evaluate_fn(params: Any) -> dict[str, float]:
        losses, ranks = np.zeros(count), np.zeros(count, np.int32)
        for rows, arrays in batches:
            found = judge(params, arrays["items"], arrays["targets"])
            losses[rows], ranks[rows] = jax.device_get(found)
        names = (f"recall@{_CUTOFF}", f"ndcg@{_CUTOFF}")
        return {"loss": float(losses.mean()), **compute_metrics(ranks, names)}

    return evaluate_fn


def _batches(
    sample: HeldOut, max_length: int, size: int
) -> Iterator[tuple[Int64[np.ndarray, " B"], dict[str, np.ndarray]]]:
    """Cuts users into batches by length: few widths, each compiled once.

    Yields rows of the sample, the last batch filled up with repeats, and their arrays.
    """
    lengths = np.minimum(sample.histories.lengths, max_length)
    order = np.argsort(lengths, kind="stable")
    widths = (max(1, max_length // 4), max(1, max_length // 2), max_length)
    for at in range(0, len(order), size):
        rows = np.resize(order[at : at + size], size)
        width = next(w for w in widths if lengths[rows].max() <= w)
        part = sample.select(rows)
        yield rows, {"items": part.histories.last(width), "targets": part.targets}
