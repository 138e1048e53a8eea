"""Whole histories as training examples, for models that predict at every position.

As in `resident`, the histories lie on the device once and an update is told only
where to read:

    items    [total]      item numbers of every training interaction
    example  (position of its first item in `items`, number of targets)

A history of n items has n - 1 targets. One with more than `max_items` of them is cut
into windows that share their border item, so that every target is in one window.
"""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32

from tiger_jax.config import config
from tiger_jax.errors import InputError
from tiger_jax.histories import Histories
from tiger_jax.input_pipeline.microbatches import Update, check_sizes, cut_by_length
from tiger_jax.input_pipeline.resident import ShuffledEpochs


@config("resident_sequences")
class SequenceConfig:
    """How histories are drawn and grouped.

    Attributes:
        batch_size: Windows of an update, over all devices.
        microbatch_size: Windows computed at a time; divides `batch_size`.
        bucket_items: Numbers of targets to which microbatches are padded, ascending;
            the model's longest history is always one of them.
    """

    batch_size: int = 256
    microbatch_size: int = 32
    bucket_items: tuple[int, ...] = (2, 3, 4, 5, 6, 8, 12, 20)


class ResidentSequences(ShuffledEpochs):
    """An endless stream of updates over all windows of the training histories.

    Attributes:
        constants: The arrays that live on the device.
        buckets: Targets in each bucket, ascending.
        num_targets: Targets of an epoch.
    """

    def __init__(
        self,
        histories: Histories,
        config: SequenceConfig,
        *,
        max_items: int,
        seed: int = 0,
    ) -> None:
        """Lays out the training histories.

        Args:
            histories: The training part of every user's history.
            max_items: Most targets of a window: the items that the model reads.

        Raises:
            InputError: No history has two items, or the sizes don't fit.
        """
        check_sizes(
            "resident_sequences.SequenceConfig",
            config.batch_size,
            config.microbatch_size,
        )
        shorter = sorted({n for n in config.bucket_items if 0 < n < max_items})
        self.buckets = (*shorter, max_items)
        self._config = config
        self._first, self._targets = _cut_into_windows(histories, max_items)
        if not len(self._first):
            raise InputError(
                "no training history has two items, so there is nothing to predict: "
                "lower the k-core or bring more interactions"
            )
        self.constants = {"items": histories.items}
        self.num_targets = int(self._targets.sum())
        arrays = {"first": self._first, "targets": self._targets}
        super().__init__({**self.constants, **arrays}, len(self._first), seed)

    def __iter__(self) -> Iterator[Update]:
        return self

    def __next__(self) -> Update:
        chosen = self._draw(self._config.batch_size)
        targets = self._targets[chosen]
        order, buckets = cut_by_length(
            targets, self._config.microbatch_size, self.buckets
        )
        rows = chosen[order]  # [M B]
        return Update(
            arrays={"first": self._first[rows], "targets": self._targets[rows]},
            buckets=buckets,
            num_examples=len(chosen),
            num_tokens=int(targets.sum()),
            is_global=True,
        )

    def make_batch(
        self, constants: dict[str, Array], arrays: dict[str, Array], bucket: int
    ) -> dict[str, Int[Array, "B window"]]:
        """Gathers a microbatch's windows; runs inside the jitted step.

        Returns:
            `items`: item numbers, one more than the bucket has targets, padded with
            -1 on the right.
        """
        first, targets = arrays["first"][:, None], arrays["targets"][:, None]  # [B 1]
        column = jnp.arange(self.buckets[bucket] + 1)[None, :]  # [1 I + 1]
        # Past the end of a history lies the next one's start: read, then masked.
        items = constants["items"].at[first + column].get(mode="clip")
        return {"items": jnp.where(column <= targets, items, -1)}


def _cut_into_windows(
    histories: Histories, max_items: int
) -> tuple[Int32[np.ndarray, " W"], Int32[np.ndarray, " W"]]:
    """Position of each window's first item, and how many targets follow it."""
    targets = np.maximum(histories.lengths - 1, 0)  # [U]
    count = -(-targets // max_items)  # [U]
    user = np.repeat(np.arange(histories.num_users), count)  # [W]
    before = np.arange(len(user)) - (np.cumsum(count) - count)[user]  # [W]
    skipped = before * max_items
    first = histories.offsets[user] + skipped
    left = np.minimum(targets[user] - skipped, max_items)
    return first.astype(np.int32), left.astype(np.int32)
