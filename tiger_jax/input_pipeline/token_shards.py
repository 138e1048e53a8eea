"""The token files as seqio reads them, and a few held-out examples of them.

Needs TensorFlow, and not Beam.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from tiger_jax.errors import InputError
from tiger_jax.input_pipeline.pairs import SPLITS
from tiger_jax.input_pipeline.quiet_tensorflow import seqio, tf
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.workdir.artifacts import MANIFEST
from tiger_jax.workdir.hashing import hash_json
from tiger_jax.workdir.shards import Shards, rows_of

# Records read at a time when a few are looked for.
_CHUNK = 4096


class TokenShards(seqio.TFExampleDataSource):
    """A seqio source of the token files in a folder, read when it is first used.

    Once the pipelines have made other files there, those are read instead.
    """

    def __init__(
        self, folder: Path | Callable[[], Path], *, cycle_length: int = 16
    ) -> None:
        """Takes the folder that `assign_shards` wrote, or a function that knows it.

        So many files as `cycle_length` are read in turns.
        """
        self._find_folder = folder if callable(folder) else lambda: Path(folder)
        tokens = tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)
        super().__init__(
            dict.fromkeys(SPLITS, "see list_shards"),
            {"inputs": tokens, "targets": tokens},
            cycle_length=cycle_length,
        )

    @property
    def folder(self) -> Path:
        return Path(self._find_folder())

    @property
    def shards(self) -> dict[str, Shards]:
        """Each split's; InputError if its files are missing or were made apart."""
        folder = self.folder
        return _load(folder, tuple(_stamp(folder / split) for split in SPLITS))

    def list_shards(self, split: str) -> list[str]:
        return [str(path) for path in self.shards[split].paths]

    def num_pairs(self, split: str) -> int:
        return self.shards[split].num_rows

    @property
    def layout(self) -> TokenLayout:
        return TokenLayout.from_json(self.shards["train"].facts["layout"])

    @property
    def max_items(self) -> int:
        return int(self.shards["train"].facts["max_items"])

    @property
    def semantic_ids(self) -> str:
        """The content hash of the Semantic IDs' shards that the tokens stand for."""
        return str(self.shards["train"].facts["semantic_ids"])

    @property
    def content_hash(self) -> str:
        """Names what is trained on and chosen by: `train` and `validation`."""
        shards = self.shards
        return hash_json([shards[s].content_hash for s in ("train", "validation")])

    def read_examples(
        self, split: str, rows: Int[np.ndarray, " B"], *, num_inputs: int
    ) -> tuple[Int32[np.ndarray, "B S"], Int32[np.ndarray, "B T"]]:
        """Reads a few examples of a split, and holds no more than these.

        Args:
            rows: Which, ascending: numbers among all examples of the split.
            num_inputs: S, what inputs are padded to.
        """
        found, shards = [], self.shards[split]
        for shard, count in zip(rows_of(shards), shards.count(), strict=True):
            here = rows - shard.first_row
            here = here[(here >= 0) & (here < count)]
            blocks = tf.data.TFRecordDataset(str(shard.path)).batch(_CHUNK)
            for number, block in enumerate(blocks if len(here) else ()):
                chosen = here[here // _CHUNK == number] % _CHUNK
                if len(chosen):
                    found.append(tf.gather(block, chosen).numpy())
        parsed = tf.io.parse_example(np.concatenate(found), self.feature_description)
        inputs, targets = (parsed[n].numpy() for n in ("inputs", "targets"))
        inputs = np.pad(inputs, ((0, 0), (0, num_inputs - inputs.shape[1])))
        return inputs.astype(np.int32), targets.astype(np.int32)


def token_shards_of(task: str) -> TokenShards | None:
    """The token files that a registered task reads; None for a task of another kind."""
    if task not in seqio.TaskRegistry.names():
        return None
    source: Any = seqio.TaskRegistry.get(task).source
    return source if isinstance(source, TokenShards) else None


@functools.lru_cache(maxsize=4)
def _load(folder: Path, stamps: tuple[int, ...]) -> dict[str, Shards]:
    """Finds the splits; the stamps only tell the folder's states apart."""
    del stamps
    shards = {split: Shards.load(folder / split) for split in SPLITS}
    if len({s.recipe for s in shards.values()}) > 1:
        raise InputError(
            f"the splits in {folder} were made from different data: run "
            "--stage=assign_shards again"
        )
    return shards


def _stamp(folder: Path) -> int:
    """When a folder was finished; 0 if it wasn't, which `Shards.load` will say."""
    path = folder / MANIFEST
    return path.stat().st_mtime_ns if path.exists() else 0
