"""Checkpoints that can prove their files, and the newest that is whole.

Orbax renames a checkpoint into place when it is complete; its array storage finds a
missing or truncated chunk. Neither finds a flipped bit, or another file's content
under a file's name. Hence a list of hashes in each checkpoint, ``files.json``, which
is written before the rename. A checkpoint without one, such as t5x's, is taken as it
is.
"""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath

from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.workdir.hashing import hash_file, hash_json

FILES = "files.json"
# Orbax's own record, which gets the time of the rename after the files are hashed;
# what we gave it to keep is hashed by value.
_RECORD, _OURS = "_CHECKPOINT_METADATA", "custom_metadata"

_T = TypeVar("_T")


class _SaidByUs(logging.Filter):
    """Drops what orbax logs and we say in a line of our own.

    With a traceback: it raises the same error to us. Of its records, those of a damaged
    checkpoint: in full.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if "orbax" not in record.pathname:
            return True
        return record.exc_info is None and "etadata" not in str(record.msg)


_SAID_BY_US = _SaidByUs()


def _hide_late_writes() -> None:
    """Keeps quiet what orbax's other writes meet when one of them has failed.

    The first failure ends the event loop and is raised to us; each write that ends
    after it finds the loop closed, in a thread of TensorStore's that has nobody to
    raise this to.
    """
    hook = sys.unraisablehook
    if getattr(hook, "hides_late_writes", False):
        return

    def show(unraisable: Any) -> None:
        frames = unraisable.exc_traceback
        is_late = (
            isinstance(unraisable.exc_value, RuntimeError)
            and str(unraisable.exc_value) == "Event loop is closed"
            and frames is not None
            and frames.tb_frame.f_code.co_name == "call_soon_threadsafe"
        )
        if not is_late:
            hook(unraisable)

    show.hides_late_writes = True  # type: ignore[attr-defined]
    sys.unraisablehook = show


def open_manager(
    folder: epath.Path | Path, *, options: dict[str, Any], **arguments: Any
) -> ocp.CheckpointManager:
    """Opens a folder of checkpoints, each of which gets its list of hashes.

    Args:
        options: Of `CheckpointManagerOptions`.
        arguments: Of `CheckpointManager`.
    """
    root = epath.Path(folder).absolute()
    logging.getLogger("absl").addFilter(_SAID_BY_US)  # once, however often it is added
    _hide_late_writes()
    _set_unreadable_records_aside(root)

    def list_files() -> None:
        if jax.process_index() == 0:
            # There is one that isn't renamed yet: this one.
            for unfinished in root.glob("*.orbax-checkpoint-tmp*"):
                hashes = _hash_files(unfinished)
                (unfinished / FILES).write_text(json.dumps(hashes, indent=1))

    return ocp.CheckpointManager(
        root,
        options=ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=list_files),
            **options,
        ),
        **arguments,
    )


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


def check_files(checkpoint: epath.Path) -> None:
    """Compares a checkpoint's files with its list.

    Raises:
        OSError: A file is missing, or isn't what was written; names it.
    """
    path = checkpoint / FILES
    if not path.exists():
        return
    try:
        expected = json.loads(path.read_text())
    except ValueError as error:
        raise OSError(f"{FILES} is no JSON") from error
    if not isinstance(expected, dict) or _RECORD not in expected:
        raise OSError(f"{FILES} lists no files")
    found = _hash_files(checkpoint)
    for name, was in sorted(expected.items()):
        if name not in found:
            raise OSError(f"{name} is missing")
        if found[name] != was:
            raise OSError(f"{name} isn't what was written")


def restore_newest_whole(
    manager: ocp.CheckpointManager,
    path_of: Callable[[int], epath.Path],
    restore: Callable[[int], _T],
) -> _T | None:
    """Restores the newest checkpoint that is whole; older if it is damaged.

    Damaged ones are removed: the run will pass their steps again.

    Returns:
        What `restore` gives for its step; None if there is no checkpoint.

    Raises:
        InputError: `restore` says so, or all checkpoints are damaged.
    """
    damaged: list[int] = []
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            check_files(path_of(step))
            restored = restore(step)
        except InputError:
            raise
        except Exception as error:
            say(f"{path_of(step)} is damaged ({_one_line(error)})")
            damaged.append(step)
            continue
        for bad in damaged:
            manager.delete(bad)
        if damaged:
            say(f"going back to {path_of(step)}")
        return restored
    if damaged:
        folder = path_of(damaged[0]).parent
        raise InputError(
            f"every checkpoint in {folder} is damaged: delete that folder to train "
            "from the start"
        )
    return None


def _hash_files(folder: epath.Path) -> dict[str, str]:
    hashes = {}
    for path in sorted(Path(folder).rglob("*")):
        name = path.relative_to(Path(folder)).as_posix()
        if name == _RECORD:
            hashes[name] = _hash_ours(folder / name)
        elif name != FILES and path.is_file():
            hashes[name] = hash_file(path)
    return hashes


def _hash_ours(record: epath.Path) -> str:
    try:
        return hash_json(json.loads(record.read_text()).get(_OURS))
    except (ValueError, AttributeError):
        return "no JSON"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "…"
