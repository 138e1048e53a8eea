"""The pipelines before training, a worker's steps over shards of one size.

A shop is generated shard by shard: ten interactions a user and, by Zipf's law, an
item. Each step of `prepare` and `tokens` then runs over all shards (of token files, a
sample) in a process of its own; the process that leads them is measured too. `embed`
has as many items as the others have interactions, and texts of six words by Zipf's law.
"""

import contextlib
import functools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from benchmarks.scale.rows import EMBED_STEPS
from benchmarks.scale.worker import (
    Measured,
    OneWorker,
    Spool,
    emit_into,
    forget_peak,
    peak_bytes,
    write_from,
)
from tiger_jax.beam import embed, joined, prepare, tokens
from tiger_jax.beam.raw import RawShards
from tiger_jax.beam.runner import RunnerConfig
from tiger_jax.data.interactions import InteractionsConfig
from tiger_jax.data.item_text import ItemTextConfig
from tiger_jax.data.raw_shop import CATEGORY_PATHS
from tiger_jax.data.splits import SplitsConfig
from tiger_jax.embedding.encoders import EncodeFn, TfidfEncoder
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.workdir import chunk_files
from tiger_jax.workdir.shards import Shards, ShardWriter, cut_evenly, recipe_of, rows_of

HISTORY = 10
SHARD_ROWS = 250_000
TOKEN_SHARDS = 2
_CODEBOOKS = (256,) * 4
# More items' embeddings would take tens of gigabytes of disk.
MOST_TEXTS = 10_000_000
# Of the items' texts, and of their embeddings.
_WORDS, _WORDS_A_TEXT, _DIMS = 50_000, 6, 64


