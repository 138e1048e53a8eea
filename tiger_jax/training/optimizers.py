"""Optimizers and learning-rate schedules by name.

The schedule lies inside the optax transformation, so that the step counter it
reads is saved and restored with the optimizer, and so that an engine which takes
any optax transformation (t5x) trains with the very same one.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from tiger_jax.config import config
from tiger_jax.errors import InputError, flag
from tiger_jax.workdir.json_files import ADDED_LATER

PyTree = Any


@config("optimizers")
class OptimizerConfig:
    """Which optimizer, and how its learning rate moves.

    The defaults are T5's: Adafactor relative to each parameter's size, 0.01 for
    10,000 steps and then falling with the inverse square root (the schedule of
    Rajput et al. 2023, section 4; Raffel et al. 2020, section 3.1.2).

    Attributes:
        name: ``adafactor``, ``adamw`` or ``adagrad``.
        schedule: ``rsqrt`` is constant for `warmup_steps`, then falls as
            1 / sqrt(step); ``cosine`` rises linearly over `warmup_steps`, then falls
            to `final_fraction` at the last step; ``constant`` stays after its rise.
        learning_rate: The highest learning rate.
        clip_norm: Global gradient norm above which gradients are scaled down.
        weight_decay: Decoupled decay, times the learning rate.
        decay_all: Also decay norms, biases and embeddings.
        parameter_scale: Adafactor: steps relative to each parameter's RMS.
        stacks_alike: Adafactor: computes the updates of all parameters of one shape at
            once: fewer kernels to start on a GPU, and more to copy.
            For parameters that no mesh axis splits.
    """

    name: str = "adafactor"
    schedule: str = "rsqrt"
    learning_rate: float = 0.01
    warmup_steps: int = 10_000
    final_fraction: float = 0.0
    clip_norm: float | None = None
    weight_decay: float = 0.0
    decay_all: bool = False
    parameter_scale: bool = True
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    stacks_alike: bool = dataclasses.field(default=False, metadata=ADDED_LATER)


def make_schedule(
    config: OptimizerConfig, total_steps: int | None = None
) -> optax.Schedule:
    """The learning rate as a function of the number of updates made before.

    Args:
        total_steps: Length of the run; only ``cosine`` needs it.

    Raises:
        InputError: An unknown name, or a cosine without its length.

    Examples:
        >>> schedule = make_schedule(OptimizerConfig())
        >>> [round(float(schedule(step)), 6) for step in (0, 10_000, 40_000)]
        [0.01, 0.01, 0.005]
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "rsqrt":
        if warmup < 1:
            raise InputError(
                "an rsqrt schedule needs warm-up steps: "
                + flag("optimizers.OptimizerConfig.warmup_steps", 10_000)
            )
        return lambda count: (
            peak * (warmup / jax.numpy.maximum(count, float(warmup))) ** 0.5
        )
    if config.schedule == "constant":
        return optax.warmup_constant_schedule(0.0 if warmup else peak, peak, warmup)
    if config.schedule == "cosine":
        if total_steps is None or total_steps <= warmup:
            raise InputError(
                f"a cosine schedule of {total_steps} steps has no room for {warmup} "
                "warm-up steps: "
                + flag(
                    "optimizers.OptimizerConfig.warmup_steps", (total_steps or 0) // 10
                )
            )
        return optax.warmup_cosine_decay_schedule(
            init_value=0.0 if warmup else peak,
            peak_value=peak,
            warmup_steps=warmup,
            decay_steps=total_steps,
            end_value=peak * config.final_fraction,
        )
    raise InputError(
        f"optimizers.OptimizerConfig.schedule is {config.schedule!r}: choose rsqrt, "
        "cosine or constant"
    )


def make_optimizer(
    config: OptimizerConfig, total_steps: int | None = None
) -> optax.GradientTransformation:
    """Builds the optax transformation, schedule and clipping included."""
    schedule = make_schedule(config, total_steps)
    mask = None if config.decay_all else decay_mask
    if config.name == "adafactor":
        update = optax.adafactor(
            schedule,
            multiply_by_parameter_scale=config.parameter_scale,
            weight_decay_rate=None,
        )
        if config.stacks_alike:
            update = stack_alike(update)
    elif config.name == "adamw":
        update = optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=mask,
        )
    elif config.name == "adagrad":
        update = optax.adagrad(schedule, eps=config.epsilon)
    else:
        raise InputError(
            f"optimizers.OptimizerConfig.name is {config.name!r}: choose adafactor, "
            "adamw or adagrad"
        )
    if config.weight_decay and config.name != "adamw":
        # After the update, so that the decay is scaled by the learning rate alone.
        decay = optax.add_decayed_weights(
            lambda count: -config.weight_decay * schedule(count), mask
        )
        update = optax.chain(update, decay)
    if config.clip_norm is not None:
        update = optax.chain(optax.clip_by_global_norm(config.clip_norm), update)
    return update


def decay_mask(params: PyTree) -> PyTree:
    """True for the parameters that weight decay is meant for: the matrices.

    Norm scales and biases have one axis; embeddings and tables of position biases
    are matrices by shape only, and are told by their names.
    """

    def decays(path: Any, leaf: Any) -> bool:
        where = jax.tree_util.keystr(path).lower()
        return leaf.ndim > 1 and "embed" not in where and "bias" not in where

    return jax.tree_util.tree_map_with_path(decays, params)


def stack_alike(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """The same updates and states, all parameters of one shape and dtype in one go.

    For an optimizer that treats each parameter by itself, whatever its name. A part of
    its state is a tree like the parameters', or one value for all of them.
    """

    def update(
        grads: PyTree, state: optax.OptState, params: PyTree
    ) -> tuple[PyTree, optax.OptState]:
        form: Any = jax.tree.structure(params)
        outer: Any
        parts, outer = jax.tree.flatten(
            state, is_leaf=lambda part: jax.tree.structure(part) == form
        )
        shared = {
            k: part for k, part in enumerate(parts) if jax.tree.structure(part) != form
        }

        def put_together(own: Iterable[PyTree], shared: dict[int, Array]) -> Any:
            rest = iter(own)
            places = range(len(parts))
            return outer.unflatten(
                [shared[k] if k in shared else next(rest) for k in places]
            )

        def update_one(grad: Array, param: Array, *own: Array) -> Any:
            found, after = optimizer.update(grad, put_together(own, shared), param)
            left = dict(enumerate(jax.tree.leaves(after)))
            now_shared = {k: left.pop(k) for k in shared}
            return [found, *left.values()], now_shared

        own = [part for k, part in enumerate(parts) if k not in shared]
        columns = [jax.tree.leaves(tree) for tree in (grads, params, *own)]
        alike = defaultdict(list)
        for number, leaf in enumerate(columns[1]):
            alike[leaf.shape, leaf.dtype].append(number)
        new: list[list[Any]] = [[None] * form.num_leaves for _ in (grads, *own)]
        now_shared: dict[int, Array] = {}
        for numbers in alike.values():
            stacks = [jnp.stack([column[i] for i in numbers]) for column in columns]
            found, now_shared = jax.vmap(update_one, out_axes=(0, None))(*stacks)
            for column, values in zip(new, found, strict=True):
                for place, number in enumerate(numbers):
                    column[number] = values[place]
        updates, *own = map(form.unflatten, new)
        return updates, put_together(own, now_shared)

    return optax.GradientTransformation(optimizer.init, update)
