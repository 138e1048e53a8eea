"""A tiny shop and its work directory, made in a moment, for tests that need one."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from tiger_jax.data.prepared import PreparedData, hash_user_ids
from tiger_jax.histories import Histories
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.arrays import save_arrays

CODEBOOK_SIZES = (8, 8, 8, 4)


def small_histories(num_users: int = 60, num_items: int = 50, seed: int = 0):
    """Histories of 3 to 30 items, which mostly walk on by 7 items a step."""
    rng = np.random.default_rng(seed)
    lists = []
    for _ in range(num_users):
        length = int(rng.integers(3, 31))
        steps = rng.choice([7, 7, 7, 11, 29], length).cumsum()
        lists.append(((rng.integers(num_items) + steps) % num_items).tolist())
    return Histories.from_lists(lists)


def small_table(num_items: int = 50, seed: int = 0) -> SemanticIdTable:
    """Unique codes over codebooks of 8, 8, 8 and 4 codewords."""
    rng = np.random.default_rng(seed)
    flat = rng.choice(np.prod(CODEBOOK_SIZES), num_items, replace=False)
    codes = np.stack(np.unravel_index(flat, CODEBOOK_SIZES), axis=1).astype(np.int32)
    ids = tuple(f"item-{number}" for number in range(num_items))
    return SemanticIdTable(codes, CODEBOOK_SIZES, 3, ids)


def make_workdir(
    workdir: Path, *, name: str = "small", quantizer: int = 0, seed: int = 0
) -> Path:
    """Writes `data/`, `rqvae/` and `semantic_ids/`, with manifests, as stages do."""
    histories, table = small_histories(seed=seed), small_table(seed=seed)
    user_ids = tuple(f"user-{number}" for number in range(histories.num_users))
    titles = [f"Thing number {number}" for number in range(table.num_items)]
    items = pa.table(
        {
            "item_id": list(table.item_ids),
            "title": titles,
            "categories": [[["All", f"Shelf {n % 5}"]] for n in range(len(titles))],
        }
    )
    data = PreparedData(
        name=name,
        items=items,
        user_ids=user_ids,
        user_hashes=hash_user_ids(list(user_ids)),
        histories=histories,
        items_file_rows=np.arange(table.num_items),
        unseen_items=np.empty(0, np.int32),
        statistics={},
        ceiling=None,
    )
    workdir.mkdir(parents=True, exist_ok=True)
    run = artifacts.begin(workdir, "data", stage="prepare_data", config={"seed": seed})
    data.save(run.folder)
    run.commit()
    config = {"quantizer": quantizer}
    run = artifacts.begin(workdir, "rqvae", stage="train_rqvae", config=config)
    if not run.is_current:
        codebooks = np.full((3, 8, 2), quantizer)
        save_arrays(run.folder, {"codebooks": codebooks})
        run.commit()
    run = artifacts.begin(
        workdir,
        "semantic_ids",
        stage="assign_semantic_ids",
        inputs=("data", "rqvae"),
        config={"seed": seed},
    )
    table.save(run.folder)
    run.commit()
    return workdir
