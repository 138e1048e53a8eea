"""A catalogue larger than a device: the trie cut by first codeword over a mesh axis.

Every device along the axis holds the items of one range of first codewords, as a
trie of its own, all on one plan. Ranges are contiguous, so that shard after shard,
node after node, is still the order of the Semantic IDs; a node is known everywhere
as (shard, node in the shard), in one number.

A step of the search takes the beams that a shard owns to the best of their children
there, gathers every shard's, and keeps the best of those. The best M of all are
among the best M of each, ties included, so the result is that of the whole trie: bit
for bit, where both compute in the same shapes. (With more beams than some depth has
nodes, a sharded search computes more dead ones, and sums may round differently.)
Between devices go M candidates a shard and level, never a part of the trie.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Int32, Int64, Integer, UInt32

from tiger_jax.decoding.search.candidates import (
    Beams,
    Normalize,
    best_children,
    log_sum_of_codewords,
    mask_of_children,
)
from tiger_jax.decoding.search.restrictions import DeadChildren, Restriction
from tiger_jax.decoding.search.top_k import in_order, pick, top_k
from tiger_jax.decoding.trie.attributes import Group
from tiger_jax.decoding.trie.level_arrays import measure_catalogue
from tiger_jax.decoding.trie.planner import (
    LevelStatistics,
    TriePlan,
    largest_of,
    make_plan,
    with_headroom,
)
from tiger_jax.decoding.trie.trie import Trie
from tiger_jax.errors import InputError

_NO_ITEM = np.iinfo(np.int32).max


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShardedTrie:
    """Takes a `Trie`'s place in `beam_search`; S shards on S devices.

    Attributes:
        shards: One trie a shard; every array has a leading axis S.
        numbers: int32 [S, items]; the item numbers of each shard, ascending, then
            the largest int32. Within its trie, a shard numbers its items by these.
        mesh: The devices.
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
        headroom: float | None = None,
        memory_cap_bytes: int | None = None,
        plan: TriePlan | None = None,
        exclusion: bool = True,
        attributes: UInt32[np.ndarray, " N"] | UInt32[np.ndarray, "N A"] | None = None,
        unseen: Bool[np.ndarray, " N"] | None = None,
    ) -> "ShardedTrie":
        """Builds one shard after the other; the host holds one at a time.

        Args:
            codes: Semantic IDs by item number; no two alike.
            codebook_sizes: K of every level.
            mesh: The devices.
            axis: The mesh axis to cut the trie over.
            batch_axis: The mesh axis that requests are split over, or None.
            headroom: Factor of room to grow, at least 1.
            memory_cap_bytes: Most bytes for the levels' arrays on one device.
            plan: Shapes and kinds of one shard; made to fit the largest if None.
            exclusion: See `Trie.build`.
            attributes: See `Trie.build`.
            unseen: See `Trie.build`.

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
            statistics: list[LevelStatistics] = []
            for own in rows:
                measured = measure_catalogue(codes[own], codebook_sizes)
                statistics = largest_of(statistics, measured)
            if headroom is not None:
                statistics = with_headroom(statistics, headroom)
            plan = make_plan(statistics, memory_cap_bytes=memory_cap_bytes)
        if len(rows) * (plan.item_capacity + 1) > _NO_ITEM:
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
            numbers = np.full(plan.item_capacity, _NO_ITEM, np.int32)
            numbers[: len(own)] = own
            count = jnp.int32(len(own))
            return dataclasses.replace(trie, num_items=count), jnp.asarray(numbers)

        shards, numbers = _on_devices(build_shard, mesh, axis)
        return cls(shards, numbers, mesh, axis, batch_axis)

    @property
    def num_shards(self) -> int:
        """S."""
        return self.mesh.shape[self.axis]

    @property
    def levels(self) -> tuple[Any, ...]:
        """One a level of the Semantic IDs."""
        return self.shards.levels

    @property
    def has_unseen(self) -> bool:
        """Whether the bits tell seen items from unseen ones."""
        return self.shards.has_unseen

    @property
    def bytes_per_device(self) -> int:
        """Bytes of one shard, all that a device holds of the catalogue."""
        arrays = jax.tree.leaves((self.shards, self.numbers))
        return sum(array.nbytes for array in arrays) // self.num_shards

    def width(self, depth: int, num_beams: int) -> int:
        """Beams that a search can fill at a depth: no more than it has nodes."""
        if depth == 0:
            return 1
        possible = math.prod(self.shards.plan.codebook_sizes[:depth])
        capacity = self.shards.plan.levels[depth - 1].child_capacity
        return min(num_beams, possible, self.num_shards * capacity)

    def stride(self, depth: int) -> int:
        """How far a node's number lies from the same one's in the next shard."""
        return self.shards.plan.levels[depth - 1].child_capacity + 1

    def item_numbers(self, leaves: Int32[Array, "B M"]) -> Int32[Array, "B M"]:
        """The leaves' items; -1 for the sentinel and for unused leaves."""
        stride = self.stride(len(self.levels))

        def read(
            shards: Trie, numbers: Int32[Array, "S n"], leaves: Int32[Array, "B M"]
        ) -> Int32[Array, "B M"]:
            trie, own = _first((shards, numbers))
            is_own = leaves // stride == jax.lax.axis_index(self.axis)
            local = trie.item_numbers(jnp.where(is_own, leaves % stride, stride - 1))
            number = jnp.where(local < 0, -1, own[jnp.maximum(local, 0)])
            # One shard adds the item, the others nothing.
            return jax.lax.psum(jnp.where(is_own, number + 1, 0), self.axis) - 1

        return self.map_shards(read, "ssb", "b")(self.shards, self.numbers, leaves)

    def map_shards(self, function: Callable, takes: str, gives: str) -> Callable:
        """Runs a function on every shard's device.

        Args:
            function: Sees the shards' arrays with a leading axis of 1.
            takes: A letter an argument: "s" lies along the shards, "b" is split by
                request, "x" is both, the shards first.
            gives: The same of its result.
        """
        specs = {
            "s": PartitionSpec(self.axis),
            "b": PartitionSpec(self.batch_axis),
            "x": PartitionSpec(self.axis, self.batch_axis),
        }
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=tuple(specs[letter] for letter in takes),
            out_specs=specs[gives],
            # Results that every shard has alike are not proven to be so.
            check_vma=False,
        )


