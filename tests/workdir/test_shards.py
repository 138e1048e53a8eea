"""Folders of shards; these need no Beam."""

import json

import pyarrow as pa
import pytest

from tiger_jax.errors import InputError
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.shards import Shards, ShardWriter, cut_evenly, recipe_of, rows_of


def write_all(folder, *, shards=3, recipe="one", rows=10):
    writer = ShardWriter(folder, shards, recipe)
    ends = cut_evenly(rows, shards)
    for shard in writer.missing():
        numbers = list(range(ends[shard], ends[shard + 1]))
        writer.write_table(shard, pa.table({"number": numbers}), first=ends[shard])
    return writer.finish(made_by="a test")


def test_what_is_written_is_counted_hashed_and_read_in_order(tmp_path):
    shards = write_all(tmp_path)
    assert shards.read()["number"].to_pylist() == list(range(10))
    assert (shards.count(), shards.num_rows, shards.num_shards) == ([3, 3, 4], 10, 3)
    assert [row.first_row for row in rows_of(shards)] == [0, 3, 6]
    assert shards.facts["made_by"] == "a test"
    assert shards.count("first") == [0, 3, 6]
    assert Shards.load(tmp_path, verify=True).content_hash == shards.content_hash
    other = write_all(tmp_path / "other", rows=11)
    assert other.content_hash != shards.content_hash
    assert recipe_of({"k": 1}, shards) == recipe_of({"k": 1}, shards.content_hash)
    assert recipe_of({"k": 1}, shards) != recipe_of({"k": 1}, other)


def test_a_folder_is_whole_only_when_finished(tmp_path):
    writer = ShardWriter(tmp_path, 2, "one")
    writer.write_table(0, pa.table({"number": [1]}))
    assert writer.missing() == [1]
    with pytest.raises(InputError, match="part-00001-of-00002.parquet is missing"):
        writer.finish()
    with pytest.raises(InputError, match="no whole folder"):
        Shards.load(tmp_path)
    assert writer.whole() is None


def test_a_write_that_fails_leaves_no_shard(tmp_path):
    writer = ShardWriter(tmp_path, 1, "one")

    def fail(path):
        path.write_bytes(b"half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        writer.write(0, fail)
    assert writer.missing() == [0]
    writer.write_table(0, pa.table({"number": [1]}))
    assert writer.finish().num_rows == 1
    assert not list(tmp_path.glob("*.tmp")), "the half file is cleared away"


def test_another_recipe_or_shard_count_replaces_the_old(tmp_path):
    """Another recipe or number of shards replaces what was there."""
    write_all(tmp_path, shards=3)
    again = write_all(tmp_path, shards=2, recipe="two", rows=4)
    assert again.read()["number"].to_pylist() == [0, 1, 2, 3]
    assert len(list(tmp_path.glob("*.parquet"))) == 2
    assert ShardWriter(tmp_path, 2, "two").whole() is not None
    assert ShardWriter(tmp_path, 2, "three").whole() is None


def test_damage_is_found(tmp_path):
    shards = write_all(tmp_path)
    path = shards.paths[2]
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(InputError, match="bytes where .* were written"):
        Shards.load(tmp_path)
    assert ShardWriter(tmp_path, 3, "one").missing() == [2]
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    Shards.load(tmp_path)
    with pytest.raises(InputError, match="is damaged .SHA-256"):
        Shards.load(tmp_path, verify=True)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["files"]["../../etc/passwd"] = manifest["files"].popitem()[1]
    manifest["seal"] = artifacts.seal(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="which is outside"):
        Shards.load(tmp_path)
