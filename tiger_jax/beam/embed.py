"""Item texts -> embeddings, each distinct text once, in Beam's inference transform.

    distinct/     a bucket of texts per shard: their vectors, and the items they are of
    embeddings/   `item_id` and `embedding`, in the order of item numbers

A killed run goes on after the last finished bucket of texts.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from apache_beam.ml.inference.base import ModelHandler

from tiger_jax.beam.blocks import (
    BUCKETS_BY,
    ITEM_NUMBER,
    buckets_of,
    column,
    from_bytes,
    gather,
    scatter,
    shards_of,
    to_bytes,
    write_items,
)
from tiger_jax.beam.prepare import PreparedShards
from tiger_jax.beam.runner import Flow, Keyed, RunnerConfig, check_all_came
from tiger_jax.data.item_text import ItemTextConfig, build_item_texts
from tiger_jax.embedding.embed import embed_chunk
from tiger_jax.embedding.encoders import (
    EncodeFn,
    SentenceTransformerEncoder,
    TfidfEncoder,
    encoder_facts,
)
from tiger_jax.embedding.tfidf import FrozenTfidf
from tiger_jax.progress import say
from tiger_jax.workdir.json_files import write_json
from tiger_jax.workdir.shards import (
    ShardRows,
    Shards,
    ShardWriter,
    cut_evenly,
    recipe_of,
    rows_of,
    texts,
)
from tiger_jax.workdir.vector_shards import vector_array

Encoder = SentenceTransformerEncoder | TfidfEncoder
# TF-IDF is fitted to no more items' texts than this, drawn by the seed.
MAX_FITTED_ITEMS = 131_072


class TextEncoding(ModelHandler):
    """Beam's handle on an encoder: an example is a bucket's block of texts.

    `tfidf` is the folder of the fitted TF-IDF; None for other encoders.
    """

    def __init__(self, encoder: Encoder, tfidf: Path | None) -> None:
        super().__init__()
        self._encoder, self.tfidf = encoder, tfidf

    def load_model(self) -> EncodeFn:
        """Called once per worker."""
        if self.tfidf is not None:
            return FrozenTfidf.load(self.tfidf).encode
        return self._encoder.prepare([], seed=0)

    def run_inference(
        self, batch: Sequence[Keyed], model: EncodeFn, inference_args: Any = None
    ) -> Iterable[Keyed]:
        """Replaces each block's distinct texts by their vectors."""
        for shard, block in batch:
            table = from_bytes(block)
            found = table["text"].to_pylist()
            # So many are sorted by length together.
            size = self._encoder.texts_per_chunk or max(len(found), 1)
            vectors = [
                embed_chunk(found[at : at + size], model, self._encoder.batch_size)
                for at in range(0, len(found), size)
            ]
            column = vector_array(np.concatenate(vectors))
            table = table.drop_columns(["text"]).append_column("embedding", column)
            yield shard, to_bytes(table)

    def should_skip_batching(self) -> bool:
        """A block is a batch already."""
        return True


def embed(
    data: PreparedShards,
    folder: Path,
    *,
    text: ItemTextConfig,
    encoder: Encoder,
    seed: int,
    num_shards: int,
    runner: RunnerConfig,
) -> Shards:
    """Writes one vector per item.

    Equal to the stage `embed_items`, if the encoder's vector of a text does not
    depend on the texts beside it, as TF-IDF's does not. (Neural encoders on some
    devices round differently in batches of other shapes.) InputError if the template
    or the encoder can't be used.

    Args:
        encoder: Loaded once per worker; TF-IDF is fitted first, to at most
            `MAX_FITTED_ITEMS` items that the seed draws.
    """
    frozen = _freeze(data, folder / "encoder", text, encoder, seed)
    config = {"text": text, "encoder": encoder, "seed": seed} | encoder.hashes()
    recipe = recipe_of({**config, "buckets_by": BUCKETS_BY}, data.items)
    emit = functools.partial(_emit_texts, text=text, num_buckets=num_shards)
    distinct = runner.write(
        ShardWriter(folder / "distinct", num_shards, recipe),
        Flow(
            _write_distinct,
            {"take apart": (rows_of(data.items), emit)},
            {"embed": _distinct},
            infer=frozen,
        ),
    )
    ends = cut_evenly(data.items.num_rows, num_shards)
    emit = functools.partial(_emit_vectors, ends=ends)
    found = runner.write(
        ShardWriter(folder / "embeddings", num_shards, recipe),
        Flow(write_items, {"take apart": (distinct.paths, emit)}),
        kind=type(encoder).__name__,
        distinct_texts=distinct.num_rows,
        made_by={
            **config,
            **encoder_facts(encoder),
            "tfidf": frozen.tfidf and str(frozen.tfidf.resolve()),
        },
    )
    check_all_came(found, data.items.num_rows, folder, runner)
    say(f"{found.folder}: {found.num_rows:,} items, {distinct.num_rows:,} texts")
    return found


