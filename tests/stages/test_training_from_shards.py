"""The stage train_recommender on token files in shards, without the histories."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_workdir import make_workdir
from test_train_recommender_stage import CONFIG, LOOP, OPTIMIZER, VALIDATION
from token_files import write_token_files

from tasks.sharded import TASK, register_sharded_task
from tiger_jax.errors import InputError, Preempted
from tiger_jax.input_pipeline.batches import SeqioBatches, SeqioConfig
from tiger_jax.input_pipeline.microbatches import BucketConfig
from tiger_jax.input_pipeline.resident import ResidentConfig
from tiger_jax.input_pipeline.token_shards import token_shards_of
from tiger_jax.recommending import training_inputs
from tiger_jax.recommending.recipe import Recipe
from tiger_jax.recommending.trained_model import ModelCard
from tiger_jax.recommending.validation import ValidationConfig
from tiger_jax.stages import train_recommender as stage
from tiger_jax.stages.context import RunContext
from tiger_jax.training.partitioning import MeshConfig
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import read_json, write_json

SEQIO = SeqioConfig(TASK, batch_size=32, max_items=4)


def run(workdir, **changes):
    settings = {
        "model": CONFIG,
        "num_user_tokens": 3,
        "optimizer": OPTIMIZER,
        "loop": LOOP,
        "validation": VALIDATION,
        "input": "seqio",
        "seqio": SEQIO,
        "buckets": BucketConfig(16),
        "mesh": MeshConfig(8, 1),
    }
    stage.train_recommender(RunContext(workdir), **{**settings, **changes})
    return workdir / "recommender"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    workdir = make_workdir(tmp_path_factory.mktemp("files") / "work")
    write_token_files(workdir)
    register_sharded_task(TASK, shuffle_buffer_size=50)
    yield workdir
    register_sharded_task(TASK)


@pytest.fixture
def workdir(written, tmp_path):
    return shutil.copytree(written, tmp_path / "work")


@pytest.mark.slow
def test_training_needs_no_histories_and_resumes(workdir, tmp_path, monkeypatch):
    """It trains without the histories and goes on with the next example."""
    shutil.rmtree(workdir / "data")
    again = shutil.copytree(workdir, tmp_path / "again")
    draw, drawn = SeqioBatches.__next__, []

    def draw_and_signal(self):
        drawn.append(None)
        if len(drawn) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self)

    finished = run(workdir)
    with monkeypatch.context() as patch:
        patch.setattr(SeqioBatches, "__next__", draw_and_signal)
        with pytest.raises(Preempted):
            run(again)
    assert not (again / "recommender").exists()
    resumed = run(again)
    whole, killed = (artifacts.load_manifest(f) for f in (finished, resumed))
    assert whole.content_hash == killed.content_hash
    assert set(whole.inputs) == {"semantic_ids"}
    assert whole.external == {"tokens": whole.external["tokens"]}
    assert ModelCard.load(finished).max_items == 4


def test_validation_users_are_those_of_the_histories(workdir, monkeypatch):
    """Validation takes the users that the histories would give."""
    monkeypatch.setenv("TIGER_WORKDIR", str(workdir))
    recipe = Recipe(
        seed=5,
        num_user_tokens=3,
        validation=ValidationConfig(num_users=21),
        input=(ResidentConfig(32, 16, 4, ()),),
    )
    expected = training_inputs.open_histories(workdir, recipe)
    found = training_inputs.open_token_shards(
        token_shards_of(TASK),
        workdir,
        dataclasses.replace(recipe, input=(SEQIO, BucketConfig())),
    )
    for name in ("inputs", "targets", "items"):
        mine, theirs = (getattr(i.sample, name) for i in (found, expected))
        np.testing.assert_array_equal(mine, theirs, name)
    assert len(found.sample.items) == 21
    assert found.num_pairs == expected.num_pairs
    assert found.table.content_hash == expected.table.content_hash


def test_files_that_do_not_fit_are_refused(workdir):
    with pytest.raises(InputError, match="up to 4 items an example"):
        run(workdir, seqio=SeqioConfig(TASK, batch_size=32, max_items=5))
    with pytest.raises(InputError, match="has the token layout"):
        run(workdir, num_user_tokens=4)
    path = workdir / "shards" / "tokens" / "train" / "manifest.json"
    manifest = read_json(path)
    manifest["summary"]["semantic_ids"] = "another table's"
    write_json(path, {**manifest, "seal": artifacts.seal(manifest)})
    with pytest.raises(InputError, match="were made of other Semantic IDs"):
        run(workdir)
    shutil.rmtree(workdir / "shards" / "tokens" / "validation")
    with pytest.raises(InputError, match="validation is no whole folder of shards"):
        run(workdir)


@pytest.mark.slow
def test_two_hosts_train_from_files_of_their_own(workdir, tmp_path):
    """Each draws from its files alone, all of them, and both end with one model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    program = Path(__file__).with_name("two_hosts_program.py")
    command = [sys.executable, str(program), str(workdir), str(tmp_path)]
    paths = os.pathsep.join(sys.path)
    processes = [
        subprocess.Popen(
            command,
            env={
                **os.environ,
                "PYTHONPATH": paths,
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": "2",
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(number),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    outputs = [process.communicate()[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    os.environ["TIGER_WORKDIR"] = str(workdir)
    try:
        source = token_shards_of(TASK)
        ends = np.cumsum([0, *source.shards["train"].count()])
        inputs, _ = source.read_examples(
            "train", np.arange(ends[-1]), num_inputs=1 + 4 * 4
        )
    finally:
        del os.environ["TIGER_WORKDIR"]
    in_file = [
        {row.tobytes() for row in inputs[start:end]}
        for start, end in itertools.pairwise(ends)
    ]
    # seqio deals the three files out in turns: 0 and 2 to the first host.
    for host, files in enumerate([(0, 2), (1,)]):
        drawn = json.loads((tmp_path / f"{host}.json").read_text())
        rows = [np.asarray(row, np.int32).tobytes() for row in drawn]
        assert len(rows) == 12 * SEQIO.batch_size // 2
        own = set().union(*(in_file[file] for file in files))
        assert set(rows) <= own
        for file in files:
            assert set(rows) & in_file[file]
        others = set().union(*in_file) - own
        assert not set(rows) & others
    manifest = artifacts.load_manifest(workdir / "recommender")
    assert manifest.summary["steps"] == 12
