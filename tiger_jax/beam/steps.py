"""The two forms of a pipeline: an exchange of rows, or each shard by itself.

Both give work only to the shards that are missing: a pipeline that was killed and is
started again leaves the finished ones alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa

from tiger_jax.beam.blocks import Keyed, gather
from tiger_jax.beam.runner import RunnerConfig, run
from tiger_jax.progress import say
from tiger_jax.workdir.shards import Shards, ShardWriter

Emit = Callable[[Any, Sequence[int]], Iterator[Keyed]]
"""(an input, the shards that are missing) -> blocks for these shards."""
Write = Callable[[int, Iterable[bytes], ShardWriter], None]
"""(shard, the blocks that came for it, where to write it)."""
Work = Callable[[int, ShardWriter], None]
"""(shard, where to write it)."""


def exchange(
    runner: RunnerConfig,
    writer: ShardWriter,
    inputs: Sequence[Any],
    emit: Emit,
    write: Write,
    **facts: Any,
) -> Shards:
    """Takes every input apart into blocks and writes each shard from its own.

    Args:
        inputs: Small descriptions, such as paths.
        write: Called once per shard, also if nothing came for it.
        facts: Kept with the folder.
    """

    def build(pipeline: beam.Pipeline, missing: list[int]) -> None:
        blocks = spread(pipeline, inputs, emit, missing)
        collect(pipeline, blocks, writer, write, missing)

    return run_missing(runner, writer, build, **facts)


def each_shard(
    runner: RunnerConfig, writer: ShardWriter, work: Work, **facts: Any
) -> Shards:
    """Writes every shard by itself."""

    def build(pipeline: beam.Pipeline, missing: list[int]) -> None:
        _ = (
            pipeline
            | "Missing shards" >> beam.Create(missing)
            | "One shard per worker" >> beam.Reshuffle()
            | "Write" >> beam.Map(lambda shard: work(shard, writer))
        )

    return run_missing(runner, writer, build, **facts)


def run_missing(
    runner: RunnerConfig,
    writer: ShardWriter,
    build: Callable[[beam.Pipeline, list[int]], None],
    **facts: Any,
) -> Shards:
    """Runs a pipeline for the shards that are missing, if any, and lists them all."""
    whole = writer.whole()
    if whole is not None:
        say(f"{writer.folder}: up to date")
        return whole
    missing = writer.missing()
    if missing:
        say(f"{writer.folder}: {len(missing)} of {writer.num_shards} shards to write")
        run(runner, lambda pipeline: build(pipeline, missing))
    return writer.finish(**facts)


def spread(
    pipeline: beam.Pipeline,
    inputs: Sequence[Any],
    emit: Emit,
    wanted: Sequence[int],
    name: str = "inputs",
) -> beam.PCollection:
    """The blocks of all inputs."""
    wanted = list(wanted)
    return (
        pipeline
        | f"List {name}" >> beam.Create(list(inputs))
        | f"Spread {name}" >> beam.Reshuffle()
        | f"Take {name} apart"
        >> beam.FlatMap(lambda value: emit(value, wanted)).with_output_types(Keyed)
    )


def collect(
    pipeline: beam.Pipeline,
    blocks: beam.PCollection,
    writer: ShardWriter,
    write: Write,
    missing: Sequence[int],
) -> None:
    """Writes each missing shard of the blocks that come for it."""
    grouped = with_every_shard(pipeline, blocks, missing)
    _ = grouped | "Write" >> beam.MapTuple(lambda s, blocks: write(s, blocks, writer))


def with_every_shard(
    pipeline: beam.Pipeline, blocks: beam.PCollection, missing: Sequence[int]
) -> beam.PCollection:
    """Groups blocks by shard; an empty block stands for each that none came for."""
    empty = beam.Create([(shard, b"") for shard in missing]).with_output_types(Keyed)
    everyone = pipeline | "Missing shards" >> empty
    return (
        (blocks, everyone)
        | "Blocks and keys" >> beam.Flatten()
        | "By shard" >> beam.GroupByKey()
    )


# Where items are on their way: a shop's own columns may have any other name.
ITEM_NUMBER = "item_number (ours)"
_NO_ITEMS = pa.table({"item_id": pa.array([], pa.string())})


def write_items(
    shard: int,
    blocks: Iterable[bytes],
    writer: ShardWriter,
    *,
    empty: pa.Table = _NO_ITEMS,
) -> None:
    """Writes a shard of items in the order of their numbers, which it leaves out."""
    table = gather(blocks, ITEM_NUMBER)
    table = empty if table is None else table.drop_columns([ITEM_NUMBER])
    writer.write_table(shard, table)
