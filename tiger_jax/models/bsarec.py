"""BSARec: attention beside a low-pass filter, the strongest dense rival published.

A block mixes two views of a sequence: causal attention, and the sequence with its high
frequencies rescaled, x_low + beta^2 (x - x_low). The filter at an item reads the items
after it too, so a prefix gives one state, its last item's, and each prefix of a
history is a training example, as published. Keeping the lowest frequencies of a
window is a product with a fixed matrix of differences of places, so that short
histories cost less than the window. Places before a history count as zero there; the
published code filters its padding along.

References:
  Shin et al. 2024, "An Attentive Inductive Bias for Sequential Recommendation beyond
  the Self-Attention" (arXiv 2312.10325).
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from tiger_jax.config import config
from tiger_jax.models.attention import causal_bias, padding_bias
from tiger_jax.models.layers import Dropout, low_pass_matrix
from tiger_jax.models.sasrec import PADDING, LayerNorm, SasRecConfig, read_length
from tiger_jax.models.tuned_ops import linear

_INIT = nn.initializers.normal(0.02)


@config("bsarec")
class BsaRecConfig(SasRecConfig):
    """Sizes as of SASRec; the defaults are those published for Beauty.

    Attributes:
      filter_share: The filter's weight in each block's mix (alpha).
      cutoff: The filter keeps the frequencies up to `cutoff // 2` (c).
    """

    title: ClassVar[str] = "BSARec"
    is_causal: ClassVar[bool] = False

    dropout_rate: float = 0.5
    filter_share: float = 0.7
    cutoff: int = 5

    def __post_init__(self) -> None:
        """Refuses a model without a block, and frequencies that a window hasn't."""
        if self.num_blocks < 1:
            raise ValueError(f"num_blocks = {self.num_blocks} must be at least 1")
        if not 0 <= self.cutoff < self.max_length:
            raise ValueError(
                f"cutoff = {self.cutoff} must be below max_length = {self.max_length}"
            )

    def build(self, num_items: int) -> nn.Module:
        """Makes the module for a catalogue."""
        return BsaRec(self, num_items)


class BsaRec(nn.Module):
    """Reads a history and predicts the item after its last one."""

    config: BsaRecConfig
    num_items: int

    @nn.compact
    def __call__(
        self, items: Int[Array, "B I"], *, is_training: bool
    ) -> tuple[Float[Array, "B 1 D"], Float[Array, "N D"]]:
        """Computes the last item's state, and the table that scores are taken with."""
        cfg, length = self.config, read_length(self.config, items)

        def table(name: str, rows: int, axis: str) -> Float[Array, "rows D"]:
            init = nn.with_logical_partitioning(_INIT, (axis, "embed"))
            return self.param(name, init, (rows, cfg.d_model))

        embeddings = table("item_embeddings", self.num_items, "vocab")
        positions = table("position_embeddings", cfg.max_length, "position")
        is_item = items != PADDING
        count = is_item.sum(-1, keepdims=True)  # [B 1]
        last = (count - 1).clip(0)
        # As if padded on the left: the newest item has the last position.
        position = cfg.max_length - count + jnp.arange(length)[None]
        x = embeddings[items.clip(0)] + positions[position.clip(0, cfg.max_length - 1)]
        x = LayerNorm(name="embedding_norm")(x)
        x = Dropout(cfg.dropout_rate)(x, is_training=is_training)
        x = jnp.where(is_item[..., None], x, 0.0)
        low_pass = jnp.array(low_pass_matrix(length, cfg.max_length, cfg.cutoff))[None]
        bias = padding_bias(is_item) + causal_bias(length)
        wanted = x
        for i in range(cfg.num_blocks):
            if i == cfg.num_blocks - 1:  # where only the last item's state is used
                wanted = jnp.take_along_axis(x, last[..., None], 1)
                low_pass = low_pass[0][last]
                bias = padding_bias(is_item)
            block = BsaRecBlock(cfg, name=f"block_{i}")
            wanted = block(x, wanted, low_pass, bias, is_training=is_training)
            x = jnp.where(is_item[..., None], wanted, 0.0)
        return wanted, embeddings


class BsaRecBlock(nn.Module):
    """The mix of filter and attention, and a GELU MLP, a norm behind each residual."""

    config: BsaRecConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B I D"],
        wanted: Float[Array, "B Q D"],
        low_pass: Float[Array, "_ Q I"],
        bias: Float[Array, "_ 1 _ I"],
        *,
        is_training: bool,
    ) -> Float[Array, "B Q D"]:
        """Computes the block's output at `wanted`, all or some of the rows of `x`."""
        cfg, d_model = self.config, x.shape[-1]
        drop = Dropout(cfg.dropout_rate)

        def project(name: str, x: Array, axes: tuple[str, str], width: int) -> Array:
            kernel = nn.with_logical_partitioning(_INIT, axes)
            shift = nn.with_logical_partitioning(nn.initializers.zeros, axes[1:])
            product = linear(x, self.param(name, kernel, (x.shape[-1], width)))
            return product + self.param(f"{name}_shift", shift, (width,))[None, None]

        def heads(name: str, x: Array) -> Float[Array, "B S H C"]:
            projected = project(name, x, ("embed", "joined_kv"), d_model)
            return projected.reshape(*x.shape[:2], cfg.num_heads, -1)

        def add(name: str, residual: Array, branch: Array) -> Array:
            branch = drop(branch, is_training=is_training)
            return LayerNorm(name=name)(residual + branch)

        beta = self.param(
            "beta",
            nn.with_logical_partitioning(nn.initializers.normal(1.0), ("embed",)),
            (d_model,),
        )[None, None]
        low_pass = jnp.broadcast_to(low_pass, (len(x), *low_pass.shape[1:]))
        low = jnp.einsum("bqi,bid->bqd", low_pass, x)
        filtered = add("filter_norm", wanted, low + beta**2 * (wanted - low))
        queries, keys, values = (
            heads("query", wanted),
            heads("key", x),
            heads("value", x),
        )
        scores = jnp.einsum("bqhc,bihc->bhqi", queries, keys)
        scores *= queries.shape[-1] ** -0.5
        weights = drop(jax.nn.softmax(scores + bias), is_training=is_training)
        attended = jnp.einsum("bhqi,bihc->bqhc", weights, values).reshape(wanted.shape)
        attended = project("out", attended, ("joined_kv", "embed"), d_model)
        attended = add("attention_norm", wanted, attended)
        mixed = cfg.filter_share * filtered + (1 - cfg.filter_share) * attended
        hidden = nn.gelu(project("wi", mixed, ("embed", "mlp"), 4 * d_model))
        return add("mlp_norm", mixed, project("wo", hidden, ("mlp", "embed"), d_model))
