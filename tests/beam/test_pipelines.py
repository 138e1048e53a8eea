"""What the pipelines write is what the local stages make, whatever the sharding."""

import contextlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from shop_pipelines import (
    LocalShop,
    ShardedShop,
    hashes,
    in_some_order,
    read_matrix,
    small_shop,
)

from tasks.sharded import register_sharded_task
from tiger_jax.beam.assign import load_table
from tiger_jax.beam.prepare import read_histories
from tiger_jax.data.interactions import InteractionsConfig
from tiger_jax.data.readers.files import FilesConfig
from tiger_jax.data.synthetic import SyntheticShopConfig, generate_shop
from tiger_jax.errors import InputError
from tiger_jax.input_pipeline.batches import SeqioBatches, SeqioConfig
from tiger_jax.input_pipeline.quiet_tensorflow import seqio
from tiger_jax.input_pipeline.token_shards import TokenShards
from tiger_jax.quantizers.residual_kmeans import ResidualKMeans
from tiger_jax.workdir.shards import Shards, ShardWriter
from tiger_jax.workdir.vector_shards import read_vectors

DATA = os.environ.get("TIGER_DATA")


def assert_equal(found, local):
    """Every array, text and example of the pipelines is that of the local stages."""
    assert found.data.items.read().equals(local.data.items)
    whole = found.data.histories.read()
    assert tuple(whole["user_id"].to_pylist()) == local.data.user_ids
    np.testing.assert_array_equal(whole["user_hash"].to_numpy(), local.data.user_hashes)
    histories = read_histories(whole)
    np.testing.assert_array_equal(histories.items, local.data.histories.items)
    np.testing.assert_array_equal(histories.offsets, local.data.histories.offsets)
    rows = np.load(found.data.folder / "items_file_rows.npy")
    np.testing.assert_array_equal(rows, local.data.items_file_rows)
    np.testing.assert_array_equal(found.data.unseen_items, local.data.unseen_items)
    counted = ("users", "items", "interactions", "k_core", "unseen_items")
    counted += ("raw_users", "raw_items", "raw_interactions")
    for name in (*counted, "users_with_too_short_history"):
        assert found.data.facts[name] == local.data.statistics[name], name

    embedded = found.embeddings.read()
    np.testing.assert_array_equal(read_vectors(embedded, "embedding"), local.embeddings)
    table = load_table(found.semantic_ids)
    assert table.content_hash == local.table.content_hash
    assert_same_examples(found, local)


def assert_same_examples(found, local):
    """Held-out examples in the users' order; training examples in any."""
    files = TokenShards(found.folder / "tokens", cycle_length=1)
    assert files.layout == local.layout
    for split, expected in local.examples.items():
        read = read_matrix(files.get_dataset(split, shuffle=False), files.layout)
        assert files.num_pairs(split) == len(expected)
        if split == "train":
            expected, read = in_some_order(expected), in_some_order(read)
        np.testing.assert_array_equal(read, expected, split)


def test_pipelines_equal_stages(small):
    local, found = small
    assert_equal(found, local)


@pytest.mark.slow
def test_one_shard_equals_stages(tmp_path):
    local = LocalShop(small_shop(), tmp_path, interactions=InteractionsConfig(k_core=2))
    found = ShardedShop(local, tmp_path / "found", shards=1, workers=1)
    assert_equal(found, local)


@pytest.fixture(scope="module")
def local_demo(tmp_path_factory):
    return LocalShop(
        generate_shop(SyntheticShopConfig()),
        tmp_path_factory.mktemp("demo"),
        interactions=InteractionsConfig(),
        quantizer=ResidualKMeans((64, 64, 64), max_iterations=5),
    )


@pytest.fixture(scope="module")
def local_beauty(tmp_path_factory):
    shop = FilesConfig().read(Path(DATA) / "amazon2014_beauty")
    return LocalShop(
        shop,
        tmp_path_factory.mktemp("beauty"),
        # Already a 5-core: a 6-core has rounds to go.
        interactions=InteractionsConfig(k_core=6),
        quantizer=ResidualKMeans((256, 256, 256), max_iterations=3),
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("shards", [1, 4, 16])
@pytest.mark.parametrize("workers", [1, 2])
def test_pipelines_equal_stages_on_the_demo_shop(shards, workers, local_demo, tmp_path):
    found = ShardedShop(local_demo, tmp_path, shards=shards, workers=workers)
    assert_equal(found, local_demo)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not DATA, reason="needs TIGER_DATA")
