"""Stage train_sasrec: what it writes, that it resumes, and who shows it."""

import os
import signal

import numpy as np
import pytest
from shared_folder import made_once
from trained_workdir import NUM_ITEMS, make_trained_workdir

from benchmarks.lib import merge_rows
from benchmarks.paper.results_rows import KEY, collect_rows
from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import Preempted
from tiger_jax.evaluation import evaluator
from tiger_jax.evaluation.baselines.sasrec import SasRecCard, TrainedSasRec
from tiger_jax.evaluation.fuse_and_measure import FusionConfig
from tiger_jax.evaluation.metrics import compute_metrics
from tiger_jax.evaluation.recommend_fn import last_items
from tiger_jax.input_pipeline.resident_sequences import (
    ResidentSequences,
    SequenceConfig,
)
from tiger_jax.models.bsarec import BsaRecConfig
from tiger_jax.models.sasrec import SasRecConfig
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.evaluate import EvaluateConfig, evaluate
from tiger_jax.stages.fuse import fuse
from tiger_jax.stages.train_sasrec import train_sasrec
from tiger_jax.training.loop import LoopConfig
from tiger_jax.training.optimizers import OptimizerConfig
from tiger_jax.training.partitioning import MeshConfig
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import read_json, write_json

SETTINGS = {
    "model": SasRecConfig(max_length=4, d_model=8),
    "sequences": SequenceConfig(batch_size=16, microbatch_size=8, bucket_items=()),
    "optimizer": OptimizerConfig(
        name="adamw", schedule="constant", learning_rate=0.01, warmup_steps=0
    ),
    "loop": LoopConfig(
        total_steps=8,
        log_every=4,
        evaluate_every=4,
        checkpoint_every=4,
        best_metric="loss",
    ),
    "mesh": MeshConfig(8, 1),
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return made_once(
        tmp_path_factory,
        "sasrec",
        lambda f: train_sasrec(RunContext(make_trained_workdir(f)), **SETTINGS),
    )


def test_the_best_step_is_what_is_loaded(workdir):
    """What is loaded has the validation metrics of the best step."""
    card = SasRecCard.load(workdir / "sasrec")
    assert card.config == SETTINGS["model"]
    data = PreparedData.load(workdir / "data")
    recommend = TrainedSasRec().build(data, workdir)
    found = evaluator.evaluate(
        recommend,
        data.validation,
        num_items=NUM_ITEMS,
        exclude_seen=False,
    )
    metrics = compute_metrics(found.ranks)
    for name in ("recall@10", "ndcg@10"):
        assert metrics[name] == pytest.approx(card.best_metrics[name])


@pytest.mark.slow
def test_bsarec_takes_its_place_and_the_row_says_so(tmp_path):
    workdir = make_trained_workdir(tmp_path / "work")
    model = BsaRecConfig(max_length=4, d_model=8, cutoff=2)
    train_sasrec(RunContext(workdir), **SETTINGS | {"model": model})
    data = PreparedData.load(workdir / "data")
    # One example for each item of a training history but its first.
    pairs = len(data.train.items) - data.num_users
    manifest = artifacts.load_manifest(workdir / "sasrec")
    assert manifest.summary["training_targets"] == pairs
    fuse(RunContext(workdir), config=FusionConfig(parts=("popularity", "sasrec")))
    record = read_json(workdir / "fusion" / "metrics.json")
    assert record["titles"]["sasrec"] == "BSARec, full softmax"
    assert SasRecCard.load(workdir / "sasrec").config == model


def test_a_card_of_an_earlier_version_is_a_sasrecs(workdir, tmp_path):
    card = read_json(workdir / "sasrec" / "model.json")
    del card["kind"]
    write_json(tmp_path / "model.json", card)
    assert SasRecCard.load(tmp_path).config == SETTINGS["model"]


@pytest.mark.slow
def test_it_is_up_to_date_and_a_preempted_one_ends_the_same(
    workdir, tmp_path, monkeypatch, capsys
):
    train_sasrec(RunContext(workdir), **SETTINGS)
    assert "up to date" in capsys.readouterr().out
    other = make_trained_workdir(tmp_path / "work")
    draw = ResidentSequences.__next__

    def draw_and_signal(self):
        if self._drawn == 5 * 16:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self)

    with monkeypatch.context() as patch:
        patch.setattr(ResidentSequences, "__next__", draw_and_signal)
        with pytest.raises(Preempted):
            train_sasrec(RunContext(other), **SETTINGS)
    train_sasrec(RunContext(other), **SETTINGS)
    hashes = [
        artifacts.load_manifest(w / "sasrec").content_hash for w in (workdir, other)
    ]
    assert hashes[0] == hashes[1]


def test_evaluate_shows_it_where_it_is_there(workdir):
    config = EvaluateConfig(batch_size=16, guard_users=0, max_users=16, baselines=())
    evaluate(RunContext(workdir), config=config)
    metrics = read_json(workdir / "evaluation" / "metrics.json")
    assert set(metrics["baselines"]) == {"sasrec"}
    inputs = artifacts.load_manifest(workdir / "evaluation").inputs
    assert "sasrec" in inputs
    rows = {(r["method"], r["split"]): r for r in collect_rows(workdir, "mine")}
    assert {name for name, _ in rows} == {"tiger", "sasrec"}
    row = rows["sasrec", "test_masked"]
    found = metrics["baselines"]["sasrec"]["test_masked"]
    assert row["metrics"] == pytest.approx(found, abs=1e-6)
    assert (row["updates"], row["examples"], row["seed"]) == (8, 8 * 16, 0)
    assert merge_rows([row], [row | {"minutes": 7}], *KEY) == [row | {"minutes": 7}]


def test_only_the_last_items_of_a_history_are_read():
    histories = np.array([[1, 2, 3, 4], [5, 6, -1, -1]], np.int32)
    assert last_items(histories, 3).tolist() == [[2, 3, 4], [5, 6, -1]]
    assert last_items(histories, 9) is histories
