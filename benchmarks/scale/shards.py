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
    pass_on,
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
from tiger_jax.workdir.arrays import save_whole
from tiger_jax.workdir.shards import Shards, ShardWriter, cut_evenly, recipe_of, rows_of

HISTORY = 10
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
        generate = functools.partial(_generate, worker, folder / "raw")
        events = functools.partial(_interactions, num_rows=num_rows)
        raw = RawShards(
            generate("items", _items, num_items, num_shards),
            generate("interactions", events, num_rows, num_shards),
            "scale",
        )
        with _leading("prepare", num_shards, tell):
            data = _prepare(worker, raw, folder / "data", num_shards)
        _tokens(worker, data, folder / "tokens")
        if num_rows > MAX_TEXTS:
            return
        shutil.rmtree(folder / "raw")
        titled = functools.partial(_items, titled=True)
        catalogue = generate("titles", titled, num_rows, num_shards)
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
    worker: OneWorker,
    folder: Path,
    kind: str,
    make: Callable[[int, int, np.random.Generator], pa.Table],
    total: int,
    num_shards: int,
) -> Shards:
    """Rows made shard by shard: `make(first, last, rng)`."""
    writer = ShardWriter(folder / kind, num_shards, recipe_of({kind: total}))
    work = functools.partial(
        _generate_shard, make, writer, cut_evenly(total, num_shards)
    )
    worker.run(f"generate {kind}", work, range(num_shards))
    return writer.finish()


def _generate_shard(
    make: Any, writer: ShardWriter, ends: list[int], shard: int
) -> None:
    rng = np.random.default_rng([shard, 7])
    writer.write_table(shard, make(ends[shard], ends[shard + 1], rng))


def _zipf(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers below `size` by Zipf's law."""
    upto = np.cumsum(1 / np.arange(1, size + 1))
    return np.searchsorted(upto, rng.random(count) * upto[-1])


def _items(
    first: int, last: int, rng: np.random.Generator, titled: bool = False
) -> pa.Table:
    """Items, with titles if `embed` is to read them."""
    count = last - first
    empty = titles = pa.array([""] * count, pa.string())
    if titled:
        words = pa.array(np.char.add("w", np.arange(_WORDS).astype(str)))
        columns = (
            words.take(pa.array(_zipf(_WORDS, count, rng)))
            for _ in range(_WORDS_PER_TEXT)
        )
        titles = pa.compute.binary_join_element_wise(*columns, " ")
    return pa.table(
        {
            "item_id": np.char.add("i", np.arange(first, last).astype(str)),
            "title": titles,
            "brand": empty,
            "price": pa.nulls(count, pa.float64()),
            "categories": pa.nulls(count, CATEGORY_PATHS),
        }
    )


def _interactions(
    first: int, last: int, rng: np.random.Generator, *, num_rows: int
) -> pa.Table:
    count = last - first
    ranks = _zipf(num_rows // HISTORY, count, rng)
    users = rng.integers(0, num_rows // HISTORY, count)
    times = rng.integers(1_300_000_000, 1_500_000_000, count).astype(float)
    return pa.table(
        {
            "user_id": pa.array(users).cast(pa.string()),
            "item_id": np.char.add("i", ranks.astype(str)),
            "timestamp": times,
        }
    )


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
    every, shards = range(num_buckets), rows_of(raw.interactions)
    items, asked = Spool(folder / "items"), Spool(folder / "asked")
    answered, by_user = Spool(folder / "answered"), Spool(folder / "by_user")
    emit_items = functools.partial(emit_into, items, joined.emit_items, every)
    emit_asked = functools.partial(emit_into, asked, joined.emit_asked, every)
    both = functools.partial(_take_both, items, asked)
    join = functools.partial(
        joined.join_shard, shards=shards, num_buckets=num_buckets, missing=every
    )
    for name, work, inputs in (
        ("items", emit_items, rows_of(raw.items)),
        ("ask", emit_asked, list(enumerate(raw.interactions.paths))),
        ("look up", functools.partial(pass_on, both, joined.look_up, answered), every),
        (
            "join",
            functools.partial(pass_on, answered.take, join, by_user),
            range(len(shards)),
        ),
        (
            "write",
            functools.partial(write_from, by_user, joined.write_bucket, writer),
            every,
        ),
    ):
        worker.run(f"joined, {name}", work, inputs)
    return writer.finish()


def _take_both(items: Spool, asked: Spool, bucket: int) -> dict[str, list[bytes]]:
    return {"items": items.take(bucket), "asked": asked.take(bucket)}


def _tokens(worker: OneWorker, data: prepare.PreparedShards, folder: Path) -> None:
    folder.mkdir()
    codes = folder / "codes.npy"
    rng = np.random.default_rng(0)
    shape = (data.items.num_rows, len(_CODEBOOKS))
    save_whole(codes, rng.integers(0, 256, shape, np.int32))
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
        write = functools.partial(_write_tokens, work, writer)
        worker.run(f"tokens, {split}", write, sample)


def _write_tokens(work: Any, writer: ShardWriter, shard: int) -> None:
    work(shard, writer)


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
    encoder: embed.TextEncoding,
    runner: Any,
) -> Shards:
    """The first half of `embed`, by one worker."""
    del runner
    spool, every = Spool(writer.folder / "spool"), range(writer.num_shards)
    emit = functools.partial(embed._emit_texts, text=text, num_buckets=len(every))
    emit = functools.partial(emit_into, spool, emit, every)
    worker.run("texts, take apart", emit, rows_of(data.items))
    embedding = functools.partial(_embed_bucket, spool, writer, encoder)
    worker.run("texts, embed", embedding, every)
    return writer.finish()


def _embed_bucket(
    spool: Spool, writer: ShardWriter, encoder: embed.TextEncoding, bucket: int
) -> None:
    texts = embed._distinct((bucket, spool.take(bucket)))
    embedded = encoder.run_inference([texts], _loaded(encoder))
    for keyed in embedded:
        embed._write_distinct(writer, keyed)


@functools.cache
def _loaded(encoder: embed.TextEncoding) -> EncodeFn:
    """Once a worker."""
    return encoder.load_model()
