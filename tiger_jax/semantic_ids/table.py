"""SemanticIdTable: which item has which Semantic ID."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from tiger_jax.errors import InputError
from tiger_jax.semantic_ids.collisions import group_rows
from tiger_jax.semantic_ids.quality import describe_codes
from tiger_jax.workdir import arrays, artifacts, hashing, json_files
from tiger_jax.workdir.reading import reading

_CODES, _TABLE, _ITEM_IDS = "codes.npy", "table.json", "item_ids.parquet"


@dataclasses.dataclass(frozen=True, eq=False)
class SemanticIdTable:
    """The Semantic ID of every item; no two items have the same.

    Attributes:
        codes: Row i is item number i's Semantic ID: L learned codewords, coarse to
            fine, then the collision level's, so T = L + 1.
        num_levels: L, the learned levels.

    Raises:
        InputError: A codeword lies outside its codebook, or two items share an ID.
    """

    codes: Int32[np.ndarray, "N T"]
    codebook_sizes: tuple[int, ...]
    num_levels: int
    item_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        sizes = tuple(int(size) for size in self.codebook_sizes)
        object.__setattr__(self, "codebook_sizes", sizes)
        object.__setattr__(self, "item_ids", tuple(self.item_ids))
        num_items, length = self.codes.shape
        if len(sizes) != length or self.num_levels != length - 1:
            raise InputError(
                f"Semantic IDs of {length} codewords need {length} codebook sizes and "
                f"{length - 1} learned levels, got sizes {sizes} and "
                f"{self.num_levels} levels"
            )
        if len(self.item_ids) != num_items:
            raise InputError(f"{num_items} codes but {len(self.item_ids)} item ids")
        outside = (self.codes < 0) | (self.codes >= np.asarray(sizes))
        if outside.any():
            row, level = (int(i) for i in np.argwhere(outside)[0])
            raise InputError(
                f"item {self.item_ids[row]!r} has codeword "
                f"{int(self.codes[row, level])} at level {level}, whose codebook has "
                f"{sizes[level]}"
            )
        groups = group_rows(self.codes)
        if (counts := np.bincount(groups)).max(initial=0) > 1:
            first, second = np.flatnonzero(groups == counts.argmax())[:2]
            raise InputError(
                f"items {self.item_ids[first]!r} and {self.item_ids[second]!r} share "
                f"the Semantic ID {self.codes[first].tolist()}"
            )
        if len(set(self.item_ids)) != self.num_items:
            raise InputError("an item id occurs twice in the Semantic ID table")

    @property
    def num_items(self) -> int:
        return len(self.codes)

    @property
    def semantic_id_length(self) -> int:
        return self.codes.shape[1]

    def describe(self, categories: Sequence[str] | None, seed: int) -> dict[str, Any]:
        """`describe_codes` of the learned codewords."""
        codes, sizes = self.codes[:, :-1], self.codebook_sizes[:-1]
        return describe_codes(codes, sizes, categories=categories, seed=seed)

    @functools.cached_property
    def content_hash(self) -> str:
        """Names the table by its values: equal tables have equal hashes."""
        return hashing.hash_json(
            {
                "codes": hashing.hash_arrays({"codes": self.codes}),
                "codebook_sizes": self.codebook_sizes,
                "item_ids": self.item_ids,
            }
        )

    def save(self, folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays.save_array(folder / _CODES, self.codes)
        ids = pa.table({"item_id": pa.array(self.item_ids, pa.string())})
        pq.write_table(ids, folder / _ITEM_IDS)
        json_files.write_json(
            folder / _TABLE,
            {
                "codebook_sizes": self.codebook_sizes,
                "num_levels": self.num_levels,
                "num_items": self.num_items,
                "content_hash": self.content_hash,
            },
        )

    @classmethod
    def load(cls, folder: Path) -> "SemanticIdTable":
        """Reads what `save` wrote; InputError if it is damaged or something else."""
        import pyarrow.parquet as pq

        folder = Path(folder)
        with reading(folder):
            facts = json_files.read_json(folder / _TABLE)
            table = cls(
                arrays.load_array(folder / _CODES),
                tuple(facts["codebook_sizes"]),
                facts["num_levels"],
                tuple(pq.read_table(folder / _ITEM_IDS)["item_id"].to_pylist()),
            )
            expected = facts["content_hash"]
        if table.content_hash != expected:
            raise InputError(
                f"{folder} holds the Semantic IDs {table.content_hash[:12]}, but "
                f"{_TABLE} says {expected[:12]}: run --stage=assign_semantic_ids again"
            )
        return table


def commit_table(
    run: artifacts.StageRun,
    table: SemanticIdTable,
    *,
    source: str,
    categories: Sequence[str] | None,
    seed: int,
) -> dict[str, Any]:
    """Ends the run that made a table; returns what is in `quality.json`."""
    table.save(run.folder)
    quality = table.describe(categories, seed)
    json_files.write_json(run.folder / "quality.json", quality)
    run.commit(
        summary={
            "items": table.num_items,
            "codebook_sizes": table.codebook_sizes,
            "collision_rate": quality["collision_rate"],
            "largest_group": quality["largest_group"],
            "source": source,
        }
    )
    return quality
