"""Tasks over token files in shards: examples made beforehand, by `tiger_jax.beam`.

What `tasks.tiger` gathers from arrays in memory is read here from TFRecord files of
any number. Each host reads files of its own, so there must be as many files as hosts.

How well it shuffles: training examples stand in random order within their file; every
epoch reads the files in a new order, `cycle_length` of them at a time in turns, and
draws each example from a buffer of `shuffle_buffer_size`. All of a user's examples
are in one file. With as many files open as there are, and a buffer of a few batches,
the examples of a batch are of users from all over; it is not a uniform permutation.
A saved position holds the buffer, so that a run goes on with the very next example.
"""

from pathlib import Path

import gin
import seqio

from tasks.metrics import make_beam_metric_fn
from tiger_jax.beam.shards import Shards
from tiger_jax.errors import InputError
from tiger_jax.input_pipeline.quiet_tensorflow import tf
from tiger_jax.input_pipeline.sources import SPLITS
from tiger_jax.input_pipeline.vocabulary import TigerVocabulary
from tiger_jax.semantic_ids.token_ids import TokenLayout


class TokenShards(seqio.TFExampleDataSource):
    """A seqio source of the token files in a folder."""

    def __init__(self, folder: Path, *, cycle_length: int = 16) -> None:
        """Takes the folder with `train/`, `validation/` and `test/`.

        Raises:
            InputError: A split's files are missing or were made apart.
        """
        self.shards = {split: Shards.load(Path(folder) / split) for split in SPLITS}
        if len({shards.facts["recipe"] for shards in self.shards.values()}) > 1:
            raise InputError(
                f"the splits in {folder} were made from different data: run "
                "--pipeline=tokens again"
            )
        tokens = tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)
        super().__init__(
            {s: [str(p) for p in self.shards[s].paths] for s in SPLITS},
            {"inputs": tokens, "targets": tokens},
            cycle_length=cycle_length,
        )

    @property
    def layout(self) -> TokenLayout:
        """What the tokens mean."""
        return TokenLayout.from_json(self.shards["train"].facts["layout"])

    def num_pairs(self, split: str) -> int:
        """Number of examples in a split."""
        return self.shards[split].num_rows


@gin.register
def register_sharded_task(
    name: str,
    folder: str,
    shuffle_buffer_size: int = 65_536,
    cycle_length: int = 16,
) -> str:
    """Registers a folder of token files as a seqio task; again replaces it.

    Args:
        name: Name of the task.
        folder: What the pipeline `tokens` wrote.
        shuffle_buffer_size: Examples that the next one is drawn from; some 500 bytes
            each, and part of every saved position.
        cycle_length: Files that are read in turns.

    Returns:
        The name, so that gin can register and name a task in one line.
    """
    source = TokenShards(Path(folder), cycle_length=cycle_length)
    vocabulary = TigerVocabulary(source.layout)
    feature = seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32)
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[_to_int32],
        output_features={"inputs": feature, "targets": feature},
        metric_fns=[make_beam_metric_fn(vocabulary)],
        shuffle_buffer_size=shuffle_buffer_size,
    )
    return name


def _to_int32(dataset: tf.data.Dataset) -> tf.data.Dataset:
    return dataset.map(
        lambda example: {k: tf.cast(v, tf.int32) for k, v in example.items()}
    )
