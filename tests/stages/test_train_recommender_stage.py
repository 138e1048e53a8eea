import dataclasses
import json
import os
import signal

import flax.linen as nn
import jax
import numpy as np
import pytest
from shared_folder import made_once
from small_workdir import make_workdir

from tiger_jax.errors import InputError, Preempted
from tiger_jax.input_pipeline.resident import ResidentConfig, ResidentInput
from tiger_jax.models.generator import init_params
from tiger_jax.models.tiger import TigerConfig
from tiger_jax.recommending.trained_model import ModelCard, load_recommender
from tiger_jax.recommending.validation import ValidationConfig
from tiger_jax.stages import train_recommender as stage
from tiger_jax.stages.context import RunContext
from tiger_jax.training.loop import LoopConfig
from tiger_jax.training.optimizers import OptimizerConfig
from tiger_jax.training.partitioning import MeshConfig, Partitioner
from tiger_jax.workdir import artifacts

CONFIG = TigerConfig(
    num_encoder_layers=1,
    num_decoder_layers=1,
    d_model=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=16,
)
OPTIMIZER = OptimizerConfig(
    name="adamw", schedule="constant", learning_rate=0.01, warmup_steps=0
)
RESIDENT = ResidentConfig(
    batch_size=32, microbatch_size=16, max_items=4, bucket_items=()
)
LOOP = LoopConfig(
    total_steps=12,
    log_every=4,
    evaluate_every=6,
    checkpoint_every=4,
    best_metric="loss",
)
VALIDATION = ValidationConfig(num_users=21, batch_size=16, with_search=False)


def run(workdir, **changes):
    settings = {
        "model": CONFIG,
        "num_user_tokens": 3,
        "optimizer": OPTIMIZER,
        "loop": LOOP,
        "validation": VALIDATION,
        "resident": RESIDENT,
        "mesh": MeshConfig(8, 1),
    }
    stage.train_recommender(RunContext(workdir), **{**settings, **changes})
    return workdir / "recommender"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    made = made_once(tmp_path_factory, "trained", lambda f: run(make_workdir(f)))
    return made / "recommender"


def test_the_folder_rebuilds_the_best_model(finished):
    card = ModelCard.load(finished)
    config, layout, model, params = load_recommender(finished)
    assert (config, layout) == (CONFIG, card.layout)
    assert layout.num_user_tokens == 3
    assert card.max_items == 4
    assert (finished / card.checkpoint).is_dir()
    expected = jax.eval_shape(lambda k: init_params(model, k), jax.random.key(0))
    shapes = jax.tree.map(lambda x: x.shape, params)
    assert shapes == jax.tree.map(lambda x: x.shape, nn.meta.unbox(expected))
    rows = [
        json.loads(r) for r in (finished / "metrics.jsonl").read_text().splitlines()
    ]
    best = next(
        r for r in rows if r["step"] == card.best_step and "validation/loss" in r
    )
    for name, value in card.best_metrics.items():
        assert best[f"validation/{name}"] == pytest.approx(value)
    manifest = artifacts.load_manifest(finished)
    assert manifest.summary["best_step"] == card.best_step
    assert set(manifest.inputs) == {"data", "semantic_ids"}


def test_a_finished_folder_is_up_to_date_on_any_mesh(finished, capsys):
    before = artifacts.load_manifest(finished)
    run(finished.parent, mesh=MeshConfig(4, 2))
    assert "up to date" in capsys.readouterr().out
    assert artifacts.load_manifest(finished) == before


def run_preempted(workdir, monkeypatch, after, **changes):
    """Is asked to end after so many updates."""
    draw = ResidentInput.__next__
    batch_size = changes.get("resident", RESIDENT).batch_size

    def draw_and_signal(self):
        if self._drawn == after * batch_size:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self)

    with monkeypatch.context() as patch:
        patch.setattr(ResidentInput, "__next__", draw_and_signal)
        with pytest.raises(Preempted):
            run(workdir, **changes)
    assert not (workdir / "recommender").exists()


