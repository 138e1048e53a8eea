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
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from benchmarks.scale import shop
from benchmarks.scale.rows import EMBED_STEPS
from benchmarks.scale.shop import HISTORY
from benchmarks.scale.worker import (
    Measured,
    OneWorker,
    Spool,
    emit_into,
    measure_here,
    pass_on,
    write_from,
    write_shard,
)
from tiger_jax.beam import embed, joined, prepare, tokens
from tiger_jax.beam.raw import RawShards
from tiger_jax.beam.runner import RunnerConfig
from tiger_jax.data.interactions import InteractionsConfig
from tiger_jax.data.item_text import ItemTextConfig
from tiger_jax.data.splits import SplitsConfig
from tiger_jax.embedding.encoders import TfidfEncoder
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.workdir.arrays import save_whole
from tiger_jax.workdir.shards import Shards, ShardWriter, cut_evenly, recipe_of, rows_of

SHARD_ROWS = 250_000
TOKEN_SHARDS = 2
_CODEBOOKS = (256,) * 4
_load_once = functools.cache(embed.TextEncoding.load_model)
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

        def lead(name: str, work: Any, *arguments: Any) -> Any:
            """Measures this process, which leads a pipeline's workers."""
            task = functools.partial(work, worker, *arguments, num_shards)
            measured = measure_here(num_shards, task)
            tell(f"{name}, the leading process", measured)
            return measured.result

        events = functools.partial(_interactions, num_rows=num_rows)
        raw = RawShards(
            generate("items", _items, num_items),
            generate("interactions", events, num_rows),
            "scale",
        )
        data = lead("prepare", _prepare, raw, folder / "data")
        _tokens(worker, data, folder / "tokens")
        if num_rows > MAX_TEXTS:
            return
        for shards in (raw.items, raw.interactions):
            shutil.rmtree(shards.folder)
        catalogue = generate("titles", _titled_items, num_rows)
        lead("embed", _embed, catalogue, folder / "embedded")


# --- The shop -----------------------------------------------------------------------


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
    work = functools.partial(_generate_shard, make=make, ends=ends)
    return worker.each_shard(None, writer, work)


def _generate_shard(
    shard: int, writer: ShardWriter, *, make: Any, ends: list[int]
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


# --- The steps ----------------------------------------------------------------------


def _prepare(
    worker: OneWorker, raw: RawShards, folder: Path, num_shards: int
) -> prepare.PreparedShards:
    """`prepare`, its steps done by the worker instead of by Beam."""
    with mock.patch.multiple(
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
        write = functools.partial(write_shard, writer, work)
        worker.run(f"tokens, {split}", write, sample)


def _embed(worker: OneWorker, items: Shards, folder: Path, num_shards: int) -> None:
    """`embed`, its steps done by the worker instead of by Beam."""
    with mock.patch.multiple(
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
    for keyed in encoder.run_inference([texts], _load_once(encoder)):
        embed._write_distinct(writer, keyed)
