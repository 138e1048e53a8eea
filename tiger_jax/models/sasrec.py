"""SASRec with a full softmax: the baseline that a generator has to beat.

A causal Transformer over item numbers. Where the original contrasts each target
with one sampled negative, here it competes with all N items, which by itself
lifts SASRec above most later models.

References:
  Kang and McAuley 2018, "Self-Attentive Sequential Recommendation".
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from tiger_jax.config import config
from tiger_jax.models.attention import causal_bias
from tiger_jax.models.layers import Dropout, linear_param
from tiger_jax.models.tuned_ops import linear

PADDING = -1
Params = Mapping[str, Any]


@config("sasrec")
class SasRecConfig:
    """Sizes; the defaults are those of the strongest published run on Beauty.

    Attributes:
      max_length: Items of a history that are read, the most recent ones.
      d_model: Width of items and states, and hidden units of the MLP.
      dropout_rate: Dropout on embeddings, attention weights and residuals.
      title: What a table calls the model.
      is_causal: Whether a position's state knows nothing of the items after it, so
        that one pass over a history trains all its positions.
    """

    title: ClassVar[str] = "SASRec"
    is_causal: ClassVar[bool] = True

    max_length: int = 50
    num_blocks: int = 2
    num_heads: int = 1
    d_model: int = 64
    dropout_rate: float = 0.2

    def build(self, num_items: int) -> nn.Module:
        """Makes the module for a catalogue."""
        return SasRec(self, num_items)


def read_length(config: SasRecConfig, items: Int[Array, "B I"]) -> int:
    """The items of a history that are read; ValueError if they have no positions."""
    length = items.shape[1]
    if length > config.max_length:
        raise ValueError(f"{length} items, but max_length is {config.max_length}")
    return length


class SasRec(nn.Module):
    """Reads a history and predicts, at every position, the item after it."""

    config: SasRecConfig
    num_items: int

    @nn.compact
    def __call__(
        self, items: Int[Array, "B I"], *, is_training: bool
    ) -> tuple[Float[Array, "B I D"], Float[Array, "N D"]]:
        """Computes each position's state, and the table that scores are taken with.

        Args:
          items: Item numbers, oldest first, padded with -1 on the right, which no
            earlier position sees.
          is_training: Applies dropout; needs an rng named "dropout".
        """
        cfg, length = self.config, read_length(self.config, items)
        table = self._table("item_embeddings", self.num_items, "vocab")
        positions = self._table("position_embeddings", cfg.max_length, "position")
        x = table[items.clip(0)] * cfg.d_model**0.5 + positions[None, :length]
        x = Dropout(cfg.dropout_rate)(x, is_training=is_training)
        for i in range(cfg.num_blocks):
            x = SasRecBlock(cfg, name=f"block_{i}")(x, is_training=is_training)
        return LayerNorm(name="final_norm")(x), table

    def _table(self, name: str, rows: int, axis: str) -> Float[Array, "rows D"]:
        init = nn.initializers.normal(0.02)
        init = nn.with_logical_partitioning(init, (axis, "embed"))
        return self.param(name, init, (rows, self.config.d_model))


class SasRecBlock(nn.Module):
    """Causal self-attention and a ReLU MLP, each behind a norm and a residual."""

    config: SasRecConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B I D"], *, is_training: bool
    ) -> Float[Array, "B I D"]:
        cfg = self.config
        length, d_model = x.shape[1:]
        head_dim = d_model // cfg.num_heads
        drop = Dropout(cfg.dropout_rate)

        def project(name: str, x: Array, axes: tuple[str, str]) -> Array:
            return linear(x, linear_param(self, name, (d_model, d_model), axes))

        def heads(name: str, x: Array) -> Float[Array, "B I H C"]:
            projected = project(name, x, ("embed", "joined_kv"))
            return projected.reshape(*x.shape[:2], cfg.num_heads, head_dim)

        normed = LayerNorm(name="attention_norm")(x)
        queries, keys, values = (heads(n, normed) for n in ("query", "key", "value"))
        scores = jnp.einsum("bqhc,bkhc->bhqk", queries, keys) * head_dim**-0.5
        weights = drop(
            jax.nn.softmax(scores + causal_bias(length)), is_training=is_training
        )
        attended = jnp.einsum("bhqk,bkhc->bqhc", weights, values).reshape(x.shape)
        x += drop(
            project("out", attended, ("joined_kv", "embed")), is_training=is_training
        )
        hidden = project("wi", LayerNorm(name="mlp_norm")(x), ("embed", "mlp"))
        hidden = drop(nn.relu(hidden), is_training=is_training)
        return x + drop(
            project("wo", hidden, ("mlp", "embed")), is_training=is_training
        )


class LayerNorm(nn.Module):
    """Shifts vectors to mean 0 and scales them to variance 1."""

    @nn.compact
    def __call__(self, x: Float[Array, "B I D"]) -> Float[Array, "B I D"]:
        def param(name: str, init: Callable[..., Array]) -> Array:
            boxed = nn.with_logical_partitioning(init, ("embed",))
            return self.param(name, boxed, (x.shape[-1],))[None, None]

        x -= x.mean(-1, keepdims=True)
        x *= jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * param("scale", nn.initializers.ones) + param(
            "shift", nn.initializers.zeros
        )


@functools.partial(jax.jit, static_argnums=0)
def init_params(model: nn.Module, key: Array) -> Params:
    """Draws parameters, boxed with their logical axis names."""
    items = jnp.zeros((1, 1), jnp.int32)
    return model.init(key, items, is_training=False)["params"]


def make_loss_fn(
    model: nn.Module,
) -> Callable[..., tuple[Float[Array, ""], dict[str, Array]]]:
    """Makes the training loss: cross entropy over all items, at every position.

    Returns:
      loss_fn(params, batch, dropout_key) -> (loss_sum, sums) for batches with
      `items` int32[B, I + 1], padded with -1 on the right: the first I are read
      and the last I are targets; of a model that isn't causal, each row's last item
      is the target and those before it are read. A `dropout_key` of None turns
      dropout off. `sums` has `weight` (the number of targets, the divisor), `loss`
      and `correct`.
    """

    def loss_fn(
        params: Params, batch: Mapping[str, Array], dropout_key: Array | None
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        items, targets = batch["items"][:, :-1], batch["items"][:, 1:]
        if not model.config.is_causal:
            last = (targets != PADDING).sum(-1, keepdims=True) - 1  # [B 1]
            is_read = jnp.arange(items.shape[1])[None] <= last
            items = jnp.where(is_read, items, PADDING)
            targets = jnp.take_along_axis(targets, last.clip(0), 1)
        states, table = model.apply(
            {"params": params},
            items,
            is_training=dropout_key is not None,
            rngs={} if dropout_key is None else {"dropout": dropout_key},
        )
        logits = linear(states, table.T)  # [B, I, N]
        is_target = targets != PADDING
        # Not picked from the logits: the gradient of that would be one more array of
        # their size, and nearly all of the time goes into passing over such arrays.
        target_logits = (states * table[targets.clip(0)]).sum(-1)  # [B, I]
        highest = jax.lax.stop_gradient(logits.max(-1))
        log_sums = jnp.log(jnp.exp(logits - highest[..., None]).sum(-1))
        loss = jnp.where(is_target, highest + log_sums - target_logits, 0.0).sum()
        # Equal but for the order of additions, which must not decide.
        is_correct = is_target & (target_logits >= highest - 1e-5 * abs(highest))
        sums = {
            "weight": is_target.sum().astype(jnp.float32),
            "loss": loss,
            "correct": is_correct.sum().astype(jnp.float32),
        }
        return loss, sums

    return loss_fn


def make_score_fn(model: nn.Module) -> Callable[..., Float[Array, "B N"]]:
    """Makes score_fn(params, items[B I]) -> the next item's logits [B N].

    An empty history (-1 only) has scores too; SASRec's are those after item 0.
    """

    def score_fn(params: Params, items: Int[Array, "B I"]) -> Float[Array, "B N"]:
        states, table = model.apply({"params": params}, items, is_training=False)
        last = ((items != PADDING).sum(-1) - 1).clip(0, states.shape[1] - 1)  # [B]
        state = jnp.take_along_axis(states, last[:, None, None], 1)[:, 0]
        return state @ table.T

    return score_fn
