"""A two-level generator: one state per item of a history, then codewords from a state.

A causal Transformer reads a history with one position per item and is trained at
every position at once, so a whole history costs what one of its prefixes would. From
each position's state a small depth decoder spells the next item's Semantic ID: a
residual MLP over the state and the codewords before, one level after another. Between
the levels of a search a beam keeps nothing but its codewords.

An item enters as its codewords' embeddings, joined by a matrix. There is no user token.

The two levels follow MARIUS (arXiv 2508.14910) in spirit; the depth decoder without
attention is this project's.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from tiger_jax.config import config
from tiger_jax.errors import InputError, flag
from tiger_jax.models.attention import MASKED
from tiger_jax.models.generator import stack_levels
from tiger_jax.models.layers import Dropout, RmsNorm, linear_param
from tiger_jax.models.tuned_ops import linear
from tiger_jax.semantic_ids.token_ids import PADDING, TokenLayout

# Tables start small and are scaled up where they are read: AdamW, whose steps don't
# depend on a parameter's size, would hardly move one of unit variance.
EMBEDDING_STD = 0.1


@config("two_level")
class TwoLevelConfig:
    """Sizes and the loss; codebook sizes come from the `TokenLayout`.

    Attributes:
        num_layers: Blocks of the causal encoder.
        num_depth_layers: Residual MLPs of the depth decoder.
        d_model: Width of states and embeddings.
        num_heads: Attention heads, which share `d_model`.
        mlp_dim: Hidden units of every MLP.
        dropout_rate: In the encoder: on its input, attention weights, hidden units
            and residuals.
        depth_dropout_rate: In the depth decoder, on hidden units.
        label_smoothing: Share of a codeword's target spread evenly over its level.
        z_loss: Weight of log(Z)^2.
        max_distance: Distances between items that have an attention bias of their
            own; farther ones share the last.
        dtype: Compute dtype; parameters, logits and softmaxes are float32.
    """

    num_layers: int = 2
    num_depth_layers: int = 2
    d_model: int = 128
    num_heads: int = 4
    mlp_dim: int = 512
    dropout_rate: float = 0.4
    depth_dropout_rate: float = 0.1
    label_smoothing: float = 0.1
    z_loss: float = 0.0
    max_distance: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        """Refuses sizes that don't fit each other."""
        if self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads = {self.num_heads} must divide d_model = {self.d_model}"
            )

    @property
    def normalize(self) -> Literal["level", "given"]:
        """What makes a level's logits log-probabilities in a search."""
        return "level"

    @property
    def embedding_std(self) -> float:
        """The standard deviation that the table of token embeddings starts with."""
        return EMBEDDING_STD

    def build(self, layout: TokenLayout) -> "TwoLevel":
        """Makes the module.

        Raises:
            InputError: The layout has user tokens, which this model doesn't read.
        """
        if layout.num_user_tokens:
            raise InputError(
                "the two-level model reads no user tokens: train it with "
                + flag("train_recommender.num_user_tokens", 0)
            )
        return TwoLevel(self, layout)


class DecodeCache(NamedTuple):
    """What decoding keeps between levels: a state per request, codewords per beam."""

    state: Float[Array, "B D"]
    chosen: Int[Array, "B M t"]


