"""What one group of a request's beams may not do: items, attributes, a prefix.

All three are exact: a beam is only ever extended to a node under which an item is
left that the request allows.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, UInt32

from tiger_jax.decoding.search import candidates
from tiger_jax.decoding.search.candidates import Beams, Children, NarrowChildren
from tiger_jax.decoding.trie import attributes, bits
from tiger_jax.decoding.trie.bits import read
from tiger_jax.decoding.trie.levels import CsrLevel
from tiger_jax.decoding.trie.trie import Trie
from tiger_jax.errors import InputError

Group = Literal["seen", "unseen"]


class DeadChildren(NamedTuple):
    """Children of one level's nodes that a request must not take.

    Attributes:
        parents: Numbers of nodes at the level.
        children: Numbers of nodes at the next depth.
        are_dead: Whether the pair counts; each dead child counts once.
    """

    parents: Int32[Array, "B X"]
    children: Int32[Array, "B X"]
    are_dead: Bool[Array, "B X"]


@dataclasses.dataclass(frozen=True)
class Restriction:
    """A group of beams' view of the trie.

    Attributes:
        wanted: A node passes if it has any of these bits; None lets all pass.
        prefix: Codewords the Semantic IDs must begin with; -1 leaves a level free.
        dead: Per level, the children that excluded items have killed, or None where
            none of that level are asked for; or None.
    """

    trie: Trie
    wanted: UInt32[Array, "B W"] | None
    prefix: Int[Array, "B T"] | None
    dead: tuple[DeadChildren | None, ...] | None

    @classmethod
    def build(
        cls,
        trie: Trie,
        batch: int,
        *,
        exclude: Int[Array, "B X"] | None = None,
        allowed: UInt32[Array, " B"] | UInt32[Array, "B A"] | None = None,
        prefix: Int[Array, "B T"] | None = None,
        group: Group | None = None,
    ) -> "Restriction":
        """Finds the dead nodes; arguments and errors are those of `beam_search`."""
        wanted = _wanted_bits(trie, batch, allowed, group)
        free = cls(trie, wanted, prefix, None)
        if exclude is None:
            return free
        return dataclasses.replace(free, dead=free.find_dead_children(exclude))

    def best_children(
        self,
        number: int,
        logits: Float[Array, "B M K"],
        beams: Beams,
        *,
        width: int,
        normalize: candidates.Normalize,
        by_score: bool = False,
        axis: str | None = None,
    ) -> Beams:
        """Replaces beams by the best of all children that they may take.

        Args:
            number: Of the level that the logits are for, and the beams at.
            beams: In the order of their nodes.
            by_score: Order the new beams by score, ties as ever, not by node.
            axis: The mesh axis over which this trie is one of several shards.
        """
        children = self.children(number, beams.nodes)
        offset = beams.scores
        if normalize == "level":
            offset -= candidates.log_sum_exp(logits)
        elif normalize == "children" and number:
            masked = candidates.masked_logits(children, logits)
            offset -= candidates.log_sum_of_masked(masked)
        elif normalize == "children":
            # The root alone has children on more than one shard. Whole tries sum
            # over all codewords too: in another order, sums round differently.
            is_child = candidates.mask_of_children(children, logits.shape[2])
            if axis is not None:
                is_child &= self.trie.num_items > 0
                is_child = jax.lax.psum(is_child.astype(jnp.int32), axis) > 0
            masked = jnp.where(is_child, logits, -jnp.inf)
            offset -= candidates.log_sum_of_masked(masked)
        scores, index = candidates.choose(
            children, logits, offset, width=width, by_score=by_score
        )
        return candidates.take(self.trie.levels[number], beams, scores, index)

    def children(self, number: int, nodes: Int32[Array, "B M"]) -> Children:
        """The children that beams at level `number` may take."""
        children = self._passing_children(number, nodes)
        dead = self.dead[number] if self.dead is not None else None
        level = self.trie.levels[number]
        if isinstance(children, NarrowChildren):
            tokens, is_child = children
            if dead is not None:
                request, beam = _beams_at(dead, nodes)
                rank = dead.children - level.first[dead.parents]
                is_child = is_child.at[request, beam, rank].set(False, mode="drop")
            if self.prefix is not None:
                codeword = self.prefix[:, number, None, None]
                is_child &= (codeword < 0) | (tokens == codeword)
            return NarrowChildren(tokens, is_child)
        rows = children
        if dead is not None:
            request, beam = _beams_at(dead, nodes)
            codeword = level.codeword(dead.parents, dead.children)
            dying = jnp.zeros_like(rows)
            dying = dying.at[request, beam, codeword // bits.WORD_BITS].add(
                bits.bit_of(codeword), mode="drop"
            )
            rows &= ~dying
        if self.prefix is not None:
            codeword = self.prefix[:, number, None]
            word = jnp.arange(rows.shape[2], dtype=jnp.int32)[None, :]
            only = jnp.where(
                word == codeword // bits.WORD_BITS, bits.bit_of(codeword), 0
            )
            rows &= jnp.where(codeword < 0, ~jnp.uint32(0), only)[:, None, :]
        return rows

    def _passing_children(self, number: int, nodes: Int32[Array, "B n"]) -> Children:
        """The children with an item under them that has the wanted bits."""
        level = self.trie.levels[number]
        if isinstance(level, CsrLevel):
            tokens, is_child = level.window(nodes)
            if self.wanted is not None:
                rank = jnp.arange(tokens.shape[2], dtype=jnp.int32)[None, None, :]
                children = level.first[nodes][:, :, None] + rank
                is_child &= self._pass(number, jnp.where(is_child, children, 0))
            return NarrowChildren(tokens, is_child)
        rows = level.rows(nodes)  # [B, n, W]
        if self.wanted is None:
            return rows
        # A bit's child: those of the words before, and those before it in its word.
        counts = bits.popcount(rows)
        before = level.first[nodes][:, :, None] + jnp.cumsum(counts, axis=2) - counts
        place = jnp.arange(bits.WORD_BITS, dtype=jnp.int32)[None, None, None, :]
        inner = bits.popcount(rows[:, :, :, None] & bits.below(place))
        is_child = bits.unpack(rows, rows.shape[2] * bits.WORD_BITS)
        children = (before[:, :, :, None] + inner).reshape(is_child.shape)
        passes = is_child & self._pass(number, jnp.where(is_child, children, 0))
        return bits.pack(passes)

    def _pass(
        self, number: int, children: Int32[Array, "B n F"]
    ) -> Bool[Array, "B n F"]:
        assert self.wanted is not None
        own = read(self.trie.attributes[number], children)  # [B, n, F, W]
        return ((own & self.wanted[:, None, None, :]) != 0).any(-1)

    def _count_passing(
        self, number: int, nodes: Int32[Array, "B X"]
    ) -> Int32[Array, "B X"]:
        """How many children of a node pass, excluded or not."""
        if self.wanted is None:
            return self.trie.levels[number].fan_out(nodes)
        children = self._passing_children(number, nodes)
        if isinstance(children, NarrowChildren):
            return children.is_child.sum(-1, dtype=jnp.int32)
        return bits.popcount(children).sum(-1, dtype=jnp.int32)

    def find_dead_children(
        self, exclude: Int[Array, "B X"]
    ) -> tuple[DeadChildren, ...]:
        """Finds, from the leaves upwards, what the excluded items kill.

        A node dies when all its children that pass are dead, and only an excluded
        item's ancestors can: at most X nodes at a depth. With the leaves sorted,
        those of one parent stand side by side.
        """
        index = self.trie.exclusion
        if index is None:
            raise InputError("this trie can't exclude items: build it with exclusion")
        levels = self.trie.levels
        leaves = jnp.sort(index.leaves_of(exclude), axis=1)
        is_leaf = leaves < self.trie.plan.item_capacity
        if self.wanted is not None:
            # What the filter keeps out is no child to count, nor a dead one.
            last = len(levels) - 1
            is_leaf &= self._pass(last, leaves[:, :, None])[:, :, 0]
        children, are_dead = leaves, is_leaf & _starts_run(leaves)
        found = []
        for number in reversed(range(len(levels))):
            parents = index.ancestors_of(leaves, number)
            # Padding stands behind all others, as a run of its own.
            none = levels[number].plan.node_capacity
            parents = jnp.where(leaves < self.trie.plan.item_capacity, parents, none)
            found.append(DeadChildren(parents, children, are_dead))
            num_dead = _sum_over_rest_of_run(are_dead, parents)
            are_dead = (
                _starts_run(parents)
                & (num_dead > 0)
                & (num_dead == self._count_passing(number, parents))
            )
            children = parents
        return tuple(found[::-1])


def _wanted_bits(
    trie: Trie,
    batch: int,
    allowed: UInt32[Array, " B"] | UInt32[Array, "B A"] | None,
    group: Group | None,
) -> UInt32[Array, "B W"] | None:
    """The bits of which a node needs one; None if every node passes."""
    if allowed is None and group is None:
        return None
    words = trie.attributes[0].shape[-1] if trie.attributes else 0
    if trie.has_unseen:
        words //= 2  # those of the seen items, then those of the unseen ones
    if not words:
        raise InputError("this trie has no attributes: build it with attributes=...")
    if allowed is None:
        own = jnp.zeros((batch, words), jnp.uint32).at[:, 0].set(attributes.EVERY_ITEM)
    else:
        own = allowed.reshape(batch, -1)
    if own.shape[1] != words:
        raise InputError(
            f"allowed has {own.shape[1]} words per request, the trie's items {words}"
        )
    if not trie.has_unseen:
        return own
    none = jnp.zeros_like(own)
    seen, unseen = (none if group == other else own for other in ("unseen", "seen"))
    return jnp.concatenate([seen, unseen], axis=1)


def _beams_at(
    dead: DeadChildren, nodes: Int32[Array, "B M"]
) -> tuple[Int32[Array, "B 1"], Int32[Array, "B X"]]:
    """Which beam stands at each dead child's parent; M, to be dropped, if none."""
    is_there = dead.parents[:, :, None] == nodes[:, None, :]  # [B, X, M]
    counts = dead.are_dead & is_there.any(-1)
    beam = jnp.where(counts, jnp.argmax(is_there, axis=-1), nodes.shape[1])
    return jnp.arange(len(beam), dtype=jnp.int32)[:, None], beam.astype(jnp.int32)


def _starts_run(numbers: Int32[Array, "B X"]) -> Bool[Array, "B X"]:
    """Whether a number differs from the one before it."""
    first = jnp.ones_like(numbers[:, :1], bool)
    return jnp.concatenate([first, numbers[:, 1:] != numbers[:, :-1]], axis=1)


def _sum_over_rest_of_run(
    flags: Bool[Array, "B X"], numbers: Int32[Array, "B X"]
) -> Int32[Array, "B X"]:
    """How many flags are set from here to the end of the run of equal numbers."""
    upto = jnp.cumsum(flags, axis=1, dtype=jnp.int32)
    last = jnp.ones_like(numbers[:, :1], bool)
    ends_run = jnp.concatenate([numbers[:, 1:] != numbers[:, :-1], last], axis=1)
    far = jnp.iinfo(jnp.int32).max
    at_end = jax.lax.cummin(jnp.where(ends_run, upto, far), axis=1, reverse=True)
    return at_end - upto + flags
