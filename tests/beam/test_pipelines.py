"""What the pipelines write is what the local stages make, whatever the sharding."""

import contextlib
import shutil

import numpy as np
import pytest
from shop_pipelines import (
    ENCODER,
    LocalShop,
    ShardedShop,
    assert_equal,
    hashes,
    small_shop,
)

from tasks.sharded import register_sharded_task
from tiger_jax.beam import assign, embed
from tiger_jax.beam.runner import RunnerConfig
from tiger_jax.data.interactions import InteractionsConfig
from tiger_jax.data.item_text import ItemTextConfig
from tiger_jax.errors import InputError
from tiger_jax.input_pipeline.batches import SeqioBatches, SeqioConfig
from tiger_jax.input_pipeline.quiet_tensorflow import seqio
from tiger_jax.workdir.shards import Shards, ShardWriter


def test_pipelines_equal_stages(small):
    local, found = small
    assert_equal(found, local)


def test_a_runner_that_loses_rows_is_found_out(small, tmp_path, monkeypatch):
    """As Beam's for Dask loses what the end of a bundle emits."""
    local, found = small
    how = {"text": ItemTextConfig(), "encoder": ENCODER, "seed": 3, "num_shards": 2}
    monkeypatch.setattr(embed, "_emit_vectors", lambda path, missing, *, ends: iter(()))
    with pytest.raises(InputError, match="0 rows of 77: FnApiRunner lost the others"):
        embed.embed(found.data, tmp_path, runner=RunnerConfig(), **how)
    nothing = lambda rows, wanted, *, rqvae, num_buckets: iter(())  # noqa: E731
    monkeypatch.setattr(assign, "_emit_codes", nothing)
    with pytest.raises(InputError, match="lost the others; remove"):
        assign.assign(
            found.embeddings, local.rqvae, tmp_path / "ids", runner=RunnerConfig()
        )


@pytest.mark.slow
def test_one_shard_equals_stages(tmp_path):
    local = LocalShop(small_shop(), tmp_path, interactions=InteractionsConfig(k_core=2))
    found = ShardedShop(local, tmp_path / "found", shards=1, workers=1)
    assert_equal(found, local)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("shards", [1, 4, 16])
@pytest.mark.parametrize("workers", [1, 2])
def test_pipelines_equal_stages_on_the_demo_shop(shards, workers, local_demo, tmp_path):
    found = ShardedShop(local_demo, tmp_path, shards=shards, workers=workers)
    assert_equal(found, local_demo)


@pytest.mark.slow
@pytest.mark.timeout(3600)
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