class TwoLevel(nn.Module):
    """The causal item encoder and the depth decoder."""

    config: TwoLevelConfig
    layout: TokenLayout

    def setup(self) -> None:
        """Declares the tables and matrices."""
        cfg, d = self.config, self.config.d_model
        length = self.layout.semantic_id_length
        self.token_embeddings = self._table("token_embeddings", EMBEDDING_STD)
        self.output_head = self._table("output_head", EMBEDDING_STD / 2)
        self.join = linear_param(self, "join", (length * d, d), ("embed_in", "embed"))
        self.blocks = [
            CausalBlock(cfg, name=f"block_{i}") for i in range(cfg.num_layers)
        ]
        self.final_norm, self.dropout = RmsNorm(), Dropout(cfg.dropout_rate)
        self.start = linear_param(
            self, "start", (d, length * d), ("embed", "embed_out")
        )
        self.level_embeddings = self.param(
            "level_embeddings",
            nn.with_logical_partitioning(
                nn.initializers.normal(0.02), ("levels", "embed")
            ),
            (length, d),
        )
        self.prefixes = [
            linear_param(self, f"prefix_{t}", (t * d, d), ("embed_in", "embed"))
            for t in range(1, length)
        ]
        self.depth_blocks = [
            DepthBlock(cfg, name=f"depth_{i}") for i in range(cfg.num_depth_layers)
        ]
        self.depth_norm = RmsNorm()

    def _table(self, name: str, std: float) -> Float[Array, "V D"]:
        init = nn.initializers.normal(std)
        boxed = nn.with_logical_partitioning(init, ("vocab", "embed"))
        return self.param(name, boxed, (self.layout.vocab_size, self.config.d_model))

    def __call__(
        self,
        encoder_input_tokens: Int[Array, "B S"],
        decoder_input_tokens: Int[Array, "B targets"],
        *,
        is_training: bool,
    ) -> Float[Array, "B targets K_max"]:
        """Computes the logits of every target's codewords, given those before.

        Args:
            encoder_input_tokens: The history, T tokens per item, padded with 0 on the
                right.
            decoder_input_tokens: For each position that has a target, token 0 and the
                target without its last token: at every item of the history (P = S / T),
                or after its last one alone (P = 1).
            is_training: Applies dropout; needs an rng named "dropout".

        Returns:
            Logits of each level's codewords, -inf beyond a level's codebook if another
            one is larger.
        """
        batch, length = len(encoder_input_tokens), self.layout.semantic_id_length
        states = self.encode(encoder_input_tokens, is_training=is_training)
        num_targets = decoder_input_tokens.shape[1] // length
        if num_targets != states.shape[1]:
            states = _last(states, encoder_input_tokens[:, ::length])[:, None]
        embedded = self._embed(decoder_input_tokens).reshape(
            batch, num_targets, length, -1
        )
        starts = self._linear(states, self.start)
        x = starts.reshape(embedded.shape)
        before = [
            self._linear(_flat(embedded[:, :, 1 : t + 1]), matrix)
            for t, matrix in enumerate(self.prefixes, start=1)
        ]
        x += jnp.stack([jnp.zeros_like(states), *before], axis=2)
        hidden = self._deepen(x + self._level(slice(None)), is_training=is_training)
        logits = [self._logits(hidden[:, :, level], level) for level in range(length)]
        return stack_levels(logits).reshape(batch, num_targets * length, -1)

    def encode(
        self, tokens: Int[Array, "B S"], *, is_training: bool
    ) -> Float[Array, "B I D"]:
        """Computes a state at every item, of that item and those before it."""
        length = self.layout.semantic_id_length
        is_item = tokens[:, ::length] != PADDING  # [B, I]
        embedded = self._embed(tokens).reshape(*is_item.shape, -1)  # [B, I, T * D]
        x = self.dropout(self._linear(embedded, self.join), is_training=is_training)
        for block in self.blocks:
            x = block(x, is_item, is_training=is_training)
        return self.final_norm(x)

    def init_decode(self, encoder_input_tokens: Int[Array, "B S"]) -> DecodeCache:
        """Encodes histories; a request's beams share the state after the last item."""
        states = self.encode(encoder_input_tokens, is_training=False)
        first_tokens = encoder_input_tokens[:, :: self.layout.semantic_id_length]
        none = jnp.zeros((len(states), 1, 0), jnp.int32)
        return DecodeCache(_last(states, first_tokens), none)

    def decode_step(
        self,
        cache: DecodeCache,
        codewords: Int[Array, "B M"],
        parents: Int[Array, "B M"],
        level: int,
    ) -> tuple[Float[Array, "B M K"], DecodeCache]:
        """Computes each beam's logits of the codewords of `level`."""
        d, (state, chosen) = self.config.d_model, cache
        start = self._linear(state, self.start[:, level * d : (level + 1) * d])
        x = start[:, None]  # [B, 1, D]
        if level:
            kept = jnp.take_along_axis(chosen, parents[..., None], axis=1)
            chosen = jnp.concatenate([kept, codewords[..., None]], axis=-1)  # [B, M, t]
            # Whole codebooks go through the matrix, once for all beams.
            matrix = self.prefixes[level - 1].reshape(level, d, d)
            for t in range(level):
                first, size = (
                    self.layout.level_offsets[t],
                    self.layout.codebook_sizes[t],
                )
                table = self._embed(first + jnp.arange(size)[None])[0]  # [K, D]
                x = x + self._linear(table, matrix[t])[chosen[..., t]]
        hidden = self._deepen(x + self._level(level), is_training=False)
        return self._logits(hidden, level), DecodeCache(state, chosen)

    def _deepen(
        self, x: Float[Array, "*batch D"], *, is_training: bool
    ) -> Float[Array, "*batch D"]:
        for block in self.depth_blocks:
            x = block(x, is_training=is_training)
        return self.depth_norm(x)

    def _embed(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        return (self.token_embeddings[tokens] / EMBEDDING_STD).astype(self.config.dtype)

    def _level(self, level: int | slice) -> Float[Array, "1 1 *T D"]:
        return self.level_embeddings[level][None, None].astype(self.config.dtype)

    def _logits(
        self, hidden: Float[Array, "*batch D"], level: int
    ) -> Float[Array, "*batch K"]:
        first, size = (
            self.layout.level_offsets[level],
            self.layout.codebook_sizes[level],
        )
        head = self.output_head[first : first + size].astype(self.config.dtype)
        return jnp.matmul(hidden, head.T, preferred_element_type=jnp.float32)

    def _linear(self, x: Array, kernel: Array) -> Array:
        dtype = self.config.dtype
        return linear(x.astype(dtype), kernel.astype(dtype))


def _last(
    states: Float[Array, "B I D"], first_tokens: Int[Array, "B I"]
) -> Float[Array, "B D"]:
    """The state after each history's last item; the first one's if it has none."""
    last = ((first_tokens != PADDING).sum(-1) - 1).clip(0)
    return jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]


