"""Numbers texts by first appearance, as fast for many as for few.

A hash table of millions of texts lies outside a core's caches, and each look-up
waits for memory. So the rows are first shared out to pieces by a hash of each text's
last bytes, equal texts in one piece, and a table is made of one piece at a time.
"""

import numpy as np
import pyarrow as pa
from jaxtyping import Int64, UInt8

# Rows of a piece, about; and the most pieces that one byte tells apart.
_PIECE_ROWS = 1 << 17
_MOST_PIECES = 1 << 8
_WORD = 8
# Odd, and large: its products' upper bits depend on all the lower ones.
_MIX = np.uint64(0x9E3779B97F4A7C15)


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
    num_pieces = 1
    while num_pieces * _PIECE_ROWS < len(texts) and num_pieces < _MOST_PIECES:
        num_pieces *= 2
    if num_pieces == 1:
        encoded = whole_array(texts.dictionary_encode().unify_dictionaries())
        return np.asarray(encoded.indices).astype(np.int64), encoded.dictionary
    return _number_in_pieces(texts, num_pieces)


def whole_array(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array; one without rows, too."""
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # what a table without rows gives
        return whole.chunk(0) if whole.num_chunks else pa.array([], column.type)
    return whole


def _number_in_pieces(
    texts: pa.ChunkedArray, num_pieces: int
) -> tuple[Int64[np.ndarray, " rows"], pa.Array]:
    whole = pa.concat_arrays(texts.cast(pa.large_string()).chunks)
    pieces = _pieces(whole, num_pieces)
    order = np.argsort(pieces, kind="stable")
    ends = np.cumsum(np.bincount(pieces, minlength=num_pieces)).tolist()
    numbers = np.empty(len(whole), np.int64)
    firsts, start, total = [], 0, 0
    for end in ends:
        rows = order[start:end]
        encoded = whole.take(pa.array(rows)).dictionary_encode()
        within = np.asarray(encoded.indices)
        # Numbers rise by one where a text appears first.
        highest = np.maximum.accumulate(within)
        firsts.append(rows[np.flatnonzero(np.diff(highest, prepend=-1))])
        numbers[rows] = within + total
        total += len(encoded.dictionary)
        start = end
    first = np.concatenate(firsts)
    by_appearance = np.argsort(first)
    rank = np.empty(total, np.int64)
    rank[by_appearance] = np.arange(total)
    for at in range(0, len(numbers), _PIECE_ROWS):
        part = slice(at, at + _PIECE_ROWS)
        numbers[part] = rank[numbers[part]]
    distinct = whole.take(pa.array(first[by_appearance])).cast(texts.type)
    return numbers, distinct


def _pieces(texts: pa.LargeStringArray, num_pieces: int) -> UInt8[np.ndarray, " rows"]:
    """The piece of each text, by its last eight bytes."""
    _, offsets_buffer, data = texts.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)
    offsets = offsets[texts.offset : texts.offset + len(texts) + 1]
    ends = offsets[1:]
    # A word ends where its text does; zeros stand before the first text.
    held = np.frombuffer(data, np.uint8)[: ends[-1]] if ends[-1] else []
    padded = np.concatenate([np.zeros(_WORD, np.uint8), held]).astype(np.uint8)
    words = np.ndarray(len(padded) - _WORD + 1, "<u8", padded, strides=(1,))
    own = words[ends]
    # A shorter text has only the upper bytes; shifts by all 64 bits are undefined.
    lengths = ends - offsets[:-1]
    foreign = (8 * np.maximum(_WORD - lengths, 0)).astype(np.uint64)
    own >>= np.minimum(foreign, 63)
    own[lengths == 0] = 0
    own *= _MIX
    return (own >> np.uint64(64 - num_pieces.bit_length() + 1)).astype(np.uint8)
