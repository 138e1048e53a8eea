"""A seqio task as an endless stream of batches, with a position that is saved.

The stream is the one t5x draws for the same task, seed, batch size and number of
hosts, batch for batch, and its position is saved in the same files; so a run can
change engines and go on with the very next example. For length buckets, wrap the
stream in `microbatches.BucketedBatches`.

Nothing here runs ahead of the training loop: TensorFlow prefetches on its own
threads, and since JAX dispatches asynchronously, the loop fetches and transfers the
next batch while the devices still compute. The saved position is therefore always
exactly that of the batches handed out.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Int32

from tiger_jax.config import config
from tiger_jax.errors import InputError
from tiger_jax.input_pipeline.preprocessors import feature_lengths
from tiger_jax.input_pipeline.quiet_tensorflow import seqio, tf
from tiger_jax.progress import say

# The files that t5x writes and reads.
_FILE = "train_ds-{index:03}-of-{count:03}"
_PROCESS_FOLDER = "process_{index}-of-{count}"
# What t5x has no check for: that a position belongs to this stream.
_DESCRIPTION = "seqio_stream.json"


@config("batches")
class SeqioConfig:
    """Which task to stream, and how.

    Attributes:
        task: Name of a registered seqio task or mixture; the gin file that names
            it imports the module that registers it.
        batch_size: Examples of an update, over all hosts.
        max_items: Items of a history that the encoder sees, the most recent.
    """

    task: str
    batch_size: int = 256
    max_items: int = 20


class SeqioBatches:
    """Endless, shuffled, padded training batches of a task: this host's share.

    Attributes:
        layout: The token layout of the task's vocabulary.
        max_length: S, the length that all encoder inputs are padded to.
        num_examples: Training examples of the task, or of a mixture's tasks together.
    """

    def __init__(
        self,
        config: SeqioConfig,
        *,
        seed: int,
        shard_index: int | None = None,
        num_shards: int | None = None,
    ) -> None:
        """Opens the stream; by default, each process has a share.

        InputError if there is no such task, or the batch can't be shared out evenly.
        """
        index = jax.process_index() if shard_index is None else shard_index
        count = jax.process_count() if num_shards is None else num_shards
        if config.batch_size % count:
            raise InputError(
                f"batches.SeqioConfig.batch_size {config.batch_size} can't be shared "
                f"by {count} processes: choose a multiple"
            )
        self._config, self._seed = config, seed
        self._facts = {**dataclasses.asdict(config), "seed": seed}
        self._shard = seqio.ShardInfo(index=index, num_shards=count)
        self._task = _get_task(config.task)
        self.layout = self._task.output_features["inputs"].vocabulary.layout
        sources = [task.source for task in seqio.get_subtasks(self._task)]
        self._lengths = feature_lengths(
            self.layout, config.max_items, whole_histories=has_whole_histories(sources)
        )
        self.max_length = self._lengths["inputs"]
        self.num_examples = sum(source.num_pairs("train") for source in sources)
        self._iterator = self._open()

    def __iter__(self) -> Iterator[dict[str, Int32[np.ndarray, "B length"]]]:
        return self

    def __next__(self) -> dict[str, Int32[np.ndarray, "B length"]]:
        batch = next(self._iterator)
        return {name: np.asarray(array) for name, array in batch.items()}

    def save(self, path: Any) -> None:
        """Writes the position into a folder, beside other processes' positions."""
        position = self._position(epath.Path(path))
        position.parent.mkdir(parents=True, exist_ok=True)
        tf.train.Checkpoint(ds=self._iterator).write(os.fspath(position))
        if jax.process_index() == 0:
            (epath.Path(path) / _DESCRIPTION).write_text(json.dumps(self._facts))

    def restore(self, path: Any) -> None:
        """Continues from a position that `save` or t5x wrote.

        Where there is none for this stream (another input, or another number of
        processes, wrote the checkpoint) the examples start from the first, and a
        line says so. InputError if it belongs to another task, seed or batch size.
        """
        position = self._position(epath.Path(path))
        self._iterator = self._open()
        if not position.with_name(position.name + ".index").exists():
            others = [
                found.name.removesuffix(".index")
                for pattern in ("train_ds-*.index", "process_*/train_ds-*.index")
                for found in sorted(epath.Path(path).glob(pattern))
            ]
            instead = f" (but {', '.join(others)})" if others else ""
            say(
                f"{path} has no position {position.name} of a seqio stream{instead}: "
                "the examples start from the first of the first epoch"
            )
            return
        self._check_description(epath.Path(path) / _DESCRIPTION)
        # TensorFlow takes the whole path for a pattern: a folder may be called lr=[1].
        with tempfile.TemporaryDirectory() as folder:
            for file in position.parent.iterdir():
                if file.name.startswith(f"{position.name}."):
                    file.copy(os.path.join(folder, file.name))
            beside = os.path.join(folder, position.name)
            status = tf.train.Checkpoint(ds=self._iterator).read(beside)
            status.assert_consumed()

    def _open(self) -> tf.data.Iterator:
        """Starts the stream as t5x's get_dataset does: positions are exchangeable.

        A second iterator over the same data set would continue its sequence of
        epochs, so each start builds the data set anew.
        """
        dataset = seqio.get_dataset(
            self._task,
            self._lengths,
            dataset_split="train",
            shuffle=True,
            num_epochs=None,
            feature_converter=seqio.EncDecFeatureConverter(pack=False),
            shard_info=self._shard,
            seed=self._seed,
            batch_size=self._config.batch_size // self._shard.num_shards,
            verbose=False,
        )
        return iter(dataset)

    def _position(self, folder: epath.Path) -> epath.Path:
        shard = self._shard
        name = _FILE.format(index=shard.index, count=shard.num_shards)
        if jax.process_count() > 1:
            folder /= _PROCESS_FOLDER.format(
                index=jax.process_index(), count=jax.process_count()
            )
        return folder / name

    def _check_description(self, path: epath.Path) -> None:
        if not path.exists():  # t5x's own
            return
        was = json.loads(path.read_text())
        for name, mine in self._facts.items():
            if was.get(name) != mine:
                raise InputError(
                    f"{path.parent} continues a stream whose {name} was "
                    f"{was.get(name)!r}, and now is {mine!r}: put it back, or start a "
                    "run from the checkpoint's parameters only"
                )


def has_whole_histories(sources: Sequence[Any]) -> bool:
    """Whether tasks train on whole histories; InputError if only some do."""
    found = {getattr(source, "whole_histories", False) for source in sources}
    if len(found) > 1:
        raise InputError(
            "a mixture of tasks with whole_histories and without can't be batched"
        )
    return found.pop()


def _get_task(name: str) -> seqio.Task | seqio.Mixture:
    try:
        return seqio.get_mixture_or_task(name)
    except ValueError as error:
        known = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
        raise InputError(
            f"no seqio task is called {name!r}: import the module that registers it "
            f"in the gin file, as `import tasks.tiger`; known are {', '.join(known)}"
        ) from error
