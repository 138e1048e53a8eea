"""Which kind each level of a trie becomes, and how large its arrays are.

The plan is data: change it with `dataclasses.replace` and hand it to `Trie.build`.
Tries on equal plans have equal shapes, so a jitted search that has seen one runs the
other without compiling again.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from tiger_jax.decoding.trie import levels
from tiger_jax.decoding.trie.bits import BLOCK, largest_delta, num_words
from tiger_jax.decoding.trie.levels import Kind, LevelPlan, largest_fan_out
from tiger_jax.decoding.trie.prefixes import SortedPrefixes
from tiger_jax.errors import InputError

# A gathered candidate costs as much as this many masked codewords.
_GATHER_COST = 8
# Speed is bought with memory up to here, or up to this factor.
_FREE_BYTES = 1 << 26
_FREE_FACTOR = 4
# Below so many nodes, packing the numbers of first children saves little.
_MIN_PACKED_NODES = 1 << 12


@dataclasses.dataclass(frozen=True)
class LevelStatistics:
    """What the planner needs to know of a catalogue's level.

    Attributes:
        num_nodes: Nodes that have children.
        num_children: Nodes of the next depth.
        max_fan_out: Children of the node that has most.
        num_words: Non-empty words of 32 codewords, over all nodes; at most.
        max_delta: Children of 15 neighbouring nodes; at most. See `RisingNumbers`.
    """

    codebook_size: int
    num_nodes: int
    num_children: int
    max_fan_out: int
    num_words: int
    max_delta: int


@dataclasses.dataclass(frozen=True)
class TriePlan:
    """The static shape of a trie, level by level."""

    levels: tuple[LevelPlan, ...]

    def __post_init__(self) -> None:
        depth = 1
        for number, level in enumerate(self.levels):
            if level.node_capacity != depth:
                raise InputError(
                    f"level {number} has room for {level.node_capacity} nodes, the "
                    f"level before it for {depth} children: make them equal"
                )
            depth = level.child_capacity

    @property
    def item_capacity(self) -> int:
        return self.levels[-1].child_capacity

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return tuple(level.codebook_size for level in self.levels)

    @property
    def level_bytes(self) -> tuple[int, ...]:
        return tuple(count_bytes(level) for level in self.levels)


def measure_prefixes(prefixes: SortedPrefixes) -> list[LevelStatistics]:
    """Statistics of a catalogue that is there."""
    found = []
    for size, tokens, first in zip(
        prefixes.codebook_sizes, prefixes.tokens, prefixes.first, strict=True
    ):
        fan_out = largest_fan_out(tokens, first)
        words = len(tokens)  # at most; enough where gathering beats any mask
        if _GATHER_COST * fan_out > size:
            words = int(np.count_nonzero(levels.begins_word(tokens, first)))
        delta = largest_delta(levels.with_sentinels(first, len(tokens), len(first)))
        found.append(
            LevelStatistics(size, len(first), len(tokens), fan_out, words, delta)
        )
    return found


def worst_case(codebook_sizes: Sequence[int], capacity: int) -> list[LevelStatistics]:
    """Statistics that no catalogue of at most `capacity` items exceeds."""
    found = []
    num_nodes = 1
    for size in codebook_sizes:
        num_children = min(num_nodes * size, capacity)
        fan_out = min(size, capacity)
        words = min(num_nodes * num_words(size), num_children)
        delta = min((BLOCK - 1) * fan_out, num_children)
        found.append(
            LevelStatistics(size, num_nodes, num_children, fan_out, words, delta)
        )
        num_nodes = num_children
    return found


def expected_case(
    codebook_sizes: Sequence[int], num_prefixes: Sequence[float]
) -> list[LevelStatistics]:
    """Statistics of a catalogue of which only the numbers of prefixes are expected.

    For sizing a device before there are Semantic IDs; `make_plan(...).level_bytes`
    are the bytes to expect. Fan-outs are taken to vary as counts do (Poisson), four
    standard deviations wide.

    Args:
        codebook_sizes: K of every level.
        num_prefixes: Distinct prefixes of 1 … T codewords, as of a `SemanticIdPlan`.
    """
    found = []
    num_nodes = 1
    for size, expected in zip(codebook_sizes, num_prefixes, strict=True):
        num_children = max(round(expected), num_nodes)
        fan_out = num_children / num_nodes
        widest = min(size, math.ceil(fan_out + 4 * math.sqrt(fan_out)))
        row = num_words(size)
        words = num_nodes * row * -math.expm1(-fan_out / row)
        block = (BLOCK - 1) * fan_out
        delta = min(math.ceil(block + 4 * math.sqrt(block)), num_children)
        words = min(math.ceil(words), num_children)
        found.append(
            LevelStatistics(size, num_nodes, num_children, widest, words, delta)
        )
        num_nodes = num_children
    return found


def make_plan(
    statistics: Sequence[LevelStatistics], kinds: Sequence[Kind | None] | None = None
) -> TriePlan:
    """Chooses each level's fastest kind among those that are small enough.

    That is the least work per beam among the kinds that take at most 64 MB, or four
    times what the smallest kind takes.

    Args:
        statistics: Of a catalogue, or of the `worst_case` or `expected_case`.
        kinds: Overrides the choice for each level that is not None.
    """
    chosen = []
    for level, kind in zip(statistics, kinds or [None] * len(statistics), strict=True):
        every: tuple[Kind, ...] = (kind,) if kind else ("csr", "bitset", "bitmap")
        plans = [_plan_level(level, k) for k in every]
        free = max(_FREE_BYTES, _FREE_FACTOR * min(map(count_bytes, plans)))
        affordable = [plan for plan in plans if count_bytes(plan) <= free]
        chosen.append(min(affordable, key=_work))
    return TriePlan(tuple(chosen))


def _plan_level(level: LevelStatistics, kind: Kind) -> LevelPlan:
    delta_bits = 32
    if level.num_nodes >= _MIN_PACKED_NODES and level.max_delta < 1 << 16:
        delta_bits = 8 if level.max_delta < 1 << 8 else 16
    return LevelPlan(
        kind=kind,
        codebook_size=level.codebook_size,
        node_capacity=level.num_nodes,
        child_capacity=level.num_children,
        max_fan_out=level.max_fan_out,
        word_capacity=level.num_words if kind == "bitmap" else 0,
        delta_bits=delta_bits,
    )


def _work(plan: LevelPlan) -> int:
    """Cost of one beam, in masked codewords."""
    if plan.kind == "csr":
        return _GATHER_COST * plan.max_fan_out
    gathers = num_words(plan.codebook_size) if plan.kind == "bitmap" else 1
    return plan.codebook_size + _GATHER_COST * gathers


def count_bytes(plan: LevelPlan) -> int:
    """Bytes of a level's arrays."""

    def rising(count: int, delta_bits: int) -> int:
        if delta_bits == 32:
            return 4 * count
        return 4 * -(-count // BLOCK) + delta_bits // 8 * count

    nodes = plan.node_capacity + 2
    first = rising(nodes, plan.delta_bits)
    if plan.kind == "csr":
        token = 1 if plan.codebook_size <= 256 else 2
        return first + token * (plan.child_capacity + plan.max_fan_out)
    if plan.kind == "bitset":
        return first + 4 * num_words(plan.codebook_size) * (nodes - 1)
    columns, dtype = levels.summary_shape(plan.codebook_size)
    summaries = columns * np.dtype(dtype).itemsize * (nodes - 1)
    return first + summaries + rising(nodes, 16) + 4 * (plan.word_capacity + 1)
