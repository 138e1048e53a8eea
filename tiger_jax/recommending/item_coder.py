"""From a new item to its learned codewords, by what the training left frozen."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int32

from tiger_jax.data.item_vectors import join_text
from tiger_jax.errors import InputError
from tiger_jax.quantizers.quantizer import Quantizer
from tiger_jax.recommending.item_encoder import ItemEncoder
from tiger_jax.recommending.new_items import NewItem


@dataclasses.dataclass(frozen=True, eq=False)
class ItemCoder:
    """Embeds and quantizes as the items of the training were.

    Attributes:
        encoder: None where the embeddings were ready-made: then items bring theirs.
        quantizer: None where the codes came from elsewhere: then nothing can join.
        num_dims: E, of the catalogue's embeddings.
        collaborative_dims: C. If not 0, the quantizer also takes a vector of what an
            item is bought with. A new item is bought with nothing yet and has the
            zero vector, as those items of the training have that no training history
            holds: its codes rest on its text alone.
    """

    encoder: ItemEncoder | None
    quantizer: Quantizer | None
    num_dims: int
    collaborative_dims: int = 0

    def embed(
        self, items: Sequence[NewItem], table: pa.Table
    ) -> Float32[np.ndarray, "n E"]:
        """Each item's own vector, or what the encoder makes of its row of `table`.

        Raises:
            InputError: A vector doesn't fit, or an item has none and there is no
                encoder, or no text.
        """
        vectors = np.zeros((len(items), self.num_dims), np.float32)
        to_encode = []
        for row, item in enumerate(items):
            if item.embedding is None:
                to_encode.append(row)
            else:
                vectors[row] = self._check(item)
        if to_encode and self.encoder is None:
            raise InputError(
                f"item {items[to_encode[0]].item_id!r} brings no embedding, and this "
                "bundle has no encoder to make one, since its embeddings were "
                f"ready-made: give it an embedding of {self.num_dims} numbers, made "
                "as the others were"
            )
        if to_encode and self.encoder is not None:
            vectors[to_encode] = self.encoder.encode(table.take(to_encode))
        return vectors

    def encode(
        self, embeddings: Float32[np.ndarray, "n E"]
    ) -> Int32[np.ndarray, "n L"]:
        """The learned codewords of embeddings; InputError if there is no quantizer."""
        if self.quantizer is None:
            raise InputError(
                "this bundle has no quantizer, since its Semantic IDs were not made by "
                "one here: new items can't get codes"
            )
        if not self.collaborative_dims:
            return self.quantizer.encode(embeddings)
        unknown = np.zeros((len(embeddings), self.collaborative_dims), np.float32)
        return self.quantizer.encode(join_text(embeddings, unknown))

    def _check(self, item: NewItem) -> Float32[np.ndarray, " E"]:
        try:
            vector = np.asarray(item.embedding, np.float32)
        except (TypeError, ValueError, OverflowError):
            vector = np.empty(0, np.float32)
        if vector.shape != (self.num_dims,):
            raise InputError(
                f"item {item.item_id!r}: the embedding must be {self.num_dims} "
                f"numbers, and has the shape {list(vector.shape)}"
            )
        if not np.isfinite(vector).all():
            raise InputError(f"item {item.item_id!r}: the embedding isn't finite")
        return vector
