"""The pipelines on a Dask cluster: a scheduler and two workers, on loopback."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
import time

import pyarrow as pa
import pytest
from shop_pipelines import LocalShop, ShardedShop, assert_equal, small_shop

from tiger_jax.beam.runner import RunnerConfig
from tiger_jax.data.interactions import InteractionsConfig
from tiger_jax.errors import InputError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


class Cluster:
    """A scheduler and two workers, and what runs a pipeline on them."""

    def __init__(self, folder):
        file = folder / "scheduler.json"
        self._options = (f"--scheduler-file={file}", "--host=127.0.0.1")
        self.scheduler = self._start("scheduler", "--port=0", "--no-dashboard")
        # A nanny would start a killed worker again.
        how = ("--no-nanny", "--nthreads=1", "--no-dashboard")
        self.workers = [self._start("worker", *how) for _ in range(2)]
        self.runner = RunnerConfig("DaskRunner", (f"--dask_scheduler_file={file}",))

    def _start(self, what, *more):
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}"]
        return subprocess.Popen(
            [*command, *self._options, *more],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def stop(self):
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path):
    pytest.importorskip("distributed", reason="needs tiger_jax[dask]")
    found = Cluster(tmp_path)
    yield found
    found.stop()


@contextlib.contextmanager
def killed_once(cluster, folder, num_shards):
    """Kills a worker while the last of a few pipelines is at its shards."""
    seen, is_over = [], threading.Event()

    def kill():
        while not is_over.is_set():
            done = len(list(folder.glob("part-*.json")))
            if done:
                cluster.workers[0].kill()
                seen.append(done)
                return
            time.sleep(0.002)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
    assert seen, "no worker was killed"
    assert seen[0] < num_shards, "it was killed after the work"
    assert cluster.workers[0].wait() == -9


def test_pipelines_on_two_workers_equal_stages(cluster, tmp_path):
    core = InteractionsConfig(k_core=5, tie_order="item")
    local = LocalShop(small_shop(), tmp_path, interactions=core, unseen_share=0.1)
    found = ShardedShop(local, tmp_path / "found", shards=4, runner=cluster.runner)
    assert_equal(found, local)
    # Bad input, met by a worker, is its one line.
    rows = local.shop.interactions
    place = rows.column_names.index("item_id")
    bad = rows.set_column(place, "item_id", pa.array(["nothing"] * len(rows)))
    local.shop = dataclasses.replace(local.shop, interactions=bad)
    with pytest.raises(InputError, match="'nothing' of an interaction is not") as error:
        ShardedShop(local, tmp_path / "bad", shards=2, runner=cluster.runner)
    assert "while running" not in str(error.value)


@pytest.mark.parametrize(
    "where", ["data/histories", "embedded/distinct", "tokens/train"]
)
def test_a_killed_worker_costs_time_not_data(where, cluster, local_demo, tmp_path):
    with killed_once(cluster, tmp_path / "found" / where, 16):
        found = ShardedShop(
            local_demo, tmp_path / "found", shards=16, runner=cluster.runner
        )
    assert_equal(found, local_demo)


@pytest.mark.parametrize("shards", [1, 4])
def test_demo_shop_on_the_cluster(shards, cluster, local_demo, tmp_path):
    found = ShardedShop(local_demo, tmp_path, shards=shards, runner=cluster.runner)
    assert_equal(found, local_demo)


@pytest.mark.parametrize("shards", [1, 4, 16])
def test_beauty_on_the_cluster(shards, cluster, local_beauty, tmp_path):
    how = {"shards": shards, "runner": cluster.runner}
    kill = killed_once(cluster, tmp_path / "found" / "embedded" / "distinct", shards)
    with kill if shards > 1 else contextlib.nullcontext():
        found = ShardedShop(local_beauty, tmp_path / "found", **how)
    assert_equal(found, local_beauty)