@pytest.mark.parametrize("shards", [1, 4, 16])
@pytest.mark.parametrize("workers", [1, 2])
def test_pipelines_equal_stages_on_beauty(shards, workers, local_beauty, tmp_path):
    found = ShardedShop(local_beauty, tmp_path, shards=shards, workers=workers)
    assert_equal(found, local_beauty)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_shards_that_are_missing(tmp_path, monkeypatch):
    """Stopped after every few shards, over and over, it ends the same."""
    local = LocalShop(
        small_shop(1), tmp_path, interactions=InteractionsConfig(k_core=5)
    )
    whole = ShardedShop(local, tmp_path / "whole", shards=3, workers=1)
    written, limit = [], [0]
    write = ShardWriter.write

    def write_some(self, shard, *args, **facts):
        if len(written) >= limit[0]:
            raise InputError("killed here")
        write(self, shard, *args, **facts)
        written.append(self.path(shard))

    monkeypatch.setattr(ShardWriter, "write", write_some)
    kills, found = 0, None
    while found is None:
        limit[0] += 9
        assert limit[0] < 300
        # The one error that comes back from a worker as what it was.
        with contextlib.suppress(InputError):
            found = ShardedShop(local, tmp_path / "killed", shards=3, workers=1)
        kills += found is None
    assert kills >= 3
    assert len(written) == len(set(written)), "a finished shard was written again"
    assert hashes(found) == hashes(whole)


def test_a_damaged_shard_is_made_again_and_no_other(small, tmp_path):
    local, before = small
    expected = hashes(before)
    copy = shutil.copytree(before.folder, tmp_path / "found")
    times = {}
    for shards in before.all_shards().values():
        shards = Shards.load(copy / shards.folder.relative_to(before.folder))
        shards.paths[1].write_bytes(b"damaged")
        with pytest.raises(InputError, match="bytes where .* were written"):
            Shards.load(shards.folder)
        others = [path for path in shards.paths if path != shards.paths[1]]
        times |= {path: path.stat().st_mtime_ns for path in others}
    after = ShardedShop(local, copy, shards=4, workers=1)
    assert hashes(after) == expected
    assert len(times) == 3 * len(before.all_shards())
    assert not [path for path, time in times.items() if path.stat().st_mtime_ns != time]
    checked = Shards.load(after.embeddings.folder, verify=True)
    assert checked.num_rows == local.data.num_items


@pytest.mark.slow
def test_other_input_replaces_every_shard(tmp_path):
    interactions = InteractionsConfig(k_core=5)
    for seed in (3, 4):
        (tmp_path / str(seed)).mkdir()
        local = LocalShop(
            small_shop(seed), tmp_path / str(seed), interactions=interactions
        )
        found = ShardedShop(local, tmp_path / "found", shards=2, workers=1)
    assert_equal(found, local)


def test_a_sharded_task_streams_and_restores(small, tmp_path):
    _, found = small
    register_sharded_task(
        "tiger_sharded", str(found.folder / "tokens"), shuffle_buffer_size=100
    )
    config = SeqioConfig("tiger_sharded", batch_size=8)
    hosts = [
        SeqioBatches(config, seed=1, shard_index=h, num_shards=2) for h in range(2)
    ]
    assert hosts[0].num_examples == found.tokens["train"].num_rows
    first = [next(hosts[0]) for _ in range(5)]
    hosts[0].save(tmp_path / "position")
    expected = [next(hosts[0]) for _ in range(5)]
    again = SeqioBatches(config, seed=1, shard_index=0, num_shards=2)
    again.restore(tmp_path / "position")
    for batch in expected:
        np.testing.assert_array_equal(
            next(again)["encoder_input_tokens"], batch["encoder_input_tokens"]
        )
    # The hosts' shares are of different users: no example is on both.
    shares = []
    for host, drawn in ((hosts[0], first), (hosts[1], [])):
        drawn = drawn + [next(host) for _ in range(5)]
        shares.append(
            {row.tobytes() for b in drawn for row in b["encoder_input_tokens"]}
        )
    assert not shares[0] & shares[1]
    seqio.TaskRegistry.remove("tiger_sharded")
