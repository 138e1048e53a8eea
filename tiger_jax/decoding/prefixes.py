"""Sorts a catalogue's Semantic IDs and finds the trie's nodes in them.

All of it is numpy on large arrays, in blocks that fit a core's cache, on all cores:
numpy releases the interpreter's lock inside these operations.

Sorting is what takes the time, and numpy sorts plain integers several times faster
than it sorts an index by them. So the leading levels of a Semantic ID and the item's
number are packed into one uint64 and sorted together. Items that tie on these
levels, few unless the catalogue is skewed, are sorted again by the next levels.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Int32, Integer, UInt8, UInt64

from tiger_jax.errors import InputError

_BLOCK = 1 << 17


@dataclasses.dataclass(frozen=True)
class SortedPrefixes:
    """The trie's nodes, depth by depth, in the order of their Semantic IDs.

    Attributes:
        codebook_sizes: K of every level.
        order: Item number of each leaf: leaf i is the i-th smallest Semantic ID.
        first_difference: The first level at which a leaf differs from the leaf
            before it; 0 for leaf 0.
        tokens: Per level, the codeword that leads to each child; uint8 or uint16.
        first: Per level, the number of each node's first child.
    """

    codebook_sizes: tuple[int, ...]
    order: Int32[np.ndarray, " N"]
    first_difference: UInt8[np.ndarray, " N"]
    tokens: list[Integer[np.ndarray, " _"]]
    first: list[Int32[np.ndarray, " _"]]


def token_dtype(codebook_size: int) -> type[np.unsignedinteger]:
    """The smallest type that holds a level's codewords."""
    return np.uint8 if codebook_size <= 256 else np.uint16


def sort_prefixes(
    codes: Integer[np.ndarray, "N T"], codebook_sizes: Sequence[int]
) -> SortedPrefixes:
    """Sorts the items by Semantic ID and numbers the nodes of every depth.

    Raises:
        InputError: There are no items, a codeword lies outside its codebook, or two
            items share a Semantic ID.
    """
    sizes = tuple(int(size) for size in codebook_sizes)
    codes = np.asarray(codes)
    _check(codes, sizes)
    order, packed, num_packed = _sort(codes, sizes)
    columns, difference = _compare_neighbours(codes, sizes, order, packed, num_packed)
    is_repeated = difference == len(sizes)
    if is_repeated.any():
        second = int(np.flatnonzero(is_repeated)[0])
        raise InputError(
            f"items {order[second - 1]} and {order[second]} share the Semantic ID "
            f"{codes[order[second]].tolist()}: give them a collision level"
        )
    tokens, first = _number_nodes(columns, difference)
    return SortedPrefixes(sizes, order, difference, tokens, first)


def _check(codes: np.ndarray, sizes: tuple[int, ...]) -> None:
    if codes.ndim != 2 or codes.shape[1] != len(sizes):
        raise InputError(
            f"Semantic IDs of shape {codes.shape} don't fit {len(sizes)} codebooks"
        )
    if not np.issubdtype(codes.dtype, np.integer):
        raise InputError(f"codewords are integers, not {codes.dtype}")
    if not len(codes):
        raise InputError("a catalogue without items has no trie")
    if len(sizes) > 250 or max(sizes) > 1 << 16 or min(sizes) < 1:
        raise InputError(f"codebooks of {sizes} codewords are not supported")


def _in_blocks(work: Callable[[slice], None], length: int) -> None:
    """Runs `work` on slices of a range, on all cores."""
    parts = [slice(i, min(i + _BLOCK, length)) for i in range(0, length, _BLOCK)]
    if len(parts) == 1:
        work(parts[0])
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, parts))


def _bits(size: int) -> int:
    """Bits that hold 0 … size - 1."""
    return (size - 1).bit_length()


def _pack(
    codes: Integer[np.ndarray, "n T"],
    sizes: Sequence[int],
    levels: range,
    out: np.ndarray,
) -> UInt64[np.ndarray, " n"]:
    """Appends the levels' bits, coarse to fine, to what `out` holds."""
    for level in levels:
        np.left_shift(out, np.uint64(_bits(sizes[level])), out=out)
        np.bitwise_or(out, codes[:, level].astype(np.uint64), out=out)
    return out


def _levels_that_fit(sizes: Sequence[int], begin: int, room: int) -> range:
    """The levels from `begin` on whose bits fit into `room`."""
    end = begin
    while end < len(sizes) and (room := room - _bits(sizes[end])) >= 0:
        end += 1
    return range(begin, end)


def _sort(
    codes: Integer[np.ndarray, "N T"], sizes: tuple[int, ...]
) -> tuple[Int32[np.ndarray, " N"], UInt64[np.ndarray, " N"], int]:
    """Sorts by Semantic ID; ties, which are an error, by item number.

    Returns:
        The item numbers in order, the sorted bits of the leading levels, and how
        many levels these are.
    """
    num_items = len(codes)
    item_bits = _bits(num_items)
    leading = _levels_that_fit(sizes, 0, 64 - item_bits)
    packed = np.empty(num_items, np.uint64)

    def pack(part: slice) -> None:
        block = codes[part]
        for level, size in enumerate(sizes):
            column = block[:, level]
            if column.min() < 0 or column.max() >= size:
                is_wrong = (column < 0) | (column >= size)
                row = int(np.flatnonzero(is_wrong)[0])
                raise InputError(
                    f"item {part.start + row} has codeword {int(column[row])} at level "
                    f"{level}, whose codebook has {size}"
                )
        key = _pack(block, sizes, leading, np.zeros(len(block), np.uint64))
        np.left_shift(key, np.uint64(item_bits), out=key)
        items = np.arange(part.start, part.stop, dtype=np.uint64)
        np.bitwise_or(key, items, out=packed[part])

    _in_blocks(pack, num_items)
    _sort_in_place(packed)
    order = np.empty(num_items, np.int32)

    def unpack(part: slice) -> None:
        low = np.bitwise_and(packed[part], np.uint64((1 << item_bits) - 1))
        order[part] = low
        np.right_shift(packed[part], np.uint64(item_bits), out=packed[part])

    _in_blocks(unpack, num_items)
    if leading.stop < len(sizes):
        ties = np.zeros(num_items, bool)
        ties[1:] = packed[1:] == packed[:-1]
        _break_ties(codes, sizes, order, ties, leading.stop)
    return order, packed, leading.stop


