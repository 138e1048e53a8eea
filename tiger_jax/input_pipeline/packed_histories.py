"""Whole histories as examples of a generator that predicts at every position.

Histories differ in length, and most are short. So each row of an update holds several
of them, one after another, and the encoder sees to it that an item attends to its own
history alone: nearly every position computed is one that trains, and all updates have
one shape. (Packing: Krell et al. 2021, arXiv 2107.02027.)

As in `resident`, the tokens of all histories lie on the device once, and an update is
told only where to read:

    tokens   [total T]  Semantic ID tokens of every interaction
    read     [B I]      the interaction at each position; its target is the next one
    window   [B I]      which history the position is of, 0 for padding

A history of n items has n - 1 targets. A longer one than a row is cut into windows;
each repeats the last items of the one before, so that its first targets are predicted
from more than one item.
"""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Int32, Int64

from tiger_jax.config import config
from tiger_jax.errors import InputError
from tiger_jax.histories import Histories
from tiger_jax.input_pipeline.item_content import add_content
from tiger_jax.input_pipeline.microbatches import check_sizes
from tiger_jax.input_pipeline.resident import ShuffledEpochs
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.training.inputs import Update


@config("packed_histories")
class PackedConfig:
    """How whole histories are drawn and packed.

    Attributes:
        batch_size: Rows of an update, over all devices.
        microbatch_size: Rows computed at a time; divides `batch_size`.
        max_items: Items of a row, and of a history that the encoder sees.
        repeated_items: Of a history that is longer than a row, the items that the
            next window repeats.
    """

    batch_size: int = 32
    microbatch_size: int = 16
    max_items: int = 50
    repeated_items: int = 10

    bucket_items: ClassVar[tuple[int, ...]] = ()  # rows have one length

    def __post_init__(self) -> None:
        """Refuses sizes that don't fit each other, by an InputError."""
        name = "packed_histories.PackedConfig"
        check_sizes(name, self.batch_size, self.microbatch_size)
        if not 0 <= self.repeated_items < self.max_items:
            raise InputError(
                f"{name}.repeated_items = {self.repeated_items} must be less than "
                f"max_items = {self.max_items}"
            )


