"""--stage=compile_for: what a run compiles, for devices that aren't here."""

import dataclasses
import json
import sys
import types
from pathlib import Path

import gin
import jax
import pytest
from jax.experimental import topologies

from tiger_jax.aot.estimate import describe, estimate
from tiger_jax.aot.programs import ShopSizes, programs_of
from tiger_jax.aot.topologies import describe_slice
from tiger_jax.cli import parse_gin
from tiger_jax.errors import InputError
from tiger_jax.input_pipeline.microbatches import BucketConfig
from tiger_jax.stages.compile_for import compile_for, run_as_bound
from tiger_jax.stages.context import RunContext

SHOP = str(Path(__file__).parents[1] / "faults" / "shop.gin")
SMALL = [
    "packed_histories.PackedConfig.batch_size = 16",
    "packed_histories.PackedConfig.microbatch_size = 8",
    "resident.ResidentConfig.batch_size = 16",
    "resident.ResidentConfig.microbatch_size = 8",
    "loop.LoopConfig.steps_per_dispatch = 5",
    "rqvae_training.RqVaeTraining.batch_size = 16",
]
PAIRS = [
    "train_recommender.model = @tiger.TigerConfig()",
    "train_recommender.resident = @resident.ResidentConfig()",
    "train_recommender.average_decay = 0.0",
]
SIZES = ShopSizes(num_items=60, num_users=40, num_interactions=200, embedding_size=12)
MODELS = {"two_level": [], "tiger": PAIRS}


@pytest.fixture(autouse=True)
def bound():
    """Binds what a pod would: the shop's settings, the TPU's, and others."""

    def bind(*bindings):
        parse_gin([SHOP, "hardware/tpu.gin"], [*SMALL, *bindings])
        return programs_of(run_as_bound(), jax.devices()[:4], SIZES)

    bind()
    yield bind
    gin.clear_config()


def test_a_run_has_its_training_searches_and_quantizer(bound):
    names = ["train_recommender", "train_rqvae", "evaluate", "serve"]
    assert list(bound()) == names
    made = bound("train_rqvae.quantizer = @hash_quantizers.Lsh()")
    assert list(made) == [name for name in names if name != "train_rqvae"]


def test_what_gin_does_not_bind_is_the_stages_own_default():
    run = run_as_bound()
    assert (run.recipe.loop.steps_per_dispatch, run.recipe.loop.log_every) == (5, 5)
    assert run.recipe.training_pairs == "prefixes"
    assert (run.exported.num_beams, run.max_excluded, run.room) == (21, 64, 1.5)
    assert run.collaborative_dims == 4


@pytest.mark.parametrize(("model", "bindings"), MODELS.items())
def test_the_training_step_is_the_one_that_gin_binds(bound, model, bindings):
    make = bound(*bindings)["train_recommender"]
    program = make()
    # 5 updates of 16 examples, or of 16 rows of 8 positions, most of them a target.
    pairs = program.runs
    assert pairs == 80 if model == "tiger" else 320 < pairs < 640
    assert (program.num_devices, program.unit) == (4, "pairs")
    assert program.flops > 0
    # The running average of the parameters is part of the two-level model's state.
    tree = program.lower().in_tree
    (state, *_), _ = tree.unflatten(range(tree.num_leaves))
    assert bool(state.variables) == (model == "two_level")


@pytest.mark.parametrize(("model", "bindings"), MODELS.items())
def test_searches_are_those_of_evaluation_and_of_a_bundle(bound, model, bindings):
    made = bound(*bindings)
    # 50 users at a time, filled up to a multiple of the chips; one request.
    program, alone = made["evaluate"](), made["serve"]()
    assert (program.runs, program.num_devices) == (52, 4)
    assert (alone.runs, alone.num_devices) == (1, 1)
    assert program.flops > alone.flops > 0
    program.lower()


