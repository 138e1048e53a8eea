"""Users' histories as one flat array: the form every room passes around."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int, Int32, Int64


@dataclasses.dataclass(frozen=True)
class Histories:
    """Item numbers in time order, user after user.

    User u's history is ``items[offsets[u]:offsets[u + 1]]``; it may be empty. There
    is one more offset than there are users.

    Examples:
        >>> histories = Histories.from_lists([[3, 1, 4], [], [1, 5]])
        >>> histories.last(2).tolist()
        [[1, 4], [-1, -1], [1, 5]]
        >>> histories.drop_last(1).lengths.tolist()
        [2, 0, 1]
    """

    items: Int32[np.ndarray, " total"]
    offsets: Int64[np.ndarray, " ends"]

    def __post_init__(self) -> None:
        offsets = self.offsets
        if (
            offsets.ndim != 1
            or len(offsets) == 0
            or offsets[0] != 0
            or offsets[-1] != len(self.items)
            or (np.diff(offsets) < 0).any()
        ):
            raise ValueError(
                "offsets must rise from 0 to the number of items "
                f"({len(self.items)}); got {offsets[:3]} … {offsets[-3:]}"
            )

    @classmethod
    def from_lists(cls, lists: Iterable[Sequence[int]]) -> "Histories":
        """Builds the flat form from one list of item numbers per user."""
        arrays = [np.asarray(items, np.int32).reshape(-1) for items in lists]
        lengths = np.array([len(items) for items in arrays], np.int64)
        items = np.concatenate([np.empty(0, np.int32), *arrays])
        return cls(items, offsets_of(lengths))

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64[np.ndarray, " U"]:
        return np.diff(self.offsets)

    def of(self, user: int) -> Int32[np.ndarray, " length"]:
        """The items of one user, oldest first."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def select(self, users: Int[np.ndarray, " C"]) -> "Histories":
        """The histories of some users, in the order given."""
        return self._take(self.offsets[users], self.lengths[users])

    def drop_last(self, n: int) -> "Histories":
        """Every history without its last `n` items (empty where there are fewer)."""
        return self._take(self.offsets[:-1], np.maximum(self.lengths - n, 0))

    def _take(
        self, starts: Int64[np.ndarray, " C"], lengths: Int64[np.ndarray, " C"]
    ) -> "Histories":
        offsets = offsets_of(lengths)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return type(self)(self.items[np.repeat(starts, lengths) + within], offsets)

    def last(self, n: int) -> Int32[np.ndarray, "U n"]:
        """The `n` most recent items, oldest first, padded with -1 on the right."""
        kept = np.minimum(self.lengths, n)  # [U]
        column = np.arange(n)  # [n]
        index = (self.offsets[1:] - kept)[:, None] + column[None, :]  # [U, n]
        is_item = column[None, :] < kept[:, None]  # [U, n]
        if not len(self.items):
            return np.full(index.shape, -1, np.int32)
        return np.where(is_item, self.items[np.where(is_item, index, 0)], np.int32(-1))


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """One held-out interaction per user: what came before, and what came next.

    Attributes:
        user_numbers: Row of each user in the users table.
        histories: Everything the user had before the target, row for row.
        targets: The item number to be predicted.
    """

    user_numbers: Int32[np.ndarray, " U"]
    histories: Histories
    targets: Int32[np.ndarray, " U"]

    def __post_init__(self) -> None:
        sizes = len(self.user_numbers), self.histories.num_users, len(self.targets)
        if len(set(sizes)) != 1:
            raise ValueError(f"users, histories and targets differ in number: {sizes}")

    def select(self, rows: Int[np.ndarray, " C"]) -> "HeldOut":
        return type(self)(
            self.user_numbers[rows], self.histories.select(rows), self.targets[rows]
        )


def offsets_of(lengths: Int64[np.ndarray, " U"]) -> Int64[np.ndarray, " ends"]:
    """Where histories of these lengths begin, and the end of the last."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
