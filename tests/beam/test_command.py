"""The pipelines as stages of run.py."""

import ast
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import slow_disk
from shop_pipelines import LocalShop, small_shop

from tiger_jax.beam.prepare import PreparedShards, read_histories
from tiger_jax.cli import main
from tiger_jax.data.interactions import InteractionsConfig
from tiger_jax.data.prepare import prepare_shop
from tiger_jax.data.splits import SplitsConfig
from tiger_jax.workdir.shards import Shards


def write_parquet_shop(folder, shop, num_files=3):
    for kind, table in (("items", shop.items), ("interactions", shop.interactions)):
        (folder / kind).mkdir(parents=True)
        ends = np.linspace(0, table.num_rows, num_files + 1).astype(int)
        for number in range(num_files):
            part = table.slice(ends[number], ends[number + 1] - ends[number])
            pa.parquet.write_table(part, folder / kind / f"{number}.parquet")
    return folder


def arguments(stage, workdir, *more):
    files = ["--gin_file=demo.gin", "--gin_file=base/shards.gin"]
    return [f"--stage={stage}", f"--workdir={workdir}", *files, *more]


def run(stage, workdir, *more):
    return main(["run.py", *arguments(stage, workdir, *more)])


def test_parquet_files_are_taken_over_by_workers(tmp_path, capsys):
    shop = small_shop()
    folder = write_parquet_shop(tmp_path / "shop", shop)
    how = ["--gin.prepare_shards.num_shards=2", "--gin.SEED=5", f"--data_dir={folder}"]
    bound = "--gin.interactions.InteractionsConfig.k_core=4"
    assert run("prepare_shards", tmp_path / "run", *how, bound) == 0
    found = PreparedShards.load(tmp_path / "run" / "shards" / "data")
    expected = prepare_shop(shop, InteractionsConfig(k_core=4), SplitsConfig(), seed=5)
    histories = read_histories(found.histories.read())
    np.testing.assert_array_equal(histories.items, expected.histories.items)
    assert found.items.read().equals(expected.items)
    # The next stage says what it lacks.
    assert run("assign_shards", tmp_path / "run") == 2
    assert (
        "rqvae, which does not exist: run --stage=train_rqvae"
        in capsys.readouterr().err
    )
    # Bad input, met by a worker, is one line and exit code 2.
    events = shop.interactions.set_column(
        1, "item_id", pa.array(["nothing"] * shop.interactions.num_rows)
    )
    pa.parquet.write_table(events, folder / "interactions" / "1.parquet")
    assert run("prepare_shards", tmp_path / "run", *how) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "item 'nothing' of an interaction is not among the raw items" in error
    assert PreparedShards.load(found.folder).content_hash, "nothing was overwritten"


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("timestamp", None, "has no column 'timestamp'"),
        ("user_id", "", "row 1: no 'user_id' is given"),
        ("timestamp", "soon", "row 1: 'timestamp' is 'soon', which is no time"),
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
    assert run("prepare_shards", tmp_path / "run", f"--data_dir={folder}") == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error


def test_wrong_usage_is_one_line(tmp_path, capsys, monkeypatch):
    def refused(stage, *more):
        assert run(stage, tmp_path / "run", *more) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "run --stage=prepare_shards" in refused("assign_shards")
    no_shards = refused("prepare_shards", "--gin.prepare_shards.num_shards=0")
    assert "must be at least 1" in no_shards
    nobody = refused("prepare_shards", "--gin.beam.RunnerConfig.workers=0")
    assert "beam.RunnerConfig" in nobody
    monkeypatch.setattr("tiger_jax.beam.runner.find_spec", lambda name: None)
    no_dask = refused("prepare_shards", "--gin.beam.RunnerConfig.runner=DaskRunner")
    assert "pip install 'tiger_jax[dask]'" in no_dask
    shuffled = "--gin.interactions.InteractionsConfig.tie_order='shuffle'"
    assert "which no shard can" in refused("prepare_shards", shuffled)
    assert main(["run.py", "--stage=assign_shards", f"--workdir={tmp_path}"]) == 2
    assert "add base/shards.gin" in capsys.readouterr().err


