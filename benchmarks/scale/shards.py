"""The pipelines before training, a worker's steps over shards of one size.

A shop is generated shard by shard: ten interactions a user and, by Zipf's law, an
item. Each step of `prepare` and `tokens` then runs over all shards (of token files, a
sample) in a process of its own; the process that leads them is measured too. `embed`
has as many items as the others have interactions, and texts of six words by Zipf's law.
"""

import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from benchmarks.scale import shop
from benchmarks.scale.rows import EMBED_STEPS
from benchmarks.scale.shop import HISTORY
from benchmarks.scale.worker import Measured, OneWorker, measure_here
from tiger_jax.beam import prepare, tokens
from tiger_jax.beam.embed import embed
from tiger_jax.beam.raw import RawShards
from tiger_jax.beam.runner import Flow
from tiger_jax.data.interactions import InteractionsConfig
from tiger_jax.data.item_text import ItemTextConfig
from tiger_jax.data.splits import SplitsConfig
from tiger_jax.embedding.encoders import TfidfEncoder
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.workdir.arrays import save_whole
from tiger_jax.workdir.shards import Shards, ShardWriter, cut_evenly, recipe_of

SHARD_ROWS = 250_000
TOKEN_SHARDS = 2
_CODEBOOKS = (256,) * 4
# More items' embeddings would take tens of gigabytes of disk.
MAX_TEXTS = 10_000_000
# Of the items' texts, and of their embeddings.
_WORDS, _WORDS_PER_TEXT, _DIMS = 50_000, 6, 64


def measure_shards(num_rows: int, add: Callable[[dict[str, Any]], None]) -> None:
    """Adds one row a step, over a shop of so many interactions."""
    num_shards = max(num_rows // SHARD_ROWS, 1)
    num_items = num_rows // HISTORY

    def tell(step: str, measured: Measured) -> None:
        if step.startswith("generate"):
            return
        items = num_rows if step.startswith(EMBED_STEPS) else num_items
        sizes = {"items": items, "rows": num_rows, "shards_in_all": num_shards}
        add({"part": "shards", "stage": step, **sizes, **measured.row()})

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        worker = OneWorker(folder / "spool", tell)

        def generate(kind: str, make: Any, total: int) -> Shards:
            place = folder / f"generate {kind}"
            return _generate(worker, place, make, total, num_shards)

        def lead(pipeline: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            """Measures this process, which leads a pipeline's workers."""
            how = {"seed": 0, "num_shards": num_shards, "runner": worker, **options}
            task = functools.partial(pipeline, *arguments, **how)
            measured = measure_here(num_shards, task)
            tell(f"{pipeline.__name__}, the leading process", measured)
            return measured.result

        events = functools.partial(_interactions, num_rows=num_rows)
        raw = RawShards(
            generate("items", _items, num_items),
            generate("interactions", events, num_rows),
            "scale",
        )
        data = lead(
            prepare.prepare,
            raw,
            folder / "data",
            interactions=InteractionsConfig(),
            splits=SplitsConfig(0.0),
        )
        _tokens(worker, data, folder / "tokens")
        if num_rows > MAX_TEXTS:
            return
        for shards in (raw.items, raw.interactions):
            shutil.rmtree(shards.folder)
        catalogue = generate("titles", _titled_items, num_rows)
        lead(
            embed,
            # It reads the items alone.
            prepare.PreparedShards(catalogue, catalogue, folder, {}),
            folder / "embedded",
            text=ItemTextConfig(),
            encoder=TfidfEncoder(dims=_DIMS),
        )


def _generate(
    worker: OneWorker,
    folder: Path,
    make: Callable[[int, int, np.random.Generator], pa.Table],
    total: int,
    num_shards: int,
) -> Shards:
    """Rows made shard by shard: `make(first, last, rng)`."""
    writer = ShardWriter(folder, num_shards, recipe_of({folder.name: total}))
    ends = cut_evenly(total, num_shards)
    write = functools.partial(_generate_shard, make=make, ends=ends)
    return worker.write(writer, Flow(write))


def _generate_shard(
    shard: int, _: Any, writer: ShardWriter, *, make: Any, ends: list[int]
) -> None:
    rng = np.random.default_rng([shard, 7])
    writer.write_table(shard, make(ends[shard], ends[shard + 1], rng))


def _items(first: int, last: int, rng: np.random.Generator) -> pa.Table:
    del rng
    return shop.make_items(first, last)


def _titled_items(first: int, last: int, rng: np.random.Generator) -> pa.Table:
    words = pa.array(np.char.add("w", np.arange(_WORDS).astype(str)))
    columns = (
        words.take(pa.array(shop.draw_zipf(_WORDS, last - first, rng)))
        for _ in range(_WORDS_PER_TEXT)
    )
    titles = pa.compute.binary_join_element_wise(*columns, " ")
    return shop.make_items(first, last, titles)


def _interactions(
    first: int, last: int, rng: np.random.Generator, *, num_rows: int
) -> pa.Table:
    count = last - first
    bought = shop.name_items(shop.draw_zipf(num_rows // HISTORY, count, rng))
    users = rng.integers(0, num_rows // HISTORY, count)
    times = rng.integers(1_300_000_000, 1_500_000_000, count).astype(float)
    return shop.make_interactions(users, bought, times)


def _tokens(worker: OneWorker, data: prepare.PreparedShards, folder: Path) -> None:
    """Token files of two splits, of the first shards of histories alone."""
    codes = np.random.default_rng(0).integers(
        0, 256, (data.items.num_rows, len(_CODEBOOKS)), np.int32
    )
    folder.mkdir()
    save_whole(folder / "codes.npy", codes)
    histories = data.histories
    for split in ("train", "test"):
        work = tokens.Tokens(
            split,
            tuple(histories.paths),
            data.folder / "unseen_items.npy",
            folder / "codes.npy",
            TokenLayout(_CODEBOOKS, 2000),
            20,
            0,
        )
        writer = ShardWriter(folder / split, histories.num_shards, "tokens", "tfrecord")
        sample = range(min(TOKEN_SHARDS, histories.num_shards))
        write = functools.partial(_write_tokens, work, writer)
        worker.do(f"tokens, {split}", write, sample)


def _write_tokens(work: tokens.Tokens, writer: ShardWriter, shard: int) -> None:
    work(shard, (), writer)
