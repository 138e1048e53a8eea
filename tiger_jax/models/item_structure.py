"""Gives the encoder what flattening a history into tokens takes away.

In a flat sequence of tokens nothing says where an item begins, which level a
token belongs to, or how long ago the item was. Each part here is an option of
`TigerConfig`; the paper's model has none of them.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from tiger_jax.models.layers import linear_param
from tiger_jax.models.tuned_ops import linear


class ItemStructure(nn.Module):
    """Adds level, recency and item context to the tokens of items.

    Attributes:
      has_levels: Adds a learned vector per level.
      num_recencies: Adds a learned vector per number of later items, the last one
        shared by all older items; 0 adds none.
      has_item_context: Adds `ItemContext`.
    """

    has_levels: bool
    num_recencies: int
    has_item_context: bool

    semantic_id_length: int

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "B IT D"], is_token: Bool[Array, "B IT"]
    ) -> Float[Array, "B IT D"]:
        """Changes the tokens of items, T an item; there is no user token here."""
        length, d_model = self.semantic_id_length, tokens.shape[-1]
        x = tokens.reshape(len(tokens), -1, length, d_model)  # [B, I, T, D]
        is_item = is_token[:, ::length]  # [B, I]
        if self.has_levels:
            levels = self._vectors("level_embeddings", length, d_model)
            x += levels.astype(x.dtype)[None, None]
        if self.num_recencies:
            # The number of later items: histories end with the newest one, and
            # padding, whose recency is of no account, comes after it.
            index = jnp.arange(x.shape[1])[None]
            recency = is_item.sum(-1, keepdims=True) - 1 - index  # [B, I]
            recency = recency.clip(0, self.num_recencies - 1)
            vectors = self._vectors("recency_embeddings", self.num_recencies, d_model)
            one_hot = jax.nn.one_hot(recency, self.num_recencies, dtype=x.dtype)
            x += (one_hot @ vectors.astype(x.dtype))[:, :, None]
        if self.has_item_context:
            x = ItemContext(name="item_context")(x)
        return x.reshape(tokens.shape)

    def _vectors(self, name: str, count: int, d_model: int) -> Array:
        # Zeros: training starts from the model without them.
        init = nn.with_logical_partitioning(nn.initializers.zeros, (None, "embed"))
        return self.param(name, init, (count, d_model))


class ItemTokens(nn.Module):
    """Makes one encoder position of an item's T tokens.

        item = [x_1; ...; x_T] W

    The encoder, whose cost is that of its positions, becomes T times cheaper, and
    the decoder attends to whole items. Nothing is lost that a matrix can keep: W is
    [T D, D], another block of it for each level.
    """

    semantic_id_length: int

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "B IT D"], is_token: Bool[Array, "B IT"]
    ) -> tuple[Float[Array, "B I D"], Bool[Array, "B I"]]:
        """Joins the tokens of items; there is no user token here.

        Returns:
          The items, and which of them are no padding.
        """
        length, d_model = self.semantic_id_length, tokens.shape[-1]
        joined = tokens.reshape(len(tokens), -1, length * d_model)  # [B, I, TD]
        shape, axes = (length * d_model, d_model), ("embed_in", "embed")
        kernel = linear_param(self, "kernel", shape, axes)
        return linear(joined, kernel.astype(joined.dtype)), is_token[:, ::length]


class ItemContext(nn.Module):
    """Summarises an item by attention and tells each of its tokens.

        a = softmax_t(q . x_t),   c = MLP(sum_t a_t x_t),
        x_t <- x_t + sigmoid(x_t W + b) * c

    with a learned query q, and an MLP of one GELU layer.

    References:
      BARGE (arXiv 2607.21028), "item context".
    """

    @nn.compact
    def __call__(self, x: Float[Array, "B I T D"]) -> Float[Array, "B I T D"]:
        d_model = x.shape[-1]
        square, axes = (d_model, d_model), ("embed", "embed_out")
        init = nn.with_logical_partitioning(
            nn.initializers.normal(d_model**-0.5), ("embed",)
        )
        query = self.param("query", init, (d_model,)).astype(x.dtype)
        scores = jnp.matmul(x, query, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores).astype(x.dtype)
        item = (weights[..., None] * x).sum(2)  # [B, I, D]
        hidden = nn.gelu(linear(item, self._matrix("wi", square, axes, x.dtype)))
        context = linear(hidden, self._matrix("wo", square, axes, x.dtype))
        bias_init = nn.with_logical_partitioning(nn.initializers.zeros, ("embed",))
        bias = self.param("gate_bias", bias_init, (d_model,)).astype(x.dtype)
        gate = linear(x, self._matrix("gate", square, axes, x.dtype))
        gate = nn.sigmoid(gate + bias[None, None, None])
        return x + gate * context[:, :, None]

    def _matrix(
        self, name: str, shape: tuple[int, int], axes: tuple[str, str], dtype: jnp.dtype
    ) -> Float[Array, "D D"]:
        return linear_param(self, name, shape, axes).astype(dtype)
