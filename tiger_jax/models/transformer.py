"""The encoder and the decoder of T5 v1.0, before embeddings and output heads."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from tiger_jax.models.attention import (
    BeamPosition,
    CrossAttention,
    Memory,
    SelfAttention,
    causal_bias,
    padding_bias,
    reorder_beams,
)
from tiger_jax.models.layers import Dropout, Mlp, RelativePositionBias, RmsNorm
from tiger_jax.models.tuned_ops import repeat_over_batch


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes of an encoder-decoder; the defaults are those of the TIGER paper.

    Attributes:
      d_model: Width of the residual stream; the paper prints 128, and 384 gives
        the 13M parameters that it also prints.
      head_dim: Width of a head; `num_heads * head_dim` needn't be `d_model`.
      dropout_rate: Dropout on embeddings, attention weights, hidden units and
        every residual branch.
      dtype: Compute dtype, "float32" or "bfloat16". Parameters, softmax, norms
        and losses are float32 in both.
      remat: Recomputes each block in the backward pass: less memory, a third
        more compute.
    """

    num_encoder_layers: int = 4
    num_decoder_layers: int = 4
    d_model: int = 128
    num_heads: int = 6
    head_dim: int = 64
    mlp_dim: int = 1024
    dropout_rate: float = 0.1
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False


class EncoderBlock(nn.Module):
    """Self-attention and MLP, each behind a norm and a residual."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], bias: Float[Array, "B H S S"], is_training: bool
    ) -> Float[Array, "B S D"]:
        drop = Dropout(self.config.dropout_rate)
        normed = RmsNorm(name="attention_norm")(x)
        attention = SelfAttention(**_attention_sizes(self.config), name="attention")
        x += drop(
            attention(normed, bias, is_training=is_training), is_training=is_training
        )
        normed = RmsNorm(name="mlp_norm")(x)
        mlp = _mlp(self.config, "mlp")(normed, is_training=is_training)
        return x + drop(mlp, is_training=is_training)


class Encoder(nn.Module):
    """Encodes token embeddings; padding is hidden from all attention."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        is_token: Bool[Array, "B S"],
        *,
        is_training: bool,
    ) -> Float[Array, "B S D"]:
        cfg = self.config
        block_class = EncoderBlock
        if cfg.remat:
            block_class = nn.remat(EncoderBlock, static_argnums=(3,))
        relative = RelativePositionBias(
            cfg.num_heads, cfg.d_model, True, name="position_bias"
        )
        length = x.shape[1]
        bias = repeat_over_batch(relative(length, length), len(x))
        bias += padding_bias(is_token)
        x = Dropout(cfg.dropout_rate)(x, is_training=is_training)
        for i in range(cfg.num_encoder_layers):
            x = block_class(cfg, name=f"block_{i}")(x, bias, is_training)
        x = RmsNorm(name="final_norm")(x)
        return Dropout(cfg.dropout_rate)(x, is_training=is_training)


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the encoder, MLP."""

    config: TransformerConfig

    def setup(self) -> None:
        self.self_norm = RmsNorm()
        self.self_attention = SelfAttention(**_attention_sizes(self.config))
        self.cross_norm = RmsNorm()
        self.cross_attention = CrossAttention(**_attention_sizes(self.config))
        self.mlp_norm = RmsNorm()
        self.mlp = _mlp(self.config)
        self.dropout = Dropout(self.config.dropout_rate)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        encoded: Float[Array, "B S D"],
        self_bias: Float[Array, "B H T T"],
        cross_bias: Float[Array, "B 1 1 S"],
        is_training: bool,
    ) -> Float[Array, "B T D"]:
        """Runs all T positions at once, as in training."""

        def drop(branch: Array) -> Array:
            return self.dropout(branch, is_training=is_training)

        x += drop(
            self.self_attention(self.self_norm(x), self_bias, is_training=is_training)
        )
        x += drop(
            self.cross_attention(
                self.cross_norm(x), encoded, cross_bias, is_training=is_training
            )
        )
        return x + drop(self.mlp(self.mlp_norm(x), is_training=is_training))

    def init_memory(self, encoded: Float[Array, "B S D"]) -> Memory:
        return self.cross_attention.init_memory(encoded)

    def step(
        self,
        x: Float[Array, "B M D"],
        past: tuple[BeamPosition, ...],
        memory: Memory,
        self_bias: Float[Array, "H level"],
        cross_bias: Float[Array, "B 1 1 S"],
    ) -> tuple[Float[Array, "B M D"], tuple[BeamPosition, ...]]:
        """Runs the newest position of every beam."""
        branch, past = self.self_attention.extend(self.self_norm(x), past, self_bias)
        x += branch
        x += self.cross_attention.attend_memory(self.cross_norm(x), memory, cross_bias)
        return x + self.mlp(self.mlp_norm(x), is_training=False), past


class Decoder(nn.Module):
    """Decodes a target sequence: at once (`__call__`) or by `step`."""

    config: TransformerConfig

    def setup(self) -> None:
        cfg = self.config
        block_class = DecoderBlock
        if cfg.remat:
            block_class = nn.remat(DecoderBlock, static_argnums=(5,))
        self.position_bias = RelativePositionBias(cfg.num_heads, cfg.d_model, False)
        self.blocks = [
            block_class(cfg, name=f"block_{i}") for i in range(cfg.num_decoder_layers)
        ]
        self.final_norm = RmsNorm()
        self.dropout = Dropout(cfg.dropout_rate)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        encoded: Float[Array, "B S D"],
        is_token: Bool[Array, "B S"],
        *,
        is_training: bool,
    ) -> Float[Array, "B T D"]:
        """Returns the states that predict the targets, all T at once."""
        length = x.shape[1]
        self_bias = self.position_bias(length, length)
        self_bias = repeat_over_batch(self_bias, len(x)) + causal_bias(length)
        cross_bias = padding_bias(is_token)
        x = self.dropout(x, is_training=is_training)
        for block in self.blocks:
            x = block(x, encoded, self_bias, cross_bias, is_training)
        return self.dropout(self.final_norm(x), is_training=is_training)

    def init_memory(self, encoded: Float[Array, "B S D"]) -> tuple[Memory, ...]:
        """Computes all blocks' cross-attention keys and values."""
        return tuple(block.init_memory(encoded) for block in self.blocks)

    def step(
        self,
        x: Float[Array, "B M D"],
        pasts: tuple[tuple[BeamPosition, ...], ...],
        memories: tuple[Memory, ...],
        is_token: Bool[Array, "B S"],
        parents: Int[Array, "B M"],
    ) -> tuple[Float[Array, "B M D"], tuple[tuple[BeamPosition, ...], ...]]:
        """Runs one position of every beam, the level being `len(pasts[0])`."""
        level = len(pasts[0])
        self_bias = self.position_bias(level + 1, level + 1)[:, level]  # [H, level + 1]
        cross_bias = padding_bias(is_token)
        extended = []
        for block, past, memory in zip(self.blocks, pasts, memories, strict=True):
            past = reorder_beams(past, parents)
            x, past = block.step(x, past, memory, self_bias, cross_bias)
            extended.append(past)
        return self.final_norm(x), tuple(extended)


def _attention_sizes(config: TransformerConfig) -> dict[str, Any]:
    names = ("d_model", "num_heads", "head_dim", "dropout_rate")
    return {name: getattr(config, name) for name in names} | {
        "dtype": jnp.dtype(config.dtype)
    }


def _mlp(config: TransformerConfig, name: str | None = None) -> Mlp:
    return Mlp(config.mlp_dim, config.dropout_rate, jnp.dtype(config.dtype), name=name)
