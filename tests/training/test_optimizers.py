import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tiger_jax.errors import InputError
from tiger_jax.training.optimizers import (
    OptimizerConfig,
    decay_mask,
    make_optimizer,
    make_schedule,
)

PARAMS = {
    "token_embeddings": jnp.full((4, 3), 2.0),
    "wi": jnp.full((3, 5), 0.5),
    "scale": jnp.ones(3),
    "relative_bias": jnp.ones((4, 2)),
}


def one_step(config, gradient=1.0, total_steps=None):
    optimizer = make_optimizer(config, total_steps)
    grads = jax.tree.map(lambda p: jnp.full_like(p, gradient), PARAMS)
    updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    return updates


def test_rsqrt_is_constant_and_then_falls_with_the_square_root():
    schedule = make_schedule(OptimizerConfig(learning_rate=0.01, warmup_steps=100))
    assert float(schedule(0)) == pytest.approx(0.01)
    assert float(schedule(100)) == pytest.approx(0.01)
    assert float(schedule(900)) == pytest.approx(0.01 / 3)  # sqrt(900 / 100) = 3


def test_cosine_rises_falls_and_ends_where_it_should():
    config = OptimizerConfig(
        schedule="cosine", learning_rate=1.0, warmup_steps=10, final_fraction=0.2
    )
    schedule = make_schedule(config, 110)
    assert float(schedule(0)) == 0.0
    assert float(schedule(5)) == pytest.approx(0.5)
    assert float(schedule(10)) == pytest.approx(1.0)
    assert float(schedule(60)) == pytest.approx((1.0 + 0.2) / 2)  # halfway down
    assert float(schedule(110)) == pytest.approx(0.2)


def test_adafactor_moves_parameters_in_proportion():
    # With one gradient seen, the second-moment estimate is its square: the scaled
    # gradient has RMS 1, and the step is rate x RMS(parameter) x 1.
    """Adafactor moves each parameter in proportion to its size."""
    updates = one_step(OptimizerConfig(learning_rate=0.01, warmup_steps=1))
    np.testing.assert_allclose(updates["wi"], -0.01 * 0.5, rtol=1e-4)
    np.testing.assert_allclose(updates["token_embeddings"], -0.01 * 2.0, rtol=1e-4)


def test_adamw_s_first_step_is_the_learning_rate():
    config = OptimizerConfig(
        name="adamw", schedule="constant", learning_rate=0.1, warmup_steps=0
    )
    np.testing.assert_allclose(one_step(config, 3.0)["wi"], -0.1, rtol=1e-5)


@pytest.mark.parametrize("name", ["adafactor", "adamw", "adagrad"])
def test_weight_decay_spares_norms_biases_and_embeddings(name):
    config = OptimizerConfig(
        name=name,
        schedule="constant",
        learning_rate=0.1,
        warmup_steps=0,
        weight_decay=0.2,
    )
    # Without a gradient, decay is all there is: -0.1 x 0.2 x parameter.
    updates = one_step(config, gradient=0.0)
    np.testing.assert_allclose(updates["wi"], -0.1 * 0.2 * PARAMS["wi"], rtol=1e-5)
    for name in ("token_embeddings", "scale", "relative_bias"):
        np.testing.assert_array_equal(updates[name], 0.0)


def test_decay_all_decays_all():
    assert decay_mask(PARAMS) == {k: k == "wi" for k in PARAMS}
    config = OptimizerConfig(
        name="adamw",
        schedule="constant",
        learning_rate=0.1,
        warmup_steps=0,
        weight_decay=0.2,
        decay_all=True,
    )
    updates = one_step(config, gradient=0.0)
    np.testing.assert_allclose(updates["scale"], -0.1 * 0.2, rtol=1e-5)


def test_clipping_bounds_the_whole_gradient():
    config = OptimizerConfig(
        name="adagrad",
        schedule="constant",
        learning_rate=1.0,
        warmup_steps=0,
        clip_norm=1e-3,
    )
    size = sum(p.size for p in PARAMS.values())
    clipped = 1e-3 / size**0.5  # every entry of a gradient of equal entries
    # Adagrad starts its sum of squares at 0.1.
    expected = -clipped / (0.1 + clipped**2) ** 0.5
    np.testing.assert_allclose(one_step(config, 50.0)["wi"], expected, rtol=1e-4)


@pytest.mark.parametrize("scaled", [True, False])
def test_parameters_of_one_shape_are_updated_together_as_alone(scaled):
    draw = np.random.default_rng(0).normal
    shapes = {"a": (128, 130), "b": (128, 130), "c": (128,), "d": (128,), "e": (2, 6)}

    def tree():
        leaves = {name: jnp.asarray(draw(size=s)) for name, s in shapes.items()}
        return {"x": leaves.pop("a"), "rest": leaves}

    first, trees = tree(), {}
    grads = [tree() for _ in range(4)]
    for stacked in (False, True):
        config = OptimizerConfig(
            warmup_steps=2,
            parameter_scale=scaled,
            weight_decay=0.1,
            clip_norm=5.0,
            stacks_alike=stacked,
        )
        optimizer, params = make_optimizer(config), first
        update, state = jax.jit(optimizer.update), optimizer.init(first)
        for gradient in grads:
            updates, state = update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        trees[stacked] = params, state
    assert jax.tree.structure(trees[True]) == jax.tree.structure(trees[False])
    equal = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(equal, trees[True], trees[False])
    assert not np.array_equal(first["x"], trees[True][0]["x"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (OptimizerConfig(name="adam"), "choose adafactor"),
        (OptimizerConfig(schedule="linear"), "choose rsqrt"),
        (OptimizerConfig(schedule="cosine", warmup_steps=10), "no room for 10 warm-up"),
        (OptimizerConfig(warmup_steps=0), "needs warm-up steps.*warmup_steps=10000"),
    ],
)
def test_what_makes_no_sense_is_an_input_error(config, message):
    with pytest.raises(InputError, match=message):
        make_optimizer(config, total_steps=10)
