"""Runs t5x itself, as a user would, and exchanges checkpoints with it."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from small_workdir import make_workdir

from tasks.tiger import register_tiger_task
from tiger_jax.input_pipeline.batches import SeqioBatches, SeqioConfig
from tiger_jax.input_pipeline.microbatches import BucketConfig, BucketedBatches
from tiger_jax.input_pipeline.quiet_tensorflow import seqio, tf
from tiger_jax.models.generator import init_params, make_loss_fn
from tiger_jax.models.tiger import Tiger, TigerConfig
from tiger_jax.training.loop import LoopConfig, train
from tiger_jax.training.optimizers import OptimizerConfig, make_optimizer
from tiger_jax.training.partitioning import MeshConfig, Partitioner

pytestmark = [
    pytest.mark.t5x,
    pytest.mark.skipif(
        importlib.util.find_spec("t5x") is None,
        reason="t5x is not installed (docs/t5x.md)",
    ),
]

REPOSITORY = Path(__file__).parents[2]
TASK, BATCH, STEPS, HALF = "tiger_demo", 32, 60, 30
SIZES = {
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "d_model": 32,
    "num_heads": 2,
    "head_dim": 16,
    "mlp_dim": 64,
}
OPTIMIZER = OptimizerConfig(learning_rate=0.01, warmup_steps=20)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("shop") / "work")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, workdir):
    """A folder in which t5x trained all the steps, and its losses."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, _train_with_t5x(folder, workdir, STEPS)


def _run(
    module: str, workdir: Path, gin_files: list[str], bindings: dict, sizes=SIZES
) -> None:
    bindings = {f"tiger.TigerConfig.{k}": v for k, v in sizes.items()} | bindings
    environment = {
        **os.environ,
        "TIGER_WORKDIR": str(workdir),
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    environment.pop("XLA_FLAGS", None)
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            module,
            *(f"--gin_file=gin_configs/t5x/{name}" for name in gin_files),
            *(f"--gin.{name}={value!r}" for name, value in bindings.items()),
        ],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]


def _train_with_t5x(
    folder: Path, workdir: Path, steps: int, start: Path | None = None
) -> dict[int, float]:
    bindings = {
        "MODEL_DIR": str(folder),
        "TRAIN_STEPS": steps,
        "BATCH_SIZE": BATCH,
        "optimizers.OptimizerConfig.warmup_steps": OPTIMIZER.warmup_steps,
        "train.eval_period": HALF,
        "train.eval_steps": 2,
        "train.stats_period": 1,
        "utils.SaveCheckpointConfig.period": HALF,
    }
    files = ["tiger_demo.gin"]
    if start is not None:
        files.append("resume.gin")
        bindings["CHECKPOINT_PATH"] = str(start)
    _run("t5x.train", workdir, files, bindings)
    return _losses_of_t5x(folder)


