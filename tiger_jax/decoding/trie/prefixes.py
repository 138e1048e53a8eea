"""Sorts a catalogue's Semantic IDs and finds the trie's nodes in them.

All of it is numpy on large arrays, in parts that fit a core's cache, on all cores:
numpy releases the interpreter's lock inside these operations.

Sorting is what takes the time. Semantic IDs are packed into 64-bit words, and numpy
sorts 16 bits of them at a time by radix, in a time that grows as the items do while
they stay in the cache. So each block of items is brought in order of its leading 16
bits first, and cut where the whole catalogue is; what all blocks have between two cuts
is sorted by the bits that follow.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Int32, Integer, UInt8, UInt16, UInt64

from tiger_jax.errors import InputError

_P = TypeVar("_P")
_R = TypeVar("_R")
_BLOCK = 1 << 17
_DIGIT = 16  # bits that numpy sorts by radix
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
        """Words of a Semantic ID."""
        return self.places[-1][0] + 1

    @property
    def num_digits(self) -> int:
        """Sixteen bits each, of all words; the last word's lowest may be unused."""
        used = 64 - self.places[-1][1]
        return max(1, 64 // _DIGIT * self.places[-1][0] + -(-used // _DIGIT))

    def pack(
        self, codes: Integer[np.ndarray, "n T"], begin: int
    ) -> list[UInt64[np.ndarray, " n"]]:
        """Packs Semantic IDs.

        Args:
            begin: The first one's item number.

        Raises:
            InputError: A codeword lies outside its codebook; names the item.
        """
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

    def column(
        self, words: Sequence[UInt64[np.ndarray, " n"]], level: int
    ) -> Integer[np.ndarray, " n"]:
        """A level's codewords."""
        (word, shift), size = self.places[level], self.sizes[level]
        mask = np.uint64((1 << _bits(size)) - 1)
        found = (words[word] >> np.uint64(shift)) & mask
        return found.astype(token_dtype(size))


@dataclasses.dataclass(frozen=True)
class _Block:
    """Some items in order of their Semantic IDs' leading 16 bits, and cut by these.

    Attributes:
        items: Their numbers.
        words: Their words, in the same order.
        bounds: Where each range of the leading bits begins, and where the last ends.
    """

    items: Int32[np.ndarray, " n"]
    words: list[UInt64[np.ndarray, " n"]]
    bounds: Integer[np.ndarray, " ranges_and_1"]

    @classmethod
    def sort(
        cls,
        codes: Integer[np.ndarray, "n T"],
        layout: _Layout,
        begin: int,
        cuts: UInt16[np.ndarray, " cuts"],
    ) -> "_Block":
        """Sorts the items whose numbers begin at `begin`."""
        words = layout.pack(codes, begin)
        leading = _digit(words, 0)
        rows = leading.argsort(kind="stable")
        inner = np.searchsorted(leading[rows], cuts)
        return cls(
            (rows + begin).astype(np.int32),
            [word[rows] for word in words],
            np.concatenate([[0], inner, [len(codes)]]),
        )

    def between_cuts(self, number: int) -> list[Integer[np.ndarray, " part"]]:
        """The items and the words of one range."""
        part = slice(self.bounds[number], self.bounds[number + 1])
        return [array[part] for array in (self.items, *self.words)]


def _digit(
    words: Sequence[UInt64[np.ndarray, " n"]], number: int
) -> UInt16[np.ndarray, " n"]:
    """Sixteen bits of all; digit 0 are the highest."""
    word, place = divmod(number, 64 // _DIGIT)
    shift = np.uint64(64 - _DIGIT * (place + 1))
    return (words[word] >> shift).astype(np.uint16)


def _sort(
    codes: Integer[np.ndarray, "N T"], layout: _Layout
) -> tuple[Int32[np.ndarray, " N"], list[UInt64[np.ndarray, " N"]]]:
    """Sorts by Semantic ID; ties, which are an error, by item number.

    Returns:
        The item numbers in order, and their words.
    """
    num_items = len(codes)
    parts = _parts(num_items)
    cuts = _draw_cuts(codes, layout, len(parts))

    def sort_block(part: slice) -> _Block:
        return _Block.sort(codes[part], layout, part.start, cuts)

    blocks = _on_all_cores(sort_block, parts)
    bounds = np.stack([block.bounds for block in blocks])
    begins = bounds.sum(axis=0)  # of the ranges, in the whole catalogue
    order = np.empty(num_items, np.int32)
    words = [np.empty(num_items, np.uint64) for _ in range(layout.num_words)]

    def sort_range(number: int) -> None:
        pieces = [block.between_cuts(number) for block in blocks]
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


def _order_of(
    words: Sequence[UInt64[np.ndarray, " n"]], num_digits: int
) -> Integer[np.ndarray, " n"]:
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
        groups = [(group & 0xFFFF).astype(np.uint16)]
        if group[-1] > 0xFFFF:
            groups.append((group >> _DIGIT).astype(np.uint16))
        within = np.lexsort([*digits[::-1], *groups])
        rows[places] = tied[within]
        for digit in digits:
            ties[places[1:] - 1] &= _equal_neighbours(digit[within])
    return rows


def _equal_neighbours(values: Integer[np.ndarray, " n"]) -> Bool[np.ndarray, " pairs"]:
    return values[1:] == values[:-1]


def _compare_neighbours(
    layout: _Layout, words: list[UInt64[np.ndarray, " N"]]
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

    def leaves_of(depth: int) -> Int32[np.ndarray, " nodes"]:
        return np.flatnonzero(difference < depth).astype(np.int32)

    # The first leaf of each node, by depth. Most catalogues have as many nodes at the
    # deeper levels as leaves: then that is all of them, as they stand.
    inner = range(1, 1 + min(length - 1, int(difference.max(initial=0))))
    leaf = dict(zip(inner, _on_all_cores(leaves_of, inner), strict=True))

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
