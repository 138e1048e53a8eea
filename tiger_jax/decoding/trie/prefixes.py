"""Sorts a catalogue's Semantic IDs and finds the trie's nodes in them.

All of it is NumPy on large arrays, in parts that fit a core's cache, on all cores:
NumPy releases the interpreter's lock inside these operations.

Sorting takes most of the time. Semantic IDs are packed into 64-bit words, and NumPy
sorts 16 bits of them at a time by radix, in linear time while they stay in the cache.
So each block of items is sorted by its leading 16 bits first, and cut where the whole
catalogue is; what all blocks have between two cuts is sorted by the bits that follow.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Int32, Integer, UInt8, UInt16, UInt64

from tiger_jax.errors import InputError
from tiger_jax.semantic_ids.sorting import DIGIT_BITS, radix_digits

_Words = list[UInt64[np.ndarray, " n"]]
_P = TypeVar("_P")
_R = TypeVar("_R")
_BLOCK = 1 << 17
_DIGITS_PER_WORD = 64 // DIGIT_BITS
# Items in a sample that tells where to cut.
_SAMPLE = 1 << 14


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
    layout = _Layout.of(sizes)
    order, words = _sort(codes, layout)
    columns, difference = _compare_neighbours(layout, words)
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


def _parts(length: int) -> list[slice]:
    """A range in parts that fit a core's cache."""
    return [slice(i, min(i + _BLOCK, length)) for i in range(0, length, _BLOCK)]


def _on_all_cores(work: Callable[[_P], _R], parts: Sequence[_P]) -> list[_R]:
    """The results of all parts, in order."""
    if len(parts) == 1:
        return [work(parts[0])]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, parts))