def _sort_in_place(numbers: UInt64[np.ndarray, " n"]) -> None:
    """Sorts, each core a part of the range."""
    cores = os.cpu_count() or 1
    if cores == 1 or len(numbers) < _BLOCK:
        numbers.sort()
        return
    bounds = [len(numbers) * i // cores for i in range(cores + 1)]
    numbers.partition(bounds[1:-1])
    with ThreadPoolExecutor(cores) as pool:
        parts = zip(bounds[:-1], bounds[1:], strict=True)
        list(pool.map(lambda ends: numbers[ends[0] : ends[1]].sort(), parts))


def _break_ties(
    codes: Integer[np.ndarray, "N T"],
    sizes: tuple[int, ...],
    order: Int32[np.ndarray, " N"],
    ties: Bool[np.ndarray, " N"],
    level: int,
) -> None:
    """Sorts, in place, the items that tie on the levels before `level`.

    Args:
        ties: Whether a leaf ties with the leaf before it.
    """
    while level < len(sizes) and ties.any():
        is_tied = ties.copy()
        is_tied[:-1] |= ties[1:]
        places = np.flatnonzero(is_tied)  # where groups of tied leaves stand
        group = np.cumsum(~ties[places]) - 1
        item = order[places]
        room = 64 - _bits(len(places)) - _bits(int(group[-1]) + 1)
        levels = _levels_that_fit(sizes, level, room)
        key, row = _sort_groups(codes, sizes, levels, group, item)
        order[places] = item[row]
        ties[places[1:]] = key[1:] == key[:-1]
        level = levels.stop


def _sort_groups(
    codes: Integer[np.ndarray, "N T"],
    sizes: tuple[int, ...],
    levels: range,
    group: Integer[np.ndarray, " n"],
    item: Int32[np.ndarray, " n"],
) -> tuple[UInt64[np.ndarray, " n"], Integer[np.ndarray, " n"]]:
    """Sorts items by group and then by some levels.

    Returns:
        The sorted (group, levels) bits, and which row of `item` each one is.
    """
    row_bits = _bits(len(item))
    key = np.empty(len(item), np.uint64)

    def pack(part: slice) -> None:
        out = _pack(codes[item[part]], sizes, levels, group[part].astype(np.uint64))
        np.left_shift(out, np.uint64(row_bits), out=out)
        rows = np.arange(part.start, part.stop, dtype=np.uint64)
        np.bitwise_or(out, rows, out=key[part])

    _in_blocks(pack, len(item))
    _sort_in_place(key)
    row = (key & np.uint64((1 << row_bits) - 1)).astype(np.int64)
    key >>= np.uint64(row_bits)
    return key, row


def _compare_neighbours(
    codes: Integer[np.ndarray, "N T"],
    sizes: tuple[int, ...],
    order: Int32[np.ndarray, " N"],
    packed: UInt64[np.ndarray, " N"],
    num_packed: int,
) -> tuple[list[np.ndarray], UInt8[np.ndarray, " N"]]:
    """Gives each level's codewords in order, and where neighbours differ.

    The second array has T where a leaf repeats the one before it.
    """
    num_items, length = len(order), len(sizes)
    columns = [np.empty(num_items, token_dtype(size)) for size in sizes]
    difference = np.empty(num_items, np.uint8)

    def compare(part: slice) -> None:
        begin = max(part.start - 1, 0)
        here = difference[part]
        here[:] = length
        if num_packed < length:
            rows = codes[order[begin : part.stop]]
            for level in reversed(range(num_packed, length)):
                column = rows[:, level]
                columns[level][part] = column[part.start - begin :]
                here[part.start == 0 :][column[1:] != column[:-1]] = level
        keys = packed[begin : part.stop]
        changes = keys[1:] ^ keys[:-1]
        shift = 0
        for level in reversed(range(num_packed)):
            mask = np.uint64((1 << _bits(sizes[level])) - 1)
            own = packed[part] >> np.uint64(shift)
            columns[level][part] = own & mask
            differs = changes >= np.uint64(1 << shift)
            np.copyto(here[part.start == 0 :], level, where=differs)
            shift += _bits(sizes[level])
        if part.start == 0:
            here[0] = 0

    _in_blocks(compare, num_items)
    return columns, difference


def _number_nodes(
    columns: list[np.ndarray], difference: UInt8[np.ndarray, " N"]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Finds each level's children and each node's first."""
    tokens, first = [columns[-1]], []
    leaf = None  # the first leaf of each child
    for level in reversed(range(1, len(columns))):
        starts = np.flatnonzero(difference < level).astype(np.int32)
        first.append(starts)
        leaf = starts if leaf is None else leaf[starts]
        tokens.append(columns[level - 1][leaf])
        difference = difference[starts]
    first.append(np.zeros(1, np.int32))
    return tokens[::-1], first[::-1]
