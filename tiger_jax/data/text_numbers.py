"""Numbers texts by first appearance."""

import numpy as np
import pyarrow as pa
from jaxtyping import Int64


def number_texts(texts: pa.ChunkedArray) -> tuple[Int64[np.ndarray, " rows"], pa.Array]:
    """Each row's number, by first appearance, and the distinct texts by number.

    Examples:
        >>> numbers, distinct = number_texts(pa.chunked_array([["b", "a", "b"]]))
        >>> numbers.tolist(), distinct.to_pylist()
        ([0, 1, 0], ['b', 'a'])
    """
    # One array for all has one dictionary; large, since texts may pass 2 GiB.
    encoded = texts.cast(pa.large_string()).combine_chunks().dictionary_encode()
    numbers = np.asarray(encoded.indices).astype(np.int64)
    return numbers, encoded.dictionary.cast(texts.type)
