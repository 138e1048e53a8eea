"""Prepared data as the later stages see it: the folder `data/` of a work directory."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from jaxtyping import Int32, Int64, UInt32

from tiger_jax.data.splits import Splits
from tiger_jax.errors import InputError
from tiger_jax.histories import HeldOut, Histories
from tiger_jax.workdir.arrays import load_arrays, save_arrays
from tiger_jax.workdir.json_files import read_json, write_json
from tiger_jax.workdir.reading import reading

_MOSTLY = 0.9  # a category shared by this share of the items tells little
_ARRAYS = ("history_items", "history_offsets", "items_file_rows", "unseen_items")


@dataclass(frozen=True)
class PreparedData:
    """A catalogue by item number, and its users' histories.

    Attributes:
        items: The catalogue: row n is item number n, with the columns of
            `RawShop.items`.
        user_hashes: A hash of each user's identifier, for hashed user tokens. It is
            the same whatever other users there are.
        histories: Whole histories, in time order.
        items_file_rows: Row in the raw items of each item number: ready-made
            embeddings E in items-file order are `E[items_file_rows]` by item number.
        unseen_items: Item numbers kept out of training and validation for the
            cold-start experiment; usually none.
        statistics: What `compute_statistics` counted, the data's source, and notes.
        ceiling: For the synthetic shop, what the best recommender is expected to
            reach on the test split, unmasked ({"recall@10": ...}); otherwise None.
    """

    name: str
    items: pa.Table
    user_ids: tuple[str, ...]
    user_hashes: UInt32[np.ndarray, " U"]
    histories: Histories
    items_file_rows: Int64[np.ndarray, " N"]
    unseen_items: Int32[np.ndarray, " unseen"]
    statistics: dict[str, Any]
    ceiling: dict[str, float] | None

    def __post_init__(self) -> None:
        """Checks that the parts speak of the same users and items, or InputError."""
        num_items, num_users = self.items.num_rows, self.histories.num_users
        numbers, num_rows = self.histories.items, len(self.items_file_rows)
        if num_rows != num_items:
            problem = f"{num_rows:,} items_file_rows for {num_items:,} items"
        elif not len(self.user_ids) == len(self.user_hashes) == num_users:
            problem = f"{len(self.user_ids):,} users, but {num_users:,} histories"
        elif numbers.size and not 0 <= numbers.min() <= numbers.max() < num_items:
            problem = f"histories name items beyond the {num_items:,} there are"
        else:
            return
        raise InputError(f"data: {problem}: run --stage=prepare_data again")

    @property
    def num_items(self) -> int:
        return self.items.num_rows

    @property
    def num_users(self) -> int:
        return self.histories.num_users

    @cached_property
    def item_ids(self) -> tuple[str, ...]:
        return tuple(self.items["item_id"].to_pylist())

    @cached_property
    def splits(self) -> Splits:
        return Splits.leave_one_out(self.histories, self.unseen_items)

    @property
    def train(self) -> Histories:
        """All but the last two items of every user (without unseen items)."""
        return self.splits.train

    @cached_property
    def occurrences(self) -> Int64[np.ndarray, " N"]:
        """How often each item occurs in `train`."""
        return np.bincount(self.train.items, minlength=self.num_items)

    @property
    def validation(self) -> HeldOut:
        """The last but one item of every user, given what came before."""
        return self.splits.validation

    @property
    def test(self) -> HeldOut:
        """The last item of every user, given all before."""
        return self.splits.test

    def category_of_items(self) -> list[str]:
        """One telling category per item; see `choose_categories`."""
        return choose_categories(self.items["categories"].to_pylist())

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        users = pa.table({"user_id": self.user_ids, "user_hash": self.user_hashes})
        pa.parquet.write_table(self.items, folder / "items.parquet")
        pa.parquet.write_table(users, folder / "users.parquet")
        histories, rows = self.histories, self.items_file_rows
        arrays = (histories.items, histories.offsets, rows, self.unseen_items)
        save_arrays(folder, dict(zip(_ARRAYS, arrays, strict=True)))
        write_json(folder / "statistics.json", {"name": self.name, **self.statistics})
        if self.ceiling is not None:
            write_json(folder / "ceiling.json", self.ceiling)

    @classmethod
    def load(cls, folder: Path) -> "PreparedData":
        """Reads what `save` wrote; InputError if it can't be read or doesn't fit."""
        with reading(folder):
            numbers, offsets, rows, unseen = load_arrays(folder, _ARRAYS).values()
            users = pa.parquet.read_table(folder / "users.parquet")
            items = pa.parquet.read_table(folder / "items.parquet")
            statistics = read_json(folder / "statistics.json")
            ceiling = folder / "ceiling.json"
            return cls(
                name=statistics["name"],
                items=items,
                user_ids=tuple(users["user_id"].to_pylist()),
                user_hashes=users["user_hash"].to_numpy(),
                histories=Histories(numbers, offsets),
                items_file_rows=rows,
                unseen_items=unseen,
                statistics=statistics,
                ceiling=read_json(ceiling) if ceiling.exists() else None,
            )


def choose_categories(categories: Sequence[Sequence[Sequence[str]]]) -> list[str]:
    """One telling category per item, of its paths; "" where none is known.

    It is the name on the item's first path at the first level where no name
    is shared by 90 % of the items that have one: the roots of a shop's paths
    are often all the same ("Beauty"), and say nothing. A path that ends
    earlier gives its last name.
    """
    paths = [p[0] if p else [] for p in categories]
    deepest = max((len(path) for path in paths), default=0)
    for level in range(deepest):
        names = Counter(path[level] for path in paths if len(path) > level)
        if max(names.values()) < _MOSTLY * sum(names.values()):
            break
    else:
        level = 0
    return [path[min(level, len(path) - 1)] if path else "" for path in paths]


def hash_user_ids(user_ids: list[str]) -> UInt32[np.ndarray, " U"]:
    """The first four bytes of each identifier's BLAKE2b, little-endian.

    Python's own hash would differ from process to process.
    """
    digests = (hashlib.blake2b(u.encode()).digest()[:4] for u in user_ids)
    return np.frombuffer(b"".join(digests), "<u4").astype(np.uint32)
