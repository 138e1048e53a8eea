"""The two-level generator through the stages: trained, evaluated."""

import dataclasses
import json
import os
import signal

import pytest
from shared_folder import made_once
from test_train_recommender_stage import LOOP, OPTIMIZER, VALIDATION, run
from trained_workdir import make_trained_workdir

from tiger_jax.errors import InputError, Preempted
from tiger_jax.input_pipeline.packed_histories import PackedConfig, PackedHistories
from tiger_jax.models.two_level import TwoLevelConfig
from tiger_jax.recommending.trained_model import ModelCard
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.evaluate import EvaluateConfig, evaluate
from tiger_jax.stages.export_t5 import export_t5
from tiger_jax.workdir.json_files import read_json

CONFIG = TwoLevelConfig(
    num_layers=1,
    num_depth_layers=1,
    d_model=16,
    num_heads=2,
    mlp_dim=32,
    max_distance=8,
    dropout_rate=0.1,
    reads_content=True,
    dense_head=True,
)
SETTINGS = {
    "model": CONFIG,
    "num_user_tokens": 0,
    "average_decay": 0.9,
    "optimizer": OPTIMIZER,
    "loop": dataclasses.replace(
        LOOP, total_steps=30, evaluate_every=15, log_every=15, checkpoint_every=15
    ),
    "validation": dataclasses.replace(VALIDATION, with_search=True, num_beams=11),
    "resident": PackedConfig(
        batch_size=16, microbatch_size=8, max_items=8, repeated_items=2
    ),
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return made_once(
        tmp_path_factory,
        "two_level",
        lambda folder: run(make_trained_workdir(folder), **SETTINGS),
    )


def test_it_learns_and_is_written_with_its_class(workdir):
    card = ModelCard.load(workdir / "recommender")
    assert card.config == CONFIG
    assert card.max_items == 8
    assert card.is_averaged
    assert {"recall@10", "recall@10_with_dense"} <= card.best_metrics.keys()
    assert (
        card.best_metrics["recall@10_with_dense"] >= card.best_metrics["recall@10"]
    )  # a weight of 0 is among those tried
    rows = [
        json.loads(line)
        for line in (workdir / "recommender" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_a_killed_training_resumes_bit_for_bit(workdir, tmp_path):
    again = make_trained_workdir(tmp_path / "work")
    stopping = dataclasses.replace(SETTINGS["loop"], checkpoint_every=10)
    seen = []
    original = PackedHistories.__next__

    def stop_at_14(self):
        seen.append(1)
        if len(seen) == 14:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    PackedHistories.__next__ = stop_at_14
    try:
        with pytest.raises(Preempted):
            run(again, **{**SETTINGS, "loop": stopping})
    finally:
        PackedHistories.__next__ = original
    run(again, **{**SETTINGS, "loop": stopping})
    first, second = (
        read_json(folder / "recommender" / "manifest.json")["content_hash"]
        for folder in (workdir, again)
    )
    assert first == second


def test_it_is_evaluated_with_and_without_its_dense_head(workdir):
    evaluate(RunContext(workdir), config=EvaluateConfig(guard_users=0, baselines=()))
    metrics = read_json(workdir / "evaluation" / "metrics.json")
    assert 0 < metrics["test"]["recall@10"] <= 1
    if ModelCard.load(workdir / "recommender").dense_weights.item:
        assert 0 < metrics["baselines"]["codes_alone"]["test"]["recall@10"] <= 1


def test_it_is_no_t5_and_reads_no_user_tokens(workdir, tmp_path):
    with pytest.raises(InputError, match="TwoLevelConfig, and no T5"):
        export_t5(RunContext(workdir))
    other = make_trained_workdir(tmp_path / "work")
    with pytest.raises(InputError, match="num_user_tokens=0"):
        run(other, **{**SETTINGS, "num_user_tokens": 3})
