"""Embeddings -> Semantic IDs, by a frozen quantizer that each worker loads.

Items with equal learned codewords meet in one bucket, where the local stage's own
function numbers them by a hash of their item ids. So no collision codeword depends on
the shards.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from tiger_jax.beam.blocks import (
    ITEM_NUMBER,
    column,
    gather,
    scatter,
    shards_of,
    write_items,
)
from tiger_jax.beam.runner import Flow, Keyed, RunnerConfig, check_all_came
from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.quantizers.store import load_quantizer
from tiger_jax.semantic_ids.collisions import COLLISION_LEVEL_SIZE, add_collision_level
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.shards import (
    ShardRows,
    Shards,
    ShardWriter,
    cut_evenly,
    recipe_of,
    rows_of,
)
from tiger_jax.workdir.vector_shards import read_vectors, vector_array

_load_once = functools.lru_cache(maxsize=1)(load_quantizer)
# Odd, and large: equal codewords give equal keys, others rarely do.
_MIX = 0x9E3779B97F4A7C15


def assign(
    embeddings: Shards,
    rqvae: Path,
    folder: Path,
    *,
    collision_level_size: int = COLLISION_LEVEL_SIZE,
    runner: RunnerConfig,
) -> Shards:
    """Gives every item its Semantic ID: `item_id` and `codes`, by item number.

    Equal to the stage `assign_semantic_ids` on the same embeddings and quantizer.
    InputError if the quantizer takes more than embeddings, or more items share their
    codewords than the collision level can tell apart.

    Args:
        embeddings: `item_id` and `embedding`, by item number.
        rqvae: The folder that the stage `train_rqvae` wrote.
        folder: Gets as many shards as the embeddings have.
    """
    if (rqvae / "collaborative.npy").exists():
        raise InputError(
            f"the quantizer in {rqvae} also takes collaborative vectors, which these "
            "pipelines don't make: train one on embeddings alone"
        )
    made = artifacts.load_manifest(rqvae, needed_by="assign_shards").content_hash
    num_shards = embeddings.num_shards
    sizes = (*load_quantizer(rqvae).codebook_sizes, collision_level_size)
    ends = cut_evenly(embeddings.num_rows, num_shards)
    emit = functools.partial(_emit_codes, rqvae=rqvae, num_buckets=num_shards)
    number = functools.partial(_number, sizes=sizes, ends=ends)
    sources = {"encode": (rows_of(embeddings), emit)}
    recipe = recipe_of({"sizes": sizes}, embeddings, made)
    facts = {"codebook_sizes": sizes, "num_levels": len(sizes) - 1, "rqvae": made}
    found = runner.write(
        ShardWriter(folder, num_shards, recipe),
        Flow(write_items, sources, {"collision level": number}),
        **facts,
    )
    check_all_came(found, embeddings.num_rows, folder, runner)
    say(f"{folder}: {found.num_rows:,} items, {len(sizes)} codewords each")
    return found


def load_table(shards: Shards) -> SemanticIdTable:
    """All Semantic IDs as the local stages' table: for catalogues that fit."""
    whole = shards.read()
    return SemanticIdTable(
        read_vectors(whole, "codes"),
        tuple(shards.facts["codebook_sizes"]),
        shards.facts["num_levels"],
        tuple(whole["item_id"].to_pylist()),
    )


def _emit_codes(
    rows: ShardRows, wanted: Sequence[int], *, rqvae: Path, num_buckets: int
) -> Iterator[Keyed]:
    table = pa.parquet.read_table(rows.path)
    if not table.num_rows:
        return
    codes = _load_once(rqvae).encode(read_vectors(table, "embedding"))
    coded = pa.table(
        {
            ITEM_NUMBER: np.arange(rows.first_row, rows.first_row + len(codes)),
            "item_id": table["item_id"],
            "codes": vector_array(codes),
        }
    )
    yield from scatter(coded, _buckets(codes, num_buckets), wanted)


def _buckets(codes: np.ndarray, num_buckets: int) -> np.ndarray:
    """Equal codewords in one bucket, others spread evenly."""
    mixed = np.zeros(len(codes), np.uint64)
    for level in range(codes.shape[1]):
        mixed = (mixed ^ codes[:, level].astype(np.uint64)) * np.uint64(_MIX)
        mixed ^= mixed >> np.uint64(29)
    return (mixed % np.uint64(num_buckets)).astype(np.int64)


def _number(
    bucket: tuple[int, Iterable[bytes]],
    missing: Sequence[int],
    *,
    sizes: tuple[int, ...],
    ends: Sequence[int],
) -> Iterator[Keyed]:
    table = gather(bucket[1], ITEM_NUMBER)
    assert table is not None
    full = add_collision_level(
        read_vectors(table, "codes"),
        table["item_id"].to_pylist(),
        collision_level_size=sizes[-1],
    )
    numbered = table.drop_columns(["codes"]).append_column("codes", vector_array(full))
    where = shards_of(column(table, ITEM_NUMBER), ends)
    yield from scatter(numbered, where, missing)
