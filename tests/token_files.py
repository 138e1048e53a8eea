"""Token files in shards, made of a small work directory without Beam."""

import numpy as np

from tiger_jax.data.prepared import PreparedData
from tiger_jax.input_pipeline.pair_source import PairSource, Shop
from tiger_jax.input_pipeline.pairs import SPLITS
from tiger_jax.input_pipeline.preprocessors import make_preprocessors
from tiger_jax.input_pipeline.quiet_tensorflow import tf
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.shards import ShardWriter


def write_token_files(workdir, *, shards=3, num_user_tokens=3, max_items=4):
    """Writes `shards/tokens/`, and says in `semantic_ids/` that they belong."""
    data = PreparedData.load(workdir / "data")
    table = SemanticIdTable.load(workdir / "semantic_ids")
    layout = TokenLayout(table.codebook_sizes, num_user_tokens)
    shop = Shop(data.train, data.validation, data.test, data.user_hashes, table, layout)
    folder = workdir / "shards" / "tokens"
    for split in SPLITS:
        dataset = PairSource(shop).get_dataset(split, shuffle=False)
        for preprocess in make_preprocessors(shop, num_items=max_items):
            dataset = preprocess(dataset)
        examples = list(dataset.as_numpy_iterator())
        writer = ShardWriter(folder / split, shards, "a test's", "tfrecord")
        for shard, rows in enumerate(np.array_split(np.arange(len(examples)), shards)):
            writer.write(shard, _writing([examples[row] for row in rows]))
        writer.finish(layout=layout.to_json(), max_items=max_items, semantic_ids="ours")
    run = artifacts.begin(
        workdir,
        "semantic_ids",
        stage="assign_semantic_ids",
        config={},
        external={"shards/semantic_ids": "ours"},
    )
    table.save(run.folder)
    run.commit()
    return folder


def _writing(examples):
    def write(path):
        with tf.io.TFRecordWriter(str(path)) as records:
            for example in examples:
                features = {
                    name: tf.train.Feature(int64_list=tf.train.Int64List(value=tokens))
                    for name, tokens in example.items()
                    if name in ("inputs", "targets")
                }
                record = tf.train.Example(features=tf.train.Features(feature=features))
                records.write(record.SerializeToString())
        return len(examples)

    return write