def measure_shards(num_rows: int, add: Callable[[dict[str, Any]], None]) -> None:
    """Adds one row a step, over a shop of so many interactions."""
    num_shards = max(num_rows // SHARD_ROWS, 1)
    num_items = num_rows // HISTORY

    def tell(step: str, measured: Measured) -> None:
        if step.startswith("generate"):
            return
        is_catalogue = step.startswith(EMBED_STEPS)
        add(
            {
                "part": "shards",
                "stage": step,
                "items": num_rows if is_catalogue else num_items,
                "rows": num_rows,
                "shards_in_all": num_shards,
                "shards": measured.shards,
                "cpu_seconds": measured.cpu_seconds,
                "peak_bytes": measured.peak_bytes,
                "start_bytes": measured.start_bytes,
            }
        )

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        worker = OneWorker(folder / "spool", tell)
        raw = _generate(worker, folder / "raw", num_rows, num_items, num_shards)
        with _leading("prepare", num_shards, tell):
            data = _prepare(worker, raw, folder / "data", num_shards)
        _tokens(worker, data, folder / "tokens")
        if num_rows > MOST_TEXTS:
            return
        shutil.rmtree(folder / "raw")
        catalogue = _generate_catalogue(worker, folder / "items", num_rows, num_shards)
        with _leading("embed", num_shards, tell):
            _embed(worker, catalogue, folder / "embedded", num_shards)


@contextlib.contextmanager
def _leading(
    name: str, num_shards: int, tell: Callable[[str, Measured], None]
) -> Iterator[None]:
    """Measures this process, which leads a pipeline's workers."""
    forget_peak()
    start, cpu_start = peak_bytes(), time.process_time()
    yield
    seconds = time.process_time() - cpu_start
    lead = Measured(num_shards, seconds, peak_bytes(), start)
    tell(f"{name}, the leading process", lead)


# --- The shop -----------------------------------------------------------------------


def _generate(
    worker: OneWorker, folder: Path, num_rows: int, num_items: int, num_shards: int
) -> RawShards:
    recipe = recipe_of({"rows": num_rows})
    found = []
    for kind, make, total in (
        ("items", _items, num_items),
        ("interactions", _interactions, num_rows),
    ):
        writer = ShardWriter(folder / kind, num_shards, recipe)
        ends = cut_evenly(total, num_shards)
        work = functools.partial(make, ends=ends, num_items=num_items)
        worker.run(
            f"generate {kind}",
            [functools.partial(work, s, writer) for s in range(num_shards)],
        )
        found.append(writer.finish())
    return RawShards(found[0], found[1], "scale")


def _items(shard: int, writer: ShardWriter, *, ends: list[int], num_items: int) -> None:
    del num_items
    count = ends[shard + 1] - ends[shard]
    _write_items(shard, writer, ends, pa.array([""] * count, pa.string()))


def _write_items(
    shard: int, writer: ShardWriter, ends: list[int], titles: pa.Array
) -> None:
    count = ends[shard + 1] - ends[shard]
    ids = np.char.add("i", np.arange(ends[shard], ends[shard + 1]).astype(str))
    table = {
        "item_id": pa.array(ids),
        "title": titles,
        "brand": pa.array([""] * count, pa.string()),
        "price": pa.nulls(count, pa.float64()),
        "categories": pa.nulls(count, CATEGORY_PATHS),
    }
    writer.write_table(shard, pa.table(table))


def _interactions(
    shard: int, writer: ShardWriter, *, ends: list[int], num_items: int
) -> None:
    count = ends[shard + 1] - ends[shard]
    rng = np.random.default_rng([shard, 7])
    upto = np.cumsum(1 / np.arange(1, num_items + 1))
    ranks = np.searchsorted(upto, rng.random(count) * upto[-1])
    table = {
        "user_id": pa.array(rng.integers(0, ends[-1] // HISTORY, count)),
        "item_id": pa.array(np.char.add("i", ranks.astype(str))),
        "timestamp": pa.array(
            rng.integers(1_300_000_000, 1_500_000_000, count).astype(float)
        ),
    }
    table["user_id"] = table["user_id"].cast(pa.string())
    writer.write_table(shard, pa.table(table))


def _generate_catalogue(
    worker: OneWorker, folder: Path, num_items: int, num_shards: int
) -> Shards:
    """Items with titles, as `embed` reads them."""
    writer = ShardWriter(folder, num_shards, recipe_of({"titled": num_items}))
    work = functools.partial(_titled_items, ends=cut_evenly(num_items, num_shards))
    tasks = [functools.partial(work, s, writer) for s in range(num_shards)]
    worker.run("generate titles", tasks)
    return writer.finish()


def _titled_items(shard: int, writer: ShardWriter, *, ends: list[int]) -> None:
    count = ends[shard + 1] - ends[shard]
    rng = np.random.default_rng([shard, 8])
    upto = np.cumsum(1 / np.arange(1, _WORDS + 1))
    words = pa.array(np.char.add("w", np.arange(_WORDS).astype(str)))
    draws = rng.random((_WORDS_A_TEXT, count)) * upto[-1]
    columns = [words.take(pa.array(np.searchsorted(upto, row))) for row in draws]
    titles = pa.compute.binary_join_element_wise(*columns, " ")
    _write_items(shard, writer, ends, titles)


# --- The steps ----------------------------------------------------------------------


@contextlib.contextmanager
def _in_place_of(module: Any, **ours: Any) -> Iterator[None]:
    """Has a module's functions that run a pipeline replaced by the worker's."""
    kept = {name: getattr(module, name) for name in ours}
    try:
        for name, function in ours.items():
            setattr(module, name, function)
        yield
    finally:
        for name, function in kept.items():
            setattr(module, name, function)


def _prepare(
    worker: OneWorker, raw: RawShards, folder: Path, num_shards: int
) -> prepare.PreparedShards:
    """`prepare`, its steps done by the worker instead of by Beam."""
    with _in_place_of(
        prepare,
        exchange=worker.exchange,
        each_shard=worker.each_shard,
        join_interactions=functools.partial(_join, worker),
    ):
        return prepare.prepare(
            raw,
            folder,
            interactions=InteractionsConfig(),
            splits=SplitsConfig(0.0),
            seed=0,
            num_shards=num_shards,
            runner=RunnerConfig(),
        )


def _join(
    worker: OneWorker, raw: RawShards, folder: Path, num_buckets: int, runner: Any
) -> Shards:
    """`join_interactions`, by one worker."""
    del runner
    writer = ShardWriter(folder, num_buckets, recipe_of({"joined": num_buckets}))
    every = range(num_buckets)
    spools = {n: Spool(folder / n) for n in ("items", "asked")}
    answered, by_user = Spool(folder / "answered"), Spool(folder / "by_user")
    shards = rows_of(raw.interactions)
    steps: dict[str, list[Any]] = {
        "items": [
            functools.partial(
                emit_into, spools["items"], joined.emit_items, rows, every
            )
            for rows in rows_of(raw.items)
        ],
        "ask": [
            functools.partial(
                emit_into, spools["asked"], joined.emit_asked, shard, every
            )
            for shard in joined.number_shards(raw.interactions)
        ],
        "look up": [functools.partial(_look_up, spools, answered, b) for b in every],
        "join": [
            functools.partial(_join_shard, answered, by_user, n, shards, num_buckets)
            for n in range(len(shards))
        ],
        "write": [
            functools.partial(write_from, by_user, joined.write_bucket, b, writer)
            for b in every
        ],
    }
    for name, tasks in steps.items():
        worker.run(f"joined, {name}", tasks)
    return writer.finish()


def _look_up(spools: dict[str, Spool], answered: Spool, bucket: int) -> None:
    parts: dict[str, Any] = {name: s.take(bucket) for name, s in spools.items()}
    answered.put(joined.look_up((bucket, parts)))


def _join_shard(
    answered: Spool, by_user: Spool, number: int, shards: Any, num_buckets: int
) -> None:
    blocks = joined.join_shard(
        (number, answered.take(number)),
        shards=shards,
        num_buckets=num_buckets,
        missing=range(num_buckets),
    )
    by_user.put(blocks)


def _tokens(worker: OneWorker, data: prepare.PreparedShards, folder: Path) -> None:
    folder.mkdir()
    codes = folder / "codes.npy"
    rng = np.random.default_rng(0)
    shape = (data.items.num_rows, len(_CODEBOOKS))
    chunk_files.save_whole(codes, rng.integers(0, 256, shape, np.int32))
    for split in ("train", "test"):
        work = tokens._Tokens(
            split,
            tuple(data.histories.paths),
            data.folder / "unseen_items.npy",
            codes,
            TokenLayout(_CODEBOOKS, 2000),
            20,
            0,
        )
        shards = data.histories.num_shards
        writer = ShardWriter(folder / split, shards, "tokens", "tfrecord")
        sample = range(min(TOKEN_SHARDS, shards))
        worker.run(
            f"tokens, {split}", [functools.partial(work, s, writer) for s in sample]
        )


def _embed(worker: OneWorker, items: Shards, folder: Path, num_shards: int) -> None:
    """`embed`, its steps done by the worker instead of by Beam."""
    with _in_place_of(
        embed,
        exchange=worker.exchange,
        _embed_distinct=functools.partial(_embed_distinct, worker),
    ):
        embed.embed(
            # It reads the items alone.
            prepare.PreparedShards(items, items, items.folder, {}),
            folder,
            text=ItemTextConfig(),
            encoder=TfidfEncoder(dims=_DIMS),
            seed=0,
            num_shards=num_shards,
            runner=RunnerConfig(),
        )


def _embed_distinct(
    worker: OneWorker,
    data: prepare.PreparedShards,
    writer: ShardWriter,
    text: ItemTextConfig,
    encoder: embed.FrozenEncoder,
    runner: Any,
) -> Shards:
    """The first half of `embed`, by one worker."""
    del runner
    spool, every = Spool(writer.folder / "spool"), range(writer.num_shards)
    emit = functools.partial(embed._emit_texts, text=text, num_buckets=len(every))
    worker.run(
        "texts, take apart",
        [
            functools.partial(emit_into, spool, emit, rows, every)
            for rows in rows_of(data.items)
        ],
    )
    worker.run(
        "texts, embed",
        [functools.partial(_embed_bucket, spool, writer, encoder, b) for b in every],
    )
    return writer.finish()


def _embed_bucket(
    spool: Spool, writer: ShardWriter, encoder: embed.FrozenEncoder, bucket: int
) -> None:
    texts = embed._distinct((bucket, spool.take(bucket)))
    embedded = embed.TextEncoding(encoder).run_inference([texts], _loaded(encoder))
    for keyed in embedded:
        embed._write_distinct(writer, keyed)


@functools.cache
def _loaded(encoder: embed.FrozenEncoder) -> EncodeFn:
    """Once a worker."""
    return encoder.load()
