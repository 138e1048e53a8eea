"""Numbers texts by first appearance."""

import numpy as np
import pyarrow as pa
from jaxtyping import Int64


def number_texts(
    texts: pa.ChunkedArray,
) -> tuple[Int64[np.ndarray, " rows"], pa.Array]:
    """Numbers equal texts alike: 0 for the first row's, 1 for the next other one.

    Args:
        texts: Strings without nulls.

    Returns:
        Each row's number, and the distinct texts by number.

    Example:
        >>> numbers, distinct = number_texts(pa.chunked_array([["b", "a", "b"]]))
        >>> numbers.tolist(), distinct.to_pylist()
        ([0, 1, 0], ['b', 'a'])
    """
    # One array for all has one dictionary; large, since texts may pass 2 GiB.
    encoded = whole_array(texts.cast(pa.large_string())).dictionary_encode()
    return np.asarray(encoded.indices).astype(np.int64), encoded.dictionary.cast(
        texts.type
    )


def whole_array(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array; one without rows, too."""
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # what a table without rows gives
        return whole.chunk(0) if whole.num_chunks else pa.array([], column.type)
    return whole
