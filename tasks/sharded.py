"""Tasks over token files in shards: examples made beforehand by `assign_shards`.

What `tasks.tiger` gathers from arrays in memory is read here from TFRecord files of
any number. Each host reads files of its own, so there must be as many files as hosts.

How well it shuffles: training examples stand in random order within their file; every
epoch reads the files in a new order, `cycle_length` of them at a time in turns, and
draws each example from a buffer of `shuffle_buffer_size`. All of a user's examples
are in one file. With as many files open as there are, and a buffer of a few batches,
the examples of a batch are of users from all over; it is not a uniform permutation.
A saved position holds the buffer, so that a run goes on with the very next example.

The task `tiger_shards` reads `shards/tokens/` in the work directory that TIGER_WORKDIR
names, or that the stage `train_recommender` runs in.
"""

from pathlib import Path

import gin

from tasks.tiger import add_task, find_workdir
from tiger_jax.input_pipeline.quiet_tensorflow import seqio, tf
from tiger_jax.input_pipeline.token_shards import TokenShards
from tiger_jax.input_pipeline.vocabulary import TigerVocabulary

TASK = "tiger_shards"


@gin.register(module="sharded")
def register_sharded_task(
    name: str,
    folder: str | None = None,
    shuffle_buffer_size: int = 65_536,
    cycle_length: int = 16,
) -> str:
    """Registers a folder of token files as a seqio task; again replaces it.

    Args:
        folder: What the stage `assign_shards` wrote; by default `shards/tokens` in the
            work directory that TIGER_WORKDIR names when the task is used.
        shuffle_buffer_size: Examples that the next one is drawn from; some 500 bytes
            each, and part of every saved position.
        cycle_length: Files that are read in turns.
    """
    source = TokenShards(
        Path(folder) if folder else _default_folder, cycle_length=cycle_length
    )
    # What stands before the placeholder is done once, by `seqio_cache_tasks`.
    preprocessors = [_to_int32, seqio.CacheDatasetPlaceholder()]
    vocabulary = TigerVocabulary(lambda: source.layout)
    return add_task(name, source, preprocessors, vocabulary, shuffle_buffer_size)


def _to_int32(dataset: tf.data.Dataset) -> tf.data.Dataset:
    return dataset.map(
        lambda example: {k: tf.cast(v, tf.int32) for k, v in example.items()}
    )


def _default_folder() -> Path:
    parameter = "tasks.sharded.register_sharded_task.folder"
    return find_workdir("token files", parameter) / "shards" / "tokens"


register_sharded_task(TASK)
