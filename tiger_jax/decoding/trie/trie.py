"""The catalogue's Semantic IDs as a trie of flat arrays."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, Integer, UInt32

from tiger_jax.decoding.trie import attributes as attribute_bits
from tiger_jax.decoding.trie import trie_files
from tiger_jax.decoding.trie.exclusion_index import ExclusionIndex
from tiger_jax.decoding.trie.level_arrays import (
    build_level,
    measure_prefixes,
    read_children,
)
from tiger_jax.decoding.trie.levels import Level
from tiger_jax.decoding.trie.packed import PackedNumbers
from tiger_jax.decoding.trie.planner import (
    TriePlan,
    make_plan,
    with_headroom,
    worst_case,
)
from tiger_jax.decoding.trie.prefixes import SortedPrefixes, sort_prefixes
from tiger_jax.errors import InputError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trie:
    """Every item's Semantic ID; leaf i is the i-th smallest.

    A pytree of arrays: pass it to jitted functions as an argument. What is static
    in it, `plan` and `has_unseen`, is equal for tries built alike, so a changed
    catalogue runs without compiling again.

    Attributes:
        levels: One step each, from the nodes of depth l to those of depth l + 1.
        items: Item number of each leaf; `item_capacity` where there is none.
        num_items: int32 []; items in the catalogue.
        exclusion: What `beam_search(exclude=...)` needs, or None.
        attributes: uint32 [nodes + 1, words] for depths 1 … T: the bits of all the
            items under a node; empty without attributes. See `attributes`.
        plan: Kinds and shapes.
        has_unseen: Whether the bits tell seen items from unseen ones.
    """

    levels: tuple[Level, ...]
    items: PackedNumbers
    num_items: Any
    exclusion: ExclusionIndex | None
    attributes: tuple[Any, ...]
    plan: TriePlan = dataclasses.field(metadata={"static": True})
    has_unseen: bool = dataclasses.field(metadata={"static": True})

    @classmethod
    def build(
        cls,
        codes: Integer[np.ndarray, "N T"],
        codebook_sizes: Sequence[int],
        *,
        capacity: int | None = None,
        headroom: float | None = None,
        memory_cap_bytes: int | None = None,
        plan: TriePlan | None = None,
        exclusion: bool = True,
        attributes: UInt32[np.ndarray, " N"] | UInt32[np.ndarray, "N A"] | None = None,
        unseen: Bool[np.ndarray, " N"] | None = None,
    ) -> "Trie":
        """Builds the trie of a catalogue; row i of `codes` is item number i.

        Shapes come from one of three places:

        *   `plan`: those of another trie (`trie.plan`), or of a plan made by hand.
        *   `capacity`: large enough for any catalogue of so many items. Two tries of
            one capacity and the same codebooks have the same shapes.
        *   neither: this catalogue's own, times `headroom` if given. The smallest
            and fastest. A larger catalogue needs a new plan and a compilation.

        Args:
            codes: Semantic IDs in any order; no two alike.
            codebook_sizes: K of every level.
            capacity: Most items.
            headroom: Factor of room to grow, at least 1.
            memory_cap_bytes: Most bytes for the levels' arrays.
            plan: Shapes and kinds to build on, instead of the three above.
            exclusion: Keep what `beam_search(exclude=...)` needs: 4 to 6 bytes an
                item.
            attributes: Bits of each item, for `beam_search(allowed=...)`: 4 bytes a
                node and word. Bit 31 of the first word is taken.
            unseen: Which items are cold-start items, for
                `beam_search(num_unseen_beams=...)`.

        Raises:
            InputError: The Semantic IDs are empty, out of range or not unique, or
                don't fit the plan, the capacity or the memory cap.
        """
        prefixes = sort_prefixes(codes, codebook_sizes)
        num_items = len(prefixes.order)
        if plan is None:
            if capacity is None:
                statistics = measure_prefixes(prefixes)
            elif capacity < num_items:
                raise InputError(f"{num_items} items exceed the capacity {capacity}")
            else:
                statistics = worst_case(prefixes.codebook_sizes, capacity)
            if headroom is not None:
                statistics = with_headroom(statistics, headroom)
            plan = make_plan(statistics, memory_cap_bytes=memory_cap_bytes)
        elif plan.codebook_sizes != prefixes.codebook_sizes:
            raise InputError(
                f"a plan for codebooks {plan.codebook_sizes} can't hold Semantic IDs "
                f"of {prefixes.codebook_sizes}"
            )
        if num_items > plan.item_capacity:
            raise InputError(f"{num_items} items exceed the plan's room:\n{plan}")
        own_bits = attribute_bits.bits_of_items(attributes, unseen, num_items)
        return cls(
            levels=tuple(
                build_level(level, tokens, first, number)
                for number, (level, tokens, first) in enumerate(
                    zip(plan.levels, prefixes.tokens, prefixes.first, strict=True)
                )
            ),
            items=_items_of_leaves(prefixes, plan),
            num_items=jnp.int32(num_items),
            exclusion=(
                ExclusionIndex.build(prefixes.order, prefixes.first_difference, plan)
                if exclusion
                else None
            ),
            attributes=attribute_bits.bits_of_nodes(own_bits, prefixes, plan),
            plan=plan,
            has_unseen=unseen is not None,
        )

    @property
    def semantic_id_length(self) -> int:
        """T."""
        return len(self.levels)

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes on the device, by what needs them."""
        return {
            name: sum(array.nbytes for array in jax.tree.leaves(getattr(self, name)))
            for name in ("levels", "items", "exclusion", "attributes")
        }

    def item_numbers(self, leaves: Int32[Array, "*n"]) -> Int32[Array, "*n"]:
        """The leaves' items; -1 for the sentinel and for unused leaves."""
        items = self.items[leaves]
        return jnp.where(items == self.plan.item_capacity, -1, items)

    def width(self, depth: int, num_beams: int) -> int:
        """Beams that a search can fill at a depth: no more than it has nodes."""
        if depth == 0:
            return 1
        return min(num_beams, self.plan.levels[depth - 1].child_capacity)

    def semantic_ids(self) -> Int32[np.ndarray, "N T"]:
        """The Semantic IDs in the order of the leaves, read back on the host."""
        codes = np.zeros((1, 0), np.int32)
        for level in self.levels:
            node, token = read_children(level, len(codes))
            codes = np.concatenate([codes[node], token[:, None]], axis=1)
        return codes

    def save(self, folder: Path, *, content_hash: str) -> None:
        """Writes the arrays and the plan.

        Args:
            folder: Made if missing.
            content_hash: Of the Semantic ID table that the trie was built from.
        """
        parts = {
            "levels": self.levels,
            "items": self.items,
            "num_items": self.num_items,
            "exclusion": self.exclusion,
            "attributes": self.attributes,
        }
        trie_files.save(folder, parts, self.plan, self.has_unseen, content_hash)

    @classmethod
    def load(cls, folder: Path, *, content_hash: str) -> "Trie":
        """Reads what `save` wrote.

        Raises:
            InputError: There is no whole trie, or it was built from a Semantic ID
                table with another hash.
        """
        parts, plan, has_unseen = trie_files.load(folder, content_hash)
        return cls(**parts, plan=plan, has_unseen=has_unseen)


def _items_of_leaves(prefixes: SortedPrefixes, plan: TriePlan) -> PackedNumbers:
    room = plan.item_capacity
    items = np.full(room + 1, room, np.int32)
    items[: len(prefixes.order)] = prefixes.order
    return PackedNumbers.build(items, upper_bound=room)
