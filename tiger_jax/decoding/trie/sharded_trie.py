"""A catalogue larger than a device: the trie cut by first codeword over a mesh axis.

Every device along the axis holds the items of one range of first codewords, as a
trie of its own, all on one plan. Ranges are contiguous, so that shard after shard,
node after node, is still the order of the Semantic IDs; a node is known everywhere
as (shard, node in the shard), in one number.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int32, Int64, Integer, UInt32

from tiger_jax.decoding.trie import planner
from tiger_jax.decoding.trie.planner import LevelStatistics, TriePlan
from tiger_jax.decoding.trie.prefixes import sort_prefixes
from tiger_jax.decoding.trie.trie import Trie
from tiger_jax.errors import InputError

NO_ITEM = np.iinfo(np.int32).max


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShardedTrie:
    """Takes a `Trie`'s place in `beam_search`; S shards on S devices.

    Attributes:
        shards: One trie per shard; every array has a leading axis S.
        numbers: int32 [S, items]; the item numbers of each shard, ascending, then
            the largest int32. Within its trie, a shard numbers its items by these.
        axis: The mesh axis that the shards lie along.
        batch_axis: The mesh axis that requests are split over, or None.
    """

    shards: Trie
    numbers: Any
    mesh: Mesh = dataclasses.field(metadata={"static": True})
    axis: str = dataclasses.field(metadata={"static": True})
    batch_axis: str | None = dataclasses.field(metadata={"static": True})

    @classmethod
    def build(
        cls,
        codes: Integer[np.ndarray, "N T"],
        codebook_sizes: Sequence[int],
        mesh: Mesh,
        *,
        axis: str = "model",
        batch_axis: str | None = None,
        plan: TriePlan | None = None,
        exclusion: bool = True,
        attributes: UInt32[np.ndarray, " N"] | UInt32[np.ndarray, "N A"] | None = None,
        unseen: Bool[np.ndarray, " N"] | None = None,
    ) -> "ShardedTrie":
        """Builds one shard after the other; the host holds one at a time.

        Args:
            codes: Semantic IDs by item number, all different.
            codebook_sizes: K of every level.
            axis: The mesh axis to cut the trie over.
            plan: Shapes and kinds of one shard; made to fit the largest if None.
            exclusion: As `attributes` and `unseen`: see `Trie.build`.

        Raises:
            InputError: The mesh has no such axis, or see `Trie.build`.
        """
        for name in (axis, batch_axis or axis):
            if name not in mesh.shape:
                raise InputError(f"the mesh has axes {mesh.axis_names}, no {name!r}")
        if not len(codes):
            raise InputError("there are no Semantic IDs to build a trie from")
        rows = split_rows(codes[:, 0], int(codebook_sizes[0]), mesh.shape[axis])
        if plan is None:
            by_shard = [
                planner.measure_prefixes(sort_prefixes(codes[own], codebook_sizes))
                for own in rows
                if len(own)
            ]
            plan = planner.make_plan(list(map(_largest, *by_shard)))
        if len(rows) * (plan.item_capacity + 1) > NO_ITEM:
            raise InputError(
                f"{len(rows)} shards of {plan.item_capacity:,} items are more leaves "
                "than an int32 counts"
            )

        def build_shard(shard: int) -> tuple[Trie, Array]:
            own = rows[shard]
            # A shard without items holds one that its search never starts for.
            filled = own if len(own) else np.zeros(1, np.int64)
            trie = Trie.build(
                codes[filled],
                codebook_sizes,
                plan=plan,
                exclusion=exclusion,
                attributes=None if attributes is None else attributes[filled],
                unseen=None if unseen is None else unseen[filled],
            )
            numbers = np.full(plan.item_capacity, NO_ITEM, np.int32)
            numbers[: len(own)] = own
            count = jnp.int32(len(own))
            return dataclasses.replace(trie, num_items=count), jnp.asarray(numbers)

        shards, numbers = _on_devices(build_shard, mesh, axis)
        return cls(shards, numbers, mesh, axis, batch_axis)

    @property
    def num_shards(self) -> int:
        return self.mesh.shape[self.axis]

    @property
    def levels(self) -> tuple[Any, ...]:
        return self.shards.levels

    @property
    def has_unseen(self) -> bool:
        return self.shards.has_unseen

    def width(self, depth: int, num_beams: int) -> int:
        """See `Trie.width`."""
        possible = math.prod(self.shards.plan.codebook_sizes[:depth])
        capacity = self.shards.plan.levels[depth - 1].child_capacity
        return min(num_beams, possible, self.num_shards * capacity)

    def stride(self, depth: int) -> int:
        """How far a node's number lies from the same one's in the next shard."""
        return self.shards.plan.levels[depth - 1].child_capacity + 1

    def item_numbers(self, leaves: Int32[Array, "B M"]) -> Int32[Array, "B M"]:
        stride = self.stride(len(self.levels))

        def read(
            trie: Trie, numbers: Int32[Array, " n"], leaves: Int32[Array, "B M"]
        ) -> Int32[Array, "B M"]:
            is_own = leaves // stride == jax.lax.axis_index(self.axis)
            local = trie.item_numbers(jnp.where(is_own, leaves % stride, stride - 1))
            number = jnp.where(local < 0, -1, numbers[jnp.maximum(local, 0)])
            # One shard adds the item, the others nothing.
            return jax.lax.psum(jnp.where(is_own, number + 1, 0), self.axis) - 1

        return self.map_shards(read, "ssb", "b")(self.shards, self.numbers, leaves)

    def map_shards(self, function: Callable, takes: str, gives: str) -> Callable:
        """Runs a function on every shard's device.

        Args:
            function: Sees its own shard's arrays, without the axis of the shards.
            takes: A letter per argument: "s" lies along the shards, "b" is split by
                request, "x" is both, the shards first.
            gives: The same for its result.
        """
        specs = {
            "s": PartitionSpec(self.axis),
            "b": PartitionSpec(self.batch_axis),
            "x": PartitionSpec(self.axis, self.batch_axis),
        }

        def on_one_shard(*arguments: Any) -> Any:
            own = [
                given if letter == "b" else jax.tree.map(lambda x: x[0], given)
                for letter, given in zip(takes, arguments, strict=True)
            ]
            found = function(*own)
            return found if gives == "b" else jax.tree.map(lambda x: x[None], found)

        return jax.shard_map(
            on_one_shard,
            mesh=self.mesh,
            in_specs=tuple(specs[letter] for letter in takes),
            out_specs=specs[gives],
            # Results that every shard has alike are not proven to be so.
            check_vma=False,
        )


def _largest(*shards: LevelStatistics) -> LevelStatistics:
    """Statistics of one level that no shard exceeds."""
    by_field = zip(*map(dataclasses.astuple, shards), strict=True)
    return LevelStatistics(*map(max, by_field))


def split_rows(
    first_codewords: Integer[np.ndarray, " N"], codebook_size: int, num_shards: int
) -> list[Int64[np.ndarray, " rows"]]:
    """Cuts items into ranges of first codewords whose largest is as small as can be.

    Some ranges may be empty, as those beyond the number of codewords are.

    Examples:
        >>> [r.tolist() for r in split_rows(np.array([2, 0, 0, 1, 2]), 4, 2)]
        [[1, 2, 3], [0, 4]]
    """
    counts = np.bincount(first_codewords, minlength=codebook_size)
    if len(counts) > codebook_size or first_codewords.min(initial=0) < 0:
        raise InputError(
            f"a first codeword lies outside its codebook of {codebook_size}"
        )
    totals = np.concatenate([[0], np.cumsum(counts)])
    low, high = int(counts.max()), int(totals[-1])
    while low < high:
        limit = (low + high) // 2
        if len(_ends(totals, limit)) <= num_shards:
            high = limit
        else:
            low = limit + 1
    shard = np.searchsorted(_ends(totals, low), first_codewords, side="right")
    return [np.flatnonzero(shard == number) for number in range(num_shards)]


def _ends(totals: Int64[np.ndarray, " ends"], limit: int) -> list[int]:
    """Where each range ends if it takes what it can up to `limit` items."""
    ends = [0]
    while ends[-1] < len(totals) - 1:
        reached = np.searchsorted(totals, totals[ends[-1]] + limit, side="right")
        ends.append(int(reached) - 1)
    return ends[1:]


def _on_devices(build_shard: Callable[[int], Any], mesh: Mesh, axis: str) -> Any:
    """Builds each shard on the devices that hold it, and joins them to one tree."""
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    num_shards = mesh.shape[axis]
    places = sharding.addressable_devices_indices_map((num_shards,))

    def shard_of(device: jax.Device) -> int:
        index = places[device]
        assert index is not None
        return index[0].start or 0

    host = jax.local_devices(backend="cpu")[0]
    parts: list[list[Array]] = []
    for shard, holders in itertools.groupby(sorted(places, key=shard_of), shard_of):
        with jax.default_device(host):
            leaves, structure = jax.tree.flatten(build_shard(shard))
        leaves = [np.asarray(leaf)[None] for leaf in leaves]
        parts += [[jax.device_put(x, d) for x in leaves] for d in holders]
    joined = [
        jax.make_array_from_single_device_arrays(
            (num_shards, *copies[0].shape[1:]), sharding, list(copies)
        )
        for copies in zip(*parts, strict=True)
    ]
    return jax.tree.unflatten(structure, joined)
