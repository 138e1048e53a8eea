"""Item texts -> embeddings, each distinct text once, in Beam's inference transform.

    distinct/     a bucket of texts a shard: their vectors, and the items they are of
    embeddings/   `item_id` and `embedding`, in the order of item numbers

A killed run goes on after the last finished bucket of texts.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from apache_beam.ml.inference.base import ModelHandler, RunInference

from tiger_jax.beam.blocks import (
    BUCKETS_BY,
    Keyed,
    buckets_of,
    column,
    from_bytes,
    gather,
    scatter,
    shards_of,
    to_bytes,
)
from tiger_jax.beam.prepare import PreparedShards
from tiger_jax.beam.runner import RunnerConfig
from tiger_jax.beam.steps import (
    exchange,
    run_missing,
    spread,
    with_every_shard,
    write_items,
)
from tiger_jax.data.item_text import ItemTextConfig, build_item_texts
from tiger_jax.embedding.embed import embed_chunk
from tiger_jax.embedding.encoders import (
    EncodeFn,
    SentenceTransformerEncoder,
    TfidfEncoder,
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

# TF-IDF is fitted to no more items' texts than this, drawn by the seed.
MAX_FITTED_ITEMS = 131_072


@dataclasses.dataclass(frozen=True)
class FrozenEncoder:
    """An encoder that each worker loads for itself.

    Attributes:
        encoder: The sentence encoder; or what TF-IDF was fitted by.
        tfidf: The folder of the fitted TF-IDF, or None.
    """

    encoder: SentenceTransformerEncoder | TfidfEncoder
    tfidf: Path | None

    def load(self) -> EncodeFn:
        """Loads the model."""
        if self.tfidf is not None:
            return FrozenTfidf.load(self.tfidf).encode
        return self.encoder.prepare([], seed=0)

    @property
    def texts_per_chunk(self) -> int | None:
        """How many texts are sorted by length together."""
        return self.encoder.texts_per_chunk


class TextEncoding(ModelHandler):
    """Beam's handle on an encoder: an example is a bucket's block of texts."""

    def __init__(self, encoder: FrozenEncoder) -> None:
        """Takes the encoder; it is loaded on the workers."""
        super().__init__()
        self._encoder = encoder

    def load_model(self) -> EncodeFn:
        """Called once a worker."""
        return self._encoder.load()

    def run_inference(
        self, batch: Sequence[Keyed], model: EncodeFn, inference_args: Any = None
    ) -> Iterable[Keyed]:
        """Embeds each block's distinct texts."""
        for shard, block in batch:
            yield shard, to_bytes(_embed(from_bytes(block), model, self._encoder))

    def batch_elements_kwargs(self) -> dict[str, int]:
        """A block is a batch already."""
        return {"min_batch_size": 1, "max_batch_size": 1}


def embed(
    data: PreparedShards,
    folder: Path,
    *,
    text: ItemTextConfig,
    encoder: SentenceTransformerEncoder | TfidfEncoder,
    seed: int,
    num_shards: int,
    runner: RunnerConfig,
) -> Shards:
    """Writes one vector an item.

    Equal to the stage `embed_items`, if the encoder's vector of a text does not
    depend on the texts beside it, as TF-IDF's does not. (Neural encoders on some
    devices round differently in batches of other shapes.)

    Args:
        data: The catalogue.
        folder: Where to write.
        text: What is said about an item.
        encoder: Loaded once a worker; TF-IDF is fitted first, to at most
            `MAX_FITTED_ITEMS` items.
        seed: Decides TF-IDF's projections, and the items that it is fitted to.
        num_shards: Of the texts' buckets, and of the embeddings.
        runner: Where it runs.

    Raises:
        InputError: The template or the encoder can't be used.
    """
    frozen = _freeze(data, folder / "encoder", text, encoder, seed)
    config = {"text": text, "encoder": encoder, "seed": seed} | encoder.hashes()
    recipe = recipe_of({**config, "buckets_by": BUCKETS_BY}, data.items)
    distinct = _embed_distinct(
        data, ShardWriter(folder / "distinct", num_shards, recipe), text, frozen, runner
    )
    found = exchange(
        runner,
        ShardWriter(folder / "embeddings", num_shards, recipe),
        distinct.paths,
        functools.partial(
            _emit_vectors, ends=cut_evenly(data.items.num_rows, num_shards)
        ),
        write_items,
        kind=type(encoder).__name__,
        distinct_texts=distinct.num_rows,
        made_by={**config, "tfidf": frozen.tfidf and str(frozen.tfidf.resolve())},
    )
    say(f"{found.folder}: {found.num_rows:,} items, {distinct.num_rows:,} texts")
    return found


