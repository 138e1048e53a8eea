"""Histories as training examples, for models that predict items.

As in `resident`, the histories lie on the device once and an update is told only
where to read:

    items    [total]      item numbers of every training interaction
    example  (position of its first item in `items`, number of targets)

A history of n items has n - 1 targets. One with more than `max_items` of them is cut
into windows that share their border item, so that every target is in one window. For
a model that predicts after a window's last item alone, each target is its own example
with the items before it.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32

from tiger_jax.config import config
from tiger_jax.histories import Histories
from tiger_jax.input_pipeline.microbatches import check_sizes
from tiger_jax.input_pipeline.pairs import Pairs, locate
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
    """All windows of the training histories, gathered inside the step.

    Attributes:
        num_targets: Targets of an epoch.
    """

    def __init__(
        self,
        histories: Histories,
        config: SequenceConfig,
        *,
        max_items: int,
        seed: int = 0,
        only_last: bool = False,
    ) -> None:
        """Lays out the training histories.

        Args:
            histories: The training part of every user's history.
            max_items: Most targets of a window: the items that the model reads.
            only_last: A window's last item is its only target.

        Raises:
            InputError: No history has two items, or the sizes don't fit.
        """
        check_sizes(
            "resident_sequences.SequenceConfig",
            config.batch_size,
            config.microbatch_size,
        )
        cut = _cut_before_targets if only_last else _cut_into_windows
        first, targets = cut(histories, max_items)
        self.num_targets = len(targets) if only_last else int(targets.sum())
        constants = {"items": histories.items}
        examples = {"first": first, "targets": targets}
        super().__init__(
            config,
            constants,
            examples,
            lengths="targets",
            max_length=max_items,
            made_of={**constants, **examples},
            seed=seed,
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


def _cut_before_targets(
    histories: Histories, max_items: int
) -> tuple[Int32[np.ndarray, " W"], Int32[np.ndarray, " W"]]:
    """Position of each window's first item, and of its last one after that."""
    pairs = Pairs.of_prefixes(histories)
    _, start, target = locate(pairs, np.arange(pairs.num_pairs))
    first = np.maximum(start, target - max_items)
    return first.astype(np.int32), (target - first).astype(np.int32)


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