def _losses_of_t5x(folder: Path) -> dict[int, float]:
    """The training loss after each step, from TensorBoard's files."""
    losses = {}
    for path in sorted((folder / "train").glob("events*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.tag == "loss":
                    losses[event.step] = float(tf.make_ndarray(value.tensor))
    return losses


def _train_with_ours(folder: Path, workdir: Path, steps: int) -> dict[int, float]:
    """Our engine on the same task, one step a dispatch, 81-token padding."""
    register_tiger_task(TASK, str(workdir))
    stream = SeqioBatches(SeqioConfig(TASK, BATCH), seed=0)
    model = Tiger(TigerConfig(**SIZES), stream.layout)
    train(
        loss_fn=make_loss_fn(model),
        init_fn=lambda key: init_params(model, key),
        optimizer=make_optimizer(OPTIMIZER, STEPS),
        input=BucketedBatches(stream, BucketConfig(), max_length=stream.max_length),
        evaluate_fn=lambda params: {"loss": 1.0},
        partitioner=Partitioner(MeshConfig(), devices=jax.devices()[:1]),
        config=LoopConfig(
            total_steps=steps,
            log_every=1,
            evaluate_every=HALF,
            checkpoint_every=HALF,
            keep_checkpoints=10,
            best_metric="loss",
        ),
        folder=folder,
        seed=0,
    )
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def _assert_losses_agree(ours: dict[int, float], theirs: dict[int, float]) -> None:
    assert ours.keys() == theirs.keys()
    steps = sorted(ours)
    difference = max(abs(ours[step] - theirs[step]) for step in steps)
    print(f"{len(steps)} steps, largest difference of losses {difference:.2g}")
    assert difference < 1e-5


def test_losses_of_the_two_engines_agree(uninterrupted, workdir, tmp_path):
    _, theirs = uninterrupted
    ours = _train_with_ours(tmp_path, workdir, STEPS)
    assert len(theirs) == STEPS
    assert theirs[STEPS] < 0.9 * theirs[1]  # it learns
    _assert_losses_agree(ours, theirs)


def test_t5x_resumes_its_own_checkpoint_bit_for_bit(uninterrupted, workdir, tmp_path):
    _, whole = uninterrupted
    _train_with_t5x(tmp_path, workdir, HALF)
    resumed = _train_with_t5x(tmp_path, workdir, STEPS)
    assert resumed == whole


def test_our_engine_continues_a_checkpoint_of_t5x(uninterrupted, workdir, tmp_path):
    folder, whole = uninterrupted
    name = f"checkpoint_{HALF}"
    shutil.copytree(folder / name, tmp_path / "checkpoints" / name)
    continued = _train_with_ours(tmp_path, workdir, STEPS)
    _assert_losses_agree(continued, {s: x for s, x in whole.items() if s > HALF})


def test_t5x_continues_a_checkpoint_of_ours(uninterrupted, workdir, tmp_path):
    ours = _train_with_ours(tmp_path / "ours", workdir, HALF)
    _, whole = uninterrupted
    _assert_losses_agree(ours, {s: x for s, x in whole.items() if s <= HALF})
    start = tmp_path / "ours" / "checkpoints" / f"checkpoint_{HALF}"
    continued = _train_with_t5x(tmp_path / "t5x", workdir, STEPS, start)
    _assert_losses_agree(continued, {s: x for s, x in whole.items() if s > HALF})


def test_our_checkpoint_in_t5x_folder_is_resumed(uninterrupted, workdir, tmp_path):
    """Our checkpoint in its own folder is resumed like any other."""
    _train_with_ours(tmp_path / "ours", workdir, HALF)
    _, whole = uninterrupted
    name = f"checkpoint_{HALF}"
    shutil.copytree(tmp_path / "ours" / "checkpoints" / name, tmp_path / "t5x" / name)
    continued = _train_with_t5x(tmp_path / "t5x", workdir, STEPS)
    _assert_losses_agree(continued, {s: x for s, x in whole.items() if s > HALF})


def test_infer_eval_searches_the_catalogue(uninterrupted, workdir):
    folder, _ = uninterrupted
    lines = (folder / "inference_eval" / f"{TASK}-metrics.jsonl").read_text()
    metrics = {row["step"]: row for row in map(json.loads, lines.splitlines())}
    assert metrics.keys() == {HALF, STEPS}
    assert 0 < metrics[STEPS]["recall@10"] <= metrics[STEPS]["recall@20"] < 1
    _assert_every_output_is_an_item(folder / "inference_eval", workdir, STEPS)


def test_eval_of_a_checkpoint_on_the_test_split(uninterrupted, workdir, tmp_path):
    folder, _ = uninterrupted
    _run(
        "t5x.eval",
        workdir,
        ["eval.gin"],
        {
            "MIXTURE_OR_TASK_NAME": TASK,
            "CHECKPOINT_PATH": str(folder / f"checkpoint_{STEPS}"),
            "EVAL_OUTPUT_DIR": str(tmp_path),
        },
    )
    lines = (tmp_path / "inference_eval" / f"{TASK}-metrics.jsonl").read_text()
    (metrics,) = map(json.loads, lines.splitlines())
    assert metrics["recall@20"] > 0
    _assert_every_output_is_an_item(tmp_path / "inference_eval", workdir, STEPS)


def _assert_every_output_is_an_item(folder: Path, workdir: Path, step: int) -> None:
    path = folder / f"{TASK}-{step:06}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    table = np.load(workdir / "semantic_ids" / "codes.npy", allow_pickle=False)
    letters = "abcd"
    items = {
        "".join(f"<{x}_{c}>" for x, c in zip(letters, codes, strict=True))
        for codes in table.tolist()
    }
    assert len(rows) == 60
    assert all(row["output"] in items and row["target"] in items for row in rows)


def test_the_beauty_run_trains_the_models_default_sizes(workdir, tmp_path):
    """On the small shop, since only sizes are looked at."""
    register_tiger_task("tiger_beauty", str(workdir))
    layout = (
        seqio.TaskRegistry.get("tiger_beauty")
        .output_features["inputs"]
        .vocabulary.layout
    )
    model = Tiger(TigerConfig(), layout)
    shapes = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    bindings = {"MODEL_DIR": str(tmp_path), "TRAIN_STEPS": 2, "BATCH_SIZE": 8}
    periods = {"train.eval_period": 2, "utils.SaveCheckpointConfig.period": 2}
    disabled = {"train.infer_eval_dataset_cfg": None, "train.eval_steps": 1}
    _run(
        "t5x.train",
        workdir,
        ["tiger_beauty.gin"],
        bindings | periods | disabled,
        sizes={},
    )
    assert f"{count}" in (tmp_path / "model-info.txt").read_text().replace(",", "")