class PackedHistories(ShuffledEpochs):
    """All targets of the training histories; epochs are counted in windows.

    An epoch's windows are shuffled and packed anew, each into the fullest row that has
    room for it.

    Attributes:
        num_rows: Full rows that an epoch's windows would fill.
    """

    def __init__(
        self,
        histories: Histories,
        codes: Int32[np.ndarray, "N T"],
        layout: TokenLayout,
        config: PackedConfig,
        *,
        seed: int = 0,
        content: Float32[np.ndarray, "N E"] | None = None,
        ranks_items: bool = False,
    ) -> None:
        """Lays out the tokens of every training interaction.

        Args:
            content: The items' content vectors, for a model that takes these.
            ranks_items: Batches also have what a dense head is trained with.

        Raises:
            InputError: No history has two items.
        """
        tokens = np.asarray(layout.tokens_of(codes), np.int32)[histories.items]
        constants = {"tokens": tokens}  # [total T]
        if content is not None:
            constants |= {"items": histories.items, "content": content}
        examples = _cut_into_windows(
            histories.lengths,
            histories.offsets,
            config.max_items,
            config.repeated_items,
        )
        made_of = {**constants, **examples}
        if ranks_items:
            constants["trained"] = np.unique(histories.items).astype(np.int32)
        # Of an epoch's rows in `_order`.
        self._offsets: Int64[np.ndarray, " rows"] = np.empty(0, np.int64)
        super().__init__(
            config,
            constants,
            examples,
            lengths="length",
            max_length=config.max_items,
            made_of=made_of,
            seed=seed,
        )
        # No packing takes fewer; the one made takes a few more.
        self.num_rows = int(-(-examples["length"].sum() // config.max_items))

    def __next__(self) -> Update:
        size, width = self._config.batch_size, self._config.max_items
        windows, row = self._draw_rows(size)  # [W]
        length = self._examples["length"][windows]
        before = np.cumsum(length) - length  # positions of the windows before
        first_of_row = np.searchsorted(row, np.arange(size))
        column = before - before[first_of_row.clip(max=len(row) - 1)][row]  # [W]
        place = np.arange(length.sum()) - np.repeat(before, length)
        at = np.repeat(row * width + column, length) + place
        read = np.zeros(size * width, np.int32)
        read[at] = np.repeat(self._examples["first"][windows], length) + place
        window = np.zeros(size * width, np.int32)
        window[at] = np.repeat(np.arange(1, len(windows) + 1), length)
        is_target = np.zeros(size * width, bool)
        is_target[at] = place >= np.repeat(self._examples["repeated"][windows], length)
        shape = (-1, self._config.microbatch_size, width)
        arrays = {"read": read, "window": window, "is_target": is_target}
        arrays = {name: array.reshape(shape) for name, array in arrays.items()}
        return Update(
            arrays=arrays,
            buckets=np.zeros(len(arrays["read"]), np.int32),
            num_examples=len(windows),
            num_tokens=2 * int(length.sum()) * self.constants["tokens"].shape[1],
            is_global=True,
        )

    def _draw_rows(
        self, count: int
    ) -> tuple[Int64[np.ndarray, " W"], Int64[np.ndarray, " W"]]:
        """The windows of the next rows, and which row each is in."""
        windows, rows, drawn = [], [], 0
        while drawn < count:
            epoch, start = divmod(self._drawn, self.num_examples)
            if epoch != self._epoch:
                rng = np.random.default_rng((self._seed, epoch))
                order = rng.permutation(self.num_examples)
                lengths = self._examples["length"][order]
                row = _pack(lengths, self._config.max_items)
                by_row = np.argsort(row, kind="stable")
                self._epoch, self._order = epoch, order[by_row]
                self._offsets = np.append(0, np.cumsum(np.bincount(row)))
            first = int(np.searchsorted(self._offsets, start))
            end = min(first + count - drawn, len(self._offsets) - 1)
            windows.append(self._order[start : self._offsets[end]])
            per_row = np.diff(self._offsets[first : end + 1])
            rows.append(np.repeat(np.arange(end - first), per_row) + drawn)
            self._drawn += len(windows[-1])
            drawn += end - first
        return np.concatenate(windows), np.concatenate(rows)

    def make_batch(
        self, constants: dict[str, Array], arrays: dict[str, Array], bucket: int
    ) -> dict[str, Array]:
        """Gathers a microbatch's rows; runs inside the jitted step.

        Returns:
            The keys of a generator's batch, with a target at every item, P of them,
            `windows[B P]`, and what `add_content` adds if there is content.
        """
        del bucket  # all rows have one length
        read, windows = arrays["read"], arrays["window"]
        is_item, is_target = windows > 0, arrays["is_target"]
        tokens, flat = constants["tokens"], (len(read), -1)
        inputs = jnp.where(is_item[..., None], tokens[read], 0)  # [B P T]
        wanted = jnp.where(is_target[..., None], tokens[read + 1], 0)
        batch = {
            "windows": windows,
            "encoder_input_tokens": inputs.reshape(flat),
            "decoder_input_tokens": jnp.pad(
                wanted[..., :-1], ((0, 0), (0, 0), (1, 0))
            ).reshape(flat),
            "decoder_target_tokens": wanted.reshape(flat),
            "decoder_loss_weights": (wanted > 0).astype(jnp.int32).reshape(flat),
        }
        if "content" not in constants:
            return batch
        items: Int[Array, " total"] = constants["items"]
        return add_content(
            batch,
            items[read],
            jnp.where(is_target, items[read + 1], -1),
            constants["content"],
            constants.get("trained"),
        )


def _cut_into_windows(
    lengths: Int[np.ndarray, " U"],
    offsets: Int[np.ndarray, " U1"],
    width: int,
    repeated: int,
) -> dict[str, Int32[np.ndarray, " W"]]:
    """Each window's first interaction, its positions, and how many are repeated."""
    targets = np.maximum(lengths - 1, 0)  # [U]
    beyond = np.maximum(targets - width, 0)
    count = (targets > 0) + -(-beyond // (width - repeated))  # [U]
    user = np.repeat(np.arange(len(lengths)), count)  # [W]
    number = np.arange(len(user)) - (np.cumsum(count) - count)[user]  # of a user's
    skipped = number * (width - repeated)
    return {
        "first": (offsets[user] + skipped).astype(np.int32),
        "length": np.minimum(targets[user] - skipped, width).astype(np.int32),
        "repeated": np.where(number > 0, repeated, 0).astype(np.int32),
    }


def _pack(lengths: Int32[np.ndarray, " W"], width: int) -> Int64[np.ndarray, " W"]:
    """The row of each window: the fullest that has room for it, or a new one.

    Examples:
        >>> _pack(np.array([3, 4, 2, 1], np.int32), 5).tolist()
        [0, 1, 0, 1]
    """
    with_room: list[list[int]] = [[] for _ in range(width + 1)]
    rows, count = np.empty(len(lengths), np.int64), 0
    for i, length in enumerate(lengths.tolist()):
        fits = (room for room in range(length, width) if with_room[room])
        if (room := next(fits, width)) < width:
            rows[i] = with_room[room].pop()
        else:
            rows[i], count = count, count + 1
        with_room[room - length].append(int(rows[i]))
    return rows
