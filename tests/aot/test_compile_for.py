"""--stage=compile_for: what a run compiles, for devices that aren't here."""

import json
import sys
from pathlib import Path

import gin
import jax
import pytest

from tiger_jax.aot.estimate import describe, estimate
from tiger_jax.aot.programs import ShopSizes, programs_of
from tiger_jax.aot.topologies import describe_slice
from tiger_jax.cli import parse_gin
from tiger_jax.errors import InputError
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
    *("train_recommender.model = @tiger.TigerConfig()", "loop.LoopConfig.patience = 7"),
    "train_recommender.resident = @resident.ResidentConfig()",
    "train_recommender.average_decay = 0.0",
]
STREAM = [
    *PAIRS[:1],
    "train_recommender.input = 'seqio'",
    "train_recommender.seqio = @batches.SeqioConfig()",
    "train_recommender.buckets = @microbatches.BucketConfig()",
    "batches.SeqioConfig.task = 'tiger_own_data'",
    "batches.SeqioConfig.batch_size = 16",
    "microbatches.BucketConfig.microbatch_size = 8",
    "microbatches.BucketConfig.lengths = (9,)",
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
    row = estimate("train_recommender", lambda: program, jax.devices()[0])
    pairs = row["runs"]
    # 5 updates of 16 examples, or of 16 rows of 8 positions, most of them a target.
    assert pairs == 80 if model == "tiger" else 320 < pairs < 640
    assert (row["chips"], row["unit"]) == (4, "pairs")
    assert row["flops_a_chip"] > 0
    assert row["arguments_bytes"] > 0
    assert "all-reduce" in {exchange["kind"] for exchange in row["collectives"]}
    assert "GFLOP a chip" in describe(row)
    # The running average of the parameters is part of the two-level model's state.
    averages = (
        program.lower()
        .in_tree.unflatten(range(program.lower().in_tree.num_leaves))[0][0]
        .variables
    )
    assert bool(averages) == (model == "two_level")


def test_a_stream_has_the_step_of_its_batches(bound):
    pytest.importorskip("seqio", reason="the streamed input needs seqio")
    import tiger_jax.input_pipeline.batches  # noqa: F401  (as its gin file does)

    program = bound(*PAIRS, *STREAM)["train_recommender"]()
    assert program.runs == 5 * 16
    assert len(program.branch_shares) == 2
    program.lower()


@pytest.mark.parametrize(
    ("binding", "problem"),
    [
        ("partitioning.MeshConfig.data = 3", "does not cover 4 devices"),
        ("packed_histories.PackedConfig.microbatch_size = 2", "cannot be split over"),
    ],
)
def test_what_does_not_shard_is_said_in_a_line(bound, binding, problem):
    row = estimate(
        "train_recommender",
        lambda: bound(binding)["train_recommender"](),
        jax.devices()[0],
    )
    assert problem in row["problem"]
    assert "\n" not in describe(row)


def test_without_the_tpu_compiler_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(InputError, match=r"tiger_jax\[tpu_compile\]"):
        describe_slice("v5e:2x2")


def test_a_tiny_run_compiles_for_a_slice(tmp_path, capsys):
    pytest.importorskip("libtpu", reason="the TPU compiler isn't installed (libtpu)")
    rows = tmp_path / "rows.jsonl"
    names = ("train_recommender", "serve")
    compile_for(
        RunContext(tmp_path),
        topology="v5e:2x2",
        programs=names,
        sizes=SIZES,
        rows=str(rows),
    )
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["program"] for row in found] == list(names)
    assert [row["chips"] for row in found] == [4, 1]
    for row in found:
        assert row["cycles"] > 1000
        assert 0 < row["utilisation"] < 1
        assert row["cycles"] == pytest.approx(sum(row["cycles_by_layer"].values()))
        assert any("TwoLevel" in layer for layer in row["cycles_by_layer"])
    assert "estimated cycles" in capsys.readouterr().out
    with pytest.raises(InputError, match="v9z"):
        compile_for(RunContext(tmp_path), topology="v9z:1x1")
    with pytest.raises(InputError, match="this run has train_recommender"):
        compile_for(RunContext(tmp_path), programs=("train",))
