"""Checkpoints in t5x's layout, through orbax: asynchronous, atomic, restartable.

    checkpoints/checkpoint_<step>/
        state/      {"target": parameters,
                     "state": {"step": …, "param_states": optimizer statistics}}
        dataset/    the input's position, written and read by the input itself

What the loop knows beside (best step, patience, time spent) travels in orbax's
custom metadata, so that the two items are exactly what t5x writes and reads. A
checkpoint appears under its name only when it is whole.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from tiger_jax.errors import InputError
from tiger_jax.training.train_state import (
    TrainState,
    abstract_like,
    from_checkpoint_tree,
    to_checkpoint_tree,
)
from tiger_jax.training.whole_checkpoints import open_manager, restore_newest_whole

PyTree = Any
STEP_PREFIX = "checkpoint"


class InputHandler(ocp.CheckpointHandler):
    """Lets the input write and read its position in the item's folder."""

    def save(self, directory: epath.Path, args: "InputArgs") -> None:
        args.input.save(directory)

    def restore(self, directory: epath.Path, args: "InputArgs") -> None:
        args.input.restore(directory)


@ocp.args.register_with_handler(InputHandler, for_save=True, for_restore=True)
class InputArgs(ocp.args.CheckpointArgs):
    """Wraps an object with ``save(path)`` and ``restore(path)``."""

    def __init__(self, input: Any) -> None:
        """Takes the input."""
        self.input = input


class Checkpointer:
    """Saves and restores training; keeps the newest few and the best.

    Attributes:
        best_step: A step whose checkpoint is never removed.
    """

    def __init__(
        self, folder: Path, *, keep: int = 2, best_step: int | None = None
    ) -> None:
        """Opens a folder of checkpoints and clears away unfinished ones."""
        self.folder = epath.Path(folder)
        self.best_step = best_step
        self._manager = open_manager(
            folder,
            options={
                "step_prefix": STEP_PREFIX,
                "preservation_policy": _NewestAndBest(self, keep),
            },
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(),
                "dataset": InputHandler(),
            },
        )

    def steps(self) -> list[int]:
        """Steps with a whole checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, input: Any, loop_state: Mapping[str, Any]) -> int:
        """Starts saving and returns; the arrays are copied before that.

        Returns:
            The step saved.
        """
        step = int(state.step)
        tree = to_checkpoint_tree(state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(tree), dataset=InputArgs(input)
            ),
            custom_metadata={"loop": dict(loop_state), "checksums": _checksums(tree)},
            force=True,
        )
        return step

    def wait(self) -> None:
        """Returns when the last checkpoint is whole on disk.

        Raises:
            Whatever kept it from being written.
        """
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes writing."""
        self._manager.close()

    def restore_newest(
        self, like: TrainState, input: Any
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """Restores the newest checkpoint that is whole; older if it is damaged.

        Damaged ones are removed: the run will pass their steps again.

        Returns:
            The state and the loop's own state; None if there is no checkpoint.

        Raises:
            InputError: A checkpoint is of another model or optimizer, or all are
                damaged.
        """
        return restore_newest_whole(
            self._manager, self._path, lambda step: self.restore(step, like, input)
        )

    def restore(
        self, step: int, like: TrainState, input: Any
    ) -> tuple[TrainState, dict[str, Any]]:
        """Restores one step's state, laid out as `like` is, and the input.

        Raises:
            InputError: It doesn't fit: the first leaves that differ are named.
        """
        abstract = to_checkpoint_tree(abstract_like(like))
        _check_fit(self._path(step), self._stored(step), abstract)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(
                    abstract,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                )
            ),
        )["state"]
        metadata = self._manager.metadata(step).custom_metadata or {}
        _compare_checksums(restored, metadata.get("checksums") or {})
        # The input last, so that a damaged state leaves its position alone.
        self._manager.restore(step, args=ocp.args.Composite(dataset=InputArgs(input)))
        return from_checkpoint_tree(restored, like), metadata.get("loop") or {}

    def _stored(self, step: int) -> PyTree:
        return self._manager.item_metadata(step)["state"].tree

    def _path(self, step: int) -> epath.Path:
        return self.folder / f"{STEP_PREFIX}_{step}"