def _freeze(
    data: PreparedShards,
    folder: Path,
    text: ItemTextConfig,
    encoder: Encoder,
    seed: int,
) -> TextEncoding:
    if not isinstance(encoder, TfidfEncoder):
        return TextEncoding(encoder, None)
    recipe = recipe_of({"text": text, "encoder": encoder, "seed": seed}, data.items)
    place = folder / recipe[:16]
    done = place / "done.json"
    if not done.exists():
        FrozenTfidf.save(encoder.fit(_draw_texts(data, text, seed), seed=seed), place)
        write_json(done, recipe)
    return TextEncoding(encoder, place)


def _draw_texts(data: PreparedShards, text: ItemTextConfig, seed: int) -> list[str]:
    """Distinct texts of all items, or of some, in the order of item numbers."""
    num_items = data.items.num_rows
    chosen = np.arange(num_items)
    if num_items > MAX_FITTED_ITEMS:
        rng = np.random.default_rng([seed, 3])
        chosen = np.sort(rng.choice(num_items, MAX_FITTED_ITEMS, replace=False))
    found: dict[str, None] = {}
    for rows in rows_of(data.items):
        table = pa.parquet.read_table(rows.path)
        here = chosen - rows.first_row
        here = here[(here >= 0) & (here < table.num_rows)]
        part = table.take(pa.array(here))
        found.update(dict.fromkeys(build_item_texts(part, text)))
    return list(found)


def _emit_texts(
    rows: ShardRows, wanted: Sequence[int], *, text: ItemTextConfig, num_buckets: int
) -> Iterator[Keyed]:
    items = pa.parquet.read_table(rows.path)
    found = pa.array(build_item_texts(items, text), pa.string())
    table = pa.table(
        {
            ITEM_NUMBER: np.arange(rows.first_row, rows.first_row + len(found)),
            "item_id": items["item_id"],
            "text": found,
        }
    )
    yield from scatter(table, buckets_of(found, num_buckets), wanted)


def _distinct(
    bucket: tuple[int, Iterable[bytes]], missing: Sequence[int]
) -> Iterator[Keyed]:
    """Each text of a missing bucket once, with the items that it is of."""
    table = gather(bucket[1], ITEM_NUMBER) if bucket[0] in missing else None
    if table is None:
        return
    # One thread: texts stay in the order in which they come, and so do their items.
    of_text = table.group_by("text", use_threads=False).aggregate(
        [(ITEM_NUMBER, "list"), ("item_id", "list")]
    )
    of_text = of_text.select(["text", f"{ITEM_NUMBER}_list", "item_id_list"])
    of_text = of_text.rename_columns(["text", "item_numbers", "item_ids"])
    yield bucket[0], to_bytes(of_text)


def _write_distinct(shard: int, blocks: Iterable[bytes], writer: ShardWriter) -> None:
    table = gather(blocks)
    writer.write_table(shard, pa.table({}) if table is None else table)


def _emit_vectors(
    path: Path, missing: Sequence[int], *, ends: Sequence[int]
) -> Iterator[Keyed]:
    table = pa.parquet.read_table(path)
    if not table.num_rows:
        return
    numbers = texts(table, "item_numbers")
    of_text = numbers.value_parent_indices()
    exploded = pa.table(
        {
            ITEM_NUMBER: numbers.flatten(),
            "item_id": texts(table, "item_ids").flatten(),
            "embedding": texts(table, "embedding").take(of_text),
        }
    )
    where = shards_of(column(exploded, ITEM_NUMBER), ends)
    yield from scatter(exploded, where, missing)
