"""``.npy`` files that somebody else may have written, or a disk may have damaged."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np


def load_array(path: Path, *, is_mapped: bool = False) -> np.ndarray:
    """Reads an array; runs nothing, and takes no more memory than the file has bytes.

    Args:
        is_mapped: Leave the values on disk until they are read.

    Raises:
        OSError: The file can't be opened.
        ValueError: It holds no array, or less than its header says. NumPy's own
            reader also raises what its parser of headers does, and asks for all the
            memory that a header names.
    """
    try:
        # Mapping compares the header with the file's size before anything is read.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"no whole array: {text or type(error).__name__}") from error
    if not isinstance(array, np.ndarray):  # an archive of several
        raise ValueError("no array, but an archive")
    return array if is_mapped else np.array(array)


def save_array(path: Path, array: np.ndarray, *, sync: bool = False) -> None:
    """Writes an array as `np.save` does.

    Args:
        sync: Return when the disk has it.

    Raises:
        OSError: The system's own, with its number. NumPy writes past Python into an
            open file, and where that ends early says only how many values it wrote.
    """
    with open(path, "wb") as file:
        only_write: Any = SimpleNamespace(write=file.write)
        np.lib.format.write_array(only_write, np.asarray(array), allow_pickle=False)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def save_whole(path: Path, array: np.ndarray) -> None:
    """Writes an array beside its place and moves it there: no half file is seen."""
    beside = path.with_name(path.name + ".tmp")
    save_array(beside, array, sync=True)
    beside.replace(path)


def load_arrays(folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads ``NAME.npy`` for each name; a ValueError if one is no whole array."""
    if away := [n for n in names if Path(n).name != n]:
        raise ValueError(f"{away[0]!r} is no array's name")
    return {name: load_array(folder / f"{name}.npy") for name in names}


def save_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes each array as ``NAME.npy``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        save_array(folder / f"{name}.npy", np.asarray(array))
