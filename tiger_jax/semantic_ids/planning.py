"""How many levels and codewords so many items need, before any are assigned.

Items fall into the K_1 * … * K_l cells of the prefixes of l codewords. If every cell
were as likely as any other, their counts would be Poisson's. No quantizer is that
even, so a cell's share varies by a Gamma distribution of mean 1 and shape a, which
makes the counts negative binomial: of C cells, at N items, with m = N / C,

    distinct prefixes = C (1 - (1 + m / a) ** -a)
    two items agree with probability p = (1 + 1 / a) / C

A level's evenness e says what it adds: p falls by K ** e. It is 1 for uniform codes,
and is measured on a pilot: a part of the items, or a smaller catalogue.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int

from tiger_jax.errors import InputError
from tiger_jax.semantic_ids.collisions import (
    COLLISION_LEVEL_SIZE,
    MAX_COLLISION_LEVEL_SIZE,
    group_rows,
)

_MAX_CODEWORDS = MAX_COLLISION_LEVEL_SIZE  # as for any level
_MAX_LEVELS = 16
_CODEWORD_BYTES = 4  # int32, in a SemanticIdTable


@dataclasses.dataclass(frozen=True)
class CodeSpread:
    """How a quantizer spreads items over its codewords.

    Attributes:
        evenness: Per level, from 0 (it tells no items apart) to 1 (uniform);
            the last holds for all further levels.
        largest_shares: Per depth, the share of the pilot's items in its fullest
            cell, two standard deviations of that count more; empty without a pilot.
    """

    evenness: tuple[float, ...] = (1.0,)
    largest_shares: tuple[float, ...] = ()

    @classmethod
    def measure(
        cls, codes: Int[np.ndarray, "N L"], codebook_sizes: Sequence[int]
    ) -> "CodeSpread":
        """Fits the spread to a pilot's learned codewords (no collision level).

        Raises:
            InputError: There are fewer than two items, or none agree anywhere, so
                that there is nothing to measure.
        """
        num_items = len(codes)
        if num_items < 2 or codes.shape[1] != len(codebook_sizes):
            raise InputError(
                f"a pilot of codes {codes.shape} over {len(codebook_sizes)} levels "
                "tells nothing: give two items or more, without the collision level"
            )
        evenness, shares, before, cells = [], [], 1.0, 1
        for level, size in enumerate(codebook_sizes):
            cells *= size
            counts = np.bincount(group_rows(codes[:, : level + 1]))
            agreement = _fit_agreement(num_items, cells, len(counts))
            if agreement is None:
                break  # no two items agree this far: nothing more to learn
            even = math.log(before / agreement) / math.log(size) if size > 1 else 0.0
            evenness.append(min(max(even, 0.0), 1.0))
            fullest = int(counts.max())
            shares.append(min(1.0, (fullest + 2 * math.sqrt(fullest)) / num_items))
            before = agreement
        if not evenness:
            raise InputError(
                f"no two of the pilot's {num_items} items share a codeword: give a "
                "larger pilot"
            )
        return cls(tuple(evenness), tuple(shares))

    def agreements(self, codebook_sizes: Sequence[int]) -> list[float]:
        """The probability that two items agree in the first 1, 2, … L codewords."""
        found, agreement = [], 1.0
        for level, size in enumerate(codebook_sizes):
            agreement *= size ** -self.evenness[min(level, len(self.evenness) - 1)]
            found.append(agreement)
        return found


@dataclasses.dataclass(frozen=True)
class SemanticIdPlan:
    """Semantic IDs for a number of items, and what to expect of them.

    Attributes:
        codebook_sizes: Codewords per level, T of them, the collision level last.
        num_prefixes: Expected distinct prefixes of 1 … T codewords; the last is N.
        collision_rate: Expected 1 - distinct learned codes / items.
        largest_group: Expected number of items in the fullest cell, if shares vary
            as the model says. Real catalogues, which hold near-duplicates, exceed
            it by a factor of a few.
        largest_group_bound: With a pilot of no fewer levels, N times the
            `largest_shares`. The largest share of a sample falls, in expectation, as
            the sample grows, so a catalogue like its pilot stays below. Otherwise
            None.
        table_bytes: Of the codes as a `SemanticIdTable` holds them.
        packed_bytes: Of the codes, were each level to take just the bits it needs.
    """

    num_items: int
    codebook_sizes: tuple[int, ...]
    num_prefixes: tuple[float, ...]
    collision_rate: float
    largest_group: int
    largest_group_bound: int | None
    table_bytes: int
    packed_bytes: int
    vocab_size: int

    @property
    def num_levels(self) -> int:
        return len(self.codebook_sizes) - 1

    def __str__(self) -> str:
        sizes = " × ".join(f"{size:,}" for size in self.codebook_sizes)
        return (
            f"{self.num_items:,} items: {sizes}, the last for collisions; "
            f"{self.collision_rate:.2%} collide, up to {self.largest_group:,} alike; "
            f"{self.table_bytes:,} bytes"
        )


def plan_semantic_ids(
    num_items: int,
    *,
    codebook_size: int = 256,
    num_levels: int | None = None,
    spread: CodeSpread | None = None,
    max_collision_rate: float = 0.1,
    collision_level_size: int | None = None,
) -> SemanticIdPlan:
    """Plans the Semantic IDs of a catalogue.

    Args:
        num_levels: L; the fewest that keep to the collision rate if None.
        spread: Measured on a pilot; uniform codes, the best there can be, if None.
        max_collision_rate: What to keep to, where `num_levels` is None.
        collision_level_size: If None, a power of two that holds the bound of the
            largest group, or four times the largest expected where there is no
            bound, and no less than the default of `assign_semantic_ids`.

    Raises:
        InputError: No number of levels is enough, or the collision level would
            exceed 65,536 codewords.

    Examples:
        >>> print(plan_semantic_ids(12_101, num_levels=3))
        12,101 items: 256 × 256 × 256 × 256, the last for collisions; 0.04% collide, \