@pytest.mark.slow  # the two-level generator has its own, SASRec too
def test_a_preempted_stage_ends_in_the_same_content(
    finished, tmp_path, monkeypatch, capsys
):
    """Also where another setting is tried in between."""
    workdir = make_workdir(tmp_path / "work")
    run_preempted(workdir, monkeypatch, after=7)
    capsys.readouterr()
    other = dataclasses.replace(RESIDENT, batch_size=16)
    run_preempted(workdir, monkeypatch, after=2, resident=other)
    said = capsys.readouterr().out
    assert "batch_size was 32 and is 16" in said
    (aside,) = workdir.glob("recommender.partial-*")
    assert f"kept as {aside}" in said
    assert [*(aside / "checkpoints").glob("checkpoint_[1-9]*")]
    again = run(workdir)
    assert "train_recommender: resuming" in capsys.readouterr().out
    assert (
        artifacts.load_manifest(again).content_hash
        == artifacts.load_manifest(finished).content_hash
    )


def test_embeddings_may_start_from_the_codebooks(tmp_path):
    workdir = make_workdir(tmp_path / "work")
    with pytest.raises(InputError, match="rqvae can't be read"):
        run(workdir, codeword_embeddings=True)


def test_training_may_start_from_a_finished_recommender(finished, tmp_path):
    workdir = make_workdir(tmp_path / "work")
    loop = dataclasses.replace(LOOP, total_steps=4, evaluate_every=4)
    rate = dataclasses.replace(OPTIMIZER, learning_rate=1e-6)
    run(workdir, loop=loop, optimizer=rate, starts_from=str(finished))
    *_, start = load_recommender(finished)
    *_, params = load_recommender(workdir / "recommender")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), start, params
    )
    manifest = artifacts.load_manifest(workdir / "recommender")
    begun = artifacts.load_manifest(finished)
    assert manifest.external == {"starts_from": begun.content_hash}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_user_tokens": 4}, "with 3 user tokens, here they are .* with 4"),
        (
            {"model": dataclasses.replace(CONFIG, d_model=16)},
            r"does not fit: target/.* is \[.*\] in it and \[.*\] in the model",
        ),
    ],
)
def test_a_start_that_does_not_fit_is_refused(finished, tmp_path, changes, message):
    workdir = make_workdir(tmp_path / "work")
    with pytest.raises(InputError, match=message):
        run(workdir, starts_from=str(finished), **changes)
    with pytest.raises(InputError, match="does not exist"):
        run(workdir, starts_from=str(tmp_path / "nowhere"))


def test_an_unknown_input_is_refused(tmp_path):
    with pytest.raises(InputError, match="binds what 'seqio' needs"):
        run(tmp_path, input="tfds")


def test_another_tasks_folder_is_refused(tmp_path, monkeypatch):
    workdir = make_workdir(tmp_path / "work")
    monkeypatch.setenv("TIGER_WORKDIR", str(tmp_path / "elsewhere"))
    with pytest.raises(InputError, match="unset it, or make both the same"):
        run(workdir)


def test_validation_does_not_depend_on_batches_or_meshes(finished):
    from tiger_jax.data.prepared import PreparedData
    from tiger_jax.recommending.validation import ValidationSample, make_evaluate_fn
    from tiger_jax.semantic_ids.table import SemanticIdTable

    _, _, model, params = load_recommender(finished)
    params = jax.device_get(params)
    data = PreparedData.load(finished.parent / "data")
    table = SemanticIdTable.load(finished.parent / "semantic_ids")
    sample = ValidationSample.of_users(
        data.validation,
        table,
        model.layout,
        num_users=21,
        max_items=4,
        user_hashes=data.user_hashes,
        seed=0,
    )
    results = []
    for mesh, devices, batch_size in [((1, 1), 1, 7), ((8, 1), 8, 16)]:
        partitioner = Partitioner(MeshConfig(*mesh), devices=jax.devices()[:devices])
        evaluate_fn = make_evaluate_fn(
            model,
            table,
            sample,
            ValidationConfig(num_users=21, batch_size=batch_size, num_beams=12),
            partitioner,
        )
        put = jax.device_put(params, partitioner.replicated)
        results.append(evaluate_fn(put))
    assert results[0]["recall@10"] == results[1]["recall@10"]
    np.testing.assert_allclose(results[0]["loss"], results[1]["loss"], rtol=1e-5)
