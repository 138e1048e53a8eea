"""Updates cut into microbatches of equal size and nearly equal lengths.

Each update draws its examples uniformly. Sorted by length and cut into pieces of
equal size, the short ones need not be padded to the longest: every piece takes the
smallest bucket (a padded length) that holds its longest example. The gradient of an
update is the sum over its pieces, so this changes the cost and not the result.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from tiger_jax.config import config
from tiger_jax.errors import InputError
from tiger_jax.input_pipeline.item_content import SpelledItems
from tiger_jax.training.inputs import Update

Batch = dict[str, Any]


def cut_by_length(
    lengths: Int[np.ndarray, " B"], microbatch_size: int, buckets: Sequence[int]
) -> tuple[Int[np.ndarray, "M R"], Int32[np.ndarray, " M"]]:
    """Sorts examples by length and cuts them into microbatches.

    Gives the examples of each microbatch and the bucket each one needs. Ties keep
    their order; a single microbatch keeps all of it.

    Args:
        lengths: Length of each example; at most the longest bucket.
        microbatch_size: Rows R of a microbatch; divides the number of examples.
        buckets: Padded lengths, ascending.

    Examples:
        >>> rows, bucket = cut_by_length(np.array([9, 1, 4, 2]), 2, (2, 5, 10))
        >>> rows.tolist(), bucket.tolist()
        ([[1, 3], [2, 0]], [0, 2])
    """
    order = np.argsort(lengths, kind="stable")
    if microbatch_size == len(lengths):
        # A single piece gains nothing from sorting. Unsorted, each row meets the
        # dropout mask that it meets in an engine that takes the batch as it comes.
        order = np.arange(len(lengths))
    order = order.reshape(-1, microbatch_size)
    longest = lengths[order].max(axis=1)
    return order, np.searchsorted(np.asarray(buckets), longest).astype(np.int32)


def check_sizes(name: str, batch_size: int, microbatch_size: int) -> None:
    """Raises an InputError unless microbatches divide the batch."""
    if batch_size < 1 or microbatch_size < 1 or batch_size % microbatch_size:
        raise InputError(
            f"{name}.batch_size {batch_size} is not a multiple of microbatch_size "
            f"{microbatch_size}: choose one that divides it"
        )


@config("microbatches")
class BucketConfig:
    """How the batches of a stream are cut.

    Attributes:
        microbatch_size: Rows of a microbatch; None computes a batch in one piece.
        lengths: Padded encoder lengths, ascending; the batch's own length is added.
            Empty: no buckets, every example is padded to the batch's length.
    """

    microbatch_size: int | None = None
    lengths: tuple[int, ...] = ()


class BucketedBatches:
    """Turns a stream of padded batches into updates with length buckets.

    The batches have the keys of seqio's encoder–decoder converter. The whole padded
    rows travel to the device (they are small) and each bucket reads their start.
    """

    def __init__(
        self,
        batches: Any,
        config: BucketConfig,
        *,
        max_length: int,
        items: SpelledItems | None = None,
        ranks_items: bool = False,
    ) -> None:
        """Takes a stream like `SeqioBatches`, of encoder inputs `max_length` long.

        Args:
            items: Whose content batches have too, for a model that takes it.
            ranks_items: Batches also have what a dense head is trained with.
        """
        self._batches, self._config = batches, config
        self.constants = {} if items is None else items._asdict()
        self._ranks_items = ranks_items
        shorter = [n for n in sorted(set(config.lengths)) if n < max_length]
        self.buckets = (*shorter, max_length)

    def __iter__(self) -> Iterator[Update]:
        return self

    def __next__(self) -> Update:
        batch = {k: np.asarray(v) for k, v in next(self._batches).items()}
        inputs = batch["encoder_input_tokens"]
        rows = self._config.microbatch_size or len(inputs)
        check_sizes("microbatches.BucketConfig", len(inputs), rows)
        is_token = inputs != 0
        lengths = is_token.sum(axis=1)
        order, buckets = cut_by_length(lengths, rows, self.buckets)
        weights = batch["decoder_loss_weights"]
        return Update(
            arrays={name: array[order] for name, array in batch.items()},
            buckets=_agreed(buckets),
            num_examples=int((weights.sum(axis=1) > 0).sum()),
            num_tokens=int(lengths.sum() + (weights > 0).sum()),
            is_global=False,
        )

    @property
    def num_examples(self) -> int:
        """Of an epoch of the stream."""
        return self._batches.num_examples

    def make_batch(self, constants: Any, arrays: Batch, bucket: int) -> Batch:
        """Cuts padding down to the bucket; runs on the device.

        The encoder's, and the decoder's where every item of a history has a target.
        """
        whole, length = self.buckets[-1], self.buckets[bucket]
        batch = {
            name: array[:, :length] if array.shape[1] == whole else array
            for name, array in arrays.items()
        }
        if not constants:
            return batch
        return SpelledItems(**constants).add_to(batch, ranks_items=self._ranks_items)

    def save(self, path: Any) -> None:
        self._batches.save(path)

    def restore(self, path: Any) -> None:
        self._batches.restore(path)


def _agreed(buckets: Int32[np.ndarray, " M"]) -> Int32[np.ndarray, " M"]:
    """The buckets that hold every process's share; one compiled step runs on all."""
    import jax

    if jax.process_count() == 1:
        return buckets
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(buckets).max(axis=0)
