"""Which kind each level of a trie becomes, and how large its arrays are.

The plan is data: print it, change it with `dataclasses.replace`, and hand it to
`Trie.build`. Two tries built on equal plans have equal shapes, so a jitted search
that has seen one runs the other without compiling again.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from tiger_jax.decoding.trie.bits import num_words
from tiger_jax.decoding.trie.levels import Kind, LevelPlan, summary_shape
from tiger_jax.decoding.trie.packed import BLOCK
from tiger_jax.errors import InputError

# A gathered candidate costs as much as this many masked codewords.
_GATHER_COST = 8
# Speed is bought with memory up to here, or up to this factor.
_FREE_BYTES = 1 << 26
_FREE_FACTOR = 4
# Below so many nodes, packing the first children's numbers saves nothing to speak of.
_PACKED_NODES = 1 << 12


@dataclasses.dataclass(frozen=True)
class LevelStatistics:
    """What the planner needs to know of a catalogue's level.

    Attributes:
        codebook_size: K.
        num_nodes: Nodes that have children.
        num_children: Nodes of the next depth.
        max_fan_out: Most children of one node.
        num_words: Non-empty words of 32 codewords, over all nodes; at most.
        max_delta: Most children of 15 neighbouring nodes; see `RisingNumbers`.
    """

    codebook_size: int
    num_nodes: int
    num_children: int
    max_fan_out: int
    num_words: int
    max_delta: int


@dataclasses.dataclass(frozen=True)
class TriePlan:
    """The static shape of a trie.

    Attributes:
        levels: One plan per level.
    """

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
        """Most items."""
        return self.levels[-1].child_capacity

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of every level."""
        return tuple(level.codebook_size for level in self.levels)

    @property
    def level_bytes(self) -> tuple[int, ...]:
        """Bytes of each level's arrays."""
        return tuple(count_bytes(level) for level in self.levels)

    def __str__(self) -> str:
        lines = [f"trie for at most {self.item_capacity:,} items"]
        for number, level in enumerate(self.levels):
            lines.append(
                f"  level {number}: {level.kind:6}  K {level.codebook_size:5,}  nodes "
                f"{level.node_capacity:11,}  children {level.child_capacity:11,}  "
                f"fan-out {level.max_fan_out:5,}  bytes {count_bytes(level):12,}"
            )
        return "\n".join(lines)


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
        found.append(
            LevelStatistics(
                codebook_size=size,
                num_nodes=num_nodes,
                num_children=num_children,
                max_fan_out=widest,
                num_words=min(math.ceil(words), num_children),
                max_delta=delta,
            )
        )
        num_nodes = num_children
    return found


def with_headroom(
    statistics: Sequence[LevelStatistics], headroom: float
) -> list[LevelStatistics]:
    """Statistics `headroom` times as large, as far as the codebooks allow.

    The largest fan-out is rounded up to a power of two as well, for it varies from
    catalogue to catalogue more than the sums do.

    Raises:
        InputError: The headroom is below 1.
    """
    if headroom < 1:
        raise InputError(f"a headroom is at least 1, not {headroom}")

    def grow(number: int, most: int) -> int:
        return min(math.ceil(number * headroom), most)

    grown: list[LevelStatistics] = []
    num_nodes = 1
    for level in statistics:
        size = level.codebook_size
        num_children = grow(level.num_children, num_nodes * size)
        fan_out = grow(level.max_fan_out, size)
        fan_out = min(1 << (fan_out - 1).bit_length(), size)
        words = grow(level.num_words, min(num_nodes * num_words(size), num_children))
        delta = min((BLOCK - 1) * fan_out, num_children)
        grown.append(
            LevelStatistics(size, num_nodes, num_children, fan_out, words, delta)
        )
        num_nodes = num_children
    return grown


def largest_of(
    some: Sequence[LevelStatistics], others: Sequence[LevelStatistics]
) -> list[LevelStatistics]:
    """Statistics that exceed neither; `some` may be empty."""
    if not some:
        return list(others)
    return [
        LevelStatistics(*map(max, dataclasses.astuple(one), dataclasses.astuple(other)))
        for one, other in zip(some, others, strict=True)
    ]


def csr_is_narrow(codebook_size: int, max_fan_out: int) -> bool:
    """Whether gathering the children beats masking all codewords."""
    return _GATHER_COST * max_fan_out <= codebook_size


def make_plan(
    statistics: Sequence[LevelStatistics],
    *,
    memory_cap_bytes: int | None = None,
    kinds: Sequence[Kind | None] | None = None,
) -> TriePlan:
    """Chooses the fastest kinds whose arrays fit under the memory cap.

    A level starts as the kind with the least work per beam among those that take at
    most 64 MB, or four times what the smallest kind takes. While the arrays exceed
    the cap, the level that saves most by it becomes its smallest kind.

    Args:
        statistics: Of a catalogue, of the `worst_case`, or `with_headroom`.
        memory_cap_bytes: Most bytes for the levels' arrays.
        kinds: Overrides the choice for each level that is not None.

    Raises:
        InputError: No choice of kinds fits under the cap.
    """
    wanted = list(kinds) if kinds is not None else [None] * len(statistics)
    fastest, smallest = [], []
    for level, kind in zip(statistics, wanted, strict=True):
        every: tuple[Kind, ...] = ("csr", "bitset", "bitmap")
        plans = [_plan_level(level, k) for k in ([kind] if kind else every)]
        least = min(plans, key=count_bytes)
        free = max(_FREE_BYTES, _FREE_FACTOR * count_bytes(least))
        affordable = [plan for plan in plans if count_bytes(plan) <= free]
        fastest.append(min(affordable, key=_work))
        smallest.append(least)
    chosen = fastest
    total = sum(map(count_bytes, chosen))
    while memory_cap_bytes is not None and total > memory_cap_bytes:
        saved = [
            count_bytes(now) - count_bytes(least)
            for now, least in zip(chosen, smallest, strict=True)
        ]
        most = max(range(len(saved)), key=saved.__getitem__)
        if not saved[most]:
            raise InputError(
                f"the trie needs at least {total} bytes, more than the memory cap of "
                f"{memory_cap_bytes}: raise the cap or lower the capacity"
            )
        chosen[most] = smallest[most]
        total -= saved[most]
    return TriePlan(tuple(chosen))


def _plan_level(level: LevelStatistics, kind: Kind) -> LevelPlan:
    delta_bits = 32
    if level.num_nodes >= _PACKED_NODES and level.max_delta < 1 << 16:
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
    columns, dtype = summary_shape(plan.codebook_size)
    summaries = columns * np.dtype(dtype).itemsize * (nodes - 1)
    return first + summaries + rising(nodes, 16) + 4 * (plan.word_capacity + 1)
