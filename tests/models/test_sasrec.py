"""SASRec's causality and its loss written out; what holds for BSARec too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from tiger_jax.models.bsarec import BsaRecConfig
from tiger_jax.models.sasrec import (
    SasRecConfig,
    init_params,
    make_loss_fn,
    make_score_fn,
)

CONFIG = SasRecConfig(max_length=8, d_model=16, num_heads=2)
NUM_ITEMS = 11
MODEL = CONFIG.build(NUM_ITEMS)
BSAREC = BsaRecConfig(max_length=8, d_model=16, num_heads=2, dropout_rate=0.2)
BOTH = pytest.mark.parametrize(
    "model", [MODEL, BSAREC.build(NUM_ITEMS)], ids=["sasrec", "bsarec"]
)


@functools.cache
def params():
    return nn.unbox(jax.jit(functools.partial(init_params, MODEL))(jax.random.key(0)))


LOSS_FN = jax.jit(make_loss_fn(MODEL))
SCORE_FN = jax.jit(make_score_fn(MODEL))
ITEMS = jnp.array([[3, 1, 4, 1, 5], [9, 2, 6, -1, -1], [7, 8, -1, -1, -1]])


def test_loss_is_the_cross_entropy_of_every_next_item():
    loss, sums = LOSS_FN(params(), {"items": ITEMS}, None)
    expected, count, correct = 0.0, 0, 0
    for row in np.asarray(ITEMS):
        history = row[row >= 0]
        for end in range(1, len(history)):
            prefix = jnp.array([[*history[:end], *[-1] * (4 - end)]])
            scores = np.float64(SCORE_FN(params(), prefix)[0])
            expected += np.log(np.exp(scores).sum()) - scores[history[end]]
            correct += scores.argmax() == history[end]
            count += 1
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert (float(sums["weight"]), float(sums["correct"])) == (count, correct)


def test_a_later_item_does_not_change_an_earlier_state():
    def states(items):
        run = functools.partial(MODEL.apply, is_training=False)
        return jax.jit(run)({"params": params()}, items)[0]

    before, after = states(ITEMS), states(ITEMS.at[0, 3].set(10))
    np.testing.assert_array_equal(before[0, :3], after[0, :3])
    assert (abs(before - after)[0, 3:].max(-1) > 1e-6).all()


@BOTH
def test_more_padding_changes_no_score(model):
    params, score_fn = _init(model), make_score_fn(model)
    padded = jnp.pad(ITEMS, ((0, 0), (0, 3)), constant_values=-1)
    np.testing.assert_allclose(
        score_fn(params, ITEMS), score_fn(params, padded), atol=1e-6
    )


@pytest.mark.parametrize(
    "model", [MODEL, pytest.param(BSAREC.build(NUM_ITEMS), marks=pytest.mark.slow)]
)
def test_it_learns_that_items_come_in_order(model):
    rng = np.random.default_rng(0)
    starts = rng.integers(0, NUM_ITEMS, (64, 1))
    batch = {"items": jnp.array((starts + np.arange(7)) % NUM_ITEMS)}
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, key):
        grads, sums = jax.grad(make_loss_fn(model), has_aux=True)(params, batch, key)
        grads = jax.tree.map(lambda g: g / sums["weight"], grads)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    params = _init(model)
    state = optimizer.init(params)
    for key in jax.random.split(jax.random.key(1), 60):
        params, state = step(params, state, key)
    _, sums = make_loss_fn(model)(params, batch, None)
    assert sums["correct"] / sums["weight"] > 0.95


@BOTH
def test_every_parameter_has_logical_axes(model):
    boxed = init_params(model, jax.random.key(0))
    for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned)):
        assert isinstance(leaf, nn.LogicallyPartitioned)


@BOTH
def test_a_history_longer_than_the_positions_is_refused(model):
    with pytest.raises(ValueError, match="max_length"):
        make_score_fn(model)(_init(model), jnp.zeros((1, 9), jnp.int32))


def _init(model):
    return nn.unbox(init_params(model, jax.random.key(0)))
