"""A generated catalogue from embeddings to recommended items, on one machine.

Embeddings are drawn shard by shard and never held as a whole; an RQ-VAE is trained on
a seeded sample and frozen; `assign`'s steps give each shard its Semantic IDs; the
table of all of them becomes a trie, and the trie is searched: with a model that only
reads a table, and with TIGER's decoder in the paper's sizes and random weights.
Every step is a process of its own.
"""

import functools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from benchmarks.scale.rows import ASSIGN_STEPS
from benchmarks.scale.worker import Measured, OneWorker
from tiger_jax.beam.assign import assign, load_table
from tiger_jax.models.rqvae import RqVaeConfig
from tiger_jax.quantizers.rqvae_training import RqVaeTraining
from tiger_jax.quantizers.store import save_quantizer
from tiger_jax.semantic_ids.collisions import count_distinct
from tiger_jax.semantic_ids.planning import CodeSpread, plan_semantic_ids
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.shards import Shards, ShardWriter, cut_evenly
from tiger_jax.workdir.vector_shards import read_vectors, vector_array

SHARD_ITEMS = 250_000
DIMS = 32
SAMPLE = 50_000
CODEBOOKS = (256,) * 4
NUM_BEAMS = 20
SEARCHES = 10


def measure_end_to_end(num_items: int, add: Callable[[dict[str, Any]], None]) -> None:
    """Adds one row a step."""

    def tell(step: str, measured: Measured) -> None:
        sizes = {"items": num_items, "rows": num_items}
        found = measured.result or {}
        step = ASSIGN_STEPS.get(step, step)
        add({"part": "end_to_end", "stage": step, **sizes, **measured.row(), **found})

    with tempfile.TemporaryDirectory() as name:
        _run(OneWorker(Path(name) / "spool", tell), Path(name), num_items)


def _run(worker: OneWorker, folder: Path, num_items: int) -> None:
    num_shards = max(num_items // SHARD_ITEMS, 1)
    ends = cut_evenly(num_items, num_shards)

    embeddings = ShardWriter(folder / "embeddings", num_shards, "drawn")
    draw = functools.partial(_draw_shard, embeddings, ends)
    worker.do("draw embeddings", draw, range(num_shards))
    drawn = embeddings.finish()

    train = functools.partial(_train, drawn.paths, num_items)
    planned = worker.do("train RQ-VAE", train, [folder])
    size = planned["collision_level_size"]
    ids, rqvae = folder / "semantic_ids", folder / "rqvae"
    assign(drawn, rqvae, ids, collision_level_size=size, runner=worker)

    for step, work in (
        ("table", _save_table),
        ("trie", _build_trie),
        ("decode, model that reads a table", functools.partial(_decode, False)),
        ("decode, TIGER's decoder", functools.partial(_decode, True)),
    ):
        worker.do(step, work, [folder])


def _draw_shard(writer: ShardWriter, ends: list[int], shard: int) -> None:
    """Clusters of clusters of clusters, and noise; larger ones are drawn more often."""
    books = np.random.default_rng(11).standard_normal((3, 512, DIMS), np.float32)
    rng = np.random.default_rng([12, shard])
    count = ends[shard + 1] - ends[shard]
    vectors = 0.3 * rng.standard_normal((count, DIMS), np.float32)
    for level, book in enumerate(books):
        chosen = (len(book) * rng.random(count) ** 1.5).astype(np.int64)
        vectors += book[chosen] / 2**level
    ids = [f"item-{number:08}" for number in range(ends[shard], ends[shard + 1])]
    table = {"item_id": ids, "embedding": vector_array(vectors.astype(np.float16))}
    writer.write_table(shard, pa.table(table))


def _train(paths: list[Path], num_items: int, folder: Path) -> dict[str, Any]:
    """Trains on the same share of every shard, and plans the collision level."""
    rng = np.random.default_rng(13)
    parts = []
    for path in paths:
        vectors = read_vectors(pa.parquet.read_table(path), "embedding")
        count = min(-(-SAMPLE // len(paths)), len(vectors))
        rows = rng.choice(len(vectors), count, replace=False)
        parts.append(vectors[np.sort(rows)])
    sample = np.concatenate(parts)
    model = RqVaeConfig(CODEBOOKS, hidden_sizes=(64,), latent_size=16)
    quantizer = RqVaeTraining(model, num_steps=300).fit(sample)
    run = artifacts.begin(folder, "rqvae", stage="train_rqvae", config={})
    save_quantizer(quantizer, run.folder)
    run.commit()
    spread = CodeSpread.measure(quantizer.encode(sample), CODEBOOKS)
    plan = plan_semantic_ids(num_items, num_levels=len(CODEBOOKS), spread=spread)
    return {
        "sample": len(sample),
        "planned_collision_rate": plan.collision_rate,
        "collision_level_size": plan.codebook_sizes[-1],
    }


def _save_table(folder: Path) -> dict[str, Any]:
    table = load_table(Shards.load(folder / "semantic_ids"))
    table.save(folder / "table")
    distinct = count_distinct(table.codes[:, :-1])
    return {
        "table_bytes": table.codes.nbytes,
        "collision_rate": 1 - distinct / table.num_items,
        "largest_collision_codeword": int(table.codes[:, -1].max()),
    }


def _build_trie(folder: Path) -> dict[str, Any]:
    from tiger_jax.decoding.trie import Trie

    facts = json.loads((folder / "table" / "table.json").read_text())
    codes = np.load(folder / "table" / "codes.npy", mmap_mode="r")
    trie = Trie.build(codes, facts["codebook_sizes"])
    trie.save(folder / "trie", content_hash=facts["content_hash"])
    return {"device_bytes": sum(trie.nbytes.values())}


def _decode(is_tiger: bool, folder: Path) -> dict[str, Any]:
    """Median CPU seconds of a search for one request; every list is checked."""
    import jax

    from benchmarks.decoding.cases import RealModel, TrivialModel, around
    from tiger_jax.decoding.search import beam_search
    from tiger_jax.decoding.trie import Trie
    from tiger_jax.models.tiger import TigerConfig

    facts = json.loads((folder / "table" / "table.json").read_text())
    trie = Trie.load(folder / "trie", content_hash=facts["content_hash"])
    codes = np.load(folder / "table" / "codes.npy", mmap_mode="r")
    sizes = tuple(facts["codebook_sizes"])
    model: Any = RealModel(sizes, TigerConfig()) if is_tiger else TrivialModel(sizes)
    requests: Any = range(SEARCHES + 1)
    if is_tiger:
        requests = model.inputs(SEARCHES + 1, codes)
    search = around(model, beam_search, num_beams=NUM_BEAMS)
    seconds = []
    for request in np.asarray(requests, np.int32):
        start = time.process_time()
        found = jax.block_until_ready(search(request[None], trie))
        seconds.append(time.process_time() - start)
        items = np.asarray(found.item_numbers)[0]
        if len(set(items.tolist())) != NUM_BEAMS or items.min() < 0:
            raise RuntimeError(f"not {NUM_BEAMS} items: {items}")
    return {"search_cpu_seconds": float(np.median(seconds[1:]))}
