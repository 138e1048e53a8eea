"""Checkpoints in t5x's layout, through orbax: asynchronous, atomic, restartable.

    checkpoints/checkpoint_<step>/
        state/      {"target": parameters,
                     "state": {"step": …, "param_states": optimizer statistics}}
        dataset/    the input's position, written and read by the input itself
        files.json  the SHA-256 of every file

What the loop remembers beside (best step, patience, time spent) travels in orbax's
custom metadata, so that the two items are exactly what t5x writes and reads.

A checkpoint appears under its name only when it is whole: orbax renames it then. Its
array storage finds a missing or truncated chunk, but neither a flipped bit nor another
file's content under a file's name; hence ``files.json``, written before the rename. A
checkpoint without one, such as t5x's, is taken as it is.
"""

import contextlib
import glob
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import orbax.checkpoint as ocp
from etils import epath

from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.training.train_state import (
    TrainState,
    abstract_like,
    from_checkpoint_tree,
    to_checkpoint_tree,
)
from tiger_jax.workdir.hashing import hash_file, hash_json

PyTree = Any
STEP_PREFIX = "checkpoint"
_FILES = "files.json"
# Orbax's own record, which gets the time of the rename after the files are hashed;
# what we gave it to keep is hashed by value.
_RECORD, _OURS = "_CHECKPOINT_METADATA", "custom_metadata"


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
        self.input = input


_glob_joined = type(epath.Path()).glob


def _glob_below(folder: epath.Path, pattern: str) -> Iterator[epath.Path]:
    """Takes a folder such as ``lr=[1]`` by its name, and not for a pattern too."""
    if "://" in os.fspath(folder):
        return _glob_joined(folder, pattern)
    return (folder / name for name in glob.glob(pattern, root_dir=folder))


# What orbax finds its files by.
type(epath.Path()).glob = _glob_below


class Checkpointer(contextlib.AbstractContextManager):
    """Saves and restores training; keeps the newest few and the best.

    Attributes:
        best_step: A step whose checkpoint is never removed.
    """

    def __init__(
        self, folder: Path, *, keep: int = 2, best_step: int | None = None
    ) -> None:
        """Opens a folder of checkpoints and clears away unfinished ones."""
        self.folder = epath.Path(folder).absolute()
        self.best_step = best_step
        self._was_read_back = False
        _hide_what_we_say_ourselves()
        _set_unreadable_records_aside(self.folder)
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                step_prefix=STEP_PREFIX,
                preservation_policy=_NewestAndBest(self, keep),
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._list_files
                ),
            ),
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(),
                "dataset": InputHandler(),
            },
        )

    def __exit__(self, *error: Any) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Steps with a whole checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def path(self, step: int) -> epath.Path:
        return self.folder / f"{STEP_PREFIX}_{step}"

    def save(self, state: TrainState, input: Any, loop_state: Mapping[str, Any]) -> int:
        """Starts saving and returns the step; the arrays are copied before that.

        Raises:
            InputError: The first checkpoint was written and can't be read.
        """
        step = int(state.step)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(to_checkpoint_tree(state)),
                dataset=InputArgs(input),
            ),
            custom_metadata={"loop": dict(loop_state)},
            force=True,
        )
        if not self._was_read_back:
            self.wait()
            self._read_back(step, state)
        return step

    def _read_back(self, step: int, state: TrainState) -> None:
        """Finds out before the end of a long run that nothing of it can be used."""
        try:
            restore_params(Path(self.path(step)), state.params)
        except Exception as error:
            raise InputError(
                f"{self.path(step)} was written, but can't be read ({_one_line(error)})"
                ": choose another --workdir, on another disk"
            ) from error
        self._was_read_back = True

    def wait(self) -> None:
        """Returns when the last checkpoint is whole on disk; raises what kept it."""
        self._manager.wait_until_finished()

    def close(self) -> None:
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
        damaged: list[int] = []
        for step in reversed(self.steps()):
            try:
                check_files(self.path(step))
                restored = self.restore(step, like, input)
            except InputError:
                raise
            except Exception as error:
                say(f"{self.path(step)} is damaged ({_one_line(error)})")
                damaged.append(step)
                continue
            for bad in damaged:
                self._manager.delete(bad)
            if damaged:
                say(f"going back to {self.path(step)}")
            return restored
        if damaged:
            raise InputError(
                f"every checkpoint in {self.folder} is damaged: delete that folder to "
                "train from the start"
            )
        return None

    def restore(
        self, step: int, like: TrainState, input: Any
    ) -> tuple[TrainState, dict[str, Any]]:
        """Restores one step's state, laid out as `like` is, and the input.

        Raises:
            InputError: It doesn't fit: the first leaves that differ are named.
        """
        abstract = to_checkpoint_tree(abstract_like(like))
        stored = self._manager.item_metadata(step)["state"].tree
        _check_fit(self.path(step), stored, abstract)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(
                    abstract,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                )
            ),
        )["state"]
        # The input last, so that a damaged state leaves its position alone.
        self._manager.restore(step, args=ocp.args.Composite(dataset=InputArgs(input)))
        metadata = self._manager.metadata(step).custom_metadata or {}
        return from_checkpoint_tree(restored, like), metadata.get("loop") or {}

    def _list_files(self) -> None:
        if jax.process_index() == 0:
            for unfinished in self.folder.glob("*.orbax-checkpoint-tmp*"):
                hashes = _hash_files(unfinished)
                (unfinished / _FILES).write_text(json.dumps(hashes, indent=1))