up to 2 alike; 193,616 bytes
        >>> plan_semantic_ids(1_000_000_000, max_collision_rate=0.01).num_levels
        5
    """
    if num_items < 1 or not 2 <= codebook_size <= _MAX_CODEWORDS:
        raise InputError(
            f"can't plan {num_items} items over codebooks of {codebook_size}: there "
            f"must be an item, and 2 to {_MAX_CODEWORDS:,} codewords"
        )
    spread = spread or CodeSpread()
    wanted = range(1, _MAX_LEVELS + 1) if num_levels is None else [num_levels]
    for levels in wanted:
        sizes = (codebook_size,) * levels
        agreements = spread.agreements(sizes)
        distinct = [
            expected_distinct(num_items, codebook_size ** (level + 1), agreement)
            for level, agreement in enumerate(agreements)
        ]
        collision_rate = 1 - distinct[-1] / num_items
        if collision_rate <= max_collision_rate:
            break
    else:
        if num_levels is None:
            raise InputError(
                f"{_MAX_LEVELS} levels of {codebook_size} codewords leave "
                f"{collision_rate:.1%} of {num_items:,} items colliding: this "
                "quantizer's deeper levels tell too little apart"
            )
    largest = expected_largest_group(num_items, codebook_size**levels, agreements[-1])
    bound = None
    if levels <= len(spread.largest_shares):
        bound = math.ceil(num_items * spread.largest_shares[levels - 1])
    if collision_level_size is None:
        room = max(4 * largest if bound is None else bound, COLLISION_LEVEL_SIZE)
        collision_level_size = 1 << (room - 1).bit_length()
    if collision_level_size > _MAX_CODEWORDS:
        raise InputError(
            f"{num_items:,} items in cells of {sizes} may need a collision level of "
            f"{collision_level_size:,} codewords, and {_MAX_CODEWORDS:,} are the "
            "most: plan more levels, larger codebooks, or measure a larger pilot"
        )
    sizes = (*sizes, collision_level_size)
    bits = sum((size - 1).bit_length() for size in sizes)
    return SemanticIdPlan(
        num_items=num_items,
        codebook_sizes=sizes,
        num_prefixes=(*distinct, float(num_items)),
        collision_rate=collision_rate,
        largest_group=largest,
        largest_group_bound=bound,
        table_bytes=num_items * len(sizes) * _CODEWORD_BYTES,
        packed_bytes=-(-num_items * bits // 8),
        vocab_size=1 + sum(sizes),
    )


def expected_distinct(num_items: int, num_cells: int, agreement: float) -> float:
    """How many of the cells some item falls into.

    Examples:
        >>> round(expected_distinct(100, 1000, 1 / 1000), 2)
        95.16
    """
    mean, shape = num_items / num_cells, _shape(num_cells, agreement)
    return -num_cells * math.expm1(-_minus_log_empty(mean, shape))


def expected_largest_group(num_items: int, num_cells: int, agreement: float) -> int:
    """The largest m such that half a cell or more is expected to hold m items.

    Counts no further than twice what a collision level can hold.
    """
    mean, shape = num_items / num_cells, _shape(num_cells, agreement)
    most = min(num_items, 2 * _MAX_CODEWORDS)
    if mean >= most:
        return most
    tail = np.cumsum(_log_pmf(mean, shape, most)[::-1])[::-1]
    return max(1, int((num_cells * tail >= 0.5).sum()))


def _shape(num_cells: int, agreement: float) -> float:
    """The Gamma distribution's shape; infinite where cells are alike."""
    excess = num_cells * agreement - 1
    return 1 / excess if excess > 1e-9 else math.inf


def _minus_log_empty(mean: float, shape: float) -> float:
    """-log of the probability that a cell is empty."""
    return mean if math.isinf(shape) else shape * math.log1p(mean / shape)


def _log_pmf(mean: float, shape: float, most: int) -> Float64[np.ndarray, " most"]:
    """Probabilities that a cell holds 1, 2, … `most` items."""
    before = np.arange(most)
    ratio = mean / (before + 1)
    if not math.isinf(shape):
        ratio = ratio * (before + shape) / (shape + mean)
    return np.exp(np.cumsum(np.log(ratio)) - _minus_log_empty(mean, shape))


def _fit_agreement(num_items: int, num_cells: int, num_distinct: int) -> float | None:
    """The agreement at which so many distinct cells are expected; None if all are.

    Found by bisection of its logarithm: the fewer are distinct, the more agree.
    """
    if num_distinct == num_items:
        return None
    low, high = math.log(1 / num_cells), 0.0
    for _ in range(60):
        middle = (low + high) / 2
        expected = expected_distinct(num_items, num_cells, math.exp(middle))
        low, high = (middle, high) if expected > num_distinct else (low, middle)
    return math.exp((low + high) / 2)
