"""Bits that items have, and the union of them at every node of the trie.

A request names the bits it allows, and an item passes if it has any of them: "any
of these categories", "in stock". A node passes if an item under it does, so a
search under a filter is exact: no beam is spent on a node that leads nowhere.

"Any of" is what a union can answer. A conjunction ("shoes that are in stock") is a
bit of its own: give out-of-stock items no bits, or a second set of category bits.

Bit 31 of the first word marks every item. Where unseen (cold-start) items are told
apart, the words are there twice: those of the seen items under a node, then those
of the unseen ones. So "unseen, and of these categories" is exact, too.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt32

from tiger_jax.decoding.trie.planner import TriePlan
from tiger_jax.decoding.trie.prefixes import SortedPrefixes
from tiger_jax.errors import InputError

EVERY_ITEM = np.uint32(1 << 31)


def bits_of_items(
    attributes: UInt32[np.ndarray, " N"] | UInt32[np.ndarray, "N A"] | None,
    unseen: Bool[np.ndarray, " N"] | None,
    num_items: int,
) -> UInt32[np.ndarray, "N W"] | None:
    """Lays out items' words as the trie keeps them; InputError if they can't be."""
    if attributes is None and unseen is None:
        return None
    if attributes is None:
        attributes = np.zeros(num_items, np.uint32)
    own = attributes.reshape(len(attributes), -1)
    for name, array in (("attributes", own), ("unseen", unseen)):
        if array is not None and len(array) != num_items:
            raise InputError(f"{name} has {len(array)} rows for {num_items} items")
    if (own[:, 0] & EVERY_ITEM).any():
        item = int(np.flatnonzero(own[:, 0] & EVERY_ITEM)[0])
        raise InputError(
            f"item {item} has attribute bit 31, which marks every item: use bits 0 … 30"
        )
    own = own.copy()
    own[:, 0] |= EVERY_ITEM
    if unseen is None:
        return own
    is_unseen = unseen[:, None]
    return np.concatenate(
        [np.where(is_unseen, 0, own), np.where(is_unseen, own, 0)], axis=1
    ).astype(np.uint32)


def bits_of_nodes(
    own: UInt32[np.ndarray, "N W"] | None, prefixes: SortedPrefixes, plan: TriePlan
) -> tuple[Array, ...]:
    """Unites the items' bits upwards, for depths 1 … T; sentinels have none."""
    if own is None:
        return ()
    union = own[prefixes.order]
    by_depth = []
    for level in reversed(range(len(plan.levels))):
        padded = np.zeros(
            (plan.levels[level].child_capacity + 1, own.shape[1]), np.uint32
        )
        padded[: len(union)] = union
        by_depth.append(jnp.asarray(padded))
        union = np.bitwise_or.reduceat(union, prefixes.first[level], axis=0)
    return tuple(by_depth[::-1])
