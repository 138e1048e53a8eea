"""Streaming embeddings from shards; these need no Beam."""

import itertools
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from tiger_jax.errors import InputError
from tiger_jax.input_pipeline.shuffled_rows import ShuffleConfig, ShuffledRows
from tiger_jax.workdir.shards import ROW_GROUP, ShardWriter, cut_evenly
from tiger_jax.workdir.vector_shards import VectorRows, save_vectors, vector_array

N = 1000


def write_embeddings(folder, vectors, num_shards):
    writer = ShardWriter(folder, num_shards, "a test's")
    ends = cut_evenly(len(vectors), num_shards)
    for shard in range(num_shards):
        rows = range(ends[shard], ends[shard + 1])
        ids = pa.array([f"item-{row}" for row in rows], pa.string())
        table = pa.table({"item_id": ids})
        if len(rows):
            column = vector_array(vectors[rows.start : rows.stop])
            table = table.append_column("embedding", column)
        writer.write_table(shard, table)
    return writer.finish()


def numbered(count=N):
    """Vectors that say their row."""
    return np.arange(count, dtype=np.float32)[:, None] + np.zeros(3, np.float32)


@pytest.mark.parametrize("num_shards", [1, 4, 7])
def test_the_stream_is_a_function_of_seed_and_position_alone(num_shards, tmp_path):
    config = ShuffleConfig(block_rows=64, num_mixed=3)
    one = write_embeddings(tmp_path / "one", numbered(), 1)
    some = write_embeddings(tmp_path / "some", numbered(), num_shards)
    whole = ShuffledRows(VectorRows(one), config, seed=1).draw(0, 2500)[:, 0]
    stream = ShuffledRows(VectorRows(some), config, seed=1)
    for start, count in [(0, 2500), (130, 7), (999, 2), (1990, 500), (0, 1)]:
        drawn = stream.draw(start, count)[:, 0]
        np.testing.assert_array_equal(drawn, whole[start : start + count])
    # Every row once an epoch, each in an order of its own.
    epochs = [whole[start : start + N] for start in (0, N)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(N))
    assert (epochs[0] == epochs[1]).mean() < 0.05
    other = ShuffledRows(VectorRows(some), config, seed=2).draw(0, N)[:, 0]
    assert (epochs[0] == other).mean() < 0.05
    # Three blocks are mixed: neighbours are of one block in a third of all cases.
    block = epochs[0] // 64
    assert 0.2 < (block[1:] == block[:-1]).mean() < 0.45


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_sample_does_not_depend_on_the_files(num_shards, tmp_path):
    total = ROW_GROUP + 100
    shards = write_embeddings(tmp_path, numbered(total), num_shards)
    rows = VectorRows(shards)
    chosen = np.random.default_rng([5, 4]).choice(total, 50, replace=False)
    np.testing.assert_array_equal(rows.sample(50, 5)[:, 0], np.sort(chosen))
    np.testing.assert_array_equal(rows.sample(total, 5), numbered(total))
    for start, stop in itertools.pairwise([0, 7, 5461, 5463, total]):
        np.testing.assert_array_equal(
            rows.read(start, stop)[:, 0], np.arange(start, stop)
        )
    saved = save_vectors(shards, "embedding", tmp_path / "whole.npy")
    np.testing.assert_array_equal(saved, numbered(total))


def test_an_empty_shard_is_passed_over_and_a_bad_vector_is_named(tmp_path):
    vectors = numbered(3)
    shards = write_embeddings(tmp_path / "few", vectors, 5)
    np.testing.assert_array_equal(VectorRows(shards).read(0, 3), vectors)
    vectors[2, 1] = np.nan
    bad = write_embeddings(tmp_path / "bad", vectors, 2)
    with pytest.raises(InputError, match="item number 2 is not finite"):
        VectorRows(bad).read(0, 3)
    with pytest.raises(InputError, match="has no rows"):
        VectorRows(write_embeddings(tmp_path / "none", vectors[:0], 1))


MEASURE = """
import re, sys
from pathlib import Path
from tiger_jax.workdir.shards import Shards
from tiger_jax.input_pipeline.shuffled_rows import ShuffleConfig, ShuffledRows
from tiger_jax.workdir.vector_shards import VectorRows

rows = VectorRows(Shards.load(Path(sys.argv[1])))
stream = ShuffledRows(rows, ShuffleConfig(2048, 4), seed=0)
rows.sample(1000, seed=0)
for position in range(0, rows.num_rows, 1000):
    stream.draw(position, 1000)
status = Path("/proc/self/status").read_text()
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path):
    peaks = []
    for count in (1 << 16, 1 << 19):
        vectors = np.random.default_rng(0).normal(size=(count, 64)).astype(np.float32)
        folder = tmp_path / str(count)
        write_embeddings(folder, vectors, 4)
        command = [sys.executable, "-c", MEASURE, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout))
    grown = peaks[1] - peaks[0]
    all_of_it = ((1 << 19) - (1 << 16)) * 64 * 4 / 2**20  # 112 MiB
    assert grown < 0.3 * all_of_it, peaks
