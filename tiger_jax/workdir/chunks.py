"""Arrays of unfinished work, a file per chunk, for a run that goes on after a kill.

A chunk's name holds the hash of its values, so what a dying disk or machine left
of it is never taken for what was computed.
"""

import contextlib
from pathlib import Path

import numpy as np

from tiger_jax.progress import say
from tiger_jax.workdir.arrays import load_array, save_whole
from tiger_jax.workdir.hashing import hash_arrays


def save_chunk(folder: Path, name: str, array: np.ndarray) -> None:
    """Writes a chunk for `load_chunk` to find, in place of an earlier one."""
    path = _path(folder, name, array)
    save_whole(path, array)
    for other in _all(folder, name):
        if other != path:
            other.unlink()


def load_chunk(folder: Path, name: str) -> np.ndarray | None:
    """The chunk, if it is there and is what was saved; a damaged one is removed."""
    for path in _all(folder, name):
        with contextlib.suppress(OSError, ValueError):
            array = load_array(path)
            if path == _path(folder, name, array):
                return array
        say(f"{path} is damaged: what it held is made again")
        path.unlink()
    return None


def remove_chunks(folder: Path) -> None:
    """Removes all chunks, when the work that they are parts of is done."""
    for path in folder.glob("chunk_*.npy*"):
        path.unlink()


def _all(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"chunk_{name}_{'?' * 16}.npy"))


def _path(folder: Path, name: str, array: np.ndarray) -> Path:
    return folder / f"chunk_{name}_{hash_arrays({'': array})[:16]}.npy"
