"""An optax transformation in the shape of a t5x optimizer, without importing t5x.

t5x has a wrapper of its own, which knows the state of some optimizers only, and
not Adafactor's. This one lays out any optax state: a statistic with its
parameter's shape lies as the parameter does, everything else is replicated; as in
`training.partitioning`. The checkpoint is the one that both engines write.

What t5x asks of an optimizer (t5x/optimizers.py, t5x/train_state.py):

*   definition: `create(params)`, `derive_logical_axes(optimizer, param_axes)`;
*   optimizer: `state.step`, `state.param_states`, `target`, `apply_gradient(grads,
    learning_rate=…)`, `state_dict()`, `restore_state(dict)`, `replace(target=…)`.
"""

from typing import Any

import flax.struct
import gin
import jax
import jax.numpy as jnp
import optax

from tiger_jax.training.optimizers import OptimizerConfig, make_optimizer
from tiger_jax.training.train_state import (
    TrainState,
    from_checkpoint_tree,
    to_checkpoint_tree,
)

PyTree = Any


@flax.struct.dataclass
class OptimizerState:
    """The step counter and optax's own state."""

    step: Any
    param_states: Any


class OptimizerDefinition:
    """Makes optimizers over one optax transformation."""

    def __init__(self, transformation: optax.GradientTransformation) -> None:
        """Takes the transformation, its learning-rate schedule inside."""
        self.transformation = transformation

    def create(self, params: PyTree) -> "Optimizer":
        """Starts optimizing `params`."""
        param_states = self.transformation.init(params)
        state = OptimizerState(jnp.zeros([], jnp.int32), param_states)
        return Optimizer(self, state, params)

    def derive_logical_axes(
        self, optimizer: "Optimizer", param_axes: PyTree
    ) -> "Optimizer":
        """Replaces every array by its logical axes; None is replicated."""
        structure = jax.tree.structure(optimizer.target)
        param_axes = jax.tree.unflatten(structure, jax.tree.leaves(param_axes))
        state_axes = optax.tree_utils.tree_map_params(
            self.transformation,
            lambda leaf, param, axes: axes if leaf.shape == param.shape else None,
            optimizer.state.param_states,
            optimizer.target,
            param_axes,
            transform_non_params=lambda leaf: None,
        )
        return Optimizer(self, OptimizerState(None, state_axes), param_axes)


class Optimizer(flax.struct.PyTreeNode):
    """Parameters with their optimizer's state."""

    optimizer_def: OptimizerDefinition = flax.struct.field(pytree_node=False)
    state: OptimizerState
    target: Any

    def apply_gradient(self, grads: PyTree, **hyper_parameters: Any) -> "Optimizer":
        """Makes one update.

        t5x's learning rate has no effect: the schedule lies inside the transformation,
        so that its counter is saved.
        """
        del hyper_parameters
        updates, param_states = self.optimizer_def.transformation.update(
            grads, self.state.param_states, self.target
        )
        return self.replace(
            state=OptimizerState(self.state.step + 1, param_states),
            target=optax.apply_updates(self.target, updates),
        )

    def state_dict(self) -> dict[str, Any]:
        """The dictionary that is checkpointed, without states that hold nothing."""
        return to_checkpoint_tree(self._as_train_state())

    def restore_state(self, state: dict[str, Any]) -> "Optimizer":
        """Takes over what `state_dict` gave."""
        restored = from_checkpoint_tree(state, self._as_train_state())
        param_states = OptimizerState(restored.step, restored.opt_state)
        return self.replace(state=param_states, target=restored.params)

    def _as_train_state(self) -> TrainState:
        return TrainState(self.target, self.state.param_states, self.state.step)


@gin.register(module="optimizer")
def make_optimizer_definition(
    config: OptimizerConfig | None = None, total_steps: int | None = None
) -> OptimizerDefinition:
    """The optimizer of `training.optimizers`; `total_steps` is for schedules' ends."""
    return OptimizerDefinition(make_optimizer(config or OptimizerConfig(), total_steps))
