"""Lists of recommendations that are kept: arrays on disk at full precision."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, Int64

from tiger_jax.evaluation import recommend_fn
from tiger_jax.evaluation.evaluator import list_items
from tiger_jax.histories import HeldOut
from tiger_jax.workdir.arrays import load_arrays, save_arrays
from tiger_jax.workdir.chunks import load_chunk, save_chunk
from tiger_jax.workdir.reading import reading

CHUNK = 2048  # users whose lists a kill costs at most


@dataclasses.dataclass(frozen=True)
class SavedLists:
    """The list of every user of a split, or of some of them.

    Attributes:
        rows: Of the users in the split's held-out interactions, ascending.
        items: Item numbers, best first, padded with -1.
        scores: Beside them, padded with -inf.
    """

    rows: Int64[np.ndarray, " U"]
    items: Int32[np.ndarray, "U k"]
    scores: Float32[np.ndarray, "U k"]

    def save(self, folder: Path, name: str) -> None:
        """Writes ``NAME_rows.npy``, ``NAME_items.npy`` and ``NAME_scores.npy``."""
        arrays = {f"{name}_{what}": array for what, array in vars(self).items()}
        save_arrays(folder, arrays)

    @classmethod
    def load(cls, folder: Path, name: str) -> "SavedLists":
        """Reads what `save` wrote; InputError names the stage to run if it can't."""
        names = [f"{name}_{field.name}" for field in dataclasses.fields(cls)]
        with reading(folder):
            return cls(*load_arrays(folder, names).values())

    def select(self, rows: Int64[np.ndarray, " u"], depth: int) -> "SavedLists":
        """The first `depth` items of some users, whose rows must be among these."""
        at = np.searchsorted(self.rows, rows)
        return SavedLists(rows, self.items[at, :depth], self.scores[at, :depth])


class ListedRecommender:
    """A recommender whose lists were made before, for known users (`RecommendFn`).

    What is excluded is taken out of them, so a list may come out shorter than asked.
    """

    def __init__(
        self,
        user_numbers: Int32[np.ndarray, " U"],
        item_numbers: Int32[np.ndarray, "U D"],
        scores: Float32[np.ndarray, "U D"],
    ) -> None:
        """Takes each user's list, best first, padded with -1 and -inf."""
        self._item_numbers, self._scores = item_numbers, scores
        self._row_of = np.full(int(user_numbers.max(initial=-1)) + 1, -1)
        self._row_of[user_numbers] = np.arange(len(user_numbers))

    def __call__(
        self,
        user_numbers: recommend_fn.Users,
        histories: recommend_fn.Shown,
        exclude: recommend_fn.Excluded,
        k: int,
    ) -> recommend_fn.Lists:
        """Looks the lists up; ValueError if a user has none."""
        del histories
        known = (user_numbers >= 0) & (user_numbers < len(self._row_of))
        rows = np.where(known, self._row_of[np.where(known, user_numbers, 0)], -1)
        if (rows < 0).any():
            raise ValueError(f"no list was made for user {user_numbers[rows < 0][0]}")
        items, scores = self._item_numbers[rows], self._scores[rows]  # [B, D]
        is_out = (items[:, :, None] == exclude[:, None, :]).any(2) | (items < 0)
        kept_first = np.argsort(is_out, axis=1, kind="stable")
        items = np.where(is_out, -1, items)
        scores = np.where(is_out, -np.inf, scores)
        items = np.take_along_axis(items, kept_first, axis=1)[:, :k]
        scores = np.take_along_axis(scores, kept_first, axis=1)[:, :k]
        return recommend_fn.pad_lists(items, scores, k)


def list_resumably(
    recommend: recommend_fn.RecommendFn,
    held_out: HeldOut,
    rows: Int64[np.ndarray, " U"],
    folder: Path,
    *,
    split: str,
    depth: int,
    batch_size: int,
) -> SavedLists:
    """Lists all users, chunk by chunk; chunks on disk aren't searched again.

    Args:
        folder: For the chunks; `remove_chunks` clears it up.
    """
    found = []
    for start in range(0, len(rows), CHUNK):
        part = np.arange(start, min(start + CHUNK, len(rows)))
        names = [f"{split}_{start:08}_{name}" for name in ("items", "scores")]
        chunk = [load_chunk(folder, name) for name in names]
        if any(array is None for array in chunk):
            made = list_items(
                recommend,
                held_out.select(part),
                k=depth,
                batch_size=batch_size,
                description=f"{split}, {start + len(part):,} of {len(rows):,}",
            )
            for name, array in zip(names, made, strict=True):
                save_chunk(folder, name, array)
            chunk = [*made]
        found.append(chunk)
    return SavedLists(rows, *(np.concatenate(p) for p in zip(*found, strict=True)))
