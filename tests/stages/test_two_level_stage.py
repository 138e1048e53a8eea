"""The two-level generator through the stages: trained, evaluated, exported, served."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared_folder import made_once
from test_train_recommender_stage import LOOP, OPTIMIZER, VALIDATION, run
from trained_workdir import make_trained_workdir

from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError, Preempted
from tiger_jax.input_pipeline.resident_sequences import HistoryConfig, ResidentHistories
from tiger_jax.models.two_level import TwoLevelConfig
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.recommending.trained_model import ModelCard
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.evaluate import EvaluateConfig, evaluate
from tiger_jax.stages.export import export
from tiger_jax.stages.export_t5 import export_t5
from tiger_jax.workdir.json_files import read_json

CONFIG = TwoLevelConfig(
    d_model=16, num_heads=2, mlp_dim=32, max_distance=8, dropout_rate=0.1
)
SETTINGS = {
    "model": CONFIG,
    "num_user_tokens": 0,
    "optimizer": OPTIMIZER,
    "loop": dataclasses.replace(LOOP, total_steps=60, evaluate_every=30, log_every=30),
    "validation": VALIDATION,
    "resident": HistoryConfig(
        batch_size=32, microbatch_size=16, max_items=8, bucket_items=()
    ),
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return made_once(
        tmp_path_factory,
        "two_level",
        lambda folder: run(make_trained_workdir(folder), **SETTINGS),
    )


def test_every_position_of_every_history_is_a_target_once(workdir):
    data = PreparedData.load(workdir / "data")
    table = SemanticIdTable.load(workdir / "semantic_ids")
    layout = TokenLayout(table.codebook_sizes)
    config = dataclasses.replace(SETTINGS["resident"], batch_size=16)
    examples = ResidentHistories(data.train, table.codes, layout, config)
    item_of = {
        tuple(t): i for i, t in enumerate(layout.tokens_of(table.codes).tolist())
    }
    found, drawn = [], 0
    while drawn < examples.num_examples:
        update = next(examples)
        for arrays, bucket in zip(
            [{k: v[0] for k, v in update.arrays.items()}], update.buckets, strict=True
        ):
            given = jax.tree.map(jnp.asarray, (examples.constants, arrays))
            batch = examples.make_batch(*given, int(bucket))
            rows = {k: np.asarray(v).reshape(16, -1, 4) for k, v in batch.items()}
            for row in range(min(16, examples.num_examples - drawn)):
                for place in range(rows["decoder_target_tokens"].shape[1]):
                    if rows["decoder_loss_weights"][row, place, 0]:
                        last = rows["encoder_input_tokens"][row, place]
                        wanted = rows["decoder_target_tokens"][row, place]
                        found.append((item_of[tuple(last)], item_of[tuple(wanted)]))
        drawn += 16
    expected = [
        pair
        for user in range(data.train.num_users)
        for pair in zip(
            data.train.of(user)[:-1].tolist(),
            data.train.of(user)[1:].tolist(),
            strict=True,
        )
    ]
    assert sorted(found) == sorted(expected)


def test_it_learns_and_is_written_with_its_class(workdir):
    card = ModelCard.load(workdir / "recommender")
    assert card.config == CONFIG
    assert card.max_items == 8
    rows = [
        json.loads(line)
        for line in (workdir / "recommender" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < losses[0]


def test_a_killed_training_resumes_bit_for_bit(workdir, tmp_path):
    again = make_trained_workdir(tmp_path / "work")
    stopping = dataclasses.replace(SETTINGS["loop"], checkpoint_every=12)
    seen = []
    original = ResidentHistories.__next__

    def stop_at_20(self):
        seen.append(1)
        if len(seen) == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    ResidentHistories.__next__ = stop_at_20
    try:
        with pytest.raises(Preempted):
            run(again, **{**SETTINGS, "loop": stopping})
    finally:
        ResidentHistories.__next__ = original
    run(again, **{**SETTINGS, "loop": stopping})
    first, second = (
        read_json(folder / "recommender" / "manifest.json")["content_hash"]
        for folder in (workdir, again)
    )
    assert first == second


def test_it_is_evaluated_exported_and_recommends_what_evaluation_lists(workdir):
    context = RunContext(workdir)
    evaluate(context, config=EvaluateConfig(guard_users=16, baselines=()))
    metrics = read_json(workdir / "evaluation" / "metrics.json")
    assert 0 < metrics["test"]["recall@10"] <= 1
    export(context, num_beams=50, batch_sizes=(1,))
    recommender = Recommender.load(workdir / "bundle")
    line = json.loads(
        (workdir / "evaluation" / "predictions.jsonl").read_text().splitlines()[0]
    )
    answer = recommender.recommend(line["history"], k=10, exclude_history=False)
    listed = [item["item_id"] for item in line["recommended"]][:10]
    assert [item.item_id for item in answer.items] == listed
    exact = recommender.recommend(
        line["history"], 10, exclude_history=False, exact=True
    )
    assert [item.item_id for item in exact.items] == listed


def test_it_is_no_t5_and_reads_no_user_tokens(workdir, tmp_path):
    with pytest.raises(InputError, match="TwoLevelConfig, and no T5"):
        export_t5(RunContext(workdir))
    other = make_trained_workdir(tmp_path / "work")
    with pytest.raises(InputError, match="num_user_tokens=0"):
        run(other, **{**SETTINGS, "num_user_tokens": 3})
