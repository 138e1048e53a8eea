"""Histories and Semantic IDs -> token files: the examples that seqio's tasks read.

    tokens/train/        every prefix of a training history, and the item after it
    tokens/validation/   one example a user
    tokens/test/         one example a user

TFRecord files of `tf.train.Example` with the features "inputs" and "targets", which
are the tokens that `tasks.tiger` makes of the same histories and Semantic IDs. Within
a file, training examples stand in a random order; the others in that of the users.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from jaxtyping import Int, Int32

from tiger_jax.beam.blocks import column
from tiger_jax.beam.prepare import PreparedShards, read_histories
from tiger_jax.beam.runner import RunnerConfig
from tiger_jax.beam.steps import each_shard
from tiger_jax.data.splits import Splits
from tiger_jax.errors import InputError
from tiger_jax.input_pipeline.quiet_tensorflow import tf
from tiger_jax.input_pipeline.sources import SPLITS, Pairs
from tiger_jax.progress import say
from tiger_jax.semantic_ids.encoder_inputs import encode_histories
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.workdir.array_files import load_array
from tiger_jax.workdir.shards import Shards, ShardWriter, recipe_of
from tiger_jax.workdir.vector_shards import save_vectors

# Examples tokenised at a time.
_CHUNK = 8192


def make_tokens(
    data: PreparedShards,
    semantic_ids: Shards,
    folder: Path,
    *,
    num_user_tokens: int = 2000,
    max_items: int = 20,
    seed: int = 0,
    runner: RunnerConfig,
) -> dict[str, Shards]:
    """Writes the examples of all splits, in as many files as there are of histories.

    Args:
        data: Histories in shards.
        semantic_ids: From `assign`, of the same catalogue.
        folder: Where to write.
        num_user_tokens: Tokens that users are hashed to; 0 for none.
        max_items: Most recent items that an example holds.
        seed: Decides the order of training examples within their file.
        runner: Where it runs.

    Returns:
        Each split's shards.

    Raises:
        InputError: The Semantic IDs are of another number of items.
    """
    if semantic_ids.num_rows != data.items.num_rows:
        raise InputError(
            f"{semantic_ids.folder} has {semantic_ids.num_rows:,} Semantic IDs, and "
            f"the catalogue {data.items.num_rows:,} items: run --pipeline=assign again"
        )
    layout = TokenLayout(tuple(semantic_ids.facts["codebook_sizes"]), num_user_tokens)
    config = {
        "layout": layout.to_json(),
        "max_items": max_items,
        "seed": seed,
        "semantic_ids": semantic_ids.content_hash,
    }
    recipe = recipe_of(config, semantic_ids, data.content_hash)
    codes = _map_codes(semantic_ids, folder)
    found = {}
    for split in SPLITS:
        work = _Tokens(
            split,
            tuple(data.histories.paths),
            data.folder / "unseen_items.npy",
            codes,
            layout,
            max_items,
            seed,
        )
        writer = ShardWriter(
            folder / split, data.histories.num_shards, recipe, "tfrecord"
        )
        found[split] = each_shard(runner, writer, work, **config)
        say(f"{folder / split}: {found[split].num_rows:,} examples")
    return found


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """The work on one shard of histories; sent to workers."""

    split: str
    histories: tuple[Path, ...]
    unseen_items: Path
    codes: Path
    layout: TokenLayout
    max_items: int
    seed: int

    def __call__(self, shard: int, writer: ShardWriter) -> None:
        pairs = self._pairs(self.histories[shard])
        order = np.arange(pairs.num_pairs)
        if self.split == "train":
            rng = np.random.default_rng([self.seed, shard])
            order = rng.permutation(order)
        codes = load_array(self.codes, is_mapped=True)

        def write(path: Path) -> int:
            with tf.io.TFRecordWriter(str(path)) as records:
                for start in range(0, len(order), _CHUNK):
                    chosen = order[start : start + _CHUNK]
                    for example in self._examples(pairs, chosen, codes):
                        records.write(example)
            return len(order)

        writer.write(shard, write)

    def _pairs(self, path: Path) -> Pairs:
        table = pyarrow.parquet.read_table(path)
        histories = read_histories(table)
        hashes = column(table, "user_hash")
        unseen = load_array(self.unseen_items)
        splits = Splits.leave_one_out(histories, unseen)
        if self.split == "train":
            return Pairs.of_prefixes(splits.train, hashes)
        held_out = splits.validation if self.split == "validation" else splits.test
        return Pairs.of_held_out(held_out, hashes)

    def _examples(
        self, pairs: Pairs, chosen: Int[np.ndarray, " B"], codes: np.ndarray
    ) -> Iterator[bytes]:
        rows, windows, targets = take_pairs(pairs, chosen, self.max_items)
        # Only the codes of the items at hand leave the file.
        items, places = np.unique(
            np.append(windows.reshape(-1), targets), return_inverse=True
        )
        own = np.array(codes[np.maximum(items, 0)])
        places = np.where(items < 0, -1, np.arange(len(items)))[places]
        windows = places[: windows.size].reshape(windows.shape).astype(np.int32)
        has_users = self.layout.num_user_tokens > 0
        inputs = encode_histories(
            windows,
            own,
            self.layout,
            user_hashes=pairs.user_hashes[rows] if has_users else None,
        )
        lengths = (windows >= 0).sum(axis=1) * own.shape[1] + has_users
        tokens = self.layout.tokens_of(own[places[windows.size :]])
        for row, length, target in zip(inputs, lengths, tokens, strict=True):
            features = {"inputs": _ints(row[:length]), "targets": _ints(target)}
            yield tf.train.Example(
                features=tf.train.Features(feature=features)
            ).SerializeToString(deterministic=True)


def take_pairs(
    pairs: Pairs, chosen: Int[np.ndarray, " B"], max_items: int
) -> tuple[Int[np.ndarray, " B"], Int32[np.ndarray, "B I"], Int32[np.ndarray, " B"]]:
    """Some pairs' rows, their most recent items (padded with -1), their targets."""
    row = np.asarray(np.searchsorted(pairs.pair_offsets, chosen, side="right")) - 1
    start = pairs.offsets[row]
    target = start + pairs.first_targets[row] + chosen - pairs.pair_offsets[row]
    begin = np.maximum(start, target - max_items)
    index = begin[:, None] + np.arange(max_items)[None, :]  # [B, I]
    is_item = index < target[:, None]
    window = pairs.items[np.where(is_item, index, 0)]
    return row, np.where(is_item, window, np.int32(-1)), pairs.items[target]


def _map_codes(semantic_ids: Shards, folder: Path) -> Path:
    """All codes in one file that workers map: they read the pages they need."""
    path = folder / f"codes-{semantic_ids.content_hash[:16]}.npy"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    save_vectors(semantic_ids, "codes", path)
    return path


def _ints(values: np.ndarray) -> Any:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values.tolist()))
