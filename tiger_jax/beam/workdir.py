"""Shards -> the folders of a work directory, where one machine holds them.

Training streams from shards and needs `semantic_ids/` alone. Evaluation, export and
serving read what the local stages write: `data/`, `embeddings/` and `semantic_ids/`
are written here with the very same contents, so that these go on from there.
"""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tiger_jax.beam.assign import load_table
from tiger_jax.beam.embed import MAX_FITTED_ITEMS
from tiger_jax.beam.prepare import PreparedShards, read_histories
from tiger_jax.data.item_text import ItemTextConfig, build_item_texts
from tiger_jax.data.prepared import PreparedData, choose_categories
from tiger_jax.data.splits import Splits
from tiger_jax.data.statistics import compute_statistics
from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.semantic_ids.table import commit_table
from tiger_jax.stage_table import MADE_BY
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.arrays import load_array
from tiger_jax.workdir.json_files import write_json
from tiger_jax.workdir.shards import Shards
from tiger_jax.workdir.vector_shards import save_vectors

FOLDERS = ("data", "embeddings", "semantic_ids")
# What `prepared.json` says beside the counts.
_NOT_STATISTICS = ("name", "seed", "contents", "unseen_items_hash")


def write_workdir(workdir: Path, folders: Collection[str] = FOLDERS) -> None:
    """Writes some of `FOLDERS` from `shards/`: `semantic_ids` is enough to train.

    InputError if a folder's shards are missing, or another shop's folder is there.
    """
    unknown = sorted(set(folders) - set(FOLDERS))
    if unknown:
        raise InputError(
            f"assign_shards.folders names {unknown}: choose from {', '.join(FOLDERS)}"
        )
    shards = workdir / "shards"
    data = PreparedShards.load(shards / "data")
    _refuse_other_data(workdir, data)
    if "data" in folders:
        _write_data(workdir, data)
    if "embeddings" in folders:
        embeddings = Shards.load(shards / "embedded" / "embeddings")
        _write_embeddings(workdir, data, embeddings)
    if "semantic_ids" in folders:
        _write_semantic_ids(workdir, data, Shards.load(shards / "semantic_ids"))


def _refuse_other_data(workdir: Path, data: PreparedShards) -> None:
    """Leaves a work directory alone that the local stages filled."""
    if not (workdir / "data").exists():
        return
    old = artifacts.load_manifest(workdir / "data", verify=False)
    if "shards/data" not in old.external:
        raise InputError(
            f"{workdir} holds data prepared from {old.summary.get('source')}, and not "
            f"from {data.folder}: choose another --workdir"
        )


def _write_data(workdir: Path, shards: PreparedShards) -> None:
    run = _begin(workdir, "data", shards.content_hash)
    if run.is_current:
        return
    users = shards.histories.read()
    histories, unseen = read_histories(users), shards.unseen_items
    split = Splits.leave_one_out(histories, unseen)
    items = shards.items.read()
    data = PreparedData(
        name=shards.facts["name"],
        items=items,
        user_ids=tuple(users["user_id"].to_pylist()),
        user_hashes=users["user_hash"].to_numpy(),
        histories=histories,
        items_file_rows=load_array(shards.folder / "items_file_rows.npy"),
        unseen_items=unseen,
        statistics={
            **{k: v for k, v in shards.facts.items() if k not in _NOT_STATISTICS},
            **compute_statistics(histories, split, num_items=items.num_rows),
        },
        ceiling=None,
    )
    data.save(run.folder)
    source = str(shards.folder.resolve())
    run.commit(summary={"source": source, "name": data.name, **data.statistics})
    say(f"{run.final}: {data.num_users:,} users, {data.num_items:,} items")


def _write_embeddings(workdir: Path, data: PreparedShards, shards: Shards) -> None:
    run = _begin(workdir, "embeddings", shards.content_hash, "data")
    if run.is_current:
        return
    dims = save_vectors(shards, "embedding", run.folder / "embeddings.npy").shape[1]
    facts, made_by = shards.facts, shards.facts["made_by"]
    text = ItemTextConfig(
        tuple(made_by["text"]["sentences"]), made_by["text"]["price_format"]
    )
    schema = pa.schema([("item_id", pa.string()), ("text", pa.string())])
    with pa.parquet.ParquetWriter(run.folder / "texts.parquet", schema) as writer:
        for items in data.items.tables():
            texts = build_item_texts(items, text)
            columns = {"item_id": items["item_id"], "text": texts}
            writer.write_table(pa.table(columns, schema=schema))
    if made_by["tfidf"] and data.items.num_rows > MAX_FITTED_ITEMS:
        # Fitted to some of the texts: what can't be fitted again to them all.
        shutil.copytree(made_by["tfidf"], run.folder / "tfidf")
    made_by = {
        **{k: v for k, v in made_by.items() if k != "tfidf"},
        "kind": facts["kind"],
        "distinct_texts": facts["distinct_texts"],
        "embedding_dim": dims,
    }
    write_json(run.folder / "encoder.json", made_by)
    run.commit(summary={"items": shards.num_rows, **made_by})
    say(f"{run.final}: {shards.num_rows:,} items, {dims} dimensions")


def _write_semantic_ids(workdir: Path, data: PreparedShards, shards: Shards) -> None:
    # The quantizer stands among the inputs only if it is the one that was used.
    inputs, rqvae = ["data", "embeddings"], workdir / "rqvae"
    if (rqvae / artifacts.MANIFEST).is_file():
        used = artifacts.load_manifest(rqvae, verify=False).content_hash
        inputs += ["rqvae"] * (used == shards.facts["rqvae"])
    run = _begin(workdir, "semantic_ids", shards.content_hash, *inputs)
    if run.is_current:
        return
    table = load_table(shards)
    categories: Any = data.items.read(["categories"])["categories"].to_pylist()
    commit_table(
        run,
        table,
        source="rqvae",
        categories=choose_categories(categories),
        seed=data.facts["seed"],
    )
    say(f"{run.final}: {table.num_items:,} items")


def _begin(workdir: Path, folder: str, made_from: str, *inputs: str) -> Any:
    """Begins a local stage's folder; of the inputs, those that are there are named."""
    return artifacts.begin(
        workdir,
        folder,
        stage=MADE_BY[folder],
        inputs=[i for i in inputs if (workdir / i / artifacts.MANIFEST).is_file()],
        config={"from": "shards"},
        external={f"shards/{folder}": made_from},
    )