def _flat(x: Float[Array, "B P t D"]) -> Float[Array, "B P joined"]:
    return x.reshape(*x.shape[:2], -1)


class CausalBlock(nn.Module):
    """Pre-norm causal attention with a bias per distance, and a GELU MLP."""

    config: TwoLevelConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B I D"],
        is_item: Bool[Array, "B I"],
        *,
        is_training: bool,
    ) -> Float[Array, "B I D"]:
        cfg = self.config
        length, d = x.shape[1:]
        head_dim = d // cfg.num_heads
        drop = Dropout(cfg.dropout_rate)

        def project(name: str, x: Array, axes: tuple[str, str]) -> Array:
            kernel = linear_param(self, name, (d, d), axes)
            return linear(x, kernel.astype(cfg.dtype))

        def heads(name: str, x: Array) -> Float[Array, "B I H C"]:
            projected = project(name, x, ("embed", "joined_kv"))
            return projected.reshape(*x.shape[:2], cfg.num_heads, head_dim)

        normed = RmsNorm(name="attention_norm")(x)
        queries, keys, values = (heads(n, normed) for n in ("query", "key", "value"))
        scores = jnp.einsum(
            "bqhc,bkhc->bhqk", queries, keys, preferred_element_type=jnp.float32
        )
        by_distance = self.param(
            "distance_bias",
            nn.with_logical_partitioning(
                nn.initializers.zeros, ("heads", "relpos_buckets")
            ),
            (cfg.num_heads, cfg.max_distance),
        )
        place = jnp.arange(length)
        distance = (place[:, None] - place[None, :]).clip(0, cfg.max_distance - 1)
        # A matmul rather than a gather, whose gradient is a scatter.
        one_hot = jax.nn.one_hot(distance, cfg.max_distance, dtype=jnp.float32)
        bias = jnp.einsum("qkr,hr->hqk", one_hot, by_distance)
        is_seen = jnp.tril(jnp.ones((length, length), bool))[None] & is_item[:, None]
        bias = bias[None] + jnp.where(is_seen, 0.0, MASKED)[:, None]
        weights = jax.nn.softmax(scores * head_dim**-0.5 + bias).astype(x.dtype)
        weights = drop(weights, is_training=is_training)
        attended = jnp.einsum("bhqk,bkhc->bqhc", weights, values).reshape(x.shape)
        out = project("out", attended, ("joined_kv", "embed"))
        x = x + drop(out, is_training=is_training)
        return x + drop(
            _gelu_mlp(self, cfg, RmsNorm(name="mlp_norm")(x), drop, is_training),
            is_training=is_training,
        )


class DepthBlock(nn.Module):
    """A residual GELU MLP, for each level and position by itself."""

    config: TwoLevelConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch D"], *, is_training: bool
    ) -> Float[Array, "*batch D"]:
        drop = Dropout(self.config.depth_dropout_rate)
        normed = RmsNorm(name="mlp_norm")(x)
        return x + _gelu_mlp(self, self.config, normed, drop, is_training)


def _gelu_mlp(
    module: nn.Module, cfg: TwoLevelConfig, x: Array, drop: Dropout, is_training: bool
) -> Array:
    d = x.shape[-1]
    wi = linear_param(module, "wi", (d, cfg.mlp_dim), ("embed", "mlp"))
    wo = linear_param(module, "wo", (cfg.mlp_dim, d), ("mlp", "embed"))
    hidden = nn.gelu(linear(x, wi.astype(cfg.dtype)))
    return linear(drop(hidden, is_training=is_training), wo.astype(cfg.dtype))
