"""The catalogue's Semantic IDs as a trie of flat arrays."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, Integer, UInt32

from tiger_jax.decoding.trie import bits
from tiger_jax.decoding.trie import levels as level_kinds
from tiger_jax.decoding.trie.attributes import bits_of_items, bits_of_nodes
from tiger_jax.decoding.trie.bits import PackedNumbers, RisingNumbers, read
from tiger_jax.decoding.trie.levels import Level, LevelPlan
from tiger_jax.decoding.trie.planner import TriePlan, make_plan, measure_prefixes
from tiger_jax.decoding.trie.prefixes import SortedPrefixes, sort_prefixes
from tiger_jax.errors import InputError
from tiger_jax.workdir.arrays import load_arrays, save_arrays
from tiger_jax.workdir.json_files import read_json, write_json
from tiger_jax.workdir.reading import reading

_FACTS = "trie.json"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AncestorBits:
    """The number of each leaf's ancestor at one depth: a count of set bits.

    Attributes:
        words: uint32 [items / 32]; a bit is set where a leaf is its ancestor's first.
        before: int32 [items / 32]; how many are set before each word.
    """

    words: Any
    before: Any

    @classmethod
    def build(cls, is_first: np.ndarray, room: int) -> "AncestorBits":
        packed = np.zeros(4 * bits.num_words(room + 1), np.uint8)
        found = np.packbits(is_first, bitorder="little")
        packed[: len(found)] = found
        words = packed.view("<u4").astype(np.uint32)
        counts = np.bitwise_count(words)
        before = np.cumsum(counts, dtype=np.int32) - counts
        return cls(jnp.asarray(words), jnp.asarray(before, jnp.int32))

    def __getitem__(self, leaves: Int[Array, "*n"]) -> Int32[Array, "*n"]:
        word = leaves // bits.WORD_BITS
        upto = bits.bit_of(leaves) | bits.below(leaves)
        return (
            read(self.before, word) + bits.popcount(read(self.words, word) & upto) - 1
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExclusionIndex:
    """What it takes to find the nodes above an item.

    Attributes:
        leaves: Leaf of each item; `item_capacity` where there is no item.
        ancestors: Of depths 1 … T - 1.
    """

    leaves: PackedNumbers
    ancestors: tuple[AncestorBits, ...]

    @classmethod
    def build(cls, prefixes: SortedPrefixes, plan: TriePlan) -> "ExclusionIndex":
        """Inverts the order of the leaves and marks where ancestors begin."""
        room = plan.item_capacity
        leaves = np.full(room, room, np.int32)
        leaves[prefixes.order] = np.arange(len(prefixes.order), dtype=np.int32)
        depths = range(1, len(plan.levels))
        return cls(
            PackedNumbers.build(leaves, upper_bound=room),
            tuple(
                AncestorBits.build(prefixes.first_difference < depth, room)
                for depth in depths
            ),
        )

    def leaves_of(self, items: Int[Array, "*n"]) -> Int32[Array, "*n"]:
        """The items' leaves; `item_capacity` for numbers that are no item's."""
        room = self.leaves.low.shape[0]
        is_item = (items >= 0) & (items < room)
        return jnp.where(is_item, self.leaves[jnp.where(is_item, items, 0)], room)

    def ancestors_of(
        self, leaves: Int32[Array, "*n"], depth: int
    ) -> Int32[Array, "*n"]:
        """The numbers of the leaves' ancestors at a depth below T."""
        if depth == 0:
            return jnp.zeros_like(leaves)
        return self.ancestors[depth - 1][leaves]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trie:
    """Every item's Semantic ID; leaf i is the i-th smallest.

    A pytree of arrays: pass it to jitted functions as an argument. What is static
    in it, `plan` and `has_unseen`, is equal for tries built on one plan, so a changed
    catalogue runs without compiling again.

    Attributes:
        levels: One step each, from the nodes of depth l to those of depth l + 1.
        items: Item number of each leaf; `item_capacity` where there is none.
        num_items: int32 []; items in the catalogue.
        exclusion: What `beam_search(exclude=...)` needs, or None.
        attributes: uint32 [nodes + 1, words] for depths 1 … T: the bits of all the
            items under a node; empty without attributes. See `attributes`.
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
        plan: TriePlan | None = None,
        exclusion: bool = True,
        attributes: UInt32[np.ndarray, " N"] | UInt32[np.ndarray, "N A"] | None = None,
        unseen: Bool[np.ndarray, " N"] | None = None,
    ) -> "Trie":
        """Builds the trie of a catalogue; row i of `codes` is item number i.

        Args:
            codes: Semantic IDs in any order, all different.
            plan: Kinds and shapes to build on: those of another trie, or made by
                hand, or `make_plan(worst_case(codebook_sizes, capacity))` for any
                catalogue of so many items. None makes the smallest and fastest for
                this catalogue; a larger one then needs a new plan and a compilation.
            exclusion: Keep what `beam_search(exclude=...)` needs: 4 to 6 bytes per
                item.
            attributes: Bits of each item, for `beam_search(allowed=...)`: 4 bytes
                per node and word. Bit 31 of the first word is taken.
            unseen: Which items are cold-start items, for
                `beam_search(num_unseen_beams=...)`.

        Raises:
            InputError: The Semantic IDs are empty, out of range or not unique, or
                don't fit the plan.
        """
        prefixes = sort_prefixes(codes, codebook_sizes)
        num_items = len(prefixes.order)
        if plan is None:
            plan = make_plan(measure_prefixes(prefixes))
        elif plan.codebook_sizes != prefixes.codebook_sizes:
            raise InputError(
                f"a plan for codebooks {plan.codebook_sizes} can't hold Semantic IDs "
                f"of {prefixes.codebook_sizes}"
            )
        room = plan.item_capacity
        if num_items > room:
            raise InputError(
                f"{num_items} items exceed the plan's room for {room}: make a new plan"
            )
        parts = zip(plan.levels, prefixes.tokens, prefixes.first, strict=True)
        levels = [level_kinds.build_level(*p, number) for number, p in enumerate(parts)]
        items = np.full(room + 1, room, np.int32)
        items[:num_items] = prefixes.order
        own_bits = bits_of_items(attributes, unseen, num_items)
        return cls(
            levels=tuple(levels),
            items=PackedNumbers.build(items, upper_bound=room),
            num_items=jnp.int32(num_items),
            exclusion=ExclusionIndex.build(prefixes, plan) if exclusion else None,
            attributes=bits_of_nodes(own_bits, prefixes, plan),
            plan=plan,
            has_unseen=unseen is not None,
        )

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
        """Beams that a search can fill at a depth of 1 or more: no more than nodes."""
        return min(num_beams, self.plan.levels[depth - 1].child_capacity)

    def semantic_ids(self) -> Int32[np.ndarray, "N T"]:
        """The Semantic IDs in the order of the leaves, read back on the host."""
        codes = np.zeros((1, 0), np.int32)
        for level in self.levels:
            node, token = level_kinds.read_children(level, len(codes))
            codes = np.concatenate([codes[node], token[:, None]], axis=1)
        return codes

    def save(self, folder: Path, *, content_hash: str) -> None:
        """Writes one file per array, then ``trie.json``, which says what they are.

        Args:
            content_hash: Of the Semantic ID table that the trie was built from.
        """
        folder = Path(folder)
        arrays = {
            jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(array)
            for path, array in jax.tree.leaves_with_path(self)
        }
        save_arrays(folder, arrays)
        facts = {
            "content_hash": content_hash,
            "arrays": {name: str(array.dtype) for name, array in arrays.items()},
            "has_unseen": self.has_unseen,
            "levels": [dataclasses.asdict(level) for level in self.plan.levels],
        }
        write_json(folder / _FACTS, facts)

    @classmethod
    def load(cls, folder: Path, *, content_hash: str) -> "Trie":
        """Reads what `save` wrote of this Semantic ID table, or else an InputError."""
        folder = Path(folder)
        with reading(folder, "build and save it again"):
            facts = read_json(folder / _FACTS)
            found = facts["content_hash"]
            plan = TriePlan(tuple(LevelPlan(**level) for level in facts["levels"]))
            arrays = load_arrays(folder, list(facts["arrays"]))
            trie = cls._of_arrays(arrays, plan, facts["has_unseen"])
        if found != content_hash:
            raise InputError(
                f"{folder} is the trie of Semantic IDs {found[:12]}, not of "
                f"{content_hash[:12]}: build and save it again"
            )
        return trie

    @classmethod
    def _of_arrays(
        cls, arrays: dict[str, np.ndarray], plan: TriePlan, has_unseen: bool
    ) -> "Trie":
        """Puts the arrays, named by their places in the trie, into these."""
        tree: dict[str, Any] = {}
        for name, array in arrays.items():
            *path, last = name.split(".")
            inner = tree
            for key in path:
                inner = inner.setdefault(key, {})
            inner[last] = jnp.asarray(array)
        levels = []
        for number, level in enumerate(plan.levels):
            fields = tree["levels"][str(number)]
            for key in {"first", "pointer"} & fields.keys():
                fields[key] = RisingNumbers(**fields[key])
            kind = level_kinds.LEVEL_OF_KIND[level.kind]
            levels.append(kind(**fields, plan=level))
        exclusion = tree.get("exclusion")
        if exclusion is not None:
            ancestors = exclusion.get("ancestors", {})
            exclusion = ExclusionIndex(
                PackedNumbers(**exclusion["leaves"]),
                tuple(AncestorBits(**ancestors[str(d)]) for d in range(len(ancestors))),
            )
        attributes = tree.get("attributes", {})
        return cls(
            levels=tuple(levels),
            items=PackedNumbers(**tree["items"]),
            num_items=tree["num_items"],
            exclusion=exclusion,
            attributes=tuple(attributes[str(d)] for d in range(len(attributes))),
            plan=plan,
            has_unseen=has_unseen,
        )
