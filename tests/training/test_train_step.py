import functools

import jax
import numpy as np
import optax
import pytest
import tiny_run
from tiny_run import LAYOUT, OPTIMIZER, init_fn, loss_fn, make_input

from tiger_jax.models.generator import init_params
from tiger_jax.models.generator import make_loss_fn as make_tiger_loss_fn
from tiger_jax.models.tiger import Tiger, TigerConfig
from tiger_jax.training.optimizers import OptimizerConfig, make_optimizer
from tiger_jax.training.partitioning import MeshConfig, Partitioner
from tiger_jax.training.train_state import init_train_state, split_seed
from tiger_jax.training.train_step import _deal, make_train_step


def loss_without_dropout(params, batch, key):
    del key
    return loss_fn(params, batch, None)


def make_stepper(
    mesh=None,
    devices=None,
    optimizer=None,
    loss_fn=loss_fn,
    input=None,
    init_fn=init_fn,
):
    """A function (updates) -> (losses, state) that goes on from its last state."""
    optimizer = optimizer or make_optimizer(OPTIMIZER, 100)
    input = input or make_input()
    partitioner = Partitioner(mesh, devices=devices)
    init_key, key = split_seed(0)
    state = init_train_state(init_fn, optimizer, partitioner, init_key)
    step = make_train_step(
        loss_fn,
        optimizer,
        partitioner,
        jax.tree.map(lambda x: x.sharding, state),
        make_batch=input.make_batch,
        num_buckets=len(input.buckets),
    )
    constants = partitioner.put(input.constants, batch_axis=None, is_global=True)

    def run(updates):
        nonlocal state
        arrays = jax.tree.map(lambda *xs: np.stack(xs), *[u.arrays for u in updates])
        buckets = np.stack([u.buckets for u in updates])
        arrays = partitioner.put(arrays, batch_axis=2, is_global=True)
        buckets = partitioner.put(buckets, batch_axis=None, is_global=True)
        state, metrics = step(state, key, constants, arrays, buckets)
        return np.asarray(metrics["loss"]), state

    return run


@functools.cache
def losses_of_50_steps(data: int, model: int, **model_fns):
    devices = jax.devices()[: data * model]
    run = make_stepper(MeshConfig(data, model), devices, **model_fns)
    input = make_input()
    return np.concatenate([run([next(input)])[0] for _ in range(50)])


# On (2, 1) each device computes one of the update's two microbatches; on the others
# both are split.
@pytest.mark.parametrize(("data", "model"), [(2, 1), (8, 1), (4, 2), (1, 8)])
def test_losses_on_a_mesh_are_those_of_one_device(data, model):
    one = losses_of_50_steps(1, 1)
    assert one[-1] < one[0] - 0.2  # it learns, so there is something to compare
    np.testing.assert_allclose(losses_of_50_steps(data, model), one, atol=1e-4)


TIGER = Tiger(
    TigerConfig(
        num_encoder_layers=1,
        num_decoder_layers=1,
        d_model=16,
        num_heads=8,
        head_dim=4,
        mlp_dim=32,
    ),
    LAYOUT,
)
TIGER_FNS = {
    "loss_fn": make_tiger_loss_fn(TIGER),
    "init_fn": functools.partial(init_params, TIGER),
    # T5's optimizer. Adam divides each gradient by its own size: where the exact
    # gradient is 0, the rounding of one mesh against another's takes a full step.
    "optimizer": make_optimizer(OptimizerConfig(warmup_steps=20), 100),
}


@pytest.mark.slow
@pytest.mark.parametrize(("data", "model"), [(2, 1), (8, 1), (4, 2), (1, 8)])
def test_transformer_losses_on_a_mesh_match_one_device(data, model):
    """The Transformer's losses on a mesh are those of one device."""
    one = losses_of_50_steps(1, 1, **TIGER_FNS)
    assert one[-1] < one[0] - 0.1
    on_mesh = losses_of_50_steps(data, model, **TIGER_FNS)
    print(f"mesh ({data}, {model}): {abs(on_mesh - one).max():.1e}")
    np.testing.assert_allclose(on_mesh, one, atol=1e-4)


@pytest.mark.parametrize("count", [8, 6, 2])
def test_every_microbatch_is_dealt_out_once_and_in_order(count):
    hands = _deal(count, 2)
    assert sorted(hands.ravel().tolist()) == list(range(count))
    assert (np.diff(hands, axis=1) > 0).all()


def test_buckets_and_microbatches_leave_the_gradient_as_it_is():
    # A step of plain gradient descent at rate 1 shows the gradient itself.
    results = []
    for buckets, size in [((), 16), ((2,), 8), ((1, 2, 3), 2)]:
        input = make_input(buckets=buckets, microbatch_size=size)
        run = make_stepper(
            devices=jax.devices()[:1],
            optimizer=optax.sgd(1.0),
            loss_fn=loss_without_dropout,
            input=input,
        )
        results.append(run([next(input)]))
    (padded_loss, padded), *others = results
    for loss, state in others:
        np.testing.assert_allclose(loss, padded_loss, atol=1e-5)
        for ours, theirs in zip(
            jax.tree.leaves(state.params), jax.tree.leaves(padded.params), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_several_updates_in_one_call_are_those_made_one_by_one():
    input = make_input()
    updates = [next(input) for _ in range(4)]
    one_by_one = make_stepper(devices=jax.devices()[:1])
    together = make_stepper(devices=jax.devices()[:1])
    losses = np.concatenate([one_by_one([u])[0] for u in updates])
    np.testing.assert_allclose(together(updates)[0], losses, atol=1e-5)


def test_the_state_is_donated():
    run = make_stepper(devices=jax.devices()[:1])
    input = make_input()
    _, first = run([next(input)])
    run([next(input)])
    assert all(x.is_deleted() for x in jax.tree.leaves(first.params))


def test_a_microbatch_that_does_not_divide_says_so(tmp_path):
    with pytest.raises(ValueError, match="cannot be split over 3 data devices"):
        tiny_run.run(tmp_path, devices=jax.devices()[:3])