def restore_params(checkpoint: Path, like: PyTree) -> PyTree:
    """Restores only the parameters, from our checkpoint or from t5x's.

    Args:
        checkpoint: One ``checkpoint_<step>`` folder.
        like: Parameters, or their shapes with the shardings to restore onto.

    Raises:
        InputError: The folder isn't a checkpoint, or a leaf doesn't fit.
    """
    path = epath.Path(checkpoint).absolute() / "state"
    if not path.exists():
        raise InputError(f"{checkpoint} is not a checkpoint: it has no folder state/")
    # The handler itself: a Checkpointer would warn that the item, which is a part of
    # a checkpoint here, has no metadata of its own.
    handler = ocp.PyTreeCheckpointHandler()
    stored = handler.metadata(path).tree
    abstract = {
        "target": jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=getattr(x, "sharding", None)
            ),
            like,
        )
    }
    only_params = {"target": stored.get("target", {})}
    _check_fit(epath.Path(checkpoint), only_params, abstract)
    restored = handler.restore(
        path,
        args=ocp.args.PyTreeRestore(
            abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=True,
        ),
    )
    return restored["target"]


def restore_params_of(
    checkpoint: Path,
    init_fn: Callable[[jax.Array], PyTree],
    sharding: jax.sharding.Sharding | None = None,
) -> PyTree:
    """Restores only the parameters, in the shapes that `init_fn` makes.

    Args:
        init_fn: Key to parameters, boxed with their logical axis names or bare.
        sharding: Where they go; the first local device by default.

    Raises:
        InputError: The folder isn't a checkpoint, or a leaf doesn't fit.
    """
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    boxed = jax.eval_shape(init_fn, jax.random.key(0))
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        nn.meta.unbox(boxed),
    )
    return restore_params(checkpoint, like)


class _NewestAndBest:
    """Keeps the newest checkpoints and the best one."""

    def __init__(self, checkpointer: Checkpointer, keep: int) -> None:
        self._checkpointer, self._keep = checkpointer, keep

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> list[bool]:
        newest = {info.step for info in checkpoints[-self._keep :]}
        newest.add(self._checkpointer.best_step)
        return [info.step in newest for info in checkpoints]


def _check_fit(where: epath.Path, stored: PyTree, wanted: PyTree) -> None:
    """Raises an InputError that names the first leaves that differ."""
    have, need = _by_path(stored), _by_path(wanted)
    problems = []
    # Parameters first: their statistics only repeat what is wrong with them.
    paths = have.keys() | need.keys()
    for path in sorted(paths, key=lambda p: (not p.startswith("target/"), p)):
        if path not in have:
            problems.append(f"{path} is missing from it")
        elif path not in need:
            problems.append(f"{path} is in it, but the model has no such leaf")
        elif tuple(have[path].shape) != tuple(need[path].shape):
            problems.append(
                f"{path} is {list(have[path].shape)} in it and "
                f"{list(need[path].shape)} in the model"
            )
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(
            f"{where} does not fit: {'; '.join(problems[:3])}{more}. Use the model "
            "and optimizer configs it was made with, or another work directory"
        )


def _by_path(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: hasattr(x, "shape")
    )
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }


def _checksums(tree: PyTree) -> dict[str, int]:
    """CRC-32 of each leaf that this process can see whole.

    Array storage detects a missing or truncated chunk, but not a flipped bit.
    """
    return {
        path: zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
        for path, leaf in _by_path(tree).items()
        if leaf.is_fully_addressable
    }


def _compare_checksums(tree: PyTree, expected: Mapping[str, int]) -> None:
    for path, found in _checksums(tree).items():
        if path in expected and found != expected[path]:
            raise OSError(f"the values of {path} are not those that were saved")
