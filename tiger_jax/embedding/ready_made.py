"""Ready-made embeddings: a `.npy` of the user's, checked before it is believed."""

from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from tiger_jax.errors import InputError
from tiger_jax.workdir.arrays import load_array

_MAGIC = b"\x93NUMPY"
_ROWS_AT_ONCE = 65_536


def load_ready_made(
    path: Path, num_file_items: int, items_file_rows: Int64[np.ndarray, " N"]
) -> Float32[np.ndarray, "N E"]:
    """Reads embeddings in items-file order and puts them in item-number order.

    Args:
        path: A `.npy` of float16, float32 or float64, one row for each row of the
            items file, in its order, those left out of the catalogue included.
        items_file_rows: Row in the items file of each item number.

    Raises:
        InputError: The file isn't such an array, or a row can't be an embedding:
            names the row, counted from 0.
    """
    array = _open(path)
    if array.dtype.kind != "f":
        raise InputError(
            f"{path} holds {array.dtype} values: save embeddings as float32 or float16"
        )
    _check_shape(path, array.shape, num_file_items, len(items_file_rows))
    _check_rows(path, array)
    return array[items_file_rows].astype(np.float32)


def _open(path: Path) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            start = file.read(len(_MAGIC))
    except OSError as error:
        raise InputError(
            f"{path} can't be read ({error.strerror}): give --embeddings a .npy file"
        ) from error
    if start != _MAGIC:
        kind = "a .npz archive, not" if start.startswith(b"PK") else "not"
        raise InputError(
            f"{path} is {kind} a .npy file: write it with numpy.save(path, array)"
        )
    try:
        # Mapped, not read: a file may be larger than memory.
        return load_array(path, is_mapped=True)
    except (ValueError, OSError) as error:
        if "object" in str(error).lower() or "pickle" in str(error).lower():
            raise InputError(
                f"{path} holds pickled Python objects, which are never loaded: save a "
                "plain array with numpy.save(path, array.astype('float32'))"
            ) from error
        raise InputError(
            f"{path} is damaged or cut short ({error}): write it again"
        ) from error


def _check_shape(
    path: Path, shape: tuple[int, ...], num_file_items: int, num_items: int
) -> None:
    if len(shape) == 2 and shape[0] == num_file_items and shape[1] > 0:
        return
    hint = "one row for each row of the items file, in its order"
    if len(shape) == 2 and shape[1] == num_file_items:
        hint += "; it looks transposed: save array.T"
    elif shape[:1] == (num_items,):
        hint += f", not only for the {num_items:,} items left after filtering"
    raise InputError(
        f"{path} has shape {shape}, but the shop's items file has {num_file_items:,} "
        f"rows: give {hint}"
    )


def _check_rows(path: Path, array: np.ndarray) -> None:
    first, all_equal = array[0], True
    for start in range(0, len(array), _ROWS_AT_ONCE):
        part = array[start : start + _ROWS_AT_ONCE]
        with np.errstate(over="ignore"):  # found below
            rows = np.asarray(part, np.float32)
        if start == 0:
            first = rows[0]
        is_finite = np.isfinite(rows)
        if not is_finite.all():
            row, column = np.argwhere(~is_finite)[0]
            raise InputError(
                f"{path}, row {start + row}, column {column} (counted from 0): "
                f"{part[row, column]!s} is no finite float32: embed that item again"
            )
        is_zero = ~rows.any(axis=1)
        if is_zero.any():
            raise InputError(
                f"{path}, row {start + int(is_zero.argmax())} (counted from 0) is all "
                "zeros, and so has no direction: embed that item again, or give it "
                "the mean of the others"
            )
        all_equal = all_equal and bool((rows == first[None, :]).all())
    if all_equal and len(array) > 1:
        raise InputError(
            f"{path}: all {len(array):,} rows are equal, so they tell no item from "
            "another: embed the items again"
        )
