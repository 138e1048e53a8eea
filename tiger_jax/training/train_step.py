"""One or several updates, compiled into one function.

An update draws its examples as a few microbatches of equal size. Each microbatch
has a bucket: a shape it is padded to. The gradients of all of them are summed and
divided by the update's total weight, so neither the number of microbatches nor
the buckets change what is computed:

    g = (sum over microbatches of d loss_sum / d params) / (sum of weights)
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32, PRNGKeyArray

from tiger_jax.training.partitioning import Partitioner
from tiger_jax.training.train_state import TrainState

PyTree = Any
# loss_fn(params, batch, dropout_key or None) -> (sum of losses, sums by name);
# sums["weight"] is what the sums are to be divided by.
LossFn = Callable[[PyTree, PyTree, PRNGKeyArray | None], tuple[Array, dict[str, Array]]]
# make_batch(constants, arrays of one microbatch, bucket) -> the loss's batch.
MakeBatchFn = Callable[[PyTree, PyTree, int], PyTree]
TrainStepFn = Callable[..., tuple[TrainState, dict[str, Array]]]


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    partitioner: Partitioner,
    shardings: TrainState,
    *,
    make_batch: MakeBatchFn,
    num_buckets: int,
) -> TrainStepFn:
    """Compiles ``(state, key, constants, arrays, buckets) -> (state, metrics)``.

    The state is donated: its buffers hold the new state. One call makes U updates
    of M microbatches: `arrays` have the leading axes [U M B], B split over the
    ``data`` axis, and ``buckets`` is int32[U M]. The metrics are sums over each
    update, [U], with ``loss`` already divided by its weight and ``gradient_norm``.

    The dropout key of update s is ``fold_in(key, s)``, so a resumed run draws the
    same numbers; its microbatches fold their number in once more.
    """

    def sum_gradients(
        params: PyTree,
        key: PRNGKeyArray,
        constants: PyTree,
        arrays: PyTree,
        bucket: Any,
    ) -> tuple[dict[str, Array], PyTree]:
        def in_bucket(number: int, arrays: PyTree, key: PRNGKeyArray) -> Any:
            batch = make_batch(constants, arrays, number)

            def loss_and_sums(params: PyTree) -> tuple[Array, dict[str, Array]]:
                loss_sum, sums = loss_fn(params, batch, key)
                sums = {name: value.astype(jnp.float32) for name, value in sums.items()}
                return loss_sum, {**sums, "loss": loss_sum.astype(jnp.float32)}

            grads, sums = jax.grad(loss_and_sums, has_aux=True)(params)
            return sums, grads

        if num_buckets == 1:
            return in_bucket(0, arrays, key)
        branches = [functools.partial(in_bucket, b) for b in range(num_buckets)]
        return jax.lax.switch(bucket, branches, arrays, key)

    def update(
        state: TrainState,
        arrays: PyTree,
        buckets: Int32[Array, " M"],
        key: PRNGKeyArray,
        constants: PyTree,
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(key, state.step)
        run = functools.partial(sum_gradients, state.params)
        if buckets.shape[0] == 1:
            first = jax.tree.map(lambda x: x[0], arrays)
            sums, grads = run(key, constants, first, buckets[0])
        else:

            def add_microbatch(total: PyTree, xs: Any) -> tuple[PyTree, None]:
                number, arrays, bucket = xs
                one = run(jax.random.fold_in(key, number), constants, arrays, bucket)
                return jax.tree.map(jnp.add, total, one), None

            numbers = jnp.arange(buckets.shape[0])
            xs = (numbers, arrays, buckets)
            one = jax.eval_shape(run, key, constants, *_first(xs[1:]))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), one)
            (sums, grads), _ = jax.lax.scan(add_microbatch, zeros, xs)
        weight = jnp.maximum(sums["weight"], 1e-9)  # a draw of padding only
        grads = jax.tree.map(lambda g: g / weight.astype(g.dtype), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            **sums,
            "loss": sums["loss"] / weight,
            "gradient_norm": optax.tree.norm(grads),
        }
        return TrainState(params, opt_state, state.step + 1), metrics

    def train_step(
        state: TrainState,
        key: PRNGKeyArray,
        constants: PyTree,
        arrays: PyTree,
        buckets: Int32[Array, "U M"],
    ) -> tuple[TrainState, dict[str, Array]]:
        if buckets.shape[0] == 1:
            arrays, one = _first((arrays, buckets))
            state, metrics = update(state, arrays, one, key, constants)
            return state, jax.tree.map(lambda x: x[None], metrics)
        return jax.lax.scan(
            lambda state, xs: update(state, *xs, key, constants),
            state,
            (arrays, buckets),
        )

    jitted = jax.jit(
        train_step, donate_argnums=0, out_shardings=(shardings, partitioner.replicated)
    )

    def call(*args: Any) -> tuple[TrainState, dict[str, Array]]:
        with partitioner.context():
            return jitted(*args)

    call.lower = jitted.lower  # type: ignore[attr-defined]
    return call


def _first(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[0], tree)
