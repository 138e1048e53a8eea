"""The stage train_rqvae on embeddings in shards."""

import shutil

import numpy as np
import pyarrow as pa
import pytest
from test_quantizer_stages import TRAINING, Killed, content_hash

from tiger_jax.embedding.collaborative import CollaborativeConfig
from tiger_jax.errors import InputError
from tiger_jax.input_pipeline.shuffled_rows import ShuffleConfig
from tiger_jax.quantizers.rqvae_training import Batches
from tiger_jax.quantizers.store import load_quantizer
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.train_rqvae import train_rqvae
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import read_json
from tiger_jax.workdir.shards import ShardWriter, cut_evenly
from tiger_jax.workdir.vector_shards import vector_array

STREAM = ShuffleConfig(block_rows=16, num_mixed=2, sample_rows=60)
NUM_ITEMS = 100


def make_workdir(workdir, num_shards):
    vectors = np.random.default_rng(0).normal(size=(NUM_ITEMS, 6)).astype(np.float32)
    folder = workdir / "shards" / "embedded" / "embeddings"
    writer = ShardWriter(folder, num_shards, "a test's")
    ends = cut_evenly(NUM_ITEMS, num_shards)
    for shard in range(num_shards):
        column = vector_array(vectors[ends[shard] : ends[shard + 1]])
        writer.write_table(shard, pa.table({"embedding": column}))
    writer.finish()
    return workdir


@pytest.mark.slow
def test_any_number_of_shards_and_of_kills_gives_one_quantizer(tmp_path, monkeypatch):
    one = make_workdir(tmp_path / "one", 1)
    train_rqvae(RunContext(one), quantizer=TRAINING, stream=STREAM)
    some = make_workdir(tmp_path / "some", 4)
    draw, calls = Batches.__next__, []

    def draw_or_die(self):
        if self._step % 10 == 0:  # at a dispatch's first step
            calls.append(self._step)
            if len(calls) in (1, 3):
                raise Killed
        return draw(self)

    monkeypatch.setattr(Batches, "__next__", draw_or_die)
    for _ in range(3):
        try:
            train_rqvae(
                RunContext(some),
                quantizer=TRAINING,
                stream=STREAM,
                seconds_between_checkpoints=0.0,
            )
        except Killed:
            assert not (some / "rqvae").exists()
    assert calls == [0, 0, 10, 10, 20, 30]
    assert content_hash(one / "rqvae") == content_hash(some / "rqvae")
    mine, theirs = (load_quantizer(w / "rqvae").to_arrays() for w in (one, some))
    for name, array in mine.items():
        np.testing.assert_array_equal(array, theirs[name])
    quality = read_json(some / "rqvae" / "quality.json")
    assert quality["num_items"] == NUM_ITEMS
    assert quality["levels"][0]["category_purity"] is None
    assert quality["levels"][1]["reconstruction_error"] > 0
    manifest = artifacts.load_manifest(some / "rqvae")
    assert set(manifest.external) == {"shards/embeddings"}


def test_what_a_stream_cannot_give_is_refused(tmp_path):
    context = RunContext(make_workdir(tmp_path, 2))
    with pytest.raises(InputError, match="can't go with train_rqvae.collaborative"):
        train_rqvae(context, stream=STREAM, collaborative=CollaborativeConfig())
    shutil.rmtree(tmp_path / "shards")
    with pytest.raises(InputError, match="no whole folder of shards"):
        train_rqvae(context, quantizer=TRAINING, stream=STREAM)
