"""A two-level generator: one state per item of a history, then codewords from a state.

A causal Transformer reads a history with one position per item and is trained at
every position at once, so a whole history costs what one of its prefixes would. From
each position's state a small depth decoder spells the next item's Semantic ID: a
residual MLP over the state and the codewords before, one level after another. Between
the levels of a search a beam keeps nothing but its codewords.

An item enters as its codewords' embeddings, joined by a matrix, and with what a matrix
makes of its content vector, if the model reads these. There is no user token.

With a dense head the state is also compared with all items' projected content vectors:

    p(item) = softmax(cosine(user(state), item(content)) / temperature)

An item of the training histories may also have an embedding of its own, added where it
is read and where it is ranked. In training some are left out, so that a new item, which
has none, is read and ranked by its content.

One network, trained once, then has two sorts of candidates, those that are spelled
best and those of the largest p(item), and orders both by their codes and p(item)
together (`DenseWeights`).

The two levels follow MARIUS (arXiv 2508.14910) in spirit; the depth decoder without
attention is this project's. A low-pass filter over the history may stand beside the
encoder's attention (Shin et al. 2024, arXiv 2312.10325). The dense head beside a
generator is LIGER's (Yang et al. 2024, arXiv 2411.18814).
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from tiger_jax.config import config
from tiger_jax.errors import InputError, flag
from tiger_jax.models.attention import MASKED
from tiger_jax.models.generator import ItemVectors, stack_levels
from tiger_jax.models.layers import Dropout, RmsNorm, linear_param, low_pass_matrix
from tiger_jax.models.tuned_ops import linear
from tiger_jax.semantic_ids.encoder_inputs import ItemInputs
from tiger_jax.semantic_ids.token_ids import PADDING, TokenLayout
from tiger_jax.workdir.json_files import ADDED_LATER

# Tables start small and are scaled up where they are read: AdamW, whose steps don't
# depend on a parameter's size, would hardly move one of unit variance.
EMBEDDING_STD = 0.1
# Content is one of an item's two parts, and not the larger one: it must not teach the
# model to overlook the codes.
CONTENT_SCALE = 0.3
ITEM_STD = 0.1  # of items' own embeddings at first: content comes before them
TEMPERATURE = 0.07  # that the dense head starts with


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
        reads_content: The encoder reads each item's content vector too.
        dense_head: The state is also compared with every item's content vector.
        dense_loss_weight: Of the dense head's loss, beside the codewords'.
        item_embeddings: Every item of the training histories has an embedding of its
            own, beside what is made of its content vector.
        item_dropout_rate: Share of items whose own embeddings are left out in an
            update, as if they were new.
        filter_share: Of the history's low frequencies in what a block adds, beside
            attention, as in BSARec; 0 for attention alone.
        filter_cutoff: The filter keeps the frequencies up to half of it.
        filter_length: Items of the window that they are the frequencies of.
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
    reads_content: bool = False
    dense_head: bool = False
    dense_loss_weight: float = 1.0
    item_embeddings: bool = dataclasses.field(default=False, metadata=ADDED_LATER)
    item_dropout_rate: float = dataclasses.field(default=0.2, metadata=ADDED_LATER)
    filter_share: float = dataclasses.field(default=0.0, metadata=ADDED_LATER)
    filter_cutoff: int = dataclasses.field(default=5, metadata=ADDED_LATER)
    filter_length: int = dataclasses.field(default=50, metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        """Refuses sizes that don't fit each other."""
        if self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads = {self.num_heads} must divide d_model = {self.d_model}"
            )
        if self.item_embeddings and not self.needs_content:
            raise ValueError(
                "item_embeddings = True stand beside content vectors: set "
                "reads_content or dense_head too"
            )
        for name in ("item_dropout_rate", "filter_share"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise ValueError(f"{name} = {share} must lie between 0 and 1")
        if not 0 <= self.filter_cutoff < self.filter_length:
            raise ValueError(
                f"filter_cutoff = {self.filter_cutoff} must be below filter_length = "
                f"{self.filter_length}"
            )

    @property
    def normalize(self) -> Literal["level", "given"]:
        """What makes a level's logits log-probabilities in a search."""
        return "level"

    @property
    def embedding_std(self) -> float:
        """The standard deviation that the table of token embeddings starts with."""
        return EMBEDDING_STD

    @property
    def head_std(self) -> float:
        """The same of the output head, which starts from the codewords as well."""
        return EMBEDDING_STD / 2

    @property
    def needs_content(self) -> bool:
        """Whether the model takes content vectors."""
        return self.reads_content or self.dense_head

    def build(
        self, layout: TokenLayout, content_shape: tuple[int, int] = (0, 0)
    ) -> "TwoLevel":
        """Makes the module.

        Args:
            content_shape: Items of the training catalogue, and dimensions of an item's
                content vector, if the model takes these.

        Raises:
            InputError: The layout has user tokens, which this model doesn't read.
        """
        if layout.num_user_tokens:
            raise InputError(
                "the two-level model reads no user tokens: train it with "
                + flag("train_recommender.num_user_tokens", 0)
            )
        return TwoLevel(self, layout, content_shape)


class DecodeCache(NamedTuple):
    """What decoding keeps between levels: a state per request, codewords per beam."""

    state: Float[Array, "B D"]
    chosen: Int[Array, "B M t"]


class TwoLevel(nn.Module):
    """The causal item encoder and the depth decoder."""

    config: TwoLevelConfig
    layout: TokenLayout
    content_shape: tuple[int, int] = (0, 0)

    def setup(self) -> None:
        """Declares the tables and matrices."""
        cfg, d = self.config, self.config.d_model
        length = self.layout.semantic_id_length
        self.token_embeddings = self._table("token_embeddings", EMBEDDING_STD)
        self.output_head = self._table("output_head", cfg.head_std)
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
        content = (self.content_shape[1], d)
        if cfg.item_embeddings:
            self.item_embeddings = self._table(
                "item_embeddings", ITEM_STD * EMBEDDING_STD, self.content_shape[0]
            )
        if cfg.reads_content:
            self.content_in = linear_param(
                self, "content_in", content, ("embed_in", "embed")
            )
        if cfg.dense_head:
            self.content_out = linear_param(
                self, "content_out", content, ("embed_in", "embed")
            )
            self.user = linear_param(self, "user", (d, d), ("embed", "embed_out"))
            self.log_scale = self.param(
                "log_scale",
                nn.with_logical_partitioning(
                    nn.initializers.constant(-math.log(TEMPERATURE)), ()
                ),
                (),
            )

    def _table(
        self, name: str, std: float, num_rows: int | None = None
    ) -> Float[Array, "V D"]:
        init = nn.initializers.normal(std)
        boxed = nn.with_logical_partitioning(init, ("vocab", "embed"))
        rows = self.layout.vocab_size if num_rows is None else num_rows
        return self.param(name, boxed, (rows, self.config.d_model))

    def __call__(
        self,
        inputs: Any,
        decoder_input_tokens: Int[Array, "B targets"],
        *,
        is_training: bool,
    ) -> Float[Array, "B targets K_max"]:
        """The logits of `logits_and_states`."""
        return self.logits_and_states(
            inputs, decoder_input_tokens, is_training=is_training
        )[0]

    def logits_and_states(
        self,
        inputs: Any,
        decoder_input_tokens: Int[Array, "B targets"],
        *,
        is_training: bool,
    ) -> tuple[Float[Array, "B targets K_max"], Float[Array, "B P D"]]:
        """Computes the logits of every target's codewords, given those before.

        Args:
            inputs: Tokens [B S] of the history, T per item, padded with 0 on the
                right; or `ItemInputs` with the items' content as the model reads it.
            decoder_input_tokens: For each position that has a target, token 0 and the
                target without its last token: at every item of the history (P = S / T),
                or after its last one alone (P = 1).
            is_training: Applies dropout; needs an rng named "dropout".

        Returns:
            Logits of each level's codewords, -inf beyond a level's codebook if another
            one is larger; and the states that spelled them.
        """
        tokens, length = _tokens_of(inputs), self.layout.semantic_id_length
        batch, states = len(tokens), self.encode(inputs, is_training=is_training)
        num_targets = decoder_input_tokens.shape[1] // length
        if num_targets != states.shape[1]:
            states = _last(states, tokens[:, ::length])[:, None]
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
        stacked = stack_levels(logits)
        return stacked.reshape(batch, num_targets * length, -1), states

    def encode(self, inputs: Any, *, is_training: bool) -> Float[Array, "B I D"]:
        """Computes a state at every item, of that item and those before it."""
        tokens, length = _tokens_of(inputs), self.layout.semantic_id_length
        is_item = tokens[:, ::length] != PADDING  # [B, I]
        embedded = self._embed(tokens).reshape(*is_item.shape, -1)  # [B, I, T * D]
        x = self._linear(embedded, self.join)
        if self.config.reads_content:
            x = x + inputs.items.astype(x.dtype)
        x = self.dropout(x, is_training=is_training)
        is_seen = is_item[:, None] & jnp.tril(jnp.ones((x.shape[1],) * 2, bool))[None]
        windows = inputs.windows if isinstance(inputs, ItemInputs) else None
        if windows is not None:
            is_seen &= windows[:, :, None] == windows[:, None]
        for block in self.blocks:
            x = block(x, is_seen, is_training=is_training)
        return self.final_norm(x)

    def read_content(
        self, content: Float[Array, "*batch E"], numbers: Int[Array, "*batch"]
    ) -> Float[Array, "*batch D"]:
        """What the encoder adds to each item; zeros if it doesn't read content.

        Args:
            numbers: The items' in the training catalogue, -1 for new ones.
        """
        if not self.config.reads_content:
            return jnp.zeros((*content.shape[:-1], self.config.d_model))
        read = self._linear(content * CONTENT_SCALE, self.content_in)
        return read + self._own(numbers) * CONTENT_SCALE

    def rank_content(
        self, content: Float[Array, "*batch E"], numbers: Int[Array, "*batch"]
    ) -> Float[Array, "*batch D"]:
        """What a state is compared with, brought to length 1."""
        if not self.config.dense_head:
            return jnp.zeros((*content.shape[:-1], self.config.d_model))
        ranked = self._linear(content, self.content_out) + self._own(numbers)
        return _to_unit_length(ranked)

    def _own(self, numbers: Int[Array, "*batch"]) -> Float[Array, "*#batch #D"]:
        """The items' own embeddings; zeros where there are none."""
        if not self.config.item_embeddings:
            return jnp.zeros((1,) * (numbers.ndim + 1), self.config.dtype)
        own = self.item_embeddings[jnp.maximum(numbers, 0)] / EMBEDDING_STD
        return jnp.where(numbers[..., None] < 0, 0.0, own).astype(self.config.dtype)

    def embed_items(
        self, content: Float[Array, "N E"], numbers: Int[Array, " N"]
    ) -> ItemVectors:
        """Both, for all items of a catalogue."""
        return ItemVectors(
            self.read_content(content, numbers), self.rank_content(content, numbers)
        )

    def item_logits(
        self, states: Float[Array, "*batch D"], ranked: Float[Array, "N D"]
    ) -> Float[Array, "*batch N"]:
        """The dense head's logits of items, from what `rank_content` gave."""
        dtype = self.config.dtype
        return jnp.matmul(
            self._asked(states).astype(dtype),
            ranked.astype(dtype).T,
            preferred_element_type=jnp.float32,
        )

    def own_logits(
        self, states: Float[Array, "*batch D"], ranked: Float[Array, "*batch D"]
    ) -> Float[Array, "*batch"]:
        """The same where each state is compared with an item of its own."""
        return (self._asked(states) * ranked).sum(-1)

    def _asked(self, states: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        scale = jnp.exp(self.log_scale)
        return _to_unit_length(self._linear(states, self.user)) * scale

    def init_decode(self, inputs: Any) -> DecodeCache:
        """Encodes histories; a request's beams share the state after the last item."""
        states = self.encode(inputs, is_training=False)
        first_tokens = _tokens_of(inputs)[:, :: self.layout.semantic_id_length]
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


def _tokens_of(inputs: Any) -> Int[Array, "B S"]:
    return inputs.tokens if isinstance(inputs, ItemInputs) else inputs


def _to_unit_length(x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-12)


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
        is_seen: Bool[Array, "B I I"],
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
        bias = bias[None] + jnp.where(is_seen, 0.0, MASKED)[:, None]
        weights = jax.nn.softmax(scores * head_dim**-0.5 + bias).astype(x.dtype)
        weights = drop(weights, is_training=is_training)
        attended = jnp.einsum("bhqk,bkhc->bqhc", weights, values).reshape(x.shape)
        out = project("out", attended, ("joined_kv", "embed"))
        if cfg.filter_share:
            init = nn.initializers.normal(1.0)
            boxed = nn.with_logical_partitioning(init, ("embed",))
            beta = self.param("beta", boxed, (d,))
            filtered = filter_history(normed, is_seen, beta, cfg)
            out = cfg.filter_share * filtered + (1 - cfg.filter_share) * out
        x = x + drop(out, is_training=is_training)
        return x + drop(
            _gelu_mlp(self, cfg, RmsNorm(name="mlp_norm")(x), drop, is_training),
            is_training=is_training,
        )


def filter_history(
    x: Float[Array, "B I D"],
    is_seen: Bool[Array, "B I I"],
    beta: Float[Array, " D"],
    config: TwoLevelConfig,
) -> Float[Array, "B I D"]:
    """BSARec's rescaling of high frequencies, of each item and those before it.

    At a history's last item it is BSARec's own; at the others it is what the history
    up to there would give, so that every position can be trained at once.
    """
    kernel = low_pass_matrix(x.shape[1], config.filter_length, config.filter_cutoff)
    passing = jnp.where(is_seen, jnp.asarray(kernel)[None], 0.0).astype(x.dtype)
    low = jnp.einsum("bqk,bkd->bqd", passing, x)
    return low + (beta**2).astype(x.dtype)[None, None] * (x - low)


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
