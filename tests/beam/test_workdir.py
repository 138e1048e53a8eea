"""From shards to what the stages of run.py read, and to a trained recommender."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from shop_pipelines import ENCODER, SEED

from tiger_jax.beam import workdir as module
from tiger_jax.beam.workdir import write_workdir
from tiger_jax.embedding.tfidf import FrozenTfidf
from tiger_jax.errors import InputError
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.embed_items import embed_items
from tiger_jax.workdir import artifacts

ROOT = Path(__file__).resolve().parents[2]


def test_the_folders_are_those_of_the_local_stages(
    small, tmp_path, monkeypatch, capsys
):
    local, found = small
    workdir = shutil.copytree(found.folder.parent, tmp_path / "run")
    write_workdir(workdir)
    # What the local stages would have written, but for what only they know.
    statistics = {**local.data.statistics, "notes": list(local.shop.notes)}
    data = dataclasses.replace(local.data, statistics=statistics, ceiling=None)
    run = artifacts.begin(tmp_path / "local", "data", stage="prepare_data", config={})
    data.save(run.folder)
    run.commit()
    embed_items(RunContext(tmp_path / "local"), seed=SEED, encoder=ENCODER)
    for folder in ("data", "embeddings"):
        hashes = {
            artifacts.load_manifest(w / folder).content_hash
            for w in (workdir, tmp_path / "local")
        }
        assert len(hashes) == 1, folder
    table = SemanticIdTable.load(workdir / "semantic_ids")
    assert table.content_hash == local.table.content_hash
    manifest = artifacts.load_manifest(workdir / "semantic_ids")
    assert manifest.external == {"shards/semantic_ids": found.semantic_ids.content_hash}

    capsys.readouterr()
    write_workdir(workdir)
    assert capsys.readouterr().out.count("up to date") == 3
    with pytest.raises(InputError, match="folders names"):
        write_workdir(workdir, ["recommender"])
    (tmp_path / "local" / "shards").symlink_to(workdir / "shards")
    with pytest.raises(InputError, match="and not from"):
        write_workdir(tmp_path / "local")
    # TF-IDF that was fitted to a part of the texts comes along: it can't be fitted
    # again to all.
    monkeypatch.setattr(module, "MAX_FITTED_ITEMS", 50)
    shutil.rmtree(workdir / "embeddings")
    write_workdir(workdir, ["embeddings"])
    texts = pa.parquet.read_table(workdir / "embeddings" / "texts.parquet")["text"]
    encoder = FrozenTfidf.load(workdir / "embeddings" / "tfidf")
    np.testing.assert_allclose(
        encoder.encode(texts.to_pylist()), local.embeddings, atol=1e-6
    )


STEPS = 400
FROM_SHARDS = ["--gin_file=demo.gin", "--gin_file=base/shards.gin"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_documented_commands_end_in_an_evaluated_model(tmp_path):
    """docs/scale.md's commands on the demo shop, with fewer steps."""
    workdir = f"--workdir={tmp_path / 'run'}"

    def stage(name, *more):
        command = [sys.executable, "run.py", f"--stage={name}", workdir, *FROM_SHARDS]
        done = subprocess.run(
            [*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{name}\n{done.stdout}\n{done.stderr}"

    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("TIGER_WORKDIR", None)
    stage("prepare_shards", "--gin.prepare_shards.num_shards=4")
    stage(
        "train_rqvae",
        "--gin.rqvae_training.RqVaeTraining.num_steps=300",
        "--gin.shuffled_rows.ShuffleConfig.sample_rows=2000",
    )
    stage("assign_shards")
    stage(
        "train_recommender",
        f"--gin.loop.LoopConfig.total_steps={STEPS}",
        "--gin.loop.LoopConfig.evaluate_every=200",
        "--gin.loop.LoopConfig.checkpoint_every=200",
    )
    stage("evaluate", "--gin.evaluate.EvaluateConfig.max_users=400")
    stage("export", "--gin.export.batch_sizes=(1,)")
    run = tmp_path / "run"
    made = artifacts.load_manifest(run / "recommender")
    assert set(made.inputs) == {"semantic_ids"}
    assert set(made.external) == {"tokens"}
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    tiger = metrics["test"]["recall@10"]
    popularity = metrics["baselines"]["popularity"]["test"]["recall@10"]
    assert np.isfinite(tiger)
    assert tiger > popularity
    assert (run / "bundle" / "manifest.json").is_file()