def _bits(size: int) -> int:
    """Bits that hold 0 … size - 1."""
    return (size - 1).bit_length()


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where the levels lie in 64-bit words, which order as the Semantic IDs do.

    Attributes:
        sizes: K of every level.
        places: The word of each level, and the lowest of its bits in it.
    """

    sizes: tuple[int, ...]
    places: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, sizes: tuple[int, ...]) -> "_Layout":
        """Fills words from their highest bit on, level by level."""
        places: list[tuple[int, int]] = []
        word, room = 0, 64
        for size in sizes:
            if _bits(size) > room:
                word, room = word + 1, 64
            room -= _bits(size)
            places.append((word, room))
        return cls(sizes, tuple(places))

    @property
    def num_words(self) -> int:
        return self.places[-1][0] + 1

    @property
    def num_digits(self) -> int:
        """Sixteen bits each, of all words; the last word's lowest may be unused."""
        word, unused = self.places[-1]
        return max(1, _DIGITS_PER_WORD * (word + 1) - unused // DIGIT_BITS)

    def pack(self, codes: Integer[np.ndarray, "n T"], begin: int) -> _Words:
        """Packs Semantic IDs of items from `begin` on; InputError names a bad one."""
        words = [np.zeros(len(codes), np.uint64) for _ in range(self.num_words)]
        for level, (size, (word, shift)) in enumerate(
            zip(self.sizes, self.places, strict=True)
        ):
            column = codes[:, level]
            if column.min() < 0 or column.max() >= size:
                is_wrong = (column < 0) | (column >= size)
                row = int(np.flatnonzero(is_wrong)[0])
                raise InputError(
                    f"item {begin + row} has codeword {int(column[row])} at level "
                    f"{level}, whose codebook has {size}"
                )
            words[word] |= column.astype(np.uint64) << np.uint64(shift)
        return words

    def column(self, words: _Words, level: int) -> Integer[np.ndarray, " n"]:
        (word, shift), size = self.places[level], self.sizes[level]
        mask = np.uint64((1 << _bits(size)) - 1)
        found = (words[word] >> np.uint64(shift)) & mask
        return found.astype(token_dtype(size))


def _digit(words: _Words, number: int) -> UInt16[np.ndarray, " n"]:
    """Sixteen bits of all; digit 0 are the highest."""
    word, place = divmod(number, _DIGITS_PER_WORD)
    shift = np.uint64(64 - DIGIT_BITS * (place + 1))
    return (words[word] >> shift).astype(np.uint16)


def _sort(
    codes: Integer[np.ndarray, "N T"], layout: _Layout
) -> tuple[Int32[np.ndarray, " N"], _Words]:
    """The item numbers by Semantic ID, equal ones as they stand, and their words."""
    num_items = len(codes)
    parts = _parts(num_items)
    cuts = _draw_cuts(codes, layout, len(parts))

    def sort_block(part: slice) -> tuple[list[np.ndarray], np.ndarray]:
        """Items and words by their leading 16 bits, and where the cuts fall."""
        words = layout.pack(codes[part], part.start)
        leading = _digit(words, 0)
        rows = leading.argsort(kind="stable")
        inner = np.searchsorted(leading[rows], cuts)
        items = (rows + part.start).astype(np.int32)
        bounds = np.concatenate([[0], inner, [len(rows)]])
        return [items, *(word[rows] for word in words)], bounds

    blocks = _on_all_cores(sort_block, parts)
    begins = np.sum([bounds for _, bounds in blocks], axis=0)  # of whole ranges
    order = np.empty(num_items, np.int32)
    words = [np.empty(num_items, np.uint64) for _ in range(layout.num_words)]

    def sort_range(number: int) -> None:
        pieces = [
            [array[bounds[number] : bounds[number + 1]] for array in arrays]
            for arrays, bounds in blocks
        ]
        items, *own = map(np.concatenate, zip(*pieces, strict=True))
        rows = _order_of(own, layout.num_digits)
        whole = slice(begins[number], begins[number + 1])
        order[whole] = items[rows]
        for word, mine in zip(words, own, strict=True):
            word[whole] = mine[rows]

    _on_all_cores(sort_range, range(len(cuts) + 1))
    return order, words


def _draw_cuts(
    codes: Integer[np.ndarray, "N T"], layout: _Layout, num_ranges: int
) -> UInt16[np.ndarray, " cuts"]:
    """Leading bits that cut the catalogue into ranges of about as many items."""
    sample = codes[:: -(-len(codes) // _SAMPLE)]
    # What lies outside its codebook is told when all items are packed.
    sample = np.clip(sample, 0, np.array(layout.sizes) - 1)
    leading = np.sort(_digit(layout.pack(sample, 0), 0))
    at = len(leading) * np.arange(1, num_ranges) // num_ranges
    return np.unique(leading[at])


def _order_of(words: _Words, num_digits: int) -> Integer[np.ndarray, " n"]:
    """The rows in order; two digits at a time, of what still ties."""
    digits = [_digit(words, number) for number in range(min(2, num_digits))]
    rows = np.lexsort(digits[::-1])
    ties = np.ones(max(len(rows) - 1, 0), bool)
    for digit in digits:
        ties &= _equal_neighbours(digit[rows])
    for number in range(2, num_digits, 2):
        if not ties.any():
            break
        is_tied = np.zeros(len(rows), bool)
        is_tied[1:] = ties
        is_first = ~is_tied
        is_tied[:-1] |= ties
        places = np.flatnonzero(is_tied)  # where groups of tied rows stand
        group = np.cumsum(is_first[places], dtype=np.uint32) - 1
        tied = rows[places]
        digits = [
            _digit(words, n)[tied] for n in range(number, min(number + 2, num_digits))
        ]
        within = np.lexsort([*digits[::-1], *radix_digits(group)])
        rows[places] = tied[within]
        for digit in digits:
            ties[places[1:] - 1] &= _equal_neighbours(digit[within])
    return rows


def _equal_neighbours(values: Integer[np.ndarray, " n"]) -> Bool[np.ndarray, " pairs"]:
    return values[1:] == values[:-1]


def _compare_neighbours(
    layout: _Layout, words: _Words
) -> tuple[list[np.ndarray], UInt8[np.ndarray, " N"]]:
    """Gives each level's codewords in order, and where neighbours differ.

    The second array has T where a leaf repeats the one before it.
    """
    num_items, length = len(words[0]), len(layout.sizes)
    columns = [np.empty(num_items, token_dtype(size)) for size in layout.sizes]
    difference = np.empty(num_items, np.uint8)

    def compare(part: slice) -> None:
        begin = max(part.start - 1, 0)
        here = difference[part]
        here[:] = length
        inner = here[part.start == 0 :]
        own = [word[begin : part.stop] for word in words]
        for level in reversed(range(length)):
            column = layout.column(own, level)
            columns[level][part] = column[part.start - begin :]
            np.copyto(inner, level, where=column[1:] != column[:-1])
        if part.start == 0:
            here[0] = 0

    _on_all_cores(compare, _parts(num_items))
    return columns, difference


def _number_nodes(
    columns: list[np.ndarray], difference: UInt8[np.ndarray, " N"]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Finds each level's children and each node's first."""
    length = len(columns)

    # The first leaf of each node, by depth. Most catalogues have as many nodes at the
    # deeper levels as leaves: then that is all of them, as they stand.
    inner = range(1, 1 + min(length - 1, int(difference.max(initial=0))))
    leaves = _on_all_cores(
        lambda depth: np.flatnonzero(difference < depth).astype(np.int32), inner
    )
    leaf = dict(zip(inner, leaves, strict=True))

    def number(level: int) -> tuple[np.ndarray, np.ndarray]:
        at = leaf.get(level + 1)
        tokens = columns[level] if at is None else columns[level][at]
        if level == 0:
            return tokens, np.zeros(1, np.int32)
        if level not in leaf:
            return tokens, np.arange(len(difference), dtype=np.int32)
        if at is None:
            return tokens, leaf[level]
        begins = difference[at] < level
        return tokens, np.flatnonzero(begins).astype(np.int32)

    numbered = _on_all_cores(number, range(length))
    return [tokens for tokens, _ in numbered], [first for _, first in numbered]