def _freeze(
    data: PreparedShards,
    folder: Path,
    text: ItemTextConfig,
    encoder: SentenceTransformerEncoder | TfidfEncoder,
    seed: int,
) -> FrozenEncoder:
    if not isinstance(encoder, TfidfEncoder):
        return FrozenEncoder(encoder, None)
    recipe = recipe_of({"text": text, "encoder": encoder, "seed": seed}, data.items)
    place = folder / recipe[:16]
    done = place / "done.json"
    if not done.exists():
        FrozenTfidf.save(encoder.fit(_draw_texts(data, text, seed), seed=seed), place)
        write_json(done, recipe)
    return FrozenEncoder(encoder, place)


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


def _embed_distinct(
    data: PreparedShards,
    writer: ShardWriter,
    text: ItemTextConfig,
    encoder: FrozenEncoder,
    runner: RunnerConfig,
) -> Shards:
    emit = functools.partial(_emit_texts, text=text, num_buckets=writer.num_shards)

    def build(pipeline: beam.Pipeline, missing: list[int]) -> None:
        blocks = spread(pipeline, rows_of(data.items), emit, missing)
        _ = (
            with_every_shard(pipeline, blocks, missing)
            | "Distinct texts" >> beam.Map(_distinct).with_output_types(Keyed)
            | "Embed" >> RunInference(TextEncoding(encoder))
            | "Write" >> beam.Map(functools.partial(_write_distinct, writer))
        )

    return run_missing(runner, writer, build)


def _emit_texts(
    rows: ShardRows, missing: Sequence[int], *, text: ItemTextConfig, num_buckets: int
) -> Iterator[Keyed]:
    items = pa.parquet.read_table(rows.path)
    found = pa.array(build_item_texts(items, text), pa.string())
    table = pa.table(
        {
            "item_number": np.arange(rows.first_row, rows.first_row + len(found)),
            "item_id": items["item_id"],
            "text": found,
        }
    )
    yield from scatter(table, buckets_of(found, num_buckets), missing)


def _distinct(keyed: tuple[int, Iterable[bytes]]) -> Keyed:
    """Each text of a bucket once, with the items that it is of."""
    shard, blocks = keyed
    table = gather([block for block in blocks if block], "item_number")
    if table is None:
        return shard, b""
    encoded = texts(table, "text").dictionary_encode()
    of_item = np.asarray(encoded.indices)
    order = np.argsort(of_item, kind="stable")
    counts = np.bincount(of_item, minlength=len(encoded.dictionary))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    ordered = table.take(pa.array(order))
    return shard, to_bytes(
        pa.table(
            {
                "text": encoded.dictionary,
                "item_numbers": pa.ListArray.from_arrays(
                    offsets, texts(ordered, "item_number")
                ),
                "item_ids": pa.ListArray.from_arrays(
                    offsets, texts(ordered, "item_id")
                ),
            }
        )
    )


def _embed(table: pa.Table, encode: EncodeFn, encoder: FrozenEncoder) -> pa.Table:
    """Replaces a block's texts by their vectors."""
    found = table["text"].to_pylist()
    size = encoder.texts_per_chunk or max(len(found), 1)
    vectors = [
        embed_chunk(found[start : start + size], encode, encoder.encoder.batch_size)
        for start in range(0, len(found), size)
    ]
    return table.drop_columns(["text"]).append_column(
        "embedding", vector_array(np.concatenate(vectors))
    )


def _write_distinct(writer: ShardWriter, keyed: Keyed) -> None:
    shard, block = keyed
    writer.write_table(shard, from_bytes(block) if block else pa.table({}))


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
            "item_number": numbers.flatten(),
            "item_id": texts(table, "item_ids").flatten(),
            "embedding": texts(table, "embedding").take(of_text),
        }
    )
    numbers = column(exploded, "item_number")
    yield from scatter(exploded, shards_of(numbers, ends), missing)
