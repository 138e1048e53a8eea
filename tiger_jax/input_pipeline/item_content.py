"""The content vectors of a batch's items, for a model that takes these.

Streams hold tokens alone, as t5x hands them on. A Semantic ID names one item, so its
content is found by it, on the device, inside the jitted step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Int32, Int64

from tiger_jax.semantic_ids.token_ids import TokenLayout

Batch = dict[str, Array]

# Items that a dense head is trained to tell a target from; of more, so many are drawn.
MAX_RANKED_ITEMS = 50_000


class SpelledItems(NamedTuple):
    """A catalogue's content, to be looked up by tokens; any array library's arrays.

    Attributes:
        tokens: int32 [N T]; of every item, ascending.
        numbers: int32 [N]; whose they are.
        content: float32 [N E]; by item number.
        trained: int32 [R]; the items that training histories hold.
    """

    tokens: Any
    numbers: Any
    content: Any
    trained: Any

    @classmethod
    def of(
        cls,
        codes: Int32[np.ndarray, "N T"],
        layout: TokenLayout,
        content: Float32[np.ndarray, "N E"],
        occurrences: Int64[np.ndarray, " N"],
    ) -> "SpelledItems":
        """Sorts the items by their Semantic IDs.

        Args:
            occurrences: Of each item in the histories of training.
        """
        order = np.lexsort(codes.T[::-1]).astype(np.int32)
        trained = np.flatnonzero(occurrences).astype(np.int32)
        return cls(layout.tokens_of(codes[order]), order, content, trained)

    def find(self, tokens: Int[Array, "*batch T"]) -> Int[Array, "*batch"]:
        """The numbers of the items that tokens spell, -1 where they spell none."""
        table, count = jnp.asarray(self.tokens), len(self.tokens)

        def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = (low + high) // 2
            row = table[middle]  # [*batch, T]
            first = (row != tokens).argmax(-1)[..., None]  # where they part
            is_less = jnp.take_along_axis(row < tokens, first, -1)[..., 0]
            is_less &= low < high
            return jnp.where(is_less, middle + 1, low), jnp.where(is_less, high, middle)

        low = jnp.zeros(tokens.shape[:-1], jnp.int32)
        bounds = low, jnp.full_like(low, count)
        low, _ = jax.lax.fori_loop(0, count.bit_length(), halve, bounds)
        place = jnp.minimum(low, count - 1)
        is_item = (table[place] == tokens).all(-1)
        return jnp.where(is_item, jnp.asarray(self.numbers)[place], -1)

    def add_to(self, batch: Batch, *, ranks_items: bool) -> Batch:
        """A stream's batch with what `add_content` adds."""
        length = self.tokens.shape[1]
        read, targets = (
            self.find(batch[name].reshape(len(batch[name]), -1, length))
            for name in ("encoder_input_tokens", "decoder_target_tokens")
        )  # [B P] each, or one target
        ranked = jnp.asarray(self.trained) if ranks_items else None
        return add_content(batch, read, targets, jnp.asarray(self.content), ranked)


def add_content(
    batch: Batch,
    read: Int[Array, "B P"],
    targets: Int[Array, "B targets"],
    content: Float32[Array, "N E"],
    ranked: Int[Array, " R"] | None,
) -> Batch:
    """A batch with the content of its items.

    Args:
        read: Items of the histories, -1 where there is none.
        targets: Items that come next, -1 where there is none.
        ranked: The items that a dense head is trained to tell a target from, for a
            model with one: those of the training histories. As a negative of every
            target, an item that nobody has bought yet would learn to be ranked last.

    Returns:
        The batch with `content[B P E]` and `read_items[B P]`, and for a dense head
        `target_items[B P]`, `target_content[B P E]`, `ranked_items[n]`,
        `ranked_content[n E]` and `log_share`, the logarithm of R / n.
    """
    batch = batch | {"content": content[jnp.maximum(read, 0)], "read_items": read}
    if ranked is None:
        return batch
    num_items = len(ranked)
    if num_items > MAX_RANKED_ITEMS:
        # Items are numbered at random, so that any stretch is an even draw; the
        # examples of an update are drawn at random, and with them its start.
        ranked = ranked[(read[0, 0] + jnp.arange(MAX_RANKED_ITEMS)) % num_items]
    return batch | {
        "target_items": targets,
        "target_content": content[jnp.maximum(targets, 0)],
        "ranked_items": ranked,
        "ranked_content": content[ranked],
        "log_share": jnp.log(num_items / len(ranked)),
    }