def test_a_stream_has_the_step_of_its_batches(bound):
    bound(*PAIRS)
    run = run_as_bound()
    # Of `batches.SeqioConfig`, which imports TensorFlow, what is read.
    stream = types.SimpleNamespace(batch_size=16, max_items=4)
    buckets = BucketConfig(microbatch_size=8, lengths=(9,))
    recipe = dataclasses.replace(run.recipe, input=(stream, buckets))
    run = dataclasses.replace(run, recipe=recipe)
    program = programs_of(run, jax.devices()[:4], SIZES)["train_recommender"]()
    assert program.runs == 5 * 16
    assert len(program.branch_shares) == 2
    assert program.flops > 0


@pytest.mark.parametrize(
    ("bindings", "problem"),
    [
        (["partitioning.MeshConfig.data = 3"], "does not cover 4 devices"),
        (
            [
                "packed_histories.PackedConfig.batch_size = 6",
                "packed_histories.PackedConfig.microbatch_size = 2",
            ],
            "cannot be split over",
        ),
    ],
)
def test_what_does_not_shard_is_said_in_a_line(bound, bindings, problem):
    row = estimate(
        "train_recommender",
        lambda: bound(*bindings)["train_recommender"](),
        jax.devices()[0],
    )
    assert problem in row["problem"]
    assert "\n" not in describe(row)


def test_without_the_tpu_compiler_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(InputError, match=r"tiger_jax\[tpu_compile\]"):
        describe_slice("v5e:2x2")


def test_gpus_that_nobody_knows_are_refused_in_a_line(monkeypatch):
    with pytest.raises(InputError, match="'gpu:h100:8'"):
        describe_slice("gpu:h900:8")
    with pytest.raises(InputError, match="'gpu:h100:8'"):
        describe_slice("gpu:h100:0")

    def no_plugin(**kwargs):
        raise RuntimeError("Unknown backend cuda")

    monkeypatch.setattr(topologies, "get_topology_desc", no_plugin)
    with pytest.raises(InputError, match="pip install --no-deps 'jax-cuda13-plugin"):
        describe_slice("gpu:h100:8")


def training_step_on(topology, tmp_path):
    rows = tmp_path / "rows.jsonl"
    compile_for(
        RunContext(tmp_path),
        topology=topology,
        programs=("train_recommender",),
        sizes=SIZES,
        rows=str(rows),
    )
    (row,) = (json.loads(line) for line in rows.read_text().splitlines())
    return row


def test_a_tiny_run_compiles_for_gpus(tmp_path, capsys):
    pytest.importorskip(
        "jax_plugins.xla_cuda13", reason="JAX's CUDA plugin isn't installed"
    )
    devices = describe_slice("gpu:h100:8")
    assert [device.device_kind for device in devices] == ["NVIDIA H100"] * 8
    row = training_step_on("gpu:h100:2", tmp_path)
    assert row["chips"] == 2
    assert min(row["kernels"][kind] for kind in ("fusions", "products")) > 10
    assert row["kernel_bytes"] > row["arguments_bytes"] > 0
    assert "all-reduce" in {exchange["kind"] for exchange in row["collectives"]}
    assert "kernels (" in capsys.readouterr().out


def test_a_tiny_run_compiles_for_a_slice(tmp_path, capsys):
    pytest.importorskip("libtpu", reason="the TPU compiler isn't installed (libtpu)")
    row = training_step_on("v5e:2x2", tmp_path)
    assert (row["program"], row["chips"]) == ("train_recommender", 4)
    assert row["arguments_bytes"] > 0
    assert row["cycles"] > 1000
    assert 0 < row["utilisation"] < 1
    assert row["cycles"] == pytest.approx(sum(row["cycles_by_layer"].values()))
    assert any("TwoLevel" in layer for layer in row["cycles_by_layer"])
    assert "all-reduce" in {exchange["kind"] for exchange in row["collectives"]}
    assert "estimated cycles" in capsys.readouterr().out
    with pytest.raises(InputError, match="v9z"):
        compile_for(RunContext(tmp_path), topology="v9z:1x1")
    with pytest.raises(InputError, match="this run has train_recommender"):
        compile_for(RunContext(tmp_path), programs=("train",))
