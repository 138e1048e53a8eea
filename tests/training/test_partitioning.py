import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from tiny_run import init_fn

from tiger_jax.errors import InputError
from tiger_jax.models.generator import init_params
from tiger_jax.models.tiger import Tiger, TigerConfig
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.training.partitioning import (
    MeshConfig,
    Partitioner,
    initialize_distributed,
)
from tiger_jax.training.train_state import init_train_state, state_shardings


@pytest.mark.parametrize(
    ("config", "shape"),
    [(MeshConfig(), (8, 1)), (MeshConfig(-1, 4), (2, 4)), (MeshConfig(4, 2), (4, 2))],
)
def test_the_mesh_takes_every_device(config, shape):
    assert tuple(Partitioner(config).mesh.devices.shape) == shape


@pytest.mark.parametrize("config", [MeshConfig(3, 2), MeshConfig(-1, 3), MeshConfig(1)])
def test_a_mesh_that_leaves_devices_out_is_an_error(config):
    with pytest.raises(InputError, match="does not cover 8 devices"):
        Partitioner(config)


@pytest.mark.parametrize("mesh", [(4, 2), (1, 8)])
def test_parameters_and_their_statistics_lie_as_declared(mesh):
    partitioner = Partitioner(MeshConfig(*mesh))
    state = init_train_state(init_fn, optax.adamw(0.1), partitioner, jax.random.key(0))
    declared = {
        "embeddings": PartitionSpec("model", None),
        "wi": PartitionSpec(None, "model"),
        "wo": PartitionSpec("model", None),
    }
    adam = state.opt_state[0]
    for tree in (state.params, adam.mu, adam.nu):
        assert {k: v.sharding.spec for k, v in tree.items()} == declared
    shard = state.params["wi"].addressable_shards[0].data
    assert shard.shape == (8, 16 // mesh[1])
    assert state.step.sharding.spec == adam.count.sharding.spec == PartitionSpec()


def test_factored_statistics_are_replicated():
    partitioner = Partitioner(MeshConfig(4, 2))
    optimizer = optax.adafactor(0.1, min_dim_size_to_factor=8)
    shardings = state_shardings(init_fn, optimizer, partitioner)
    factored = shardings.opt_state[0]
    for tree in (factored.v_row, factored.v_col, factored.v):
        assert all(s.is_fully_replicated for s in jax.tree.leaves(tree))


def test_the_recommender_names_only_axes_that_have_a_rule(capsys):
    # 6 heads of 64: the joined axis of 384 divides, the bias table of 6 doesn't.
    model = Tiger(TigerConfig(), TokenLayout((256,) * 4, 2000))
    boxed = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    shardings = Partitioner(MeshConfig(1, 8)).shardings_of(boxed)
    query = shardings["encoder"]["block_0"]["attention"]["query"]
    assert query.spec == PartitionSpec(None, "model")
    said = capsys.readouterr().out
    assert "relative_bias (heads of 6)" in said
    assert "token_embeddings (vocab of 3025)" in said


def test_an_axis_without_a_rule_is_named():
    boxed = {"w": nn.LogicallyPartitioned(jnp.ones((2, 2)), ("embed", "colour"))}
    with pytest.raises(InputError, match="parameter w names an axis 'colour'"):
        Partitioner().shardings_of(boxed)


def test_a_batch_is_split_over_data():
    put = Partitioner(MeshConfig(4, 2)).put
    array = put(np.arange(24).reshape(1, 8, 3), batch_axis=1, is_global=True)
    assert array.sharding.spec == PartitionSpec(None, "data")
    assert array.addressable_shards[0].data.shape == (1, 2, 3)


def test_a_process_number_that_is_none_is_an_input_error(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(InputError, match="JAX_NUM_PROCESSES='two'"):
        initialize_distributed()


@pytest.mark.parametrize(
    ("cores", "flags", "devices"),
    [(2, {}, 2), (13, {}, 8), (4, {"JAX_NUM_CPU_DEVICES": "1"}, 1)],
)
def test_each_core_becomes_a_device_unless_told_otherwise(cores, flags, devices):
    code = (
        "import jax; from tiger_jax.training import partitioning\n"
        f"partitioning._usable_cores = lambda: {cores}\n"
        "partitioning.use_cpu_cores(); print(jax.device_count())"
    )
    inherited = {n: v for n, v in os.environ.items() if n[:3] not in ("JAX", "XLA")}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "JAX_PLATFORMS": "cpu", **flags},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == str(devices)
