"""One or several updates, compiled into one function.

An update draws its examples as a few microbatches of equal size. Each microbatch
has a bucket: a shape it is padded to. The gradients of all of them are summed and
divided by the update's total weight, so neither the number of microbatches nor
the buckets change what is computed:

    g = (sum over microbatches of d loss_sum / d params) / (sum of weights)

On a mesh, microbatches are dealt out to the data devices where there are enough of
them (`spreads_microbatches`), and else each is split over the devices.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int32, PRNGKeyArray

from tiger_jax.training.partitioning import Partitioner
from tiger_jax.training.train_state import TrainState

PyTree = Any
Sums = dict[str, Any]  # arrays, or trees of them, by name
# loss_fn(params, batch, dropout_key or None) -> (sum of losses, sums by name);
# sums["weight"] is what the sums are to be divided by.
LossFn = Callable[[PyTree, PyTree, PRNGKeyArray | None], tuple[Array, Sums]]
# make_batch(constants, arrays of one microbatch, bucket) -> the loss's batch.
MakeBatchFn = Callable[[PyTree, PyTree, int], PyTree]
# after_update(new state, the update's sums, constants, arrays [M B]) -> state: a change
# that no gradient makes.
AfterUpdateFn = Callable[[TrainState, PyTree, PyTree, PyTree], TrainState]
TrainStepFn = Callable[..., tuple[TrainState, Sums]]


class StepParts(NamedTuple):
    """What is compiled of a training, whatever the loop does around it.

    Attributes:
        init_fn: Key to parameters with their logical axis names.
        input: A `training.inputs.TrainingInput`.
        variables: First values of what changes without a gradient, or a function
            from the first parameters to them.
        after_update: Changes the state after each update.
        evaluated: What of the state is evaluated.
    """

    loss_fn: LossFn
    init_fn: Callable[[PRNGKeyArray], PyTree]
    optimizer: optax.GradientTransformation
    input: Any
    variables: PyTree | Callable[[PyTree], PyTree] = ()
    after_update: AfterUpdateFn | None = None
    evaluated: Callable[[TrainState], PyTree] = operator.attrgetter("params")


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    partitioner: Partitioner,
    shardings: TrainState,
    *,
    make_batch: MakeBatchFn,
    num_buckets: int,
    after_update: AfterUpdateFn | None = None,
) -> TrainStepFn:
    """Compiles ``(state, key, constants, arrays, buckets) -> (state, metrics)``.

    The state is donated: its buffers hold the new state. One call makes U updates
    of M microbatches: `arrays` have the leading axes [U M B], B split over the
    ``data`` axis, and ``buckets`` is int32[U M]. The metrics are sums over each
    update, [U], with ``loss`` already divided by its weight and ``gradient_norm``.

    The dropout key of update s is ``fold_in(key, s)``, so a resumed run draws the
    same numbers; its microbatches fold their number in once more.
    """
    step = _TrainStep(
        loss_fn, optimizer, partitioner, make_batch, num_buckets, after_update
    )
    jitted = jax.jit(
        step.run,
        donate_argnums=0,
        out_shardings=(shardings, partitioner.replicated),
        compiler_options=_compiler_options(partitioner),
    )

    def call(*args: Any) -> tuple[TrainState, Sums]:
        with partitioner.context():
            return jitted(*args)

    call.lower = jitted.lower  # type: ignore[attr-defined]
    return call


@dataclasses.dataclass(frozen=True)
class _TrainStep:
    """The step before it is compiled, from the outside in."""

    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    partitioner: Partitioner
    make_batch: MakeBatchFn
    num_buckets: int
    after_update: AfterUpdateFn | None

    def run(
        self,
        state: TrainState,
        key: PRNGKeyArray,
        constants: PyTree,
        arrays: PyTree,
        buckets: Int32[Array, "U M"],
    ) -> tuple[TrainState, Sums]:
        if buckets.shape[0] == 1:
            arrays, one = _first((arrays, buckets))
            state, metrics = self.update(state, arrays, one, key, constants)
            return state, jax.tree.map(lambda x: x[None], metrics)
        return jax.lax.scan(
            lambda state, xs: self.update(state, *xs, key, constants),
            state,
            (arrays, buckets),
        )

    def update(
        self,
        state: TrainState,
        arrays: PyTree,
        buckets: Int32[Array, " M"],
        key: PRNGKeyArray,
        constants: PyTree,
    ) -> tuple[TrainState, Sums]:
        key, count = jax.random.fold_in(key, state.step), len(buckets)
        shared = (state.params, key, constants)
        if count == 1:
            sums, grads = self.sum_gradients(*shared, *_first((arrays, buckets)))
        else:
            is_spread = self.partitioner.num_data_shards > 1 and spreads_microbatches(
                self.partitioner, count
            )
            sum_all = self.sum_spread if is_spread else self.sum_microbatches
            sums, grads = sum_all(*shared, arrays, buckets, jnp.arange(count))
        weight = jnp.maximum(sums["weight"], 1e-9)  # a draw of padding only
        grads = jax.tree.map(lambda g: g / weight.astype(g.dtype), grads)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = TrainState(params, opt_state, state.step + 1, state.variables)
        if self.after_update is not None:
            state = self.after_update(state, sums, constants, arrays)
        metrics = {
            **sums,
            "loss": sums["loss"] / weight,
            "gradient_norm": optax.tree.norm(grads),
        }
        return state, metrics

    def sum_spread(
        self, params: PyTree, key: PRNGKeyArray, constants: PyTree, *xs: PyTree
    ) -> tuple[Sums, PyTree]:
        """Lets each data device sum its own; one exchange between them at the end."""

        def sum_own(*args: PyTree) -> PyTree:
            shared, own = args[:3], _first(args[3:])
            return jax.lax.psum(self.sum_microbatches(*shared, *own), "data")

        # [devices, M / devices]
        order = _deal(len(xs[-1]), self.partitioner.num_data_shards)
        whole, split = PartitionSpec(), PartitionSpec("data")
        return jax.shard_map(
            sum_own,
            mesh=self.partitioner.mesh,
            in_specs=(whole,) * 3 + (split,) * len(xs),
            out_specs=whole,
            check_vma=False,
        )(params, key, constants, *jax.tree.map(lambda x: x[order], xs))

    def sum_microbatches(
        self,
        params: PyTree,
        key: PRNGKeyArray,
        constants: PyTree,
        arrays: PyTree,
        buckets: Int32[Array, " M"],
        numbers: Int32[Array, " M"],
    ) -> tuple[Sums, PyTree]:
        """Sums over microbatches, in the order in which they come."""

        def add_microbatch(total: PyTree, xs: Any) -> tuple[PyTree, None]:
            arrays, bucket, number = xs
            key_of_it = jax.random.fold_in(key, number)
            one = self.sum_gradients(params, key_of_it, constants, arrays, bucket)
            return jax.tree.map(jnp.add, total, one), None

        xs = (arrays, buckets, numbers)
        one = jax.eval_shape(
            self.sum_gradients, params, key, constants, *_first(xs[:2])
        )
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), one)
        total, _ = jax.lax.scan(add_microbatch, zeros, xs)
        return total

    def sum_gradients(
        self,
        params: PyTree,
        key: PRNGKeyArray,
        constants: PyTree,
        arrays: PyTree,
        bucket: Int32[Array, ""],
    ) -> tuple[Sums, PyTree]:
        """The sums of one microbatch, padded to its bucket, and their gradient."""

        def in_bucket(number: int, arrays: PyTree, key: PRNGKeyArray) -> Any:
            batch = self.make_batch(constants, arrays, number)

            def loss_and_sums(params: PyTree) -> tuple[Array, Sums]:
                loss_sum, sums = self.loss_fn(params, batch, key)
                sums = {**sums, "loss": loss_sum}
                return loss_sum, jax.tree.map(lambda x: x.astype(jnp.float32), sums)

            grads, sums = jax.grad(loss_and_sums, has_aux=True)(params)
            return sums, grads

        if self.num_buckets == 1:
            return in_bucket(0, arrays, key)
        branches = [functools.partial(in_bucket, b) for b in range(self.num_buckets)]
        return jax.lax.switch(bucket, branches, arrays, key)


def spreads_microbatches(partitioner: Partitioner, count: int) -> bool:
    """Whether each of an update's microbatches is computed whole, on one data device.

    So it is where there are enough of them for all devices to have the same number,
    and no parameter is split: the devices then exchange gradients once an update, and
    each pads its microbatches to their own buckets. Otherwise every microbatch is
    split over the devices.
    """
    is_replicated = partitioner.mesh.shape["model"] == 1
    return is_replicated and count % partitioner.num_data_shards == 0


def _deal(count: int, hands: int) -> Int32[np.ndarray, "hands share"]:
    """Deals numbers that ascend in cost to hands of nearly the same cost.

    Examples:
        >>> _deal(8, 2).tolist()
        [[0, 3, 4, 7], [1, 2, 5, 6]]
    """
    rounds = np.arange(count, dtype=np.int32).reshape(-1, hands)
    rounds[1::2] = rounds[1::2, ::-1]
    return rounds.T


def _compiler_options(partitioner: Partitioner) -> dict[str, Any] | None:
    """With a CPU device for each core, a product needn't be shared out once more."""
    devices = partitioner.mesh.devices
    if devices.flat[0].platform == "cpu" and devices.size > 1:
        return {"xla_cpu_multi_thread_eigen": False}
    return None


def _first(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[0], tree)
