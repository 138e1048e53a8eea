"""The extra level that makes Semantic IDs unique, and who shares a prefix.

Items whose L learned codewords are equal are told apart by one more codeword: 0 for
the first of them, 1 for the second, … (Rajput et al. 2023, section 3.1). "First" is by
a hash of the item id: neither the order of the items' file nor the shuffling of item
numbers changes an ID, and the codeword says nothing about an item, as an order by id
would, which in many shops is that of age. The level is always there, also for the items
that share their codewords with nobody, whose collision codeword is 0.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64

from tiger_jax.errors import InputError, flag
from tiger_jax.semantic_ids.sorting import sort_rows

COLLISION_LEVEL_SIZE = 256
MAX_COLLISION_LEVEL_SIZE = 1 << 16  # what the decoder's tries can hold
_MAX_KEY = 1 << 62


def group_rows(codes: Int[np.ndarray, "N L"]) -> Int64[np.ndarray, " N"]:
    """Numbers the distinct rows 0, 1, … in lexicographic order.

    However many levels there are, no number ever exceeds 62 bits, or else N times a
    codebook's size.

    Examples:
        >>> group_rows(np.array([[1, 9], [0, 5], [1, 9], [1, 2]])).tolist()
        [2, 0, 2, 1]
    """
    groups = np.zeros(len(codes), np.int64)
    bound = 1  # above all groups
    for level in range(codes.shape[1]):
        column = codes[:, level].astype(np.int64)
        width = int(column.max(initial=0)) + 1
        if bound * width > _MAX_KEY:
            groups, bound = _rank(groups), len(groups)
        groups *= width
        groups += column
        bound *= width
    return _rank(groups)


def _rank(keys: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
    """Numbers the distinct keys 0, 1, … in their order."""
    order = sort_rows(keys)
    ranks = np.empty_like(keys)
    ranks[order] = np.cumsum(_begins(keys[order])) - 1
    return ranks


def _begins(ordered: Int64[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """Where a number differs from the one before it."""
    begins = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=begins[1:])
    return begins


def count_distinct(codes: Int[np.ndarray, "N L"]) -> int:
    """Number of distinct rows."""
    return int(group_rows(codes).max(initial=-1)) + 1


def number_within_groups(
    groups: Int[np.ndarray, " N"], order: Int[np.ndarray, " n"]
) -> Int64[np.ndarray, " N"]:
    """Numbers each group's members 0, 1, … in the given order.

    Args:
        order: Row numbers, first to last; a row that is left out is numbered 0, as
            one that is alone in its group would be.

    Examples:
        >>> groups, order = np.array([7, 7, 3, 7]), np.array([3, 2, 1, 0])
        >>> number_within_groups(groups, order).tolist()
        [2, 1, 0, 0]
    """
    by_group = order[sort_rows(groups[order])]
    is_first = _begins(groups[by_group])
    position = np.arange(len(by_group))
    start = np.maximum.accumulate(np.where(is_first, position, 0))
    numbers = np.zeros(len(groups), np.int64)
    numbers[by_group] = position - start
    return numbers


def collision_level_size_for(codes: Int[np.ndarray, "N T"]) -> int:
    """The size of a collision level that was filled with no limit.

    The smallest power of two, and at least 256, that an eighth more of the largest
    group would fit, so that items can join it.

    Examples:
        >>> fill = [np.arange(size)[:, None] for size in (1, 228, 229, 1000)]
        >>> [collision_level_size_for(codes) for codes in fill]
        [256, 256, 512, 2048]
    """
    largest = int(codes[:, -1].max(initial=0)) + 1
    room = max(largest + largest // 8, COLLISION_LEVEL_SIZE)
    return min(1 << (room - 1).bit_length(), MAX_COLLISION_LEVEL_SIZE)


def add_collision_level(
    codes: Int[np.ndarray, "N L"],
    item_ids: Sequence[str],
    *,
    collision_level_size: int = COLLISION_LEVEL_SIZE,
    taken: Int[np.ndarray, " N"] | None = None,
) -> Int32[np.ndarray, "N T"]:
    """Appends the codeword that tells items with equal codewords apart.

    Args:
        item_ids: Their hashes decide the order within equal codewords.
        taken: Collision codewords that some items already have and keep, -1 for
            the others, which get the smallest ones left. So items can join a
            catalogue without changing anybody's ID.

    Raises:
        InputError: More items share their codewords than the level can hold, or two
            items keep the same ID.

    Examples:
        >>> codes = np.array([[5], [5], [2]])
        >>> add_collision_level(codes, ["b", "a", "c"]).tolist()
        [[5, 1], [5, 0], [2, 0]]
        >>> taken = np.array([0, -1, -1])
        >>> add_collision_level(codes, ["b", "a", "c"], taken=taken).tolist()
        [[5, 0], [5, 1], [2, 0]]
    """
    groups = group_rows(codes)
    # The rows that aren't alone in their group, by the hash of the item id.
    sharing_rows = np.flatnonzero(np.bincount(groups)[groups] > 1)
    hashes = [_hash(item_ids[row]) for row in sharing_rows.tolist()]
    order = sharing_rows[np.argsort(np.array(hashes, "S16"), kind="stable")]
    if taken is None:
        numbers = number_within_groups(groups, order)
    else:
        numbers = _number_around(groups, order, taken, item_ids)
    crowd = int(numbers.max(initial=0)) + 1
    if crowd > collision_level_size:
        row = int(numbers.argmax())
        sharing = int((groups == groups[row]).sum())
        raise InputError(
            f"{sharing} items share the codewords {codes[row].tolist()} (one of them "
            f"is {item_ids[row]!r}) and need {crowd} codewords at the collision level, "
            f"which has {collision_level_size}: give it more with "
            + flag(
                "assign_semantic_ids.collision_level_size",
                1 << (crowd - 1).bit_length(),
            )
            + ", or use a finer quantizer; items with the same embedding always share "
            "their codewords"
        )
    return np.column_stack([codes, numbers]).astype(np.int32)


def _hash(item_id: str) -> bytes:
    # In hexadecimal, since an array of bytes ends at a trailing zero.
    return (
        hashlib.blake2b(item_id.encode("utf-8", "surrogatepass"), digest_size=8)
        .hexdigest()
        .encode()
    )


def _number_around(
    groups: Int64[np.ndarray, " N"],
    order: Int[np.ndarray, " n"],
    taken: Int[np.ndarray, " N"],
    item_ids: Sequence[str],
) -> Int64[np.ndarray, " N"]:
    """Numbers each group's open members with what its taken numbers leave free.

    If t_0 < t_1 < … are a group's taken numbers, t_j - j free ones lie below t_j;
    hence the r-th free number is r + #{j : t_j - j <= r}.
    """
    is_open = taken < 0
    kept = np.flatnonzero(~is_open)
    kept = kept[np.lexsort((taken[kept], groups[kept]))]
    kept_groups, kept_numbers = groups[kept], taken[kept].astype(np.int64)
    same = (np.diff(kept_groups) == 0) & (np.diff(kept_numbers) == 0)
    if same.any():
        first = int(np.flatnonzero(same)[0])
        raise InputError(
            f"items {item_ids[kept[first]]!r} and {item_ids[kept[first + 1]]!r} have "
            "the same codewords, the collision level's included"
        )
    start = np.searchsorted(kept_groups, kept_groups)
    free_below = kept_numbers - (np.arange(len(kept)) - start)
    # One sorted key for (group, free numbers below); no rank reaches the stride.
    stride = int(max(kept_numbers.max(initial=0), len(groups))) + 1
    keys = kept_groups * stride + free_below
    # Kept items rank in groups of their own, so that the open ones count from 0.
    ranks = number_within_groups(groups + np.where(is_open, 0, len(groups)), order)
    skipped = np.searchsorted(
        keys, groups * stride + ranks, side="right"
    ) - np.searchsorted(kept_groups, groups)
    return np.where(is_open, ranks + skipped, taken)
