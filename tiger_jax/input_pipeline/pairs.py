"""Which examples there are: pairs of a history and the item that came next.

Training has a pair for every prefix of a history; a held-out split has one a user.
Pairs are never written out: pair number p is found by a binary search in the users'
cumulative pair counts, and its items are gathered from the flat array.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, Int64

from tiger_jax.histories import HeldOut, Histories

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of one split, as arrays to be searched.

    Row r holds ``items[offsets[r]:offsets[r + 1]]``. Its places from
    `first_targets[r]` on are targets, each a pair with everything before it.

    Attributes:
        pair_offsets: Number of pairs before each row's first; its last is their
            total.
        users: User number of each row.
    """

    items: Int32[np.ndarray, " total"]
    offsets: Int64[np.ndarray, " ends"]
    first_targets: Int64[np.ndarray, " rows"]
    pair_offsets: Int64[np.ndarray, " ends"]
    users: Int[np.ndarray, " rows"]

    @classmethod
    def of_split(cls, parts: Any, split: str) -> "Pairs":
        """A split's pairs; `parts` has it as an attribute, as `Splits` and `Shop`."""
        if split == "train":
            return cls.of_prefixes(parts.train)
        return cls.of_held_out(getattr(parts, split))

    @classmethod
    def of_prefixes(cls, histories: Histories) -> "Pairs":
        """Every non-empty prefix of every history with the item after it.

        Examples:
            >>> Pairs.of_prefixes(Histories.from_lists([[5, 6, 7], [8]])).num_pairs
            2
        """
        return cls._of(histories, np.ones(histories.num_users, np.int64))

    @classmethod
    def of_last(cls, histories: Histories) -> "Pairs":
        """The last item of every history of two or more, with all before it."""
        return cls._of(histories, np.maximum(histories.lengths - 1, 1))

    @classmethod
    def of_held_out(cls, held_out: HeldOut) -> "Pairs":
        """One pair per user: the history before the target, and the target."""
        before = held_out.histories
        items = np.insert(before.items, before.offsets[1:], held_out.targets)
        offsets = before.offsets + np.arange(len(before.offsets))
        rows = Histories(items.astype(np.int32), offsets)
        return cls._of(rows, before.lengths, held_out.user_numbers)

    @classmethod
    def _of(
        cls,
        histories: Histories,
        first_targets: Int64[np.ndarray, " rows"],
        users: Int[np.ndarray, " rows"] | None = None,
    ) -> "Pairs":
        users = np.arange(histories.num_users) if users is None else users
        counts = np.maximum(histories.lengths - first_targets, 0)
        pair_offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(
            histories.items, histories.offsets, first_targets, pair_offsets, users
        )

    @property
    def num_pairs(self) -> int:
        return int(self.pair_offsets[-1])

    def windows(
        self, numbers: Int[np.ndarray, " B"], max_items: int
    ) -> tuple[
        Int[np.ndarray, " B"], Int32[np.ndarray, "B I"], Int32[np.ndarray, " B"]
    ]:
        """Some pairs' users, most recent items (padded with -1), and targets."""
        row, start, target = locate(self, numbers)
        begin = np.maximum(start, target - max_items)
        index = begin[:, None] + np.arange(max_items)[None, :]  # [B, I]
        is_item = index < target[:, None]
        window = self.items[np.where(is_item, index, 0)]
        window = np.where(is_item, window, np.int32(-1))
        return self.users[row], window, self.items[target]


def locate(
    pairs: Any,
    numbers: Any,
    *,
    take: Callable[..., Any] = np.take,
    searchsorted: Callable[..., Any] = np.searchsorted,
) -> tuple[Any, Any, Any]:
    """Where pairs lie: of each its row, its first item's place, its target's place.

    Of a `Pairs` and pair numbers [B], or of the same as another library's tensors, with
    its gathering of rows and its binary search.
    """
    row = searchsorted(pairs.pair_offsets, numbers, side="right") - 1
    start = take(pairs.offsets, row)
    number_in_row = numbers - take(pairs.pair_offsets, row)
    return row, start, start + take(pairs.first_targets, row) + number_in_row