@dataclasses.dataclass(frozen=True)
class ShardedRestriction:
    """A group of beams' view of a sharded trie; see `Restriction`.

    Attributes:
        trie: The whole catalogue.
        limits: Those arguments of `Restriction.build` that are arrays by request,
            without `exclude`.
        group: See `Restriction.build`.
        dead: Per level, each shard's dead children, [S B X]; or None.
    """

    trie: ShardedTrie
    limits: dict[str, Array]
    group: Group | None
    dead: tuple[DeadChildren, ...] | None

    @classmethod
    def build(
        cls,
        trie: ShardedTrie,
        batch: int,
        *,
        exclude: Int[Array, "B X"] | None = None,
        allowed: UInt32[Array, " B"] | UInt32[Array, "B A"] | None = None,
        prefix: Int[Array, "B T"] | None = None,
        group: Group | None = None,
    ) -> "ShardedRestriction":
        """Finds the dead nodes of every shard.

        Raises:
            InputError: The trie was built without what an argument needs.
        """
        del batch
        given = {"allowed": allowed, "prefix": prefix}
        limits = {k: v for k, v in given.items() if v is not None}
        if exclude is None:
            return cls(trie, limits, group, None)

        def find(
            shards: Trie,
            numbers: Int32[Array, "S n"],
            exclude: Int[Array, "B X"],
            limits: dict[str, Array],
        ) -> tuple[DeadChildren, ...]:
            own, numbers = _first((shards, numbers))
            place = jnp.searchsorted(numbers, exclude).astype(jnp.int32)
            place = jnp.minimum(place, len(numbers) - 1)
            is_own = (numbers[place] == exclude) & (exclude < _NO_ITEM)
            local = jnp.where(is_own, place, -1)
            restriction = Restriction.build(
                own, len(exclude), exclude=local, group=group, **limits
            )
            return jax.tree.map(lambda x: x[None], restriction.dead)

        dead = trie.map_shards(find, "ssbb", "x")(
            trie.shards, trie.numbers, exclude, limits
        )
        return cls(trie, limits, group, dead)

    def best_children(
        self,
        number: int,
        logits: Float[Array, "B M K"],
        beams: Beams,
        *,
        width: int,
        normalize: Normalize,
        by_score: bool = False,
    ) -> Beams:
        """Replaces beams by the best of all their children, whoever holds them.

        The arguments are those of `candidates.best_children`; nodes are numbered
        over all shards.
        """
        trie = self.trie
        plan = trie.shards.plan.levels[number]
        next_stride = trie.stride(number + 1)
        local_width = min(width, plan.child_capacity)

        def extend(
            shards: Trie,
            dead: DeadChildren | None,
            limits: dict[str, Array],
            logits: Float[Array, "B M K"],
            beams: Beams,
        ) -> Beams:
            own, dead = _first((shards, dead))
            here = jax.lax.axis_index(trie.axis)
            restriction = Restriction.build(
                own, len(logits), group=self.group, **limits
            )
            if dead is not None:
                restriction = dataclasses.replace(
                    restriction, dead=(None,) * number + (dead,)
                )
            mine = _own_beams(own, beams, here, number)
            children = restriction.children(number, mine.nodes)
            log_norm = None
            if number == 0 and normalize == "children":
                # The root alone has children on more than one device.
                is_child = mask_of_children(children, logits.shape[2])
                is_child &= own.num_items > 0
                anywhere = jax.lax.psum(is_child.astype(jnp.int32), trie.axis) > 0
                log_norm = log_sum_of_codewords(anywhere, logits)
            found = best_children(
                own.levels[number],
                children,
                logits,
                mine,
                width=local_width,
                normalize=normalize,
                log_norm=log_norm,
            )
            found = found._replace(nodes=found.nodes + here * next_stride)
            # Shard after shard: in the order of the Semantic IDs.
            everyones = Beams(
                *(jax.lax.all_gather(x, trie.axis, axis=1, tiled=True) for x in found)
            )
            last = trie.num_shards * next_stride - 1
            return _best(everyones, width, last, by_score=by_score)

        dead = None if self.dead is None else self.dead[number]
        return trie.map_shards(extend, "sxbbb" if dead else "ssbbb", "b")(
            trie.shards, dead, self.limits, logits, beams
        )