def check_files(checkpoint: epath.Path) -> None:
    """Compares a checkpoint's files with its list; OSError names the first bad one."""
    path = checkpoint / _FILES
    if not path.exists():
        return
    try:
        expected = json.loads(path.read_text())
    except ValueError as error:
        raise OSError(f"{_FILES} is no JSON") from error
    if not isinstance(expected, dict) or _RECORD not in expected:
        raise OSError(f"{_FILES} lists no files")
    found = _hash_files(checkpoint)
    for name, was in sorted(expected.items()):
        if name not in found:
            raise OSError(f"{name} is missing")
        if found[name] != was:
            raise OSError(f"{name} isn't what was written")


def restore_params(
    checkpoint: Path, like: PyTree, *, part: Sequence[str] = ("target",)
) -> PyTree:
    """Restores only the parameters, from our checkpoint or from t5x's.

    Args:
        like: Parameters, or their shapes with the shardings to restore onto.
        part: Where they stand in the checkpoint; `train_state.AVERAGE` is their
            running average.

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
    for name in part:
        stored = stored.get(name, {})
    abstract, only_params = abstract_like(like), stored
    for name in reversed(part):
        abstract, only_params = {name: abstract}, {name: only_params}
    _check_fit(epath.Path(checkpoint), only_params, abstract)
    restored = handler.restore(
        path,
        args=ocp.args.PyTreeRestore(
            abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=True,
        ),
    )
    for name in part:
        restored = restored[name]
    return restored


def restore_params_of(
    checkpoint: Path,
    init_fn: Callable[[jax.Array], PyTree],
    sharding: jax.sharding.Sharding | None = None,
    **which: Any,
) -> PyTree:
    """`restore_params` in the shapes that `init_fn` makes.

    Args:
        init_fn: Key to parameters, boxed with their logical axis names or bare.
        sharding: Where they go; the first local device by default.
    """
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    boxed = jax.eval_shape(init_fn, jax.random.key(0))
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        nn.meta.unbox(boxed),
    )
    return restore_params(checkpoint, like, **which)


class _NewestAndBest:
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
            "and optimizer configs it was made with, or delete it to start again"
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


def _hash_files(folder: epath.Path) -> dict[str, str]:
    hashes = {}
    for path in sorted(Path(folder).rglob("*")):
        name = path.relative_to(Path(folder)).as_posix()
        if name == _RECORD:
            hashes[name] = _hash_ours(path)
        elif name != _FILES and path.is_file():
            hashes[name] = hash_file(path)
    return hashes


def _hash_ours(record: Path) -> str:
    try:
        return hash_json(json.loads(record.read_text()).get(_OURS))
    except (ValueError, AttributeError):
        return "no JSON"


def _set_unreadable_records_aside(root: epath.Path) -> None:
    """Lets a folder be opened that has a damaged record.

    Orbax reads all records when it opens a folder, and ends where it can't. Without its
    record, a checkpoint is found damaged as any other is.
    """
    if jax.process_index():
        return
    for record in root.glob(f"*/{_RECORD}"):
        try:
            # What the manager asks of it.
            _ = ocp.path.step.Metadata(step=0, path=record.parent).commit_timestamp
        except Exception as error:
            say(f"{record} can't be read ({_one_line(error)})")
            record.rename(record.parent / f"{_RECORD}.unreadable")


def _hide_what_we_say_ourselves() -> None:
    """Keeps orbax from printing tracebacks of what it raises to us as well.

    It logs each failure before it raises it. And where one write of several fails, the
    event loop ends with it: those that finish later find it closed, in a thread of
    TensorStore's that can raise this to nobody but the interpreter's hook.
    """
    logging.getLogger("absl").addFilter(_is_news)  # once, however often it is added
    hook = sys.unraisablehook
    if getattr(hook, "hides_late_writes", False):
        return

    def show(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    show.hides_late_writes = True  # type: ignore[attr-defined]
    sys.unraisablehook = show


def _is_news(record: logging.LogRecord) -> bool:
    if "orbax" not in record.pathname:
        return True
    return record.exc_info is None and "etadata" not in str(record.msg)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "…"
