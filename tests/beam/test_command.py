"""The command line: python -m tiger_jax.beam."""

import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

pytest.importorskip("apache_beam", reason="needs apache-beam: make test-beam")

from shop_pipelines import small_shop

from tiger_jax.beam.__main__ import main
from tiger_jax.beam.prepare import PreparedShards, read_histories
from tiger_jax.beam.shards import Shards
from tiger_jax.data.interactions import InteractionsConfig
from tiger_jax.data.prepare import prepare_shop
from tiger_jax.data.splits import SplitsConfig


def write_parquet_shop(folder, shop, num_files=3):
    for kind, table in (("items", shop.items), ("interactions", shop.interactions)):
        (folder / kind).mkdir(parents=True)
        ends = np.linspace(0, table.num_rows, num_files + 1).astype(int)
        for number in range(num_files):
            part = table.slice(ends[number], ends[number + 1] - ends[number])
            pa.parquet.write_table(part, folder / kind / f"{number}.parquet")
    return folder


def arguments(pipeline, tmp_path, *more):
    return [f"--pipeline={pipeline}", f"--workdir={tmp_path}/run", *more]


def test_parquet_files_are_taken_over_by_workers(tmp_path, capsys):
    shop = small_shop()
    folder = write_parquet_shop(tmp_path / "shop", shop)
    how = ["--num_shards=2", "--seed=5", f"--data_dir={folder}"]
    bound = "--gin.interactions.InteractionsConfig.k_core=4"
    assert main(arguments("prepare", tmp_path, *how, bound)) == 0
    found = PreparedShards.load(tmp_path / "run" / "shards" / "data")
    expected = prepare_shop(shop, InteractionsConfig(k_core=4), SplitsConfig(), seed=5)
    histories = read_histories(found.histories.read())
    np.testing.assert_array_equal(histories.items, expected.histories.items)
    assert found.items.read().equals(expected.items)
    # The next pipelines say what they lack.
    assert main(arguments("tokens", tmp_path)) == 2
    assert "semantic_ids is no whole folder of shards" in capsys.readouterr().err
    # Bad input, met by a worker, is one line and exit code 2.
    events = shop.interactions.set_column(
        1, "item_id", pa.array(["nothing"] * shop.interactions.num_rows)
    )
    pa.parquet.write_table(events, folder / "interactions" / "1.parquet")
    assert main(arguments("prepare", tmp_path, *how)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "item 'nothing' of an interaction is not among the raw items" in error
    assert PreparedShards.load(found.folder).content_hash, "nothing was overwritten"


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("timestamp", None, "has no column 'timestamp'"),
        ("user_id", "", "row 1: no 'user_id' is given"),
        ("timestamp", "soon", "'timestamp' holds string and must be double"),
    ],
)
def test_a_bad_file_is_refused(column, values, message, tmp_path, capsys):
    shop = small_shop()
    folder = write_parquet_shop(tmp_path / "shop", shop, num_files=1)
    path = folder / "interactions" / "0.parquet"
    table = pa.parquet.read_table(path).drop_columns([column])
    if values is not None:
        table = table.append_column(column, pa.array([values] * table.num_rows))
    pa.parquet.write_table(table, path)
    assert main(arguments("prepare", tmp_path, f"--data_dir={folder}")) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error


def test_wrong_usage_is_one_line(tmp_path, capsys):
    assert main(arguments("embed", tmp_path)) == 2
    assert "run --pipeline=prepare" in capsys.readouterr().err
    assert main(arguments("prepare", tmp_path, "--num_shards=0")) == 2
    assert main(arguments("prepare", tmp_path, "--gin.nothing.k=1")) == 2
    shuffled = "--gin.interactions.InteractionsConfig.tie_order='shuffle'"
    assert main(arguments("prepare", tmp_path, shuffled)) == 2
    assert "which no shard can" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_by_the_system_at_any_moment_it_ends_the_same(tmp_path):
    folder = write_parquet_shop(tmp_path / "shop", small_shop())
    how = ["--num_shards=8", f"--data_dir={folder}"]
    assert main(arguments("prepare", tmp_path / "whole", *how)) == 0
    command = [sys.executable, "-m", "tiger_jax.beam"]
    command += arguments("prepare", tmp_path / "killed", *how)
    rng = np.random.default_rng(0)
    kept: dict = {}
    for _ in range(100):
        process = subprocess.Popen(command)
        # From the first shard on, after as many more as chance says.
        wanted = len(kept) + int(rng.integers(1, 12))
        while process.poll() is None:
            done = list((tmp_path / "killed").rglob("part-*.json"))
            if len(done) >= wanted:
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.01)
        for path, stamp in kept.items():
            assert path.stat().st_mtime_ns == stamp, f"{path} was written again"
        kept = {
            path: path.stat().st_mtime_ns
            for path in (tmp_path / "killed").rglob("part-*.json")
        }
        if process.returncode == 0:
            break
    assert process.returncode == 0
    for name in ("items", "histories"):
        hashes = {
            Shards.load(tmp_path / run / "run" / "shards" / "data" / name).content_hash
            for run in ("whole", "killed")
        }
        assert len(hashes) == 1