def test_the_documented_options_are_beams():
    from apache_beam.options.pipeline_options import PipelineOptions

    text = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    rows = dict(re.findall(r'runner=(\w+) --gin.*options="(\(.*\))"', text))
    assert rows.keys() == {"DaskRunner", "FlinkRunner", "SparkRunner", "DataflowRunner"}
    del rows["DaskRunner"]  # known where Dask is: tests/beam/test_dask.py
    known = PipelineOptions().get_all_options()
    for options in map(ast.literal_eval, rows.values()):
        assert {option[2:].partition("=")[0] for option in options} <= known.keys()


def stamps(workdir):
    """What tells whether a finished shard was written again."""
    found = {}
    for facts in workdir.rglob("part-*.json"):
        for path in facts.parent.glob(f"{facts.stem}.*"):
            if path.suffix != ".tmp":
                stat = path.stat()
                found[path] = (stat.st_ino, stat.st_mtime_ns)
    return found


def kill_and_restart(processes, arguments, workdir, rng, min_kills=3):
    """Starts a command over and over, and kills it at random moments.

    A moment is while a shard is written or moved into place, the first or the second
    that is missing, or up to 0.8 seconds later.

    Returns:
        How often it was killed, and how many files stood finished at each start.
    """
    kills, finished = 0, []
    for _ in range(40):
        known = stamps(workdir)
        finished.append(len(known))
        more = int(rng.integers(0, 2)) if kills < min_kills else 10**9
        process = processes.Process(target=slow_disk.run, args=(arguments,))
        process.start()
        while process.is_alive():
            is_writing = any(workdir.rglob(f"*.{process.pid}.*.tmp"))
            if is_writing and len(stamps(workdir)) >= len(known) + 2 * more:
                time.sleep(float(rng.uniform(0, 0.8)))
                os.kill(process.pid, signal.SIGKILL)
                process.join()
            time.sleep(0.02)
        after = stamps(workdir)
        for path, stamp in known.items():
            assert after.get(path) == stamp, f"{path} was written again"
        kills += process.exitcode == -signal.SIGKILL
        if process.exitcode != -signal.SIGKILL:
            break
    assert process.exitcode == 0
    return kills, finished


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_random_moments_every_pipeline_ends_the_same(tmp_path):
    """SIGKILL, at least three times each; what was finished is never redone."""
    shop = small_shop()
    folder = write_parquet_shop(tmp_path / "shop", shop)
    local = LocalShop(shop, tmp_path, interactions=InteractionsConfig(k_core=5))
    options = {
        "prepare_shards": [
            f"--data_dir={folder}",
            "--gin.prepare_shards.num_shards=6",
            "--gin.interactions.InteractionsConfig.k_core=5",
            "--gin.encoders.TfidfEncoder.dims=16",
        ],
        "assign_shards": [
            f"--gin.assign_shards.rqvae='{local.rqvae}'",
            "--gin.assign_shards.num_user_tokens=10",
        ],
    }
    # Each a process of its own, forked from one that has done the imports.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["slow_disk", "tiger_jax.beam.prepare"])
    rng = np.random.default_rng(0)
    for stage, more in options.items():
        assert run(stage, tmp_path / "whole", *more) == 0
        killed = arguments(stage, tmp_path / "killed", *more)
        kills, finished = kill_and_restart(
            processes, killed, tmp_path / "killed", rng, min_kills=6
        )
        print(f"{stage}: {kills} kills; files of finished shards: {finished}")
        assert kills >= 6
    whole, again = (
        {
            path.parent.relative_to(tmp_path / run): Shards.load(
                path.parent, verify=True
            ).content_hash
            for path in (tmp_path / run / "shards").rglob("manifest.json")
        }
        for run in ("whole", "killed")
    )
    assert whole == again
    assert len(whole) >= 10
