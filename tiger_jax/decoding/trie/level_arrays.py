"""Fills the arrays of a trie's level, on the host, and reads them back."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int32, Integer

from tiger_jax.decoding.trie import bits
from tiger_jax.decoding.trie.levels import (
    BitmapLevel,
    BitsetLevel,
    CsrLevel,
    Level,
    LevelPlan,
    summary_shape,
)
from tiger_jax.decoding.trie.packed import RisingNumbers, largest_delta
from tiger_jax.decoding.trie.planner import LevelStatistics, csr_is_narrow
from tiger_jax.decoding.trie.prefixes import SortedPrefixes, sort_prefixes, token_dtype
from tiger_jax.errors import InputError


def measure_catalogue(
    codes: Integer[np.ndarray, "N T"], codebook_sizes: Sequence[int]
) -> list[LevelStatistics]:
    """Measures all levels of some Semantic IDs; of none, an empty trie's."""
    if not len(codes):
        return [LevelStatistics(int(size), 1, 1, 1, 1, 1) for size in codebook_sizes]
    prefixes = sort_prefixes(codes, codebook_sizes)
    return measure_prefixes(prefixes)


def measure_prefixes(prefixes: SortedPrefixes) -> list[LevelStatistics]:
    """Measures all levels."""
    levels = zip(prefixes.codebook_sizes, prefixes.tokens, prefixes.first, strict=True)
    return [measure_level(*level) for level in levels]


def measure_level(
    codebook_size: int,
    tokens: Integer[np.ndarray, " children"],
    first: Int32[np.ndarray, " nodes"],
) -> LevelStatistics:
    """Measures what the planner needs to know of a level."""
    fan_out = _largest_fan_out(tokens, first)
    if csr_is_narrow(codebook_size, fan_out):
        num_words = len(tokens)  # at most; no bitmap will be made
    else:
        num_words = int(np.count_nonzero(_begins_word(tokens, first)))
    return LevelStatistics(
        codebook_size=codebook_size,
        num_nodes=len(first),
        num_children=len(tokens),
        max_fan_out=fan_out,
        num_words=num_words,
        max_delta=largest_delta(_with_sentinels(first, len(tokens), len(first))),
    )


def build_level(
    plan: LevelPlan,
    tokens: Integer[np.ndarray, " children"],
    first: Int32[np.ndarray, " nodes"],
    number: int,
) -> Level:
    """Builds one level on its plan.

    Args:
        plan: The level's kind and shapes.
        tokens: The codeword that leads to each child.
        first: The number of each node's first child.
        number: Which level, for messages.

    Raises:
        InputError: The catalogue is larger than the plan at this level.
    """
    fan_out = _largest_fan_out(tokens, first)
    _check_room(number, "nodes", len(first), plan.node_capacity)
    _check_room(number, "children", len(tokens), plan.child_capacity)
    _check_room(number, "children of one node", fan_out, plan.max_fan_out)
    plain = _with_sentinels(first, len(tokens), plan.node_capacity)
    if plan.delta_bits < 32:
        most = (1 << plan.delta_bits) - 1
        _check_room(number, "children of 15 nodes", largest_delta(plain), most)
    packed = RisingNumbers.build(plain, delta_bits=plan.delta_bits)
    if plan.kind == "csr":
        room = plan.child_capacity + plan.max_fan_out
        padded = np.zeros(room, token_dtype(plan.codebook_size))
        padded[: len(tokens)] = tokens
        return CsrLevel(packed, jnp.asarray(padded), plan)
    begins = _begins_word(tokens, first)
    starts = np.flatnonzero(begins)
    bit = np.left_shift(np.uint32(1), tokens % bits.WORD_BITS, dtype=np.uint32)
    words = np.bitwise_or.reduceat(bit, starts)
    place = tokens[starts] // bits.WORD_BITS  # which word of the row
    pointer = (np.cumsum(begins, dtype=np.int32) - 1)[first]
    width = bits.num_words(plan.codebook_size)
    if plan.kind == "bitset":
        node = np.repeat(np.arange(len(first)), np.diff(pointer, append=len(words)))
        rows = np.zeros((plan.node_capacity + 1, width), np.uint32)
        rows[node, place] = words
        return BitsetLevel(packed, jnp.asarray(rows), plan)
    _check_room(number, "words of 32 codewords", len(words), plan.word_capacity)
    padded = np.zeros(plan.word_capacity + 1, np.uint32)
    padded[: len(words)] = words
    pointer = _with_sentinels(pointer, len(words), plan.node_capacity)
    return BitmapLevel(
        packed,
        jnp.asarray(_summaries(place, pointer[: len(first)], plan)),
        RisingNumbers.build(pointer, delta_bits=16),
        jnp.asarray(padded),
        plan,
    )


