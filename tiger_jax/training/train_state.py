"""What training changes: parameters, optimizer statistics, the step counter."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import serialization, traverse_util

from tiger_jax.training.partitioning import Partitioner

PyTree = Any
_VARIABLES = "flax_mutables"  # t5x's name for them
AVERAGE = (_VARIABLES, "average_params")  # where a checkpoint holds them, if it does


class TrainState(NamedTuple):
    """Everything an update reads and writes; all of it is in a checkpoint.

    Attributes:
        step: int32 scalar: the number of updates made.
        variables: What an update changes without a gradient, such as counts.
    """

    params: PyTree
    opt_state: optax.OptState
    step: jax.Array
    variables: PyTree = ()


def split_seed(seed: int) -> tuple[jax.Array, jax.Array]:
    """The key that initialises parameters and the one that steps are folded into.

    Split as t5x splits its seed, so that both engines start alike.
    """
    init_key, step_key = jax.random.split(jax.random.key(seed, impl="threefry2x32"))
    return init_key, step_key


def init_train_state(
    init_fn: Callable[[jax.Array], PyTree],
    optimizer: optax.GradientTransformation,
    partitioner: Partitioner,
    init_key: jax.Array,
    variables: PyTree | Callable[[PyTree], PyTree] = (),
) -> TrainState:
    """Makes the first state, each array born where it belongs.

    `init_fn` may box parameters with their logical axis names. Every device holds all
    of the variables, which may be a function of the first parameters.
    """
    shardings = state_shardings(init_fn, optimizer, partitioner, variables)

    def init(key: jax.Array) -> TrainState:
        params = nn.meta.unbox(init_fn(key))
        step = jnp.zeros([], jnp.int32)
        first = variables(params) if callable(variables) else variables
        first = jax.tree.map(jnp.array, first)
        return TrainState(params, optimizer.init(params), step, first)

    with partitioner.context():
        return jax.jit(init, out_shardings=shardings)(init_key)


def state_shardings(
    init_fn: Callable[[jax.Array], PyTree],
    optimizer: optax.GradientTransformation,
    partitioner: Partitioner,
    variables: PyTree | Callable[[PyTree], PyTree] = (),
) -> TrainState:
    """The sharding of every array of the state."""
    key = jax.random.key(0)  # before the mesh, whose devices need not be here
    with partitioner.context():
        boxed = jax.eval_shape(init_fn, key)
    params = nn.meta.unbox(boxed)
    param_shardings = partitioner.shardings_of(boxed)
    if callable(variables):
        variables = jax.eval_shape(variables, params)
    return TrainState(
        params=param_shardings,
        opt_state=partitioner.optimizer_shardings(optimizer, params, param_shardings),
        step=partitioner.replicated,  # type: ignore[arg-type]
        variables=jax.tree.map(lambda _: partitioner.replicated, variables),
    )


def averaging(decay: float) -> dict[str, Any]:
    """What `loop.train` is given to keep, and to evaluate, the parameters' average.

        average <- decay * average + (1 - decay) * parameters

    after each update; the average starts as the first parameters.
    """

    def after_update(
        state: TrainState, sums: Any, constants: Any, arrays: Any
    ) -> TrainState:
        del sums, constants, arrays
        average = jax.tree.map(
            lambda old, new: decay * old + (1 - decay) * new,
            state.variables["average_params"],
            state.params,
        )
        return state._replace(variables={"average_params": average})

    return {
        "variables": lambda params: {"average_params": params},
        "after_update": after_update,
        "evaluated": lambda state: state.variables["average_params"],
    }


def put_like(new: PyTree, old: PyTree) -> PyTree:
    """Moves arrays to where those of `old`, a tree of the same form, lie."""
    return jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), new, old)


def abstract_like(tree: PyTree) -> PyTree:
    """Shapes, types and shardings of a tree of arrays, without their values."""

    def abstract(x: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(x, "sharding", None)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(abstract, tree)


def to_checkpoint_tree(state: TrainState) -> dict[str, Any]:
    """The nested dictionary that t5x's checkpoints hold.

    Optimizer states are named tuples; in a checkpoint their fields are keys, and
    states without arrays are left out.
    """
    tree = {
        "target": _plain(state.params),
        "state": {"step": state.step, "param_states": _plain(state.opt_state)},
    }
    variables = _plain(state.variables)
    return {**tree, _VARIABLES: variables} if variables else tree


def from_checkpoint_tree(tree: dict[str, Any], like: TrainState) -> TrainState:
    """Puts a checkpoint's dictionary back into the types of `like`."""
    return TrainState(
        params=_into(tree["target"], like.params),
        opt_state=_into(tree["state"].get("param_states", {}), like.opt_state),
        step=tree["state"]["step"],
        variables=_into(tree.get(_VARIABLES, {}), like.variables),
    )


def _plain(tree: PyTree) -> dict[str, Any]:
    flat = traverse_util.flatten_dict(serialization.to_state_dict(tree))
    return traverse_util.unflatten_dict(flat)  # without what has no arrays


def _into(tree: dict[str, Any], like: PyTree) -> PyTree:
    whole = traverse_util.flatten_dict(
        serialization.to_state_dict(like), keep_empty_nodes=True
    )
    whole.update(traverse_util.flatten_dict(tree))
    return serialization.from_state_dict(like, traverse_util.unflatten_dict(whole))
