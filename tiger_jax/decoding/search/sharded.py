"""One step of a search whose trie is cut over devices.

A step takes the beams that a shard owns to the best of their children there, gathers
every shard's, and keeps the best of those. The best M of all are among the best M of
each, ties included, so the result is that of the whole trie: bit for bit, where both
compute in the same shapes. (With more beams than some depth has nodes, a sharded
search computes more dead ones, and sums may round differently.) Between devices go M
candidates per shard and level, never a part of the trie.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32, UInt32

from tiger_jax.decoding.search.candidates import Beams, Normalize
from tiger_jax.decoding.search.restrictions import DeadChildren, Restriction
from tiger_jax.decoding.search.top_k import pick, top_k, top_k_in_order
from tiger_jax.decoding.trie.sharded_trie import NO_ITEM, ShardedTrie
from tiger_jax.decoding.trie.trie import Trie


@dataclasses.dataclass(frozen=True)
class ShardedRestriction:
    """A group of beams' view of a sharded trie; see `Restriction`.

    Attributes:
        dead: Per level, each shard's dead children, [S B X]; or None.
    """

    trie: ShardedTrie
    wanted: UInt32[Array, "B W"] | None
    prefix: Int[Array, "B T"] | None
    dead: tuple[DeadChildren, ...] | None

    @classmethod
    def build(
        cls,
        trie: ShardedTrie,
        batch: int,
        *,
        exclude: Int[Array, "B X"] | None = None,
        **limits: Any,
    ) -> "ShardedRestriction":
        free = Restriction.build(trie.shards, batch, **limits)

        def find(
            shard: Trie,
            numbers: Int32[Array, " n"],
            exclude: Int[Array, "B X"],
            wanted: UInt32[Array, "B W"] | None,
        ) -> tuple[DeadChildren, ...]:
            place = jnp.searchsorted(numbers, exclude).astype(jnp.int32)
            place = jnp.minimum(place, len(numbers) - 1)
            is_own = (numbers[place] == exclude) & (exclude < NO_ITEM)
            own = Restriction(shard, wanted, prefix=None, dead=None)
            return own.find_dead_children(jnp.where(is_own, place, -1))

        dead = None
        if exclude is not None:
            dead = trie.map_shards(find, "ssbb", "x")(
                trie.shards, trie.numbers, exclude, free.wanted
            )
        return cls(trie, free.wanted, free.prefix, dead)

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

        See `Restriction.best_children`; nodes are numbered over all shards.
        """
        trie = self.trie
        plan = trie.shards.plan.levels[number]
        next_stride = trie.stride(number + 1)

        def extend(
            shard: Trie,
            dead: DeadChildren | None,
            wanted: UInt32[Array, "B W"] | None,
            prefix: Int[Array, "B T"] | None,
            logits: Float[Array, "B M K"],
            beams: Beams,
        ) -> Beams:
            here = jax.lax.axis_index(trie.axis)
            all_dead = None if dead is None else (None,) * number + (dead,)
            restriction = Restriction(shard, wanted, prefix, all_dead)
            found = restriction.best_children(
                number,
                logits,
                _own_beams(shard, beams, here, number),
                width=min(width, plan.child_capacity),
                normalize=normalize,
                axis=trie.axis,
            )
            found = found._replace(nodes=found.nodes + here * next_stride)
            # Shard after shard: in the order of the Semantic IDs.
            everyones = Beams(
                *(jax.lax.all_gather(x, trie.axis, axis=1, tiled=True) for x in found)
            )
            choose = top_k if by_score else top_k_in_order
            scores, index = choose(everyones.scores, width)
            is_alive = scores > -jnp.inf
            index = jnp.where(is_alive, index, 0)
            nodes, _, parents, codewords = (pick(x, index) for x in everyones)
            return Beams(
                jnp.where(is_alive, nodes, trie.num_shards * next_stride - 1),
                scores,
                parents,
                jnp.where(is_alive, codewords, 0),
            )

        dead = None if self.dead is None else self.dead[number]
        return trie.map_shards(extend, "sxbbbb", "b")(
            trie.shards, dead, self.wanted, self.prefix, logits, beams
        )


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