def split_rows(
    first_codewords: Integer[np.ndarray, " N"], codebook_size: int, num_shards: int
) -> list[Int64[np.ndarray, " rows"]]:
    """Cuts items into ranges of first codewords whose largest is as small as can be.

    Some ranges may be empty, as those beyond the number of codewords are.

    Example:
        >>> [r.tolist() for r in split_rows(np.array([2, 0, 0, 1, 2]), 4, 2)]
        [[1, 2, 3], [0, 4]]
    """
    counts = np.bincount(first_codewords, minlength=codebook_size)
    if len(counts) > codebook_size or first_codewords.min(initial=0) < 0:
        raise InputError(
            f"a first codeword lies outside its codebook of {codebook_size}"
        )
    low, high = int(counts.max()), int(counts.sum())
    while low < high:
        limit = (low + high) // 2
        if len(_ranges(counts, limit)) <= num_shards:
            high = limit
        else:
            low = limit + 1
    ends = _ranges(counts, low)
    ends += [len(counts)] * (num_shards - len(ends))
    codewords = np.arange(len(counts))
    shard_of_codeword = np.asarray(np.searchsorted(ends, codewords, side="right"))
    shard = shard_of_codeword[first_codewords]
    return [np.flatnonzero(shard == number) for number in range(num_shards)]


def _ranges(counts: Int64[np.ndarray, " K"], limit: int) -> list[int]:
    """Where each range ends when it takes what it can up to `limit` items."""
    ends, total = [], 0
    for codeword, count in enumerate(counts.tolist()):
        if total + count > limit:
            ends.append(codeword)
            total = 0
        total += count
    return [*ends, len(counts)]


def _own_beams(trie: Trie, beams: Beams, here: Int32[Array, ""], number: int) -> Beams:
    """The beams as one shard sees them: those of others are dead."""
    if number == 0:
        is_own = jnp.broadcast_to(trie.num_items > 0, beams.nodes.shape)
        nodes = beams.nodes
    else:
        none = trie.levels[number].plan.node_capacity
        is_own = beams.nodes // (none + 1) == here
        nodes = jnp.where(is_own, beams.nodes % (none + 1), none)
    return beams._replace(nodes=nodes, scores=jnp.where(is_own, beams.scores, -jnp.inf))


def _best(beams: Beams, width: int, dead_node: int, *, by_score: bool) -> Beams:
    """The best of some candidates that stand in the order of their Semantic IDs."""
    scores, index = top_k(beams.scores, width)
    if by_score:
        is_alive = scores > -jnp.inf
        index = jnp.where(is_alive, index, 0)
    else:
        is_alive, index = in_order(scores, index)
        scores = jnp.where(is_alive, pick(beams.scores, index), -jnp.inf)
    return Beams(
        nodes=jnp.where(is_alive, pick(beams.nodes, index), dead_node),
        scores=scores,
        parents=pick(beams.parents, index),
        codewords=jnp.where(is_alive, pick(beams.codewords, index), 0),
    )


def _first(tree: Any) -> Any:
    """One shard's arrays without the leading axis."""
    return jax.tree.map(lambda x: x[0], tree)


def _on_devices(build_shard: Callable[[int], Any], mesh: Mesh, axis: str) -> Any:
    """Builds each shard on the devices that hold it, and joins them to one tree."""
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    num_shards = mesh.shape[axis]
    places = sharding.addressable_devices_indices_map((num_shards,))
    devices: dict[int, list[jax.Device]] = {}
    for device, index in places.items():
        assert index is not None
        devices.setdefault(index[0].start or 0, []).append(device)
    host = jax.local_devices(backend="cpu")[0]
    parts: list[list[Array]] = []
    for shard, holders in sorted(devices.items()):
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
