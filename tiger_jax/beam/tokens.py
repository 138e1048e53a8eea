"""Histories and Semantic IDs -> token files: the examples that seqio's tasks read.

    tokens/train/        every prefix of a training history, and the item after it
    tokens/validation/   one example a user
    tokens/test/         one example a user

TFRecord files of `tf.train.Example` with the features "inputs" and "targets", which
are the tokens that `tasks.tiger` makes of the same histories and Semantic IDs. Within
a file, training examples stand in a random order; the others in that of the users.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from jaxtyping import Int, UInt32

from tiger_jax.beam.blocks import column
from tiger_jax.beam.prepare import PreparedShards, read_histories
from tiger_jax.beam.runner import Flow, RunnerConfig
from tiger_jax.data.splits import Splits
from tiger_jax.errors import InputError
from tiger_jax.input_pipeline.pairs import SPLITS, Pairs
from tiger_jax.input_pipeline.quiet_tensorflow import tf
from tiger_jax.progress import say
from tiger_jax.semantic_ids.encoder_inputs import lay_out_tokens
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.workdir.arrays import load_array
from tiger_jax.workdir.shards import Shards, ShardWriter, recipe_of
from tiger_jax.workdir.vector_shards import save_vectors

# Examples tokenised at a time.
_CHUNK = 8192


def make_tokens(
    data: PreparedShards,
    semantic_ids: Shards,
    folder: Path,
    *,
    num_user_tokens: int,
    max_items: int,
    seed: int = 0,
    runner: RunnerConfig,
) -> dict[str, Shards]:
    """Writes the examples of all splits, in as many files as there are of histories.

    Args:
        semantic_ids: From `assign`, of the same catalogue, or InputError.
        num_user_tokens: Tokens that users are hashed to; 0 for none.
        max_items: Most recent items that an example holds.
        seed: Decides the order of training examples within their file.
    """
    if semantic_ids.num_rows != data.items.num_rows:
        raise InputError(
            f"{semantic_ids.folder} has {semantic_ids.num_rows:,} Semantic IDs, and "
            f"the catalogue {data.items.num_rows:,} items: run --stage=assign_shards"
        )
    layout = TokenLayout(tuple(semantic_ids.facts["codebook_sizes"]), num_user_tokens)
    config = {
        "layout": layout.to_json(),
        "max_items": max_items,
        "seed": seed,
        "semantic_ids": semantic_ids.content_hash,
    }
    recipe = recipe_of(config, semantic_ids, data.content_hash)
    # All codes in one file that workers map: they read the pages they need.
    codes = folder / f"codes-{semantic_ids.content_hash[:16]}.npy"
    if not codes.exists():
        save_vectors(semantic_ids, "codes", codes)
    found = {}
    for split in SPLITS:
        work = Tokens(
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
        found[split] = runner.write(writer, Flow(work), **config)
        say(f"{folder / split}: {found[split].num_rows:,} examples")
    return found


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The work on one shard of histories; sent to workers."""

    split: str
    histories: tuple[Path, ...]
    unseen_items: Path
    codes: Path
    layout: TokenLayout
    max_items: int
    seed: int

    def __call__(self, shard: int, _: Iterable[bytes], writer: ShardWriter) -> None:
        table = pyarrow.parquet.read_table(self.histories[shard])
        unseen = load_array(self.unseen_items)
        splits = Splits.leave_one_out(read_histories(table), unseen)
        pairs = Pairs.of_split(splits, self.split)
        hashes = column(table, "user_hash")
        order = np.arange(pairs.num_pairs)
        if self.split == "train":
            rng = np.random.default_rng([self.seed, shard])
            order = rng.permutation(order)
        codes = load_array(self.codes, is_mapped=True)

        def write(path: Path) -> int:
            with tf.io.TFRecordWriter(str(path)) as records:
                for start in range(0, len(order), _CHUNK):
                    chosen = order[start : start + _CHUNK]
                    for example in self._examples(pairs, chosen, codes, hashes):
                        records.write(example)
            return len(order)

        writer.write(shard, write)

    def _examples(
        self,
        pairs: Pairs,
        chosen: Int[np.ndarray, " B"],
        codes: np.ndarray,
        user_hashes: UInt32[np.ndarray, " U"],
    ) -> Iterator[bytes]:
        users, windows, targets = pairs.windows(chosen, self.max_items)
        is_item = windows >= 0
        # Only the codes of the items at hand leave the file.
        tokens = self.layout.tokens_of(codes[np.where(is_item, windows, 0)])
        has_users = self.layout.num_user_tokens > 0
        user_tokens = self.layout.user_tokens(user_hashes[users]) if has_users else None
        inputs = lay_out_tokens(tokens, is_item, user_tokens)
        lengths = is_item.sum(axis=1) * tokens.shape[2] + has_users
        tokens = self.layout.tokens_of(codes[targets])
        for row, length, target in zip(inputs, lengths, tokens, strict=True):
            features = {"inputs": _ints(row[:length]), "targets": _ints(target)}
            yield tf.train.Example(
                features=tf.train.Features(feature=features)
            ).SerializeToString(deterministic=True)


def _ints(values: np.ndarray) -> Any:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values.tolist()))