def read_children(
    level: Level, num_nodes: int
) -> tuple[Integer[np.ndarray, " children"], Int32[np.ndarray, " children"]]:
    """Reads back each child's node and codeword, in order."""
    nodes = np.arange(num_nodes, dtype=np.int32)
    if isinstance(level, CsrLevel):
        node = np.repeat(nodes, _looked_up(_fan_out, level, nodes, 1 << 20))
        return node, np.asarray(level.tokens)[: len(node)].astype(np.int32)
    found_nodes, found_tokens = [], []
    for start in range(0, num_nodes, 1 << 14):
        part = nodes[start : start + (1 << 14)]
        rows = _looked_up(_rows, level, part, 1 << 14).astype("<u4")
        dense = np.unpackbits(rows.view(np.uint8), axis=1, bitorder="little")
        node, token = np.nonzero(dense)
        found_nodes.append(node + start)
        found_tokens.append(token.astype(np.int32))
    return np.concatenate(found_nodes), np.concatenate(found_tokens)


@jax.jit
def _fan_out(level: Level, nodes: Any) -> Any:
    return level.fan_out(nodes)


@jax.jit
def _rows(level: Any, nodes: Any) -> Any:
    return level.rows(nodes)


def _looked_up(
    look_up: Callable[[Any, Any], Any],
    level: Level,
    nodes: Int32[np.ndarray, " nodes"],
    at_once: int,
) -> np.ndarray:
    """Asks about nodes by powers of two, so that few shapes are compiled."""
    found = []
    for start in range(0, len(nodes), at_once):
        part = nodes[start : start + at_once]
        size = 1 << (len(part) - 1).bit_length()
        filled = np.pad(part, (0, size - len(part)), mode="edge")
        found.append(np.asarray(look_up(level, filled))[: len(part)])
    return np.concatenate(found) if found else np.empty(0, np.int32)


def _largest_fan_out(tokens: np.ndarray, first: Int32[np.ndarray, " nodes"]) -> int:
    inner = int(np.diff(first).max(initial=0))
    return max(inner, len(tokens) - int(first[-1]))


def _with_sentinels(
    first: Int32[np.ndarray, " nodes"], end: int, capacity: int
) -> Int32[np.ndarray, " padded"]:
    """Unused nodes and the sentinel begin, and end, where the children end."""
    padded = np.full(capacity + 2, end, np.int32)
    padded[: len(first)] = first
    return padded


def _begins_word(
    tokens: Integer[np.ndarray, " children"], first: Int32[np.ndarray, " nodes"]
) -> Bool[np.ndarray, " children"]:
    """Whether a child is the first of its node's in its word of 32 codewords."""
    word = tokens // bits.WORD_BITS
    begins = np.empty(len(tokens), bool)
    np.not_equal(word[1:], word[:-1], out=begins[1:])
    begins[first] = True
    return begins


def _summaries(
    place: Integer[np.ndarray, " words"],
    pointer: Int32[np.ndarray, " nodes"],
    plan: LevelPlan,
) -> np.ndarray:
    """Per node, bit w says that word w of its row is not empty."""
    columns, dtype = summary_shape(plan.codebook_size)
    per_column = 8 * np.dtype(dtype).itemsize
    summaries = np.zeros((plan.node_capacity + 1, columns), dtype)
    for column in range(columns):
        bit = np.left_shift(1, place % per_column, dtype=np.uint32)
        bit[place // per_column != column] = 0
        summaries[: len(pointer), column] = np.bitwise_or.reduceat(bit, pointer)
    return summaries


def _check_room(level: int, what: str, found: int, room: int) -> None:
    if found > room:
        raise InputError(
            f"level {level} has {found} {what}, its plan has room for {room}: make a "
            "new plan"
        )
